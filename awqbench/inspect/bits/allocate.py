"""One choice for each unit so that the losses' sum is least and the sizes' sum within a limit.

The multiple-choice knapsack problem. Choices on the lower convex hull of loss against size,
taken in order of loss saved per byte, solve it with one unit split between two choices; that
gives a bound that nothing can beat and, repaired, an answer close to it. What the bound leaves
open is then settled by dynamic programming over the states that could still beat the answer
(Kellerer, Pferschy, Pisinger, "Knapsack Problems", 2004, sections 11.2 and 11.5).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from awqbench.errors import ParameterError

# States kept while units are added one by one. 80 layers of 4 units stay far below it; where it
# is reached, the answer may be off the optimum by what `bound` says.
_MAX_STATES = 100_000
# Losses that differ by less, as a share, count as equal: sums in another order differ so.
_TIE = 1e-12


class Allocation(NamedTuple):
    """A choice for each unit.

    Parameters
    ----------
    choices : tuple of int
        Index of each unit's choice.
    size : int
        Their sizes' sum, at most the limit.
    loss : float
        Their losses' sum.
    bound : float
        No choices within the limit have less loss than this; equal to `loss` where the answer
        is proven to be the best.
    """

    choices: tuple[int, ...]
    size: int
    loss: float
    bound: float


class _Step(NamedTuple):
    """From one choice on a unit's hull to the next larger."""

    unit: int
    to: int
    size: int
    saved: float

    @property
    def slope(self) -> float:
        return self.saved / self.size


def allocate(
    sizes: Sequence[Sequence[int]], losses: Sequence[Sequence[float]], limit: int
) -> Allocation:
    """Choose for each unit so that the losses' sum is least and the sizes' sum at most `limit`.

    Parameters
    ----------
    sizes : sequence of sequence of int
        Of each unit's choices, in bytes.
    losses : sequence of sequence of float
        Of the same choices, finite and at least 0.
    limit : int

    Returns
    -------
    Allocation

    Raises
    ------
    ParameterError
        If even the smallest choices exceed the limit; says by how much. If a unit has no
        choice, or a loss is not finite.

    Examples
    --------
    >>> allocate([[2, 3], [2, 4]], [[9.0, 5.0], [8.0, 1.0]], 6).choices
    (0, 1)
    """
    size_of = [np.asarray(unit, dtype=np.int64) for unit in sizes]
    loss_of = [np.asarray(unit, dtype=np.float64) for unit in losses]
    _check(size_of, loss_of, limit)
    smallest = [_smallest(s, e) for s, e in zip(size_of, loss_of, strict=True)]
    steps = [
        step
        for unit, (s, e) in enumerate(zip(size_of, loss_of, strict=True))
        for step in _hull(unit, s, e, smallest[unit])
    ]
    steps.sort(key=lambda step: -step.slope)  # stable: a unit's own steps stay in order
    start, price = _greedy(steps, size_of, smallest, limit)
    start = _repaired(start, size_of, loss_of, limit)
    reduced = [e + price * s for s, e in zip(size_of, loss_of, strict=True)]
    relaxed = sum(float(r.min()) for r in reduced) - price * limit
    return _settle(start, size_of, loss_of, limit, price, relaxed)


def _check(sizes: list[np.ndarray], losses: list[np.ndarray], limit: int) -> None:
    if any(len(s) == 0 or s.shape != e.shape for s, e in zip(sizes, losses, strict=True)):
        raise ParameterError("a unit has no choice, or not as many losses as sizes.")
    if not all(np.isfinite(e).all() for e in losses):
        raise ParameterError("a predicted loss is NaN or infinity; calibrate again.")
    least = sum(int(s.min()) for s in sizes)
    if least > limit:
        raise ParameterError(
            f"the smallest choices take {least:,} bytes, {least - limit:,} more than the limit of "
            f"{limit:,}."
        )


def _smallest(sizes: np.ndarray, losses: np.ndarray) -> int:
    return int(np.lexsort((losses, sizes))[0])


def _hull(unit: int, sizes: np.ndarray, losses: np.ndarray, at: int) -> list[_Step]:
    """Return the steps along a unit's lower convex hull, their slopes falling."""
    steps = []
    while True:
        larger = np.flatnonzero((sizes > sizes[at]) & (losses < losses[at]))
        if not len(larger):
            return steps
        slopes = (losses[at] - losses[larger]) / (sizes[larger] - sizes[at])
        best = larger[np.lexsort((-sizes[larger], -slopes))[0]]  # of equal slopes the farthest
        saved = float(losses[at] - losses[best])
        steps.append(_Step(unit, int(best), int(sizes[best] - sizes[at]), saved))
        at = int(best)


