"""Finding which module's rows feed which input channels, by changing the rows and looking.

Every row of a module is multiplied with a factor of its own, and the block runs again: a
channel whose input changed by one factor for all tokens is fed by that row, and by it
alone. One run tells for all rows and channels, grouped-query repeats included.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from awqbench.quantize.folds.trace import Probe, Trace, inputs_of, is_norm, swapped

if TYPE_CHECKING:
    import torch

# Norms run in float32 whatever the block's dtype, so ratios are exact to about 1e-7;
# 1e-7 itself misses Cohere and Gemma, and 1e-5 tells 100,000 factors apart.
_TOLERANCE = 1e-5
_FACTOR_RANGE = (1.25, 20.0)  # not near 1, which is what an unmoved channel shows
# Runs spent on one fused projection to find the rows that fold: three levels of halves.
# Fused gate and up need two; a projection without such rows (GELU) costs them all.
_MAX_HALVES = 14
# A channel this much weaker than the strongest is silent: its ratio is rounding.
_SILENT = 1e-7


class Match(NamedTuple):
    """A module that may absorb a site's scales, not yet proven.

    Parameters
    ----------
    prev_op : str
    kind : {"norm", "norm_plus_one", "linear"}
    source : (K,) ndarray of int64
        -1 where no row was found.
    silent : int
        Channels that carried nothing in the probe.
    """

    prev_op: str
    kind: str
    source: np.ndarray
    silent: int

    @property
    def is_complete(self) -> bool:
        """Whether every channel that carried something has its row."""
        return int((self.source >= 0).sum()) + self.silent >= self.source.size


class _Decoded(NamedTuple):
    source: np.ndarray  # (K,) int64
    mixed: np.ndarray  # (K,) bool: changed, but not by one row's factor
    silent: np.ndarray  # (K,) bool


def find_matches(
    block: torch.nn.Module, probe: Probe, trace: Trace, *, locked: Iterable[str] = ()
) -> dict[str, list[Match]]:
    """Find the modules that may absorb each site's scales, most channels first.

    Parameters
    ----------
    block : torch.nn.Module
        Float32 or wider.
    probe : Probe
    trace : Trace
        Of the same block.
    locked : iterable of str
        Parameters that may not be changed.

    Returns
    -------
    dict of str to list of Match
        By the site's first linear.
    """
    finder = _Finder(block, probe, trace)
    for candidate in _candidates(block, trace, set(locked)):
        finder.try_module(candidate)
    finder.try_halves()
    return {
        first: sorted(matches, key=lambda match: -int((match.source >= 0).sum()))
        for first, matches in finder.matches.items()
    }


def _candidates(block: torch.nn.Module, trace: Trace, locked: set[str]) -> list[str]:
    from torch import nn

    found = []
    for path in dict.fromkeys(trace.order):
        module = block.get_submodule(path)
        if not (is_norm(module) or isinstance(module, nn.Linear)) or trace.calls[path] > 1:
            continue
        if not locked & {f"{path}.weight", f"{path}.bias"}:
            found.append(path)
    return found


class _Finder:
    """The state of one search: what entered the linears, and what was found."""

    def __init__(self, block: torch.nn.Module, probe: Probe, trace: Trace) -> None:
        self.block = block
        self.probe = probe
        firsts = [group[0] for group in trace.groups]
        self.position = {path: k for k, path in reversed(list(enumerate(trace.order)))}
        self.groups = trace.groups
        self.before = inputs_of(block, firsts, probe.alone)
        # Single tokens may leave out linears that several tokens reach (experts).
        self.firsts = [first for first in firsts if first in self.before]
        self.matches: dict[str, list[Match]] = {first: [] for first in firsts}
        self.mixed: set[tuple[str, str]] = set()

    def try_module(self, path: str) -> None:
        """Change all rows of a module and keep what its factors show."""
        firsts = self._open_sites_after(path)
        if not firsts:
            return
        if not is_norm(self.block.get_submodule(path)):
            self._keep(path, "linear", self._look(path, "linear", firsts))
            return
        plain = self._look(path, "norm", firsts)
        plus_one = {}
        # A norm that multiplies with 1 + weight shows constant ratios that are no factors.
        if any(d.mixed.any() for d in plain.values()):
            plus_one = self._look(path, "norm_plus_one", firsts)
        for first in firsts:
            better = first in plus_one and _found(plus_one[first]) > _found(plain[first])
            decoded = plus_one[first] if better else plain[first]
            self._keep(path, "norm_plus_one" if better else "norm", {first: decoded})

    def try_halves(self) -> None:
        """For sites still open, look into the projection before them, half by half."""
        for first in self.firsts:
            before = [g for g in self.groups if self.position[g[0]] < self.position[first]]
            if not before or self._is_complete(first):
                continue
            nearest = max(before, key=lambda group: self.position[group[0]])
            for path in nearest:
                if (path, first) in self.mixed and not self._is_complete(first):
                    self._keep(path, "linear", {first: self._halve(path, first)})

    def _halve(self, path: str, first: str) -> _Decoded:
        n_rows = self.block.get_submodule(path).weight.shape[0]
        source = np.full(self.before[first].shape[1], -1, dtype=np.int64)
        queue = [(0, n_rows)]
        for _ in range(_MAX_HALVES // 2):
            if not queue:
                break
            start, stop = queue.pop(0)
            middle = (start + stop) // 2
            for half in ((start, middle), (middle, stop)):
                decoded = self._look(path, "linear", [first], rows=half)[first]
                source = np.where(source < 0, decoded.source, source)
                if decoded.mixed.any() and half[1] - half[0] > 1:
                    queue.append(half)
            if ((source >= 0) | decoded.silent).all():
                break
        return _Decoded(source, source < 0, decoded.silent)

    def _look(
        self, path: str, kind: str, firsts: list[str], *, rows: tuple[int, int] | None = None
    ) -> dict[str, _Decoded]:
        """Multiply rows with distinct factors, run, and decode what enters each site."""
        module = self.block.get_submodule(path)
        n_rows = module.weight.shape[0]
        start, stop = rows or (0, n_rows)
        factors = np.ones(n_rows)
        factors[start:stop] = _distinct_factors(stop - start)
        with swapped(self.block, _multiplied(module, path, kind, factors)):
            after = inputs_of(self.block, firsts, self.probe.alone)
        return {f: _decode(self.before[f], after.get(f), factors) for f in firsts}

    def _keep(self, path: str, kind: str, decoded: dict[str, _Decoded]) -> None:
        for first, (source, mixed, silent) in decoded.items():
            if mixed.any():
                self.mixed.add((path, first))
            if (source >= 0).any():
                self.matches[first].append(Match(path, kind, source, int(silent.sum())))

    def _open_sites_after(self, path: str) -> list[str]:
        at = self.position[path]
        return [f for f in self.firsts if self.position[f] > at and not self._is_complete(f)]

    def _is_complete(self, first: str) -> bool:
        return any(match.is_complete for match in self.matches[first])


def _found(decoded: _Decoded) -> int:
    return int((decoded.source >= 0).sum())


def _distinct_factors(count: int) -> np.ndarray:
    """Return factors evenly spaced by ratio, in an order that follows no structure."""
    low, high = np.log(_FACTOR_RANGE)
    factors = np.exp(np.linspace(low, high, count))
    return np.random.default_rng(count).permutation(factors)


def _multiplied(
    module: torch.nn.Module, path: str, kind: str, factors: np.ndarray
) -> dict[str, torch.Tensor]:
    weight = module.weight.data
    factor = weight.new_tensor(factors)
    if kind == "norm_plus_one":
        changed = {f"{path}.weight": (1 + weight) * factor - 1}
    else:
        column = factor.reshape((-1,) + (1,) * (weight.ndim - 1))
        changed = {f"{path}.weight": weight * column}
    if getattr(module, "bias", None) is not None:
        changed[f"{path}.bias"] = module.bias.data * factor
    return changed


def _decode(before: np.ndarray, after: np.ndarray | None, factors: np.ndarray) -> _Decoded:
    """Tell which row's factor each channel shows.

    Parameters
    ----------
    before, after : (tokens, K) ndarray of float64
        `after` has other tokens, or is None, where the change sent tokens elsewhere.
    factors : (rows,) ndarray
        1 for rows that were left alone.
    """
    energy = np.sum(before * before, axis=0)
    silent = energy <= _SILENT**2 * energy.max(initial=0.0)
    if after is None or after.shape != before.shape:
        return _Decoded(np.full(silent.size, -1), np.ones_like(silent), silent)
    ratio = np.sum(before * after, axis=0) / np.where(silent, 1.0, energy)
    residual = np.linalg.norm(after - ratio * before, axis=0)
    size = np.linalg.norm(after, axis=0)
    constant = ~silent & (ratio > 0) & (residual <= _TOLERANCE * size)
    changed_rows = np.flatnonzero(factors != 1.0)
    order = changed_rows[np.argsort(factors[changed_rows])]
    nearest = _nearest(factors[order], ratio)
    fits = constant & (np.abs(ratio / factors[order][nearest] - 1.0) <= _TOLERANCE)
    unmoved = constant & (np.abs(ratio - 1.0) <= _TOLERANCE)
    source = np.where(fits, order[nearest], -1).astype(np.int64)
    return _Decoded(source, ~(fits | unmoved | silent), silent)


def _nearest(ascending: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Return the index of the entry of `ascending` nearest to each value."""
    right = np.clip(np.searchsorted(ascending, values), 1, max(len(ascending) - 1, 1))
    right = np.minimum(right, len(ascending) - 1)
    left = np.maximum(right - 1, 0)
    nearer_left = np.abs(values - ascending[left]) <= np.abs(values - ascending[right])
    return np.where(nearer_left, left, right)
