"""Where a cast changes what a number is: as magnitudes, and as bit patterns to compare with.

Without its sign bit the pattern of a floating-point number, read as an integer, orders as its
magnitude does. Counting by patterns needs no conversion: half the bytes of float32 and none
of its time.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from functools import cache
from typing import NamedTuple

import numpy as np

from awqbench.errors import ParameterError
from awqbench.numerics import limits_of

# How column names call a dtype.
SHORT_NAMES = {"float16": "f16", "bfloat16": "bf16", "float32": "f32"}
# Integers of the same size; other dtypes (float8) are widened to float32 first.
_INTEGERS = {"float16": "int16", "bfloat16": "int16", "float32": "int32", "float64": "int64"}


class CastThresholds(NamedTuple):
    """Magnitudes at which rounding to a dtype, ties to even, changes what a number is.

    Parameters
    ----------
    overflow_from : float
        From here on a number becomes infinite.
    subnormal_below : float
        Below this it is stored with fewer significant bits.
    flushed_upto : float
        Up to here it becomes 0.
    """

    overflow_from: float
    subnormal_below: float
    flushed_upto: float


def cast_thresholds(dtype: str) -> CastThresholds:
    """Return the thresholds of a storage dtype.

    Counting by thresholds gives what casting and looking gives, in fewer passes.

    Examples
    --------
    >>> cast_thresholds("float16").overflow_from, cast_thresholds("float16").flushed_upto
    (65520.0, 2.9802322387695312e-08)
    """
    limits = limits_of(dtype)
    half_step = limits.smallest_subnormal / 2
    top_power = limits.largest / (2 - 2.0 ** (1 - limits.significand_bits))
    return CastThresholds(
        limits.largest + top_power * 2.0**-limits.significand_bits,
        limits.smallest_normal - half_step,
        half_step,
    )


class Patterns(NamedTuple):
    """The thresholds of a cast as bit patterns of the dtype that is looked at.

    Parameters
    ----------
    dtype : str
        What the patterns are of.
    infinite : int
        Pattern of infinity; what is above is NaN.
    overflow_from, subnormal_below, flushed_below : int
        First pattern that overflows, that stays normal, that does not become 0.
    """

    dtype: str
    infinite: int
    overflow_from: int
    subnormal_below: int
    flushed_below: int

    @property
    def integer(self) -> np.dtype:
        """Signed integers of the same size."""
        return integer_of(self.dtype)

    @property
    def mask(self) -> np.integer:
        """All bits but the sign."""
        return self.integer.type(np.iinfo(self.integer).max)

    def value(self, pattern: int) -> float:
        """Return the magnitude that a pattern stands for."""
        return _value(self.dtype, pattern)


def has_patterns(dtype: str) -> bool:
    """Tell whether a dtype's numbers can be compared by their patterns here."""
    return dtype in _INTEGERS


def integer_of(dtype: str) -> np.dtype:
    """Return the signed integers that have the size of a dtype."""
    return np.dtype(_INTEGERS[dtype])


@cache
def patterns_of(dtype: str, cast_dtype: str) -> Patterns:
    """Return the patterns of a stored dtype at which a cast changes what a number is.

    Parameters
    ----------
    dtype : {"float16", "bfloat16", "float32", "float64"}
    cast_dtype : {"float16", "bfloat16", "float32"}

    Examples
    --------
    >>> hex(patterns_of("bfloat16", "float16").subnormal_below)  # 2**-14
    '0x3880'
    """
    if not has_patterns(dtype):
        raise ParameterError(f"no patterns of {dtype!r}; choose one of {', '.join(_INTEGERS)}.")
    thresholds = cast_thresholds(cast_dtype)
    finite = range(_infinity(dtype))

    def value(pattern: int) -> float:
        return _value(dtype, pattern)

    return Patterns(
        dtype,
        len(finite),
        bisect_left(finite, thresholds.overflow_from, key=value),
        bisect_left(finite, thresholds.subnormal_below, key=value),
        bisect_right(finite, thresholds.flushed_upto, key=value),
    )


def _infinity(dtype: str) -> int:
    import torch

    number = torch.tensor([torch.inf], dtype=getattr(torch, dtype))
    return int(number.view(getattr(torch, _INTEGERS[dtype])))


def _value(dtype: str, pattern: int) -> float:
    import torch

    stored = torch.tensor([pattern], dtype=getattr(torch, _INTEGERS[dtype]))
    return float(stored.view(getattr(torch, dtype)).double())