def _greedy(
    steps: list[_Step], sizes: list[np.ndarray], smallest: list[int], limit: int
) -> tuple[list[int], float]:
    """Take steps by slope while they fit; return the choices and the slope that first did not."""
    choices, price = list(smallest), 0.0
    left = limit - sum(int(s[c]) for s, c in zip(sizes, choices, strict=True))
    stopped: set[int] = set()
    for step in steps:
        if step.unit in stopped:
            continue
        if step.size > left:
            price = price or step.slope
            stopped.add(step.unit)
            continue
        choices[step.unit], left = step.to, left - step.size
    return choices, price


def _repaired(
    choices: list[int], sizes: list[np.ndarray], losses: list[np.ndarray], limit: int
) -> list[int]:
    """Spend what is left on the single change that saves most, until none fits."""
    choices = list(choices)
    left = limit - sum(int(s[c]) for s, c in zip(sizes, choices, strict=True))
    while True:
        best = (0.0, -1, -1)
        for unit, (s, e) in enumerate(zip(sizes, losses, strict=True)):
            at = choices[unit]
            saved = np.where(s - s[at] <= left, e[at] - e, -np.inf)
            to = int(np.argmax(saved))
            best = max(best, (float(saved[to]), unit, to))
        saved, unit, to = best
        if unit < 0 or saved <= 0:
            return choices
        left -= int(sizes[unit][to] - sizes[unit][choices[unit]])
        choices[unit] = to


class _States(NamedTuple):
    """Partial answers, each with its parent among those before and the choice that made it."""

    size: np.ndarray
    loss: np.ndarray
    parent: np.ndarray
    choice: np.ndarray


def _settle(start, sizes, losses, limit: int, price: float, relaxed: float) -> Allocation:
    """Search the partial answers that could still beat `start`, and return the best."""
    total = sum(int(s[c]) for s, c in zip(sizes, start, strict=True))
    best = sum(float(e[c]) for e, c in zip(losses, start, strict=True))
    # What the units not yet added cost at least, at the price and in bytes.
    tail = np.cumsum([0.0, *(float((e + price * s).min()) for s, e in _reversed(sizes, losses))])
    room = np.cumsum([0, *(int(s.min()) for s in reversed(sizes))])
    zero = np.zeros(1, dtype=np.int64)
    layers = [_States(zero, np.zeros(1), zero, zero)]
    is_cut = False
    for added, (s, e) in enumerate(zip(sizes, losses, strict=True), start=1):
        rest = len(sizes) - added
        states = _expand(layers[-1], s, e)
        floor = states.loss + price * (states.size - limit) + tail[rest]
        useful = (floor < best * (1 - _TIE)) & (states.size + room[rest] <= limit)
        states, floor = _pick(states, useful), floor[useful]
        keep = _undominated(states)
        if len(keep) > _MAX_STATES:
            is_cut = True
            keep = np.sort(keep[np.argsort(floor[keep])[:_MAX_STATES]])
        layers.append(_pick(states, keep))
    final = layers[-1]
    if final.loss.min(initial=np.inf) < best:
        at = int(np.argmin(final.loss))
        total, best = int(final.size[at]), float(final.loss[at])
        start = []
        for states in reversed(layers[1:]):
            start.append(int(states.choice[at]))
            at = int(states.parent[at])
        start.reverse()
    return Allocation(tuple(start), total, best, max(relaxed, 0.0) if is_cut else best)


def _reversed(sizes, losses):
    return zip(reversed(sizes), reversed(losses), strict=True)


def _expand(states: _States, sizes: np.ndarray, losses: np.ndarray) -> _States:
    n, m = len(states.size), len(sizes)
    return _States(
        (states.size[:, None] + sizes).ravel(),
        (states.loss[:, None] + losses).ravel(),
        np.repeat(np.arange(n), m),
        np.tile(np.arange(m), n),
    )


def _pick(states: _States, which: np.ndarray) -> _States:
    return _States(*(field[which] for field in states))


def _undominated(states: _States) -> np.ndarray:
    """Return the states that no smaller or equal one matches in loss, by size."""
    order = np.lexsort((states.loss, states.size))
    loss = states.loss[order]
    before = np.concatenate([[np.inf], np.minimum.accumulate(loss)[:-1]])
    return order[loss < before]
