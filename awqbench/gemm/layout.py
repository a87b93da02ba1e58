"""Codes laid out for unpacking in cache-sized tiles, shared by every compute path on the CPU.

Input channels are cut into chunks of one group each (`unit` channels, padded with code 0),
output channels into blocks of `BLOCK`. In memory a block is (C, unit / 2, BLOCK) bytes up to
4 bits, one after the other: the low nibbles hold the first half of a chunk's channels, the
high nibbles the second half, so that a tile unpacks by one mask and one shift into two
contiguous halves, and multiplies as a stack of C small matrices. Wider codes take a byte
each, of int8 centred on 0, which costs nothing to unpack and keeps large codes from
cancelling.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from awqbench.packed import PackedWeight

# Columns of a tile, a multiple of 64. Within 4 % of the best of 128 to 1024 for one token, and
# 15 % better than 512 for 16: OpenBLAS multiplies without packing while M * 128 * BLOCK < 1e6.
BLOCK = 384
# Floats in a tile: 1 MiB, half of the L2 cache of the machine it was measured on.
TILE_FLOATS = 1 << 18
# Longest chunk: longer groups are cut, so that a tile never outgrows the cache and the sum
# of a chunk's integers (at most 128 * 255) fits int16.
MAX_UNIT = 128
# Stands in `sums` for a chunk whose weights are all exactly 0: no sum is so low. Such a
# chunk can have any scale (1 by our own rule), beside which even rounding errors are large.
ALL_ZERO = -(1 << 15)


class TileSpec(NamedTuple):
    """What a laid-out weight is, without its arrays; the fields are `PackedWeight`'s."""

    out_features: int
    in_features: int
    bits: int
    group_size: int
    zero_point: bool
    scale_dtype: str
    name: str
    unit: int
    has_g_idx: bool

    @property
    def is_nibbles(self) -> bool:
        """Whether two codes share a byte."""
        return self.bits <= 4

    @property
    def offset(self) -> int:
        """What unpacking takes off a code: the middle of its range.

        Most codes of a group lie near its zero point, mostly near the middle: products of
        large codes would cancel. Bytes are stored with it taken off; for nibbles it costs 4 %
        of the time of one token.
        """
        return 1 << (self.bits - 1)

    def blocks(self) -> Iterator[tuple[int, int]]:
        """Yield the first and past-the-last column of each block."""
        for first in range(0, self.out_features, BLOCK):
            yield first, min(first + BLOCK, self.out_features)

    def chunks_per_tile(self) -> int:
        """Return how many chunks of a block make a tile of about `TILE_FLOATS`."""
        return max(1, TILE_FLOATS // (self.unit * min(BLOCK, max(self.out_features, 1))))


@dataclass(frozen=True)
class TiledWeight:
    """A packed weight in the layout of this module; arrays or tensors alike.

    Parameters
    ----------
    spec : TileSpec
    codes : (C * unit * N / 2,) or (C * unit * N,) of uint8
        Blocks one after the other; a byte of int8 each where `spec.is_nibbles` is False.
    scales : (G, N) of float
    zeros : (G, N) of uint8
    sums : (C, N) of int16
        Sum over a chunk of ``codes - zeros``, padding included, or `ALL_ZERO`.
    groups : (C,) of int64
        Group of each chunk.
    order : (C * unit,) of int64, or None
        Input channel at each place, K for padding; None where it is ``arange(K)``.
    """

    spec: TileSpec
    codes: Any
    scales: Any
    zeros: Any
    sums: Any
    groups: Any
    order: Any

    def block(self, first: int, stop: int) -> Any:
        """Return the bytes of a block, a (C, unit / 2 or unit, stop - first) view."""
        rows = self.spec.unit // 2 if self.spec.is_nibbles else self.spec.unit
        per_column = len(self.groups) * rows
        part = self.codes[first * per_column : stop * per_column]
        return part.reshape(len(self.groups), rows, stop - first)


def tile_weight(packed: PackedWeight) -> TiledWeight:
    """Lay out a packed weight.

    Parameters
    ----------
    packed : PackedWeight

    Returns
    -------
    TiledWeight
        Of ndarrays; `scales` float32.
    """
    n_rows, in_features = packed.codes.shape
    unit = max(2, min(packed.group_size, MAX_UNIT, in_features))
    spec = TileSpec(
        out_features=n_rows,
        in_features=in_features,
        bits=packed.bits,
        group_size=packed.group_size,
        zero_point=packed.zero_point,
        scale_dtype=packed.scale_dtype,
        name=packed.name,
        unit=unit + unit % 2,
        has_g_idx=packed.g_idx is not None,
    )
    groups, order = _chunks(packed.group_index(), packed.n_groups, spec.unit)
    is_plain = len(order) == in_features and np.array_equal(order, np.arange(in_features))
    codes = packed.codes.T
    if not is_plain:
        padding = np.full((1, n_rows), spec.offset, np.uint8)
        codes = np.concatenate([codes, padding])[order]
    codes = codes.reshape(len(groups), spec.unit, n_rows)
    zeros = np.ascontiguousarray(packed.zeros.T)
    return TiledWeight(
        spec=spec,
        codes=pack_blocks(codes, spec),
        scales=np.ascontiguousarray(packed.scales.T),
        zeros=zeros,
        sums=_sums(codes, zeros[groups], order.reshape(codes.shape[:2]) < in_features),
        groups=groups,
        order=None if is_plain else order,
    )


def _sums(codes: np.ndarray, zeros: np.ndarray, is_real: np.ndarray) -> np.ndarray:
    """Return `TiledWeight.sums` of (C, unit, N) codes; `is_real` (C, unit) tells padding."""
    sums = np.empty(zeros.shape, np.int16)
    for chunk, (code, zero, real) in enumerate(zip(codes, zeros, is_real, strict=True)):
        sums[chunk] = code.sum(axis=0, dtype=np.int32) - zero.astype(np.int32) * len(code)
        sums[chunk, (code[real] == zero).all(axis=0)] = ALL_ZERO
    return sums


def pack_blocks(codes: np.ndarray, spec: TileSpec) -> np.ndarray:
    """Lay (C, unit, N) codes out as the bytes of `TiledWeight.codes`."""
    if spec.is_nibbles:
        half = spec.unit // 2
        codes = codes[:, :half] | codes[:, half:] << 4
    else:
        codes = codes - np.uint8(spec.offset)  # wraps, as int8 does
    flat = np.empty(codes.size, np.uint8)
    per_column = codes.shape[0] * codes.shape[1]
    for first, stop in spec.blocks():
        flat[first * per_column : stop * per_column] = codes[:, :, first:stop].ravel()
    return flat


def unpack_blocks(weight: TiledWeight) -> np.ndarray:
    """Return the codes of a weight of ndarrays, (C * unit, N) ndarray of uint8."""
    spec = weight.spec
    codes = np.empty((len(weight.groups), spec.unit, spec.out_features), np.uint8)
    half = spec.unit // 2
    for first, stop in spec.blocks():
        block = weight.block(first, stop)
        if spec.is_nibbles:
            codes[:, :half, first:stop] = block & 15
            codes[:, half:, first:stop] = block >> 4
        else:
            codes[:, :, first:stop] = block + np.uint8(spec.offset)
    return codes.reshape(-1, spec.out_features)


def untile_weight(weight: TiledWeight) -> PackedWeight:
    """Return the `PackedWeight` that a weight of ndarrays was made from."""
    spec = weight.spec
    rows = unpack_blocks(weight)
    index = np.repeat(weight.groups, spec.unit)
    order = np.arange(spec.in_features) if weight.order is None else weight.order
    real = order < spec.in_features
    codes = np.empty((spec.out_features, spec.in_features), np.uint8)
    codes[:, order[real]] = rows[real].T
    g_idx = np.empty(spec.in_features, np.int32)
    g_idx[order[real]] = index[real]
    return PackedWeight(
        codes=codes,
        scales=np.ascontiguousarray(weight.scales.T.astype(np.float32)),
        zeros=np.ascontiguousarray(weight.zeros.T),
        bits=spec.bits,
        group_size=spec.group_size,
        zero_point=spec.zero_point,
        scale_dtype=spec.scale_dtype,
        g_idx=g_idx if spec.has_g_idx else None,
        name=spec.name,
    )


def _chunks(index: np.ndarray, n_groups: int, unit: int) -> tuple[np.ndarray, np.ndarray]:
    """Cut channels, gathered by group, into chunks of `unit`; return (groups, order)."""
    in_features = len(index)
    counts = np.bincount(index, minlength=n_groups)
    chunks = -(-counts // unit)
    groups = np.repeat(np.arange(len(counts)), chunks)
    gathered = np.argsort(index, kind="stable")
    # Place of a channel: its chunk's start, plus its rank in the group.
    first_place = np.concatenate([[0], np.cumsum(chunks)[:-1]]) * unit
    first_rank = np.concatenate([[0], np.cumsum(counts)[:-1]])
    group = index[gathered]
    places = first_place[group] + np.arange(in_features) - first_rank[group]
    order = np.full(len(groups) * unit, in_features)
    order[places] = gathered
    return groups, order


_FORMS: dict[int, dict[Any, Any]] = {}


def cached_form(packed: PackedWeight, key: Any, make: Callable[[PackedWeight], Any]) -> Any:
    """Return ``make(packed)``, made once and kept for as long as `packed` lives.

    Kept beside the weight and not on it: arrays in a PackedWeight make it unhashable, and a
    pickle of it should not carry a second copy.
    """
    forms = _FORMS.get(id(packed))
    if forms is None:
        forms = _FORMS[id(packed)] = {}
        weakref.finalize(packed, _FORMS.pop, id(packed), None).atexit = False
    if key not in forms:
        forms[key] = make(packed)
    return forms[key]
