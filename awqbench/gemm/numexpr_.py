"""y = x Wᵀ with numexpr doing the elementwise part.

Its honest place: numexpr evaluates about one element of one expression in 1.1 to 1.7 ns,
while a NumPy ufunc in cache takes 0.05 to 0.1. A multiplication is bound by unpacking, so
this path is slower than `numpy_` and exists because one readable expression says what
decoding is, and as a measure of numexpr. Two things make it bearable: eight codes at a time
in a 64-bit word, and whole blocks in a call, for every call wakes all threads. Where
numexpr does win is elementwise work over arrays beyond the cache, such as fake quantization
in a search.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from awqbench.gemm import numpy_
from awqbench.gemm.layout import TiledWeight, TileSpec

# A nibble in each byte of a word.
_LOW_NIBBLES = np.int64(0x0F0F0F0F0F0F0F0F)


def matmul(x: np.ndarray, weight: TiledWeight) -> np.ndarray:
    """Multiply tokens by a packed weight, in float32; parameters as `numpy_.matmul`.

    From `numpy_.FOLD_FROM` tokens a weight of up to 4 bits goes to `numpy_`, which has
    nothing left that numexpr could do better.

    Returns
    -------
    (M, N) ndarray of float32
        Relative Frobenius error to float64 below 1e-6.
    """
    if weight.spec.is_nibbles:
        return numpy_.matmul_tiles(x, weight, _tiles)
    arranged = numpy_.arrange(x, weight)
    y = np.empty((len(x), weight.spec.out_features), np.float32)
    with np.errstate(invalid="ignore", over="ignore", under="ignore"):
        for first, stop in weight.spec.blocks():
            y[:, first:stop] = arranged @ decode_block(weight, first, stop)
    return y


def decode_block(weight: TiledWeight, first: int, stop: int) -> np.ndarray:
    """Decode columns first:stop of a weight with a byte per code.

    Returns
    -------
    (C * unit, stop - first) ndarray of float32
    """
    import numexpr

    columns = slice(first, stop)
    zeros = weight.zeros[weight.groups, None, columns]
    values = numexpr.evaluate(
        "(codes - zeros) * scales",
        local_dict={
            "codes": weight.block(first, stop).view(np.int8),
            "zeros": zeros.astype(np.float32) - weight.spec.offset,
            "scales": weight.scales[weight.groups, None, columns],
        },
        casting="same_kind",
    )
    return values.reshape(-1, stop - first)


def _tiles(block: np.ndarray, spec: TileSpec) -> Iterator[tuple[slice, np.ndarray]]:
    """As `numpy_.unpacked_tiles`: numexpr takes the nibbles apart, NumPy casts them."""
    # Bytes wrap, as int8 does.
    low, high = ((half - np.uint8(spec.offset)).view(np.int8) for half in split_nibbles(block))
    step, half = spec.chunks_per_tile(), spec.unit // 2
    buffer = np.empty((min(step, len(block)), spec.unit, block.shape[2]), np.float32)
    for first in range(0, len(block), step):
        part = slice(first, min(first + step, len(block)))
        tile = buffer[: part.stop - first]
        tile[:, :half] = low[part]
        tile[:, half:] = high[part]
        yield part, tile


def split_nibbles(packed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the low and the high nibble of every byte, eight bytes at a time.

    Parameters
    ----------
    packed : ndarray of uint8, contiguous

    Returns
    -------
    (low, high) : ndarrays of uint8
        Of the shape of `packed`.

    Examples
    --------
    >>> low, high = split_nibbles(np.array([0x21, 0xF0], np.uint8))
    >>> low.tolist(), high.tolist()
    ([1, 0], [2, 15])
    """
    import numexpr

    padded = np.zeros(-(-packed.size // 8) * 8, np.uint8)
    padded[: packed.size] = packed.ravel()
    names = {"words": padded.view(np.int64), "mask": _LOW_NIBBLES}
    low = numexpr.evaluate("words & mask", local_dict=names)
    high = numexpr.evaluate("(words >> 4) & mask", local_dict=names)
    return tuple(part.view(np.uint8)[: packed.size].reshape(packed.shape) for part in (low, high))
