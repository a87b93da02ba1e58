"""Limits of the storage dtypes, checked casts, and what a cast does to an array.

NumPy has no bfloat16, so a bfloat16 array is held here as float32 whose values all are
bfloat16 numbers; `round_to` makes them so.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from awqbench.errors import NonFiniteError, OverflowCastError, ParameterError


class FloatLimits(NamedTuple):
    """Limits of a floating-point dtype, as Python floats."""

    largest: float
    smallest_normal: float
    smallest_subnormal: float
    significand_bits: int


LIMITS = {
    "float16": FloatLimits(65504.0, 2.0**-14, 2.0**-24, 11),
    "bfloat16": FloatLimits((2 - 2.0**-7) * 2.0**127, 2.0**-126, 2.0**-133, 8),
    "float32": FloatLimits((2 - 2.0**-23) * 2.0**127, 2.0**-126, 2.0**-149, 24),
}


def limits_of(dtype: str) -> FloatLimits:
    """Return the limits of a storage dtype by name.

    Raises
    ------
    ParameterError
        If `dtype` is not one of float16, bfloat16, float32.
    """
    if dtype not in LIMITS:
        raise ParameterError(f"no storage dtype {dtype!r}; choose one of {', '.join(LIMITS)}.")
    return LIMITS[dtype]


def round_to(values: np.ndarray, dtype: str) -> np.ndarray:
    """Round to a storage dtype, ties to even, and return the result as float32.

    Overflow gives infinity and underflow gives zero, silently: `checked_cast` is the
    form that looks.

    Parameters
    ----------
    values : ndarray of float32 or float64
    dtype : {"float16", "bfloat16", "float32"}

    Returns
    -------
    ndarray of float32
        Same shape; every element is exactly representable in `dtype`.

    Examples
    --------
    >>> round_to(np.array([1.003, 70000.0]), "float16").tolist()
    [1.0029296875, inf]
    >>> round_to(np.array([1.003]), "bfloat16").tolist()
    [1.0]
    """
    limits_of(dtype)
    values = np.asarray(values)
    with np.errstate(over="ignore", under="ignore"):
        if dtype == "float16":
            return values.astype(np.float16).astype(np.float32)
        if dtype == "float32":
            return values.astype(np.float32)
        return _round_bfloat16(values)


def _round_bfloat16(values: np.ndarray) -> np.ndarray:
    # From float64 the sum "round to float32, then to bfloat16" would round twice; scaling
    # by a power of two to 8 bits of significand rounds once.
    wide = values.astype(np.float64)
    _, exponent = np.frexp(wide)
    exponent = np.maximum(exponent - 8, -133)
    with np.errstate(invalid="ignore"):
        rounded = np.ldexp(np.rint(np.ldexp(wide, -exponent)), exponent)
        rounded = np.where(np.isfinite(wide), rounded, wide)
    too_large = np.abs(rounded) > LIMITS["bfloat16"].largest
    rounded = np.where(too_large, np.copysign(np.inf, wide), rounded)
    return np.where(np.isnan(wide), np.nan, rounded).astype(np.float32)


class CastFigures(NamedTuple):
    """What storing an array in a narrower dtype does to its elements (counts)."""

    size: int
    nonfinite: int
    overflow: int
    flushed_to_zero: int
    subnormal: int
    absmax: float


def cast_figures(values: np.ndarray, dtype: str) -> CastFigures:
    """Count what a cast to `dtype` would do, without doing it.

    Parameters
    ----------
    values : ndarray
        Any shape; NaN and infinity are counted apart and looked at no further.
    dtype : {"float16", "bfloat16", "float32"}

    Returns
    -------
    CastFigures
        `overflow`: finite elements that become infinite; `flushed_to_zero`: non-zero
        elements that become 0; `subnormal`: elements that stay non-zero below the
        smallest normal number; `absmax`: of the finite elements.

    Examples
    --------
    >>> cast_figures(np.array([0.0, 1e-9, 1e-6, 1.0, 7e4, np.nan]), "float16")[1:5]
    (1, 1, 1, 1)
    """
    limits = limits_of(dtype)
    magnitude = np.abs(np.asarray(values, dtype=np.float64)).ravel()
    finite = magnitude[np.isfinite(magnitude)]
    rounded = np.abs(round_to(finite, dtype))
    return CastFigures(
        size=magnitude.size,
        nonfinite=int(magnitude.size - finite.size),
        overflow=int(np.isinf(rounded).sum()),
        flushed_to_zero=int(((rounded == 0) & (finite > 0)).sum()),
        subnormal=int(((rounded > 0) & (rounded < limits.smallest_normal)).sum()),
        absmax=float(finite.max()) if finite.size else 0.0,
    )


def checked_cast(values: np.ndarray, dtype: str, *, name: str) -> tuple[np.ndarray, CastFigures]:
    """Round to `dtype` after looking; flushes are counted, overflow is refused.

    Parameters
    ----------
    values : ndarray
    dtype : {"float16", "bfloat16", "float32"}
    name : str
        Whose values they are, for the error's text.

    Returns
    -------
    (ndarray of float32, CastFigures)

    Raises
    ------
    NonFiniteError
        If `values` holds NaN or infinity.
    OverflowCastError
        If a finite element is too large for `dtype`.
    """
    figures = cast_figures(values, dtype)
    if figures.nonfinite:
        raise NonFiniteError(f"{name} holds NaN or inf ({figures.nonfinite} of {figures.size}).")
    if figures.overflow:
        raise OverflowCastError(
            f"{name} reaches {figures.absmax:.6g}, above {dtype}'s largest "
            f"{limits_of(dtype).largest:.6g} ({figures.overflow} of {figures.size} elements); "
            "keep it in bfloat16 or float32, or scale it down."
        )
    return round_to(values, dtype), figures


def check_finite(values: np.ndarray, *, name: str) -> None:
    """Raise if an array holds NaN or infinity, naming the first place.

    Raises
    ------
    NonFiniteError
        With the index of the first bad element and how many there are.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        if np.isfinite(np.sum(values, dtype=np.float64)):
            return
    bad = ~np.isfinite(values)
    count = int(bad.sum())
    if count == 0:  # the sum itself left float64's range
        return
    place = tuple(int(i) for i in np.argwhere(bad)[0])
    raise NonFiniteError(
        f"{name} holds NaN or inf ({count} of {bad.size} elements, first at {list(place)}); "
        "the checkpoint is damaged or was saved in a dtype too small for it: "
        "convert it again from the original."
    )


def narrowest_dtype(values: np.ndarray) -> str:
    """Return the narrowest of float16, bfloat16 and float32 that holds every value exactly.

    Parameters
    ----------
    values : ndarray of float32
        NaN counts by its bits.

    Examples
    --------
    >>> [narrowest_dtype(np.float32([x])) for x in (0.5, 2.0**20, 0.1)]
    ['float16', 'bfloat16', 'float32']
    """
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    with np.errstate(over="ignore"):
        halves = values.astype(np.float16).astype(np.float32).view(np.uint32)
    if np.array_equal(halves, bits):
        return "float16"
    return "float32" if (bits & 0xFFFF).any() else "bfloat16"
