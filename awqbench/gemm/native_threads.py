"""Whose threads the native kernels use: those that torch has, where it is loaded."""

from __future__ import annotations

import ctypes
import os
import sys
from functools import cache
from multiprocessing import parent_process
from pathlib import Path


def default_threads() -> int:
    """Return torch's number of threads, where torch is loaded, else the processors allowed."""
    torch = sys.modules.get("torch")
    if torch is not None:
        return torch.get_num_threads()
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def torch_parallel() -> int | None:
    """Return the address of `GOMP_parallel` in the OpenMP that torch has loaded, if any."""
    torch = sys.modules.get("torch")
    # A process made by fork has none of the threads that OpenMP remembers: it would hang.
    if torch is None or not hasattr(torch, "__file__"):
        return None
    return _parallel_of(torch.__file__, os.getpid(), _import_pid())


@cache
def _import_pid() -> int:
    return os.getpid()


@cache
def _parallel_of(torch_file: str, pid: int, loaded_pid: int) -> int | None:
    # After a fork of our own, or one by multiprocessing (a spawned child loses little).
    if pid != loaded_pid or parent_process() is not None:
        return None
    for name in ("libtorch_cpu.so", "libtorch_cpu.dylib"):
        path = Path(torch_file).parent / "lib" / name
        if path.exists():
            # Looked up in the library and what it was linked to.
            found = getattr(ctypes.CDLL(str(path)), "GOMP_parallel", None)
            return None if found is None else ctypes.cast(found, ctypes.c_void_p).value
    return None
