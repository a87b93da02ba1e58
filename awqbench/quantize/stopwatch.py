"""Where the time of a run goes, by stage; and the number of threads it runs on."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Stopwatch:
    """Seconds spent in each stage; a stage inside another counts for itself only.

    Attributes
    ----------
    seconds : dict of str to float
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._inner = [0.0]  # seconds of stages inside the present one

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        """Count the seconds of a ``with`` block for a stage."""
        started = time.perf_counter()
        self._inner.append(0.0)
        try:
            yield
        finally:
            spent = time.perf_counter() - started
            own = spent - self._inner.pop()
            self._inner[-1] += spent
            self.seconds[stage] = self.seconds.get(stage, 0.0) + own

    def add(self, seconds: dict[str, float]) -> None:
        """Add what another stopwatch counted."""
        for stage, value in seconds.items():
            self.seconds[stage] = self.seconds.get(stage, 0.0) + value


@contextmanager
def fixed_threads(threads: int | None) -> Iterator[None]:
    """Let torch compute on a given number of threads inside this block.

    Sums over whole matrices, small Gram matrices and Cholesky factors differ in their last
    bits from one number of threads to another (seen with torch 2.13 on x86), and a choice
    between two grid points can hang on a last bit: a run keeps the number it began with.
    """
    import torch

    before = torch.get_num_threads()
    try:
        if threads is not None and threads != before:
            torch.set_num_threads(threads)
        yield
    finally:
        if torch.get_num_threads() != before:
            torch.set_num_threads(before)


def own_threads() -> int:
    """Return the number of threads that torch computes on here."""
    import torch

    return torch.get_num_threads()
