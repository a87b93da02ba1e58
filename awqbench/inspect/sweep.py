"""One calibration, every setting: bits, group size and method against perplexity and size.

All settings are judged on the same windows of text, and each window's result is kept, so
that any two settings can be compared window by window.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from awqbench.errors import ParameterError
from awqbench.inspect.evaluate import Perplexity, perplexity, standard_error
from awqbench.inspect.sizes import weight_size
from awqbench.progress import progress_bar

if TYPE_CHECKING:
    import pandas as pd
    import torch

    from awqbench.formats.checkpoint import Checkpoint
    from awqbench.quantize.statistics.stats import Stats

# What each method's name in tables and figures means for the search.
METHODS: dict[str, dict] = {
    "rounding": {"scales": "none", "clip": False, "rounding": "nearest"},
    "AWQ": {"scales": "awq", "clip": False, "rounding": "nearest"},
    "AWQ + clip": {"scales": "awq", "clip": True, "rounding": "nearest"},
    "AWQ + GPTQ": {"scales": "awq", "clip": False, "rounding": "gptq"},
    "AWQ + clip + GPTQ": {"scales": "awq", "clip": True, "rounding": "gptq"},
}
# A method with this at its end chooses its scales as AutoAWQ does, by running the model.
BY_BLOCK_OUTPUT = " by block output"
FULL_PRECISION = "full precision"
SIGNIFICANT_SE = 2.0
# Windows evaluated at a time: small logits stay in cache, a third faster than 8 on 2 cores.
_BATCH = 2
# Normal quantile of a two-sided 95 % interval.
Z95 = 1.96


class Setting(NamedTuple):
    """One point of a sweep; equal to the plain tuple."""

    bits: int
    group_size: int
    method: str


class PairedDelta(NamedTuple):
    """Nats a token that one setting loses more than another; negative means it is better."""

    delta: float
    se: float

    @property
    def is_significant(self) -> bool:
        """Whether the difference is more than two standard errors."""
        return abs(self.delta) > SIGNIFICANT_SE * self.se


@dataclass(frozen=True)
class Sweep:
    """What a sweep measured.

    Parameters
    ----------
    table : DataFrame
        A row for each setting: `bits`, `group_size`, `method`, `ppl`, `ppl_low`, `ppl_high`
        (95 % interval over windows), `delta_nll`, `delta_se` (nats a token lost against
        full precision, paired by window), `weight_bytes`, `bits_per_weight`, `search_s`.
    full : Perplexity
        Of the model before quantization.
    window_nll : dict of Setting to (n,) ndarray of float64
        Each window's mean nats a token.
    """

    table: pd.DataFrame
    full: Perplexity
    window_nll: dict[Setting, np.ndarray]

    @property
    def n_windows(self) -> int:
        """Evaluation windows."""
        return len(self.full.window_nll)

    def windows_of(self, setting: Setting | tuple | str) -> np.ndarray:
        """Return each window's nats a token for a setting, or for ``"full precision"``.

        Raises
        ------
        ParameterError
            If the setting was not run.
        """
        if setting == FULL_PRECISION:
            return self.full.window_nll
        if setting not in self.window_nll:
            known = ", ".join(f"{s.bits} bits g{s.group_size} {s.method}" for s in self.window_nll)
            raise ParameterError(f"setting {setting!r} is not in this sweep; there are {known}.")
        return self.window_nll[setting]

    def join(self, other: Sweep) -> Sweep:
        """Return both sweeps as one; they must be of one model on the same windows.

        Raises
        ------
        ParameterError
            If full precision gave other results in `other`.
        """
        import pandas as pd

        mine, theirs = self.full.window_nll, other.full.window_nll
        if mine.shape != theirs.shape or not np.allclose(mine, theirs, atol=1e-5):
            raise ParameterError("these sweeps are of different models or windows of text.")
        table = pd.concat([self.table, other.table], ignore_index=True)
        return Sweep(table, self.full, self.window_nll | other.window_nll)

    def by_method(self, column: str = "ppl") -> pd.DataFrame:
        """Return one column of the table with a column for each method, in the order run."""
        order = list(self.table["method"].unique())
        wide = self.table.pivot(index=["bits", "group_size"], columns="method", values=column)
        return wide[order].sort_index(ascending=False)

    def _repr_html_(self) -> str:
        return self.by_method().to_html(float_format="%.2f")


def sweep(
    model: torch.nn.Module,
    ckpt: Checkpoint | str | Path,
    stats: Stats | str | Path,
    tokens: np.ndarray,
    *,
    bits: Iterable[int] = (4, 3, 2),
    group_sizes: Iterable[int] = (128, 64, 32),
    methods: Iterable[str] = tuple(METHODS),
    calib_tokens: np.ndarray | None = None,
) -> Sweep:
    """Measure perplexity and size for every combination of settings, from one calibration.

    Parameters
    ----------
    model : torch.nn.Module
        The model of `ckpt`, as `load_model` gives it; left as it was.
    ckpt : Checkpoint or str or Path
    stats : Stats or str or Path
        Of this model, by `calibrate`.
    tokens : (n, seq) ndarray of int64
        Evaluation windows.
    bits, group_sizes : iterable of int
    methods : iterable of str
        Names from `METHODS`; with `BY_BLOCK_OUTPUT` at its end, scales are chosen as AutoAWQ
        does.
    calib_tokens : (n, seq) ndarray of int64, optional
        The text of `stats`, for methods that choose by block output.

    Returns
    -------
    Sweep

    Raises
    ------
    ParameterError
        If a method is not known, or there is nothing to run.
    StatisticsError, AlignmentError, CalibrationTextError, NonFiniteError
        As `search` and `perplexity`.
    """
    import pandas as pd

    from awqbench.formats.checkpoint import open_checkpoint
    from awqbench.quantize.fake import fake_quantized
    from awqbench.quantize.statistics.stats import load_stats

    ckpt, stats = open_checkpoint(ckpt), load_stats(stats)
    settings = [Setting(*item) for item in product(bits, group_sizes, methods)]
    changes = [method_changes(setting, calib_tokens) for setting in settings]
    if not settings:
        raise ParameterError("nothing to sweep: give at least one of bits, group_sizes, methods.")
    full = perplexity(model, tokens, batch_size=_BATCH)
    rows, windows = [], {}
    pairs = list(zip(settings, changes, strict=True))
    for setting, change in progress_bar(pairs, "sweep", unit="setting"):
        start = time.perf_counter()
        with fake_quantized(model, ckpt, stats, **change):
            search_s = time.perf_counter() - start
            result = perplexity(model, tokens, batch_size=_BATCH)
        windows[setting] = result.window_nll
        lost = paired_delta(result.window_nll, full.window_nll)
        rows.append(
            setting._asdict()
            | {"ppl": result.ppl, "ppl_low": result.ppl_low, "ppl_high": result.ppl_high}
            | {"delta_nll": lost.delta, "delta_se": lost.se}
            | weight_size(ckpt, stats, setting.bits, setting.group_size)._asdict()
            | {"search_s": search_s}
        )
    return Sweep(pd.DataFrame(rows), full, windows)


def method_changes(setting: Setting, calib_tokens: np.ndarray | None = None) -> dict:
    """Return the arguments of `search` for a setting.

    Raises
    ------
    ParameterError
        If there is no such method.
    """
    name = setting.method.removesuffix(BY_BLOCK_OUTPUT)
    if name not in METHODS:
        raise ParameterError(
            f"no method {setting.method!r}; there are {', '.join(METHODS)}, each also with "
            f"{BY_BLOCK_OUTPUT!r} at its end."
        )
    changes = {"bits": setting.bits, "group_size": setting.group_size} | METHODS[name]
    if name != setting.method:
        changes |= {"objective": "block", "tokens": calib_tokens}
    return changes


def paired_delta(windows: np.ndarray, reference: np.ndarray) -> PairedDelta:
    """Return the mean difference of two settings' windows and its standard error."""
    difference = windows - reference
    return PairedDelta(float(difference.mean()), standard_error(difference))


def paired(
    result: Sweep, a: Setting | tuple | str, b: Setting | tuple | str = FULL_PRECISION
) -> PairedDelta:
    """Compare two settings of a sweep window by window.

    What makes a window hard cancels, so that much smaller differences can be told apart
    than the interval of either perplexity suggests.

    Parameters
    ----------
    result : Sweep
    a, b : Setting, equal tuple, or "full precision"

    Returns
    -------
    PairedDelta
        Nats a token that `a` loses more than `b`.

    Raises
    ------
    ParameterError
        If a setting was not run.
    """
    return paired_delta(result.windows_of(a), result.windows_of(b))


def percent_worse(delta_nll):
    """Return the increase of perplexity in per cent for nats a token lost.

    Parameters
    ----------
    delta_nll : float or ndarray

    Returns
    -------
    float or ndarray

    Examples
    --------
    >>> float(percent_worse(np.log(1.1)).round(6))
    10.0
    """
    return 100 * np.expm1(delta_nll)
