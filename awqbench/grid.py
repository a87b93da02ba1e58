"""The maths of weight-only quantization, once, in NumPy.

A weight matrix W is (N, K): N out_features, K in_features. Every `group_size` input
channels of a row share a step (`scales`) and a zero point (`zeros`), and

    W[n, k] ~ (codes[n, k] - zeros[n, g]) * scales[n, g],   g = k // group_size,

with `codes` and `zeros` unsigned integers of `bits` bits. Every fast path of the package
is tested against the functions here.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from awqbench.errors import AlignmentError, NonFiniteError, OverflowCastError, ParameterError
from awqbench.numerics import LIMITS, limits_of, round_to

# Rows quantized at a time: bounds the float32 temporaries to about 64 MB at K = 32768.
_ROWS_AT_ONCE = 512


class GroupQuant(NamedTuple):
    """Codes, steps and zero points of a matrix quantized in groups."""

    codes: np.ndarray
    scales: np.ndarray
    zeros: np.ndarray
    zero_groups: int
    flushed_groups: int


def check_settings(bits: int, group_size: int | None, in_features: int, *, name: str = "") -> int:
    """Check bits and group size against K and return the group size as a positive int.

    Parameters
    ----------
    bits : int
    group_size : int or None
        None or -1 means whole rows.
    in_features : int
    name : str
        Module path, for the error's text.

    Raises
    ------
    ParameterError
        If `bits` is not 2 to 8.
    AlignmentError
        If `group_size` does not divide K; gives the remainder and the nearest fixes.
    """
    if not isinstance(bits, (int, np.integer)) or not 2 <= bits <= 8:
        raise ParameterError(f"bits is {bits!r}; choose 2 to 8.")
    if group_size is None or group_size == -1:
        return max(in_features, 1)
    if not isinstance(group_size, (int, np.integer)) or group_size < 1:
        raise ParameterError(f"group_size is {group_size!r}; choose a positive int, or -1.")
    remainder = in_features % group_size
    if remainder:
        fits = [g for g in (128, 64, 32, 16) if g < group_size and in_features % g == 0]
        hint = f"choose group_size {fits[0]}" if fits else "choose a group_size that divides it"
        padding = group_size - remainder
        raise AlignmentError(
            f"{name + ': ' if name else ''}in_features is {in_features}, not a multiple of "
            f"{group_size} (remainder {remainder}); pad by {padding} to {in_features + padding} "
            f"or {hint}."
        )
    return int(group_size)


def quantize_groups(
    weight: np.ndarray,
    bits: int = 4,
    group_size: int | None = 128,
    *,
    zero_point: bool = True,
    scale_dtype: str = "float32",
    underflow: str = "raise",
    shrink: np.ndarray | None = None,
    name: str = "weight",
) -> GroupQuant:
    """Quantize a weight matrix in groups of input channels, by rounding to nearest.

    The range of a group is widened to hold 0.0, so that its zero point fits in `bits`
    bits: without this a group of one sign decodes to nonsense. Codes are computed
    against the scale as stored, not as it was before rounding.

    Parameters
    ----------
    weight : (N, K) ndarray
        `torch.nn.Linear.weight`, any real dtype; computed in float32.
    bits : int
        Bits in a code, 2 to 8.
    group_size : int or None
        Input channels that share a scale and a zero point; divides K. None or -1: rows.
    zero_point : bool
        False fixes the zero point at 2**(bits - 1) and scales by the absmax.
    scale_dtype : {"float16", "bfloat16", "float32"}
        What the scales will be stored in.
    underflow : {"raise", "flush"}
        What to do with a group that is not zero but too small for `scale_dtype`:
        refuse, or store zeros and count it in `flushed_groups`.
    shrink : (N, G) ndarray, optional
        Share of its range that each group keeps (a clip search's result); default all.
    name : str
        Whose weight it is, for error texts.

    Returns
    -------
    GroupQuant
        `codes` (N, K) uint8, `scales` (N, G) float32, `zeros` (N, G) uint8, with `weight`
        close to ``(codes - zeros) * scales`` group by group. An all-zero group has scale 1.

    Raises
    ------
    AlignmentError
        If `group_size` does not divide K.
    NonFiniteError
        If `weight` holds NaN or infinity; names the first row and group.
    OverflowCastError
        If a group's scale is too large, or the group too small, for `scale_dtype`.

    References
    ----------
    .. [1] Jacob et al., arXiv:1712.05877, eq. 1 (``r = S (q - Z)``).
    .. [2] Lin et al., "AWQ", arXiv:2306.00978.

    Examples
    --------
    >>> w = np.array([[-1.0, 0.0, 0.6, 2.0]], dtype=np.float32)
    >>> q = quantize_groups(w, bits=4, group_size=4)
    >>> q.codes, float(q.scales[0, 0]), int(q.zeros[0, 0])
    (array([[ 0,  5,  8, 15]], dtype=uint8), 0.20000000298023224, 5)
    """
    weight = np.asarray(weight)
    if weight.ndim != 2:
        raise ParameterError(f"{name} has shape {weight.shape}; a weight matrix has 2 dimensions.")
    n_rows, in_features = weight.shape
    group_size = check_settings(bits, group_size, in_features, name=name)
    n_groups = in_features // group_size
    codes = np.empty((n_rows, in_features), np.uint8)
    scales = np.empty((n_rows, n_groups), np.float32)
    zeros = np.empty((n_rows, n_groups), np.uint8)
    zero_groups = flushed_groups = 0
    for first in range(0, n_rows, _ROWS_AT_ONCE):
        rows = slice(first, first + _ROWS_AT_ONCE)
        with np.errstate(over="ignore"):  # beyond float32: refused as inf
            grouped = weight[rows].astype(np.float32)
        grouped = grouped.reshape(len(grouped), n_groups, group_size)
        low, high = group_range(grouped, name=name, first_row=first)
        if shrink is not None:
            low, high = low * shrink[rows], high * shrink[rows]
        step, zero = scale_and_zero(
            low, high, bits, zero_point=zero_point, scale_dtype=scale_dtype, name=name
        )
        code = encode(grouped, step, zero, bits)
        is_zero = (low == 0) & (high == 0)
        vanished = ~is_zero & (code == zero[..., None]).all(axis=-1)
        if vanished.any():
            if underflow != "flush":
                _raise_underflow(vanished, low, high, scale_dtype, name=name, first_row=first)
            step[vanished], flat = 1.0, 0 if zero_point else 1 << (bits - 1)
            zero[vanished], code[vanished] = flat, flat
        codes[rows] = code.reshape(len(code), in_features)
        scales[rows], zeros[rows] = step, zero
        zero_groups += int(is_zero.sum())
        flushed_groups += int(vanished.sum())
    return GroupQuant(codes, scales, zeros, zero_groups, flushed_groups)


def group_range(
    grouped: np.ndarray, *, name: str = "weight", first_row: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Return the least and greatest value of each group, widened to hold 0.

    Parameters
    ----------
    grouped : (N, G, group_size) ndarray of float32
    name : str
        Whose weight it is, for the error's text.
    first_row : int
        Row of the whole matrix that ``grouped[0]`` is, for the error's text.

    Returns
    -------
    (low, high) : each (N, G) ndarray of float32, low <= 0 <= high

    Raises
    ------
    NonFiniteError
        If a group holds NaN or infinity; names the first row and group.
    """
    low = np.minimum(grouped.min(axis=-1, initial=0.0), 0.0)
    high = np.maximum(grouped.max(axis=-1, initial=0.0), 0.0)
    bad = ~(np.isfinite(low) & np.isfinite(high))
    if bad.any():
        row, group = (int(i) for i in np.argwhere(bad)[0])
        raise NonFiniteError(
            f"{name} row {first_row + row}, group {group} holds NaN or inf "
            f"({int(bad.sum())} groups of {bad.size})."
        )
    return low, high


def scale_and_zero(
    low: np.ndarray,
    high: np.ndarray,
    bits: int,
    *,
    zero_point: bool = True,
    scale_dtype: str = "float32",
    name: str = "weight",
) -> tuple[np.ndarray, np.ndarray]:
    """Return the step, as stored, and the zero point of groups with given ranges.

    Parameters
    ----------
    low, high : (N, G) ndarray, low <= 0 <= high
    bits : int
    zero_point : bool
        False: step absmax / (2**(bits - 1) - 1) and zero point 2**(bits - 1).
    scale_dtype : {"float16", "bfloat16", "float32"}
    name : str
        Whose weight it is, for the error's text.

    Returns
    -------
    (scales, zeros) : (N, G) ndarray of float32, (N, G) ndarray of uint8

    Raises
    ------
    OverflowCastError
        If a step is too large for `scale_dtype`, or a code would decode to infinity.
    """
    top = (1 << bits) - 1
    low, high = low.astype(np.float64), high.astype(np.float64)
    if zero_point:
        exact = (high - low) / top
    else:
        exact = np.maximum(-low, high) / ((1 << (bits - 1)) - 1)
    exact = np.where(exact == 0, 1.0, exact)
    scales = round_to(exact, scale_dtype)
    if np.isinf(scales).any():
        raise OverflowCastError(
            f"{name} needs a scale of {exact.max():.6g}, above {scale_dtype}'s largest "
            f"{limits_of(scale_dtype).largest:.6g}; store scales in bfloat16 or float32."
        )
    # Among subnormals the nearest number can be far below: round up there, or the ends of
    # the range would be clipped.
    short = scales < exact * (1 - 2.0**-7)
    if short.any():
        scales = np.where(short, scales + limits_of(scale_dtype).smallest_subnormal, scales)
        scales = scales.astype(np.float32)
    if zero_point:
        zeros = np.clip(np.rint(-low / scales), 0, top).astype(np.uint8)
    else:
        zeros = np.full(scales.shape, 1 << (bits - 1), np.uint8)
    reach = scales * np.maximum(zeros, top - zeros).astype(np.float64)
    if (reach > LIMITS["float32"].largest).any():
        raise OverflowCastError(
            f"{name} has codes that decode to {reach.max():.6g}, beyond float32; no trained weight "
            "is that large: the checkpoint is damaged."
        )
    return scales, zeros


def encode(grouped: np.ndarray, scales: np.ndarray, zeros: np.ndarray, bits: int) -> np.ndarray:
    """Round finite groups to codes, clipped to `bits` bits.

    Parameters
    ----------
    grouped : (N, G, group_size) ndarray of float32
    scales : (N, G) ndarray of float32, positive
    zeros : (N, G) ndarray of uint8
    bits : int

    Returns
    -------
    (N, G, group_size) ndarray of uint8
    """
    with np.errstate(over="ignore"):
        steps = np.rint(grouped / scales[..., None])
    steps += zeros[..., None]
    np.clip(steps, 0, (1 << bits) - 1, out=steps)
    return steps.astype(np.uint8)


def dequantize_groups(
    codes: np.ndarray,
    scales: np.ndarray,
    zeros: np.ndarray,
    *,
    group_size: int,
    g_idx: np.ndarray | None = None,
) -> np.ndarray:
    """Decode ``(codes - zeros) * scales`` in float32.

    Parameters
    ----------
    codes : (N, K) ndarray of uint8
    scales : (N, G) ndarray of float32
    zeros : (N, G) ndarray of uint8
    group_size : int
    g_idx : (K,) ndarray of int, optional
        Group of each input channel; default ``k // group_size``.

    Returns
    -------
    (N, K) ndarray of float32
    """
    n_rows, in_features = codes.shape
    if g_idx is None and in_features == scales.shape[1] * group_size:
        steps = codes.reshape(n_rows, scales.shape[1], group_size).astype(np.float32)
        steps -= zeros[..., None]
        steps *= scales[..., None]
        return steps.reshape(n_rows, in_features)
    index = np.arange(in_features) // group_size if g_idx is None else g_idx
    steps = codes.astype(np.float32)
    steps -= zeros[:, index]
    steps *= scales[:, index]
    return steps


def fake_quantize(
    weight: np.ndarray,
    bits: int = 4,
    group_size: int | None = 128,
    *,
    zero_point: bool = True,
    scale_dtype: str = "float32",
) -> np.ndarray:
    """Quantize and decode again: the weight as the quantized model will see it.

    Parameters and errors are those of `quantize_groups`; groups too small for
    `scale_dtype` become zero.

    Returns
    -------
    (N, K) ndarray of float32
    """
    quant = quantize_groups(
        weight,
        bits,
        group_size,
        zero_point=zero_point,
        scale_dtype=scale_dtype,
        underflow="flush",
    )
    group_size = check_settings(bits, group_size, quant.codes.shape[1])
    return dequantize_groups(quant.codes, quant.scales, quant.zeros, group_size=group_size)


def _raise_underflow(vanished, low, high, scale_dtype, *, name, first_row) -> None:
    row, group = (int(i) for i in np.argwhere(vanished)[0])
    absmax = max(-float(low[row, group]), float(high[row, group]))
    raise OverflowCastError(
        f"{name} row {first_row + row}, group {group} has absmax {absmax:.3g}, too small for a "
        f"{scale_dtype} scale: it would decode to zeros ({int(vanished.sum())} groups). Store "
        "scales in bfloat16 or float32, fold a factor into the row, or pass underflow='flush'."
    )
