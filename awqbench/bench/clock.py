"""The clock that the processor really runs at, by a chain of operations of known latency.

NumPy cannot measure it: its loops have no fixed number of cycles. So it takes a compiler; the
clock is None without one.
"""

from __future__ import annotations

import ctypes
import subprocess
import tempfile
import time
from functools import cache
from pathlib import Path

# An add and an exclusive or of registers, each waiting for the one before: one cycle each on
# x86 and ARM cores. (Chains of adding a constant are folded by newer cores and would read
# several times too fast; multiplications take 2 to 4 cycles, by core.) The empty asm keeps
# the compiler from merging steps.
_PAIRS = 64
_STEP = 'x += y; __asm__ volatile("" : "+r"(x)); x ^= z; __asm__ volatile("" : "+r"(x));'
_SOURCE = f"""
#include <stdint.h>
extern "C" uint64_t chain(uint64_t x, uint64_t y, uint64_t z, uint64_t rounds) {{
  for (uint64_t i = 0; i < rounds; ++i) {{ {_STEP * _PAIRS} }}
  return x;
}}
"""
_ROUNDS, _TRIES = 60_000, 9
_TIME_LIMIT_S = 60


def measured_mhz() -> float | None:
    """Return the clock of one busy core, in MHz; None where nothing can be compiled.

    Returns
    -------
    float or None
        The best of some tries of milliseconds each, for an interruption can only slow them
        down; with turbo, of now.
    """
    chain = _chain()
    if chain is None:
        return None
    chain(1, 3, 5, _ROUNDS)
    rates = []
    for _ in range(_TRIES):
        started = time.perf_counter()
        chain(1, 3, 5, _ROUNDS)
        rates.append(2 * _PAIRS * _ROUNDS / (time.perf_counter() - started) / 1e6)
    return max(rates)


@cache
def _chain():
    from awqbench.gemm.native_build import find_compiler

    compiler = find_compiler()
    if compiler is None:
        return None
    with tempfile.TemporaryDirectory(prefix="awqbench-clock-") as scratch:
        source, library = Path(scratch) / "chain.cpp", Path(scratch) / "chain.so"
        source.write_text(_SOURCE)
        command = [*compiler, "-O2", "-shared", "-fPIC", str(source), "-o", str(library)]
        try:
            subprocess.run(command, capture_output=True, timeout=_TIME_LIMIT_S, check=True)
            chain = ctypes.CDLL(str(library)).chain
        except (OSError, subprocess.SubprocessError):
            return None
    chain.restype = ctypes.c_uint64
    chain.argtypes = [ctypes.c_uint64] * 4
    return chain
