"""How long a token takes by what memory gives to so many threads: the model and its fits.

    t(T) = || B / (T bw1), B / bw_sat ||_2 + t0

B is what a token reads, bw1 what one thread gets, bw_sat what all threads get together, and
t0 what does not depend on the weights. The norm joins the two bounds smoothly, as threads
wait for one another before memory is full.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from awqbench.errors import ParameterError

if TYPE_CHECKING:
    import pandas as pd

# What the form of the model is wrong by, as the largest error over the published sweeps (see
# `sweep_errors`): on threads that were fitted, and when a fit on few threads is carried to up
# to four times as many.
FITTED_ERROR, FORM_ERROR = 0.13, 0.18
FORM_REACH = 4
# Beyond that, and where all threads together were never measured: published speeds lie at 39
# to 91 % of what the memory's figures say.
FACTOR_UNKNOWN = 2.0
_LEAST_COUNTS = 3


class ThreadModel(NamedTuple):
    """Seconds for a token, or anything else that reads memory, by the number of threads.

    `one_s` is what one thread would take if memory were endless, `full_s` what memory takes
    if threads were, `fixed_s` what is left without any reading. `counts` are the threads that
    it was fitted on.
    """

    one_s: float
    full_s: float
    fixed_s: float = 0.0
    counts: tuple[int, ...] = ()

    def seconds(self, threads: int) -> float:
        """Return the time on so many threads."""
        return float(np.hypot(self.one_s / threads, self.full_s)) + self.fixed_s

    def relative_error(self, threads: int) -> float:
        """Return by how much a prediction for so many threads may be wrong, as a fraction.

        `FITTED_ERROR` for a count that the fit saw; `FORM_ERROR` where it saw three others
        and reaches no further than `FORM_REACH` times them; else a factor of two.
        """
        if threads in self.counts:
            return FITTED_ERROR
        is_near = self.counts and threads <= FORM_REACH * max(self.counts)
        if len(self.counts) >= _LEAST_COUNTS and is_near:
            return FORM_ERROR
        return FACTOR_UNKNOWN - 1


def fit_threads(
    threads: Sequence[int], seconds: Sequence[float], *, fixed_s: float = 0.0
) -> ThreadModel:
    """Fit the model to times on several numbers of threads.

    Squares of times are linear in the two unknowns, so that the least squares of relative
    errors have one solution.

    Parameters
    ----------
    threads : sequence of int
    seconds : sequence of float
        As many.
    fixed_s : float
        Taken off before the fit.

    Returns
    -------
    ThreadModel
        With one count only, memory is taken to be endless: a lower bound of times.

    Raises
    ------
    ParameterError
        If there is nothing to fit, a number of threads is below 1, or a time not above
        `fixed_s`.

    Examples
    --------
    >>> model = fit_threads([1, 4], [(0.04**2 + 0.01**2) ** 0.5, (0.01**2 + 0.01**2) ** 0.5])
    >>> round(model.one_s, 6), round(model.full_s, 6)
    (0.04, 0.01)
    """
    counts = np.asarray(threads, np.float64)
    times = np.asarray(seconds, np.float64) - fixed_s
    if counts.size == 0 or counts.shape != times.shape or counts.min() < 1 or times.min() <= 0:
        raise ParameterError(
            f"threads {list(threads)} with seconds {list(seconds)} and {fixed_s} s fixed: as many "
            "times as counts are needed, counts from 1 on, and every time above what is fixed."
        )
    seen = tuple(sorted({int(count) for count in counts}))
    weights = 1 / times**2
    columns = np.stack([weights / counts**2, weights], axis=1)
    if len(seen) > 1:
        first, rest = np.linalg.lstsq(columns, np.ones(len(times)), rcond=None)[0]
        if first > 0 and rest >= 0:
            return ThreadModel(float(first**0.5), float(rest**0.5), fixed_s, seen)
        if first <= 0:  # more threads do not help
            rest = _only(columns[:, 1])
            return ThreadModel(0.0, float(rest**0.5), fixed_s, seen)
    return ThreadModel(float(_only(columns[:, 0]) ** 0.5), 0.0, fixed_s, seen)


def _only(column: np.ndarray) -> float:
    """Return the least-squares factor that takes one column to ones."""
    return float(column.sum() / (column**2).sum())


def sweep_errors(sweeps: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Fit published sweeps of threads, and check the fits on threads that were held out.

    Parameters
    ----------
    sweeps : mapping of str to DataFrame
        Of `literature.published_sweeps`.

    Returns
    -------
    DataFrame
        A row for each sweep: `sweep`, `arch`, `counts`, `most_threads`, `bw1_gb_s`,
        `bw_sat_gb_s` (NaN where the file's size is not known), `in_sample` (largest relative
        error of a speed, fitted on all), `without_largest`, `up_to_4`, `up_to_2` (signed
        error of the speed at the most threads, fitted without it or on few threads) and
        `linear` (error of multiplying the speed of the fewest threads).
    """
    import pandas as pd

    rows = []
    for name, sweep in sweeps.items():
        threads, speed = sweep["threads"].to_numpy(), sweep["tok_per_s"].to_numpy()
        model = fit_threads(threads, 1 / speed)
        errors = [_error(model, t, s) for t, s in zip(threads, speed, strict=True)]
        file_gb = float(sweep["file_gb"].iloc[0])
        row = {"sweep": name, "arch": sweep["arch"].iloc[0], "counts": len(threads)}
        row |= {"most_threads": int(threads[-1]), "bw1_gb_s": file_gb / (model.one_s or np.nan)}
        row |= {"bw_sat_gb_s": file_gb / (model.full_s or np.nan)}
        row["in_sample"] = max(map(abs, errors))
        for column, kept in {
            "without_largest": threads < threads[-1],
            "up_to_4": threads <= 4,
            "up_to_2": threads <= 2,
        }.items():
            row[column] = _held_out(threads, speed, kept)
        row["linear"] = speed[0] * threads[-1] / threads[0] / speed[-1] - 1
        rows.append(row)
    return pd.DataFrame(rows)


def _error(model: ThreadModel, threads: int, tok_per_s: float) -> float:
    return 1 / model.seconds(threads) / tok_per_s - 1


def _held_out(threads: np.ndarray, speed: np.ndarray, kept: np.ndarray) -> float:
    """Return the error at the most threads of a fit on some; NaN with fewer than two."""
    if kept.sum() < 2 or kept[-1]:
        return float("nan")
    return _error(fit_threads(threads[kept], 1 / speed[kept]), threads[-1], speed[-1])
