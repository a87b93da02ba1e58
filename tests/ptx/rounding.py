"""Exact decoding of 16-bit floats to float64, and rounding once on the way back.

A float64 holds the exact product of two floats of 32 bits or fewer, and most sums. Where it
does not (the sum of a fused multiply-add), it is rounded to odd: the lowest bit is set when
something was cut off, so that the second rounding, to the narrow type, goes the right way.
"""

import numpy as np

_CODES = np.arange(2**16, dtype=np.uint16)
with np.errstate(invalid="ignore"):  # signalling NaNs become quiet
    _TABLES = {
        "f16": _CODES.view(np.float16).astype(np.float64),
        "bf16": (_CODES.astype(np.uint32) << np.uint32(16)).view(np.float32).astype(np.float64),
    }


def decode(bits, kind):
    """Return float64 of the bits (uint16) of ``f16`` or ``bf16``, or of float32 values."""
    return bits.astype(np.float64) if kind == "f32" else _TABLES[kind][bits]


def fused_multiply_add(a, b, c):
    """Return a b + c of float64 that hold narrower floats, rounded to odd."""
    product = a * b
    total = product + c
    other = total - product
    error = (product - (total - other)) + (c - other)
    return _to_odd(total, error)


def _to_odd(value, error):
    bits = value.view(np.int64)
    inexact = np.isfinite(value) & (error != 0) & (bits & 1 == 0)
    if not inexact.any():
        return value
    step = np.where((error > 0) == (value > 0), 1, -1)
    return np.where(inexact, bits + step, bits).view(np.float64)


def _float32_to_odd(value):
    near = value.astype(np.float32)
    error = np.where(np.isfinite(near), value - near, 0.0)
    bits = near.view(np.int32)
    inexact = (error != 0) & (bits & 1 == 0)
    if not inexact.any():
        return near
    step = np.where((error > 0) == (near > 0), 1, -1).astype(np.int32)
    # A value that vanished: the smallest subnormal stands for it.
    tiny = np.where(value < 0, np.int32(-(2**31) + 1), np.int32(1))
    return np.where(inexact, np.where(near == 0, tiny, bits + step), bits).view(np.float32)


def bf16_bits(value, *, towards_zero=False):
    """Round float32 to the bits of bfloat16, to nearest even; NaN becomes 0x7FFF."""
    bits = value.view(np.uint32)
    if not towards_zero:
        bits = bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
    return np.where(np.isnan(value), np.uint16(0x7FFF), (bits >> np.uint32(16)).astype(np.uint16))


def encode(value, kind):
    """Round float64 once: to the bits of ``f16`` or ``bf16``, or to float32."""
    if kind == "f32":
        return value.astype(np.float32)
    if kind == "f16":
        return np.where(
            np.isnan(value), np.uint16(0x7FFF), value.astype(np.float16).view(np.uint16)
        )
    return bf16_bits(_float32_to_odd(value))


def flush(value):
    """Return float32 with subnormal numbers replaced by zeros of their sign (``.ftz``)."""
    tiny = np.abs(value) < np.finfo(np.float32).tiny
    return np.where(tiny, np.copysign(np.float32(0), value), value) if tiny.any() else value
