"""y = x Wᵀ from packed codes in NumPy: the path that runs everywhere.

Few tokens: a tile of codes is unpacked in cache, multiplied as it is, and the group's scale
and zero point enter afterwards. With m the mean of x over a group,

    sum_k x_k (q_k - z) s  =  s ( sum_k (x_k - m) q_k  +  m sum_k (q_k - z) ),

where the last sum is an exact small integer known beforehand. Taking the mean out costs
nothing and keeps an x that is far from zero from cancelling: the plain split into
sum x q - z sum x loses a digit there. Many tokens: a tile is decoded with scale and zero
point folded in, and one sgemm runs over it.

What was tried for one token and brought nothing (Zen 4, NumPy 2.4, 4096 x 4096, processor time of
one thread over that of a dense product; as it stands 2.0): the mask or the offset written to
float32 by the ufunc itself 1.8 and 2.05, words of 16 bits multiplied and masked 2.3, tiles of
512 and 1024 columns 1.9 and 1.95, half of the tile 2.3, a table of 256 floats above 10. Bytes
become float32 at 0.10 ns each in every way; the product alone takes 0.6. Blocks of columns on two
Python threads, BLAS on one each, against two of BLAS (wall time, quiet): 1.15 times slower for one
token, 0.95 for 16, 1.2 times slower for 512.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from awqbench.gemm.layout import ALL_ZERO, TiledWeight, TileSpec

# From this many tokens decoding a tile costs less than a stack of small products.
FOLD_FROM = 64
# Floats of a decoded slab (64 MiB): bounds memory at K = 32768 to one block of columns.
_SLAB_FLOATS = 1 << 24

Tiles = Callable[[np.ndarray, TileSpec], Iterator[tuple[slice, np.ndarray]]]


def matmul(x: np.ndarray, weight: TiledWeight) -> np.ndarray:
    """Multiply tokens by a packed weight, in float32.

    A row that comes out not finite is computed again from decoded weights, so that it is
    NaN or infinite exactly where x Wᵀ is; other rows are not touched.

    Parameters
    ----------
    x : (M, K) ndarray of float32
    weight : TiledWeight
        Of ndarrays.

    Returns
    -------
    (M, N) ndarray of float32
        Relative Frobenius error to float64 below 1e-6.
    """
    return matmul_tiles(x, weight, unpacked_tiles)


def matmul_tiles(x: np.ndarray, weight: TiledWeight, tiles: Tiles) -> np.ndarray:
    """As `matmul`, with the unpacking of codes for few tokens given by the caller."""
    arranged = arrange(x, weight)
    with np.errstate(invalid="ignore", over="ignore", under="ignore"):
        if len(x) >= FOLD_FROM:
            return folded(arranged, weight)
        y = _factored(arranged, weight, tiles)
        bad = ~np.isfinite(y).all(axis=1)
        if bad.any():
            y[bad] = folded(arranged[bad], weight)
    return y


def arrange(x: np.ndarray, weight: TiledWeight) -> np.ndarray:
    """Return x (M, K) with its columns in the weight's order, zeros for padding."""
    if weight.order is None:
        return np.ascontiguousarray(x)
    padded = np.zeros((len(x), weight.spec.in_features + 1), np.float32)
    padded[:, :-1] = x
    return padded[:, weight.order]


def unpacked_tiles(block: np.ndarray, spec: TileSpec) -> Iterator[tuple[slice, np.ndarray]]:
    """Yield the codes of a block tile by tile, as float32 in a buffer that is used again.

    Parameters
    ----------
    block : (C, unit / 2 or unit, n) ndarray of uint8
    spec : TileSpec

    Yields
    ------
    (slice of chunks, (chunks, unit, n) ndarray of float32)
        Codes less `spec.offset`.
    """
    step = spec.chunks_per_tile()
    buffer = np.empty((min(step, len(block)), spec.unit, block.shape[2]), np.float32)
    for first in range(0, len(block), step):
        part = slice(first, min(first + step, len(block)))
        tile = buffer[: part.stop - first]
        unpack(block[part], spec, out=tile)
        yield part, tile


def unpack(codes: np.ndarray, spec: TileSpec, out: np.ndarray) -> None:
    """Write the codes of some chunks, less `spec.offset`, into a float32 array.

    The offset is taken off bytes, which wrap to int8, where 64 fit in a register: 4 % of the
    time of one token, against 18 % for taking it off the floats.
    """
    if not spec.is_nibbles:
        out[...] = codes.view(np.int8)
        return
    half = spec.unit // 2
    nibbles = codes & np.uint8(15)
    nibbles -= np.uint8(spec.offset)
    out[:, :half] = nibbles.view(np.int8)
    np.right_shift(codes, np.uint8(4), out=nibbles)
    nibbles -= np.uint8(spec.offset)
    out[:, half:] = nibbles.view(np.int8)


def _factored(x: np.ndarray, weight: TiledWeight, tiles: Tiles) -> np.ndarray:
    """Multiply unpacked codes; scale, zero point and mean afterwards. See the module."""
    spec, n_chunks = weight.spec, len(weight.groups)
    grouped = x.reshape(len(x), n_chunks, spec.unit).transpose(1, 0, 2)
    mean = grouped.mean(axis=-1, keepdims=True, dtype=np.float64)
    centred = (grouped - mean).astype(np.float32)
    mean = mean[..., 0].T.astype(np.float32)
    y = np.empty((len(x), spec.out_features), np.float32)
    for first, stop in spec.blocks():
        scales = weight.scales[weight.groups, first:stop]
        scales[weight.sums[:, first:stop] == ALL_ZERO] = 0
        # The means of all chunks at once: one small product for each block.
        columns = mean @ (scales * weight.sums[:, first:stop])
        for part, tile in tiles(weight.block(first, stop), spec):
            partial = np.matmul(centred[part], tile)
            partial *= scales[part, None]
            columns += partial.sum(axis=0)
        y[:, first:stop] = columns
    return y


def folded(x: np.ndarray, weight: TiledWeight) -> np.ndarray:
    """Multiply by weights decoded a block of columns at a time.

    Parameters
    ----------
    x : (M, C * unit) ndarray of float32
        In the weight's order, as `arrange` returns it.
    weight : TiledWeight

    Returns
    -------
    (M, N) ndarray of float32
    """
    spec, n_chunks = weight.spec, len(weight.groups)
    y = np.zeros((len(x), spec.out_features), np.float32)
    for first, stop in spec.blocks():
        step = max(1, _SLAB_FLOATS // (spec.unit * (stop - first)))
        for begin in range(0, n_chunks, step):
            end = min(begin + step, n_chunks)
            slab = _decode(weight, first, stop, begin, end)
            y[:, first:stop] += x[:, begin * spec.unit : end * spec.unit] @ slab
    return y


def _decode(weight: TiledWeight, first: int, stop: int, begin: int, end: int) -> np.ndarray:
    """Return W of columns first:stop and chunks begin:end, (rows, columns) float32."""
    spec = weight.spec
    block = weight.block(first, stop)
    slab = np.empty((end - begin, spec.unit, stop - first), np.float32)
    # Half a tile at a time: it is passed over three times and should stay in L2.
    step = max(1, spec.chunks_per_tile() // 2)
    for at in range(begin, end, step):
        part = slice(at, min(at + step, end))
        tile = slab[at - begin : part.stop - begin]
        group = weight.groups[part]
        unpack(block[part], spec, out=tile)
        tile -= weight.zeros[group, None, first:stop].astype(np.float32) - spec.offset
        tile *= weight.scales[group, None, first:stop]
    return slab.reshape(-1, stop - first)
