"""Products for the kernels to do: random weights, laid out as each kernel reads them.

The layouts are written here a second time, from the heads of the kernels' files, so that a
mistake in the package's own packing does not hide one in a kernel.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from awqbench.gemm.cuda_layout import TileSpec
from ptx.ops_mma import a_places
from ptx.rounding import bf16_bits, decode

# Nibble of a checkpoint's word that holds column 0, 1, ... 7 of it.
_AWQ_NIBBLES = (0, 4, 1, 5, 2, 6, 3, 7)
SCALE_TYPES = ("f16", "bf16", "f32")  # by the macro SCALE


def to_bits(values, kind):
    """Round float64 to ``f16``, ``bf16`` or ``f32`` and return what memory holds."""
    values = np.asarray(values, np.float32)
    if kind == "f32":
        return values
    return bf16_bits(values) if kind == "bf16" else values.astype(np.float16).view(np.uint16)


@dataclass(frozen=True)
class Problem:
    """y = x Wᵀ; `group` 0 means whole rows, `scale` the macro SCALE."""

    m: int
    n: int
    k: int
    group: int = 128
    bits: int = 4
    bf16: int = 0
    scale: int = 0
    seed: int = 0

    @property
    def kind(self):
        """The activations' type."""
        return "bf16" if self.bf16 else "f16"

    @property
    def group_size(self):
        return self.group or self.k

    @cached_property
    def x(self):
        """(M, K) bits."""
        rng = np.random.default_rng(self.seed)
        return to_bits(rng.standard_normal((self.m, self.k)), self.kind)

    @cached_property
    def codes(self):
        """(N, K) uint8; every code of every width occurs."""
        rng = np.random.default_rng(self.seed + 1)
        return rng.integers(0, 2**self.bits, (self.n, self.k)).astype(np.uint8)

    @cached_property
    def zeros(self):
        """(N, G) uint8."""
        rng = np.random.default_rng(self.seed + 2)
        return rng.integers(0, 2**self.bits, (self.n, self.n_groups)).astype(np.uint8)

    @property
    def n_groups(self):
        return -(-self.k // self.group_size)

    @cached_property
    def scales(self):
        """(N, G) bits."""
        rng = np.random.default_rng(self.seed + 3)
        scales = 10 ** rng.uniform(-3, -1, (self.n, self.n_groups))
        return to_bits(scales, SCALE_TYPES[self.scale])

    @cached_property
    def weight(self):
        """(N, K) float64, exact: what the codes stand for."""
        group = np.arange(self.k) // self.group_size
        scales = decode(self.scales, SCALE_TYPES[self.scale])[:, group]
        return (self.codes.astype(np.float64) - self.zeros[:, group]) * scales

    @cached_property
    def rounded_weight(self):
        """(N, K) float64: scales, then weights, rounded to the activations' type."""
        group = np.arange(self.k) // self.group_size
        scales = decode(self.scales, SCALE_TYPES[self.scale])
        scales = decode(to_bits(scales, self.kind), self.kind)[:, group]
        difference = self.codes.astype(np.float64) - self.zeros[:, group]
        return decode(to_bits(difference * scales, self.kind), self.kind)

    def reference(self, *, rounded=False):
        """Return y in float64, (M, N), of the weight as it is or rounded."""
        weight = self.rounded_weight if rounded else self.weight
        return decode(self.x, self.kind) @ weight.T

    @property
    def spec(self):
        scale_type = ("float16", "bfloat16", "float32")[self.scale]
        return TileSpec(self.n, self.k, self.bits, self.group, scale_type)

    @property
    def sizes(self):
        return [np.int32(size) for size in (self.m, self.n, self.k)]

    def awq(self):
        """Return `qweight`, `qzeros` and `scales` of an AWQ checkpoint."""
        return awq_words(self.codes.T), awq_words(self.zeros.T), np.ascontiguousarray(self.scales.T)

    def tiles(self):
        """Return codes, scales and zeros of kernels/tiles.cuh."""
        k_pad = -(-self.k // 128) * 128
        groups = -(-k_pad // self.group_size) if self.group else 1
        codes = pad(self.codes, 16, 128)
        meta = [
            np.pad(array, ((0, len(codes) - self.n), (0, groups - self.n_groups)))
            .reshape(-1, 2, 8, groups)
            .transpose(3, 0, 2, 1)
            for array in (self.scales, self.zeros)
        ]
        return tile_codes(codes, self.bits), *(np.ascontiguousarray(array) for array in meta)


def pad(codes, rows, columns):
    """Return codes with zeros up to multiples of `rows` and `columns`."""
    n, k = codes.shape
    return np.pad(codes, ((0, -n % rows), (0, -k % columns)))


def awq_words(codes):
    """Pack (K, N) codes of 4 bits into (K, N/8) words in the checkpoint's order."""
    parts = codes.reshape(len(codes), -1, 8).astype(np.uint32)
    return sum(parts[:, :, i] << np.uint32(4 * at) for i, at in enumerate(_AWQ_NIBBLES))


def tile_codes(codes, bits):
    """Pack (N, K) codes, padded to tiles, into (N/16, K/128, bits/2, 32, 4) words."""
    n, k = codes.shape
    steps = codes.reshape(n // 16, 16, k // 16, 16).transpose(0, 2, 1, 3).reshape(-1, 256)
    fragments = steps[:, a_places(16)].astype(np.uint32)  # (steps, 4 pairs, 32 lanes, 2)
    if bits == 4:
        words = sum(
            fragments[:, r, :, half] << np.uint32(4 * r + 16 * half)
            for r in range(4)
            for half in range(2)
        )[:, :, None]
    else:
        pairs = fragments[..., 0] | fragments[..., 1] << np.uint32(8)
        words = np.stack([pairs[:, w] | pairs[:, w + 1] << np.uint32(16) for w in (0, 2)], axis=2)
    words = words.reshape(n // 16, k // 128, 8, 32, bits // 4).transpose(0, 1, 3, 2, 4)
    words = words.reshape(n // 16, k // 128, 32, bits // 2, 4).transpose(0, 1, 3, 2, 4)
    return np.ascontiguousarray(words)


def is_close(y, reference, kind):
    """Tell whether y is the reference rounded once to `kind`, but for fp32 sums.

    Parameters
    ----------
    y : ndarray
        Bits of `kind`, or float32 sums.
    reference : ndarray of float64
    """
    slack = 1e-5 * np.abs(reference).max()
    if y.dtype == np.float32:
        return bool((np.abs(y - reference) <= slack).all())
    half_ulp = 2.0 ** -{"f16": 11, "bf16": 8}[kind]
    error = np.abs(decode(y, kind) - reference)
    return bool((error <= half_ulp * np.abs(reference) + slack).all())  # false for NaN
