"""Statistics of samples that were taken in blocks, and intervals of what follows from them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

# Draws of a bootstrap: the 2.5 % tail then holds 100 of them.
_DRAWS = 4000
# Blocks whose medians differ by more say that something else ran.
_STABLE_SPREAD = 1.25


class Interval(NamedTuple):
    """A value with its interval."""

    value: float
    low: float
    high: float

    @property
    def holds_one(self) -> bool:
        """Whether 1 is in it."""
        return self.low <= 1 <= self.high


def summarise(samples_s: Sequence[float], block_size: int) -> dict[str, float | bool]:
    """Return `median_s`, `p10_s`, `p90_s`, `mad_s`, and `stable`.

    Parameters
    ----------
    samples_s : sequence of float
        Seconds, in the order taken.
    block_size : int
        Samples taken one after the other; blocks lie apart in time.

    Returns
    -------
    dict
        `stable` if the medians of blocks agree within 25 %.
    """
    values = np.asarray(samples_s, np.float64)
    medians = block_medians(values, block_size)
    p10, median, p90 = np.quantile(values, [0.1, 0.5, 0.9])
    return {
        "median_s": float(median),
        "p10_s": float(p10),
        "p90_s": float(p90),
        "mad_s": float(np.median(np.abs(values - median))),
        "stable": bool(medians.max() <= _STABLE_SPREAD * medians.min()),
    }


def block_medians(samples_s: Sequence[float], block_size: int) -> np.ndarray:
    """Return the median of each block, (blocks,) ndarray of float64."""
    return np.median(np.asarray(samples_s, np.float64).reshape(-1, block_size), axis=1)


def ratio_interval(
    top: np.ndarray, bottom: np.ndarray, *, level: float = 0.95, seed: int = 0
) -> Interval:
    """Return the ratio of two positive quantities from their values in blocks.

    Blocks are drawn with replacement, not samples: within a block samples share the state of
    the machine. The interval is of the bootstrapped t statistic of the difference of
    logarithms, for a plain percentile interval of six blocks is too narrow.

    Parameters
    ----------
    top, bottom : (blocks,) ndarray of float
    level : float
    seed : int

    Returns
    -------
    Interval
    """
    a, b = np.log(top), np.log(bottom)
    centre = a.mean() - b.mean()
    spread = _standard_error(a[None], b[None])[0]
    rng = np.random.default_rng(seed)
    drawn_a = a[rng.integers(0, len(a), (_DRAWS, len(a)))]
    drawn_b = b[rng.integers(0, len(b), (_DRAWS, len(b)))]
    errors = _standard_error(drawn_a, drawn_b)
    moved = drawn_a.mean(axis=1) - drawn_b.mean(axis=1) - centre
    # A draw of equal blocks has no spread of its own and says nothing.
    told = errors > 0
    if not told.any():
        return Interval(*np.exp([centre, centre, centre]).tolist())
    statistic = np.quantile(np.abs(moved[told] / errors[told]), level)
    # Beyond e**50 either way nothing is told.
    margin = min(statistic * spread, 50.0)
    return Interval(*np.exp([centre, centre - margin, centre + margin]).tolist())


def _standard_error(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the standard error of the difference of means, a row each."""
    parts = [v.var(axis=1, ddof=1) / v.shape[1] for v in (a, b)]
    return np.sqrt(parts[0] + parts[1])
