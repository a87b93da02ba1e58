"""The packed stream of the native backend, from a `PackedWeight` and back.

One sequential stream serves every instruction set, so that it depends on no machine; its
layout stands in kernels/native_stream.h. Codes lie in chunks of at most 128 input channels of
one group, in panels of 64 output channels; scales and zero points follow the codes that they
belong to.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from awqbench.numerics import narrowest_dtype
from awqbench.packed import PackedWeight

# Columns of a block and of a panel, and the longest chunk: as in kernels/native_stream.h.
BLOCK, PANEL, MAX_UNIT = 16, 64, 128
# A cache line: rows of codes, the length of a row of AVX-512, are read without crossing one.
ALIGNMENT = 64
SCALE_TYPES = ("float16", "bfloat16", "float32")


class NativeSpec(NamedTuple):
    """What a stream holds; the first fields are `PackedWeight`'s."""

    out_features: int
    in_features: int
    n_groups: int
    bits: int
    group_size: int
    zero_point: bool
    scale_dtype: str
    name: str
    has_g_idx: bool
    unit: int
    n_chunks: int
    stored_scales: str

    @property
    def code_bits(self) -> int:
        """Width of a code in the stream, 4 or 8."""
        return 4 if self.bits <= 4 else 8

    @property
    def scale_bytes(self) -> int:
        """Width of a scale in the stream."""
        return 4 if self.stored_scales == "float32" else 2

    def chunk_bytes(self, n_blocks: int) -> int:
        """Return the length of a chunk of a panel of 1 to 4 blocks."""
        codes = BLOCK * self.unit * self.code_bits // 8
        return -(-n_blocks * (codes + BLOCK * (self.scale_bytes + 1)) // ALIGNMENT) * ALIGNMENT

    def panels(self):
        """Yield the first column, the blocks and the first byte of each panel."""
        at = 0
        for first in range(0, self.out_features, PANEL):
            n_blocks = -(-min(PANEL, self.out_features - first) // BLOCK)
            yield first, n_blocks, at
            at += self.n_chunks * self.chunk_bytes(n_blocks)

    @property
    def nbytes(self) -> int:
        """Length of the stream."""
        n_full, left = divmod(self.out_features, PANEL)
        per_chunk = n_full * self.chunk_bytes(PANEL // BLOCK)
        return self.n_chunks * (per_chunk + self.chunk_bytes(-(-left // BLOCK)))


class NativeWeight(NamedTuple):
    """A weight as the native kernels read it; arrays or tensors alike.

    `stream` (nbytes,) uint8; `groups` (C,) int32, the group of each chunk; `order` (C * unit,)
    int32, the input channel at each place and -1 for padding, or None where that is the plain
    order with padding at its end.
    """

    spec: NativeSpec
    stream: Any
    groups: Any
    order: Any


def stream_weight(packed: PackedWeight) -> NativeWeight:
    """Lay out a packed weight as a stream, aligned to a cache line.

    Parameters
    ----------
    packed : PackedWeight

    Returns
    -------
    NativeWeight
        Of ndarrays.
    """
    longest = max(1, min(packed.group_size, packed.in_features))
    unit = min(MAX_UNIT, -(-longest // 8) * 8)
    groups, order = _chunks(packed.group_index(), packed.n_groups, unit)
    spec = NativeSpec(
        out_features=packed.out_features,
        in_features=packed.in_features,
        n_groups=packed.n_groups,
        bits=packed.bits,
        group_size=packed.group_size,
        zero_point=packed.zero_point,
        scale_dtype=packed.scale_dtype,
        name=packed.name,
        has_g_idx=packed.g_idx is not None,
        unit=unit,
        n_chunks=len(groups),
        stored_scales=narrowest_dtype(packed.scales),
    )
    stream = aligned_bytes(spec.nbytes)
    for first, n_blocks, at in spec.panels():
        rows = slice(first, first + PANEL)
        panel = stream[at : at + spec.n_chunks * spec.chunk_bytes(n_blocks)]
        parts = (
            _pack_codes(_padded(packed.codes[rows], n_blocks), order, spec),
            _pack_scales(_padded(packed.scales[rows], n_blocks)[:, groups], spec.stored_scales),
            np.ascontiguousarray(_padded(packed.zeros[rows], n_blocks)[:, groups].T),
        )
        _join(parts, panel.reshape(spec.n_chunks, -1))
    is_plain = np.array_equal(order[: packed.in_features], np.arange(packed.in_features))
    return NativeWeight(spec, stream, groups, None if is_plain else order)


def unstream_weight(weight: NativeWeight) -> PackedWeight:
    """Return the `PackedWeight` that a stream (of ndarrays) was made from."""
    spec = weight.spec
    order = weight.order
    if order is None:
        order = np.arange(spec.n_chunks * spec.unit)
    real = (order >= 0) & (order < spec.in_features)
    channels = order[real]
    codes = np.empty((spec.out_features, spec.in_features), np.uint8)
    scales = np.empty((spec.out_features, spec.n_groups), np.float32)
    zeros = np.empty((spec.out_features, spec.n_groups), np.uint8)
    for first, n_blocks, at in spec.panels():
        rows = slice(first, min(first + PANEL, spec.out_features))
        n = rows.stop - first
        panel = weight.stream[at : at + spec.n_chunks * spec.chunk_bytes(n_blocks)]
        widths = n_blocks * BLOCK * np.array([spec.unit * spec.code_bits // 8, spec.scale_bytes, 1])
        parts = np.split(panel.reshape(spec.n_chunks, -1), np.cumsum(widths), axis=1)
        codes[rows, channels] = _unpack_codes(parts[0], n_blocks, spec)[:n, real]
        scales[rows, weight.groups] = _unpack_scales(parts[1], spec.stored_scales).T[:n]
        zeros[rows, weight.groups] = parts[2].T[:n]
    g_idx = np.empty(spec.in_features, np.int32)
    g_idx[channels] = np.repeat(weight.groups, spec.unit)[real]
    return PackedWeight(
        codes=codes,
        scales=scales,
        zeros=zeros,
        bits=spec.bits,
        group_size=spec.group_size,
        zero_point=spec.zero_point,
        scale_dtype=spec.scale_dtype,
        g_idx=g_idx if spec.has_g_idx else None,
        name=spec.name,
    )


def aligned_bytes(nbytes: int) -> np.ndarray:
    """Return uninitialized bytes that begin at a multiple of `ALIGNMENT`."""
    # NumPy asks for huge pages for arrays of 4 MiB and more, which reading by several threads
    # gains from; it aligns to 16 bytes only.
    raw = np.empty(nbytes + ALIGNMENT, np.uint8)
    offset = -raw.ctypes.data % ALIGNMENT
    return raw[offset : offset + nbytes]


def _chunks(index: np.ndarray, n_groups: int, unit: int) -> tuple[np.ndarray, np.ndarray]:
    """Cut channels, gathered by group, into chunks of `unit`; return (groups, order).

    A group without channels gets a chunk too, so that its scales are not lost.
    """
    counts = np.bincount(index, minlength=n_groups)
    per_group = np.maximum(1, -(-counts // unit))
    groups = np.repeat(np.arange(len(counts), dtype=np.int32), per_group)
    gathered = np.argsort(index, kind="stable")
    first_place = np.concatenate([[0], np.cumsum(per_group)[:-1]]) * unit
    first_rank = np.concatenate([[0], np.cumsum(counts)[:-1]])
    group = index[gathered]
    order = np.full(len(groups) * unit, -1, np.int32)
    order[first_place[group] + np.arange(len(index)) - first_rank[group]] = gathered
    return groups, order


def _padded(rows: np.ndarray, n_blocks: int) -> np.ndarray:
    """Return rows with zeros added to whole blocks."""
    missing = n_blocks * BLOCK - len(rows)
    return np.pad(rows, ((0, missing), (0, 0))) if missing else rows


def _pack_codes(codes: np.ndarray, order: np.ndarray, spec: NativeSpec) -> np.ndarray:
    """Return the codes (n, K) of a panel as (C, bytes)."""
    padded = np.concatenate([codes, np.zeros((len(codes), 1), np.uint8)], axis=1)
    placed = padded[:, order]  # -1 is the zeros
    shape = (len(codes) // BLOCK, BLOCK, spec.n_chunks)
    if spec.code_bits == 4:
        halves = placed.reshape(*shape, spec.unit // 8, 2, 4)
        placed = halves[..., 0, :] | halves[..., 1, :] << 4
    rows = placed.reshape(*shape, -1, 4).transpose(2, 3, 0, 1, 4)
    return np.ascontiguousarray(rows).reshape(spec.n_chunks, -1)


def _unpack_codes(part: np.ndarray, n_blocks: int, spec: NativeSpec) -> np.ndarray:
    """Return (n_blocks * 16, C * unit) codes."""
    rows = part.reshape(spec.n_chunks, -1, n_blocks, BLOCK, 4).transpose(2, 3, 0, 1, 4)
    if spec.code_bits == 4:
        rows = np.stack([rows & 15, rows >> 4], axis=-2)
    return rows.reshape(n_blocks * BLOCK, -1)


def _pack_scales(scales: np.ndarray, dtype: str) -> np.ndarray:
    """Return scales (n, C) as the bytes (C, n * width)."""
    scales = np.ascontiguousarray(scales.T, np.float32)
    if dtype == "float16":
        scales = scales.astype(np.float16)
    elif dtype == "bfloat16":
        scales = (scales.view(np.uint32) >> 16).astype(np.uint16)
    return scales.view(np.uint8)


def _unpack_scales(part: np.ndarray, dtype: str) -> np.ndarray:
    """Return (C, n) float32."""
    part = np.ascontiguousarray(part)
    if dtype == "bfloat16":
        return (part.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    return part.view(dtype).astype(np.float32)


def _join(parts: tuple[np.ndarray, ...], out: np.ndarray) -> None:
    """Write the parts of chunks, (C, width) each, side by side; zeros after them."""
    at = 0
    for part in parts:
        bytes_ = part.view(np.uint8).reshape(len(out), -1)
        out[:, at : at + bytes_.shape[1]] = bytes_
        at += bytes_.shape[1]
    out[:, at:] = 0
