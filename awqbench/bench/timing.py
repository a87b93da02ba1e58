"""Times that can be compared: taken in turns in one run, beside a probe of the machine.

On a shared machine the bandwidth moves by a factor of two within an hour, and a call that
is interrupted once takes ten times as long. So a figure is a ratio of medians of calls that
took turns, with its spread, and never a time alone.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

# Threads that use less of a processor than this share are taken for asleep; looked at so often,
# and not longer than so.
_IDLE_SHARE, _IDLE_LOOK_S, _IDLE_LIMIT_S = 0.1, 0.002, 0.5
# A spread above this says that something else ran: compare minima then, or measure again.
NOISY_SPREAD = 1.5


class Timing(NamedTuple):
    """Times of one function in seconds, in the order they were taken."""

    samples_s: tuple[float, ...]

    @property
    def min_s(self) -> float:
        """Shortest time: the best estimate on a machine that is not idle."""
        return min(self.samples_s)

    @property
    def median_s(self) -> float:
        """Median time."""
        return statistics.median(self.samples_s)

    @property
    def spread(self) -> float:
        """Longest time over shortest."""
        return max(self.samples_s) / max(min(self.samples_s), 1e-9)

    @property
    def is_noisy(self) -> bool:
        """Whether the spread is above `NOISY_SPREAD`."""
        return self.spread > NOISY_SPREAD


def time_in_turns(
    functions: Mapping[str, Callable[[], Any]],
    *,
    rounds: int = 7,
    before_each: Callable[[], Any] | None = None,
    wake: Mapping[str, Callable[[], Any]] | None = None,
) -> dict[str, Timing]:
    """Time functions in turns, so that a change of the machine falls on all of them.

    Each is called once before the first round, untimed.

    Parameters
    ----------
    functions : mapping of name to callable without arguments
    rounds : int
        Calls of each, at least 1.
    before_each : callable, optional
        Called untimed before every call, for instance to drive weights out of the cache.
    wake : mapping of name to callable, optional
        Called untimed right before each call of that name, for instance to wake its threads.

    Returns
    -------
    dict of name to Timing

    Examples
    --------
    >>> times = time_in_turns({"a": lambda: None, "b": lambda: sum(range(9999))}, rounds=3)
    >>> times["a"].min_s < times["b"].min_s
    True
    """
    samples: dict[str, list[float]] = {name: [] for name in functions}
    for function in functions.values():
        function()
    for _ in range(max(1, rounds)):
        for name, function in functions.items():
            if before_each is not None:
                before_each()
            if wake is not None and name in wake:
                wake[name]()
            start = time.perf_counter()
            function()
            samples[name].append(time.perf_counter() - start)
    return {name: Timing(tuple(times)) for name, times in samples.items()}


def wait_for_idle_threads() -> None:
    """Wait until the other threads of this process are asleep, for half a second at most.

    The threads of OpenMP wait by spinning for some milliseconds after their last work, those of
    OpenBLAS for more than 50, and take the processors of whatever is timed next.
    """
    limit = time.perf_counter() + _IDLE_LIMIT_S
    while time.perf_counter() < limit:
        used, started = time.process_time(), time.perf_counter()
        time.sleep(_IDLE_LOOK_S)
        passed = time.perf_counter() - started
        if time.process_time() - used < _IDLE_SHARE * passed:
            return


class ReadProbe:
    """Reads a large array: a measure of the memory, and a way to empty the caches.

    Parameters
    ----------
    nbytes : int
        Larger than the last-level cache; 256 MB by default.
    """

    def __init__(self, nbytes: int = 256_000_000) -> None:
        self._values = np.ones(nbytes // 4, np.float32)

    def read(self) -> None:
        """Read every byte once, on the threads of NumPy's BLAS (a dot product)."""
        self._values.dot(self._values)

    def bandwidth_gb_s(self, rounds: int = 3) -> float:
        """Return the best rate seen of reading from memory, in 1e9 bytes a second."""
        timing = time_in_turns({"read": self.read}, rounds=rounds)["read"]
        return self._values.nbytes / timing.min_s / 1e9
