"""Blocks of columns on several Python threads, each with NumPy's BLAS on one.

NumPy's own loops, which unpack codes, run on one thread however many BLAS has. They release the
GIL, so that blocks can be unpacked beside one another; BLAS is held to one thread meanwhile, for
its threads would wait for the same processors.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from typing import Any

# Weights that one thread unpacks in about 0.1 ms, twice what handing blocks out takes.
ALONE = 1 << 19
_Block = tuple[int, int]
_changing = threading.Lock()
# Calls that hold BLAS to one thread now, and what gives back what it had.
_held: dict[str, Any] = {"calls": 0, "limit": None}


def blas_threads() -> int:
    """Return how many threads NumPy's BLAS takes now."""
    libraries = _blas().lib_controllers
    return max((library.num_threads or 1 for library in libraries), default=1)


def run_blocks(work: Callable[[_Block], None], blocks: Iterable[_Block], *, n_weights: int) -> None:
    """Call ``work(block)`` for each block, on as many threads as BLAS has.

    Parameters
    ----------
    work : callable
        Writes what belongs to its block only. An error of one is raised here.
    blocks : iterable of (int, int)
    n_weights : int
        Of all blocks: few are not worth another thread.
    """
    blocks = list(blocks)
    threads = 1 if n_weights < ALONE else min(blas_threads(), len(blocks))
    if threads <= 1:
        for block in blocks:
            work(block)
        return
    with _blas_on_one_thread():
        for _ in _pool(os.getpid(), threads).map(work, blocks):
            pass


@cache
def _blas() -> Any:
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController().select(user_api="blas")


@cache
def _pool(pid: int, threads: int) -> ThreadPoolExecutor:
    """Return threads that stay; a process made by fork has none of them and gets its own."""
    return ThreadPoolExecutor(threads, thread_name_prefix="awqbench-numpy")


@contextmanager
def _blas_on_one_thread() -> Iterator[None]:
    # The number is the process's: the first call changes it, and the last one gives it back.
    with _changing:
        if _held["calls"] == 0:
            _held["limit"] = _blas().limit(limits=1)
        _held["calls"] += 1
    try:
        yield
    finally:
        with _changing:
            _held["calls"] -= 1
            if _held["calls"] == 0:
                _held["limit"].restore_original_limits()
