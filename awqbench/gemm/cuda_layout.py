"""The layout that the CUDA kernels read ("tiles"), defined in NumPy, both ways.

A tile is 16 output x 128 input channels. A lane of a warp reads 16 bytes of it at a time, and
each word is a fragment of the A operand of a tensor-core instruction as it stands: nothing is
shuffled on the GPU. With g = lane // 4 and t = lane % 4, the fragment of 16 input channels that
begins at k holds the codes of output channels g and g + 8 and input channels k + 2t, k + 2t + 1,
k + 2t + 8 and k + 2t + 9 (PTX ISA, "mma.m16n8k16 with floating point type", fragment of A).

The kernels' own description stands in kernels/tiles.cuh.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from awqbench.numerics import narrowest_dtype
from awqbench.packed import PackedWeight

TILE_ROWS, TILE_K, LANES = 16, 128, 32
# A scale serves whole steps of this many input channels.
GROUP_MULTIPLE = 32
# What the macro SCALE stands for.
SCALE_TYPES = ("float16", "bfloat16", "float32")


class TileSpec(NamedTuple):
    """What tiles hold: sizes, width of a stored code (4 or 8), input channels of a group.

    `group_size` is 0 where a scale serves the whole row.
    """

    out_features: int
    in_features: int
    bits: int
    group_size: int
    scale_type: str

    @property
    def n_tiles(self) -> int:
        """Tiles of output channels."""
        return -(-self.out_features // TILE_ROWS)

    @property
    def k_tiles(self) -> int:
        """Tiles of input channels."""
        return -(-self.in_features // TILE_K)

    @property
    def n_groups(self) -> int:
        """Groups, those that lie in the padding of K included."""
        return -(-self.k_tiles * TILE_K // self.group_size) if self.group_size else 1

    @property
    def codes_shape(self) -> tuple[int, ...]:
        """Shape of the codes, words of 32 bits."""
        return (self.n_tiles, self.k_tiles, self.bits // 2, LANES, 4)

    @property
    def meta_shape(self) -> tuple[int, ...]:
        """Shape of scales and of zero points."""
        return (self.n_groups, self.n_tiles, TILE_ROWS // 2, 2)

    @property
    def nbytes(self) -> int:
        """Bytes of codes, scales and zero points."""
        per_scale = 4 if self.scale_type == "float32" else 2
        meta = self.n_groups * self.n_tiles * TILE_ROWS
        return int(np.prod(self.codes_shape)) * 4 + meta * (per_scale + 1)


class TiledArrays(NamedTuple):
    """A weight in tiles, as ndarrays.

    `codes` uint32 and `zeros` uint8 have the shapes of `spec`; `scales` too, float16, float32,
    or the bits of bfloat16 as uint16. `order` (K,) int64 is the input channel at each place, or
    None where that is the plain order.
    """

    spec: TileSpec
    codes: np.ndarray
    scales: np.ndarray
    zeros: np.ndarray
    order: np.ndarray | None


def why_not(packed: PackedWeight) -> str:
    """Say why a weight cannot be laid out in tiles, or ""."""
    if packed.n_groups == 1:
        return ""
    if packed.group_size % GROUP_MULTIPLE:
        return f"group_size is {packed.group_size}, not a multiple of {GROUP_MULTIPLE}"
    counts = np.bincount(packed.group_index(), minlength=packed.n_groups)
    expected = np.bincount(np.arange(packed.in_features) // packed.group_size)
    if not np.array_equal(counts, expected):
        return "its groups, gathered by g_idx, are not of group_size channels each"
    return ""


def spec_of(packed: PackedWeight) -> TileSpec:
    """Return what the tiles of a weight hold; `why_not` says whether it has any."""
    return TileSpec(
        out_features=packed.out_features,
        in_features=packed.in_features,
        bits=4 if packed.bits <= 4 else 8,
        group_size=0 if packed.n_groups == 1 else packed.group_size,
        scale_type=narrowest_dtype(packed.scales),
    )


def order_of(packed: PackedWeight) -> np.ndarray | None:
    """Return the channels gathered by group, (K,) int64, or None if they lie so already."""
    index = packed.group_index()
    if (np.diff(index) >= 0).all():
        return None
    return np.argsort(index, kind="stable")


def pack_weight(packed: PackedWeight) -> TiledArrays:
    """Lay out a weight in tiles: the definition of what `cuda` makes on the GPU."""
    spec, order = spec_of(packed), order_of(packed)
    codes = packed.codes if order is None else packed.codes[:, order]
    return TiledArrays(
        spec,
        pack_codes(codes, spec),
        pack_meta(store_scales(packed.scales, spec.scale_type), spec),
        pack_meta(packed.zeros, spec),
        order,
    )


def pack_codes(codes: np.ndarray, spec: TileSpec) -> np.ndarray:
    """Lay out codes as words.

    Parameters
    ----------
    codes : (N, K) ndarray of uint8
    spec : TileSpec

    Returns
    -------
    ndarray of uint32
        Of shape ``spec.codes_shape``; padding is code 0.
    """
    padded = np.zeros((spec.n_tiles * TILE_ROWS, spec.k_tiles * TILE_K), np.uint32)
    padded[: spec.out_features, : spec.in_features] = codes
    # tile, row half, g, tile of K, step, half of the step, t, odd
    parts = padded.reshape(spec.n_tiles, 2, 8, spec.k_tiles, 8, 2, 4, 2)
    # tile, tile of K, step, half of the step, g, t, row half, odd
    parts = parts.transpose(0, 3, 4, 5, 2, 6, 1, 7)
    words = (parts << _shifts(spec.bits)).sum(axis=(-1, -2), dtype=np.uint32)
    if spec.bits == 4:  # both halves of a step share a word
        words = words.sum(axis=3, dtype=np.uint32)
    loads = words.reshape(spec.n_tiles, spec.k_tiles, spec.bits // 2, 4, LANES)
    return np.ascontiguousarray(loads.swapaxes(-1, -2))


def unpack_codes(words: np.ndarray, spec: TileSpec) -> np.ndarray:
    """Return the (N, K) uint8 codes of `pack_codes`."""
    halves = 1 if spec.bits == 4 else 2
    loads = words.swapaxes(-1, -2).reshape(spec.n_tiles, spec.k_tiles, 8, halves, 8, 4, 1, 1)
    parts = loads >> _shifts(spec.bits) & np.uint32((1 << spec.bits) - 1)
    padded = parts.transpose(0, 6, 4, 1, 2, 3, 5, 7)
    padded = padded.reshape(spec.n_tiles * TILE_ROWS, spec.k_tiles * TILE_K)
    return padded[: spec.out_features, : spec.in_features].astype(np.uint8)


def _shifts(bits: int) -> np.ndarray:
    """Return the place of a code in its word: (half of the step, 1, 1, row half, odd)."""
    half, row, odd = np.ogrid[:2, :2, :2]
    shifts = 4 * row + 8 * half + 16 * odd if bits == 4 else 16 * row + 8 * odd + 0 * half
    return shifts.astype(np.uint32)[:, None, None]


def pack_meta(values: np.ndarray, spec: TileSpec) -> np.ndarray:
    """Lay out scales or zero points, (N, G) of any dtype, as ``spec.meta_shape``."""
    padded = np.zeros((spec.n_tiles * TILE_ROWS, spec.n_groups), values.dtype)
    padded[: values.shape[0], : values.shape[1]] = values
    parts = padded.reshape(spec.n_tiles, 2, 8, spec.n_groups)
    return np.ascontiguousarray(parts.transpose(3, 0, 2, 1))


def unpack_meta(values: np.ndarray, spec: TileSpec, n_groups: int) -> np.ndarray:
    """Return the (N, `n_groups`) values of `pack_meta`."""
    padded = values.transpose(1, 3, 2, 0).reshape(-1, spec.n_groups)
    return np.ascontiguousarray(padded[: spec.out_features, :n_groups])


def store_scales(scales: np.ndarray, scale_type: str) -> np.ndarray:
    """Return float32 scales in the type they are stored in; bfloat16 as bits, uint16."""
    scales = np.ascontiguousarray(scales, np.float32)
    if scale_type == "bfloat16":
        return (scales.view(np.uint32) >> 16).astype(np.uint16)
    return scales.astype(scale_type)
