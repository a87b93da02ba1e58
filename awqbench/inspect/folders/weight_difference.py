"""How far two weights are apart: packed or dense, number by number and decoded."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from awqbench.packed import PackedWeight, as_array

if TYPE_CHECKING:
    import torch

# Numbers compared together, so that float64 temporaries stay near 8 MB.
_NUMBERS_AT_ONCE = 1 << 20


class Distance(NamedTuple):
    """How far an array is from another.

    Parameters
    ----------
    largest : float
        Largest magnitude of a difference; NaN where either holds NaN or the shapes differ.
    relative_error : float
        Frobenius norm of the difference over that of the first; summed in float64.
    """

    largest: float
    relative_error: float


def distance(first: np.ndarray, second: np.ndarray) -> Distance:
    """Return how far `second` is from `first`.

    Parameters
    ----------
    first, second : ndarray of float32
        Of the same shape, or the distance is NaN.

    Returns
    -------
    Distance

    Examples
    --------
    >>> distance(np.array([3.0, 4.0]), np.array([3.0, 4.5]))
    Distance(largest=0.5, relative_error=0.1)
    """
    if first.shape != second.shape:
        return Distance(np.nan, np.nan)
    first, second = first.ravel(), second.ravel()
    largest, squares, reference = 0.0, 0.0, 0.0
    for start in range(0, first.size, _NUMBERS_AT_ONCE):
        with np.errstate(invalid="ignore"):  # signalling NaN, and inf less inf
            a = first[start : start + _NUMBERS_AT_ONCE].astype(np.float64)
            difference = a - second[start : start + _NUMBERS_AT_ONCE]
        largest = np.maximum(largest, np.abs(difference).max())  # keeps NaN, unlike max()
        squares += float(difference @ difference)
        reference += float(a @ a)
    if squares == 0:
        return Distance(float(largest), 0.0)
    return Distance(float(largest), float(np.sqrt(squares / reference)) if reference else np.inf)


def linear_difference(
    first: PackedWeight | torch.Tensor, second: PackedWeight | torch.Tensor
) -> dict[str, Any]:
    """Compare two weights of one linear, each packed or dense.

    Parameters
    ----------
    first, second : PackedWeight or (N, K) torch.Tensor

    Returns
    -------
    dict
        `same_codes`, `same_scales`, `same_zeros` and `same_groups`, None unless both are
        packed; `codes_differ`, a share, NaN where codes have other widths or shapes;
        `largest_difference` and `relative_error` of the decoded weights.
    """
    row = dict.fromkeys(("same_codes", "same_scales", "same_zeros", "same_groups"))
    row["codes_differ"] = np.nan
    if isinstance(first, PackedWeight) and isinstance(second, PackedWeight):
        row |= _packed_difference(first, second)
        if all(row[key] for key in ("same_codes", "same_scales", "same_zeros", "same_groups")):
            return row | {"largest_difference": 0.0, "relative_error": 0.0}
    found = distance(_decoded(first), _decoded(second))
    return row | {"largest_difference": found.largest, "relative_error": found.relative_error}


def _packed_difference(first: PackedWeight, second: PackedWeight) -> dict[str, Any]:
    is_comparable = first.bits == second.bits and first.codes.shape == second.codes.shape
    row = {
        "same_codes": is_comparable and np.array_equal(first.codes, second.codes),
        "same_scales": np.array_equal(first.scales, second.scales, equal_nan=True),
        "same_zeros": np.array_equal(first.zeros, second.zeros),
        "same_groups": np.array_equal(first.group_index(), second.group_index()),
    }
    if is_comparable:
        row["codes_differ"] = float(
            np.count_nonzero(first.codes != second.codes) / first.codes.size
        )
    return row


def _decoded(weight: PackedWeight | torch.Tensor) -> np.ndarray:
    return weight.dequantize() if isinstance(weight, PackedWeight) else as_array(weight)
