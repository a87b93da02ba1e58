"""How many cache lines a core waits for at once: what a busy loop gets out of memory.

Chains of reads in random order, each address read from the line before: nothing can be fetched
ahead, so that one chain takes the latency of memory for each line, and several chains overlap as
far as the core lets them. Latency over time for a line is the number of lines in flight.
"""

from __future__ import annotations

import ctypes
import subprocess
import tempfile
import time
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from awqbench.bench.probes import CACHE_MULTIPLE, last_level_cache_bytes
from awqbench.errors import BackendError, EmulatedTimingError

if TYPE_CHECKING:
    import pandas as pd

CHAINS = (1, 2, 4, 8, 16, 32)
LINE = 64
_LEAST_BYTES = 128_000_000
_WORDS = LINE // 4
_READS, _TIME_LIMIT_S = 400_000, 60
_SOURCE = f"""
#include <stdint.h>
template <int N> static void walk(const uint32_t* next, uint32_t* at, uint64_t steps) {{
  uint32_t own[N];
  for (int i = 0; i < N; ++i) own[i] = at[i];
  for (uint64_t step = 0; step < steps; ++step)
    for (int i = 0; i < N; ++i) own[i] = next[(uint64_t)own[i] * {_WORDS}];
  for (int i = 0; i < N; ++i) at[i] = own[i];
}}
extern "C" void chase(const uint32_t* next, uint32_t* at, int chains, uint64_t steps) {{
  switch (chains) {{
    {" ".join(f"case {n}: return walk<{n}>(next, at, steps);" for n in CHAINS)}
  }}
}}
"""


def measure_parallelism(
    *, nbytes: int | None = None, rounds: int = 5, reads: int = _READS, seed: int = 0
) -> pd.DataFrame:
    """Time random reads in one to 32 chains, on one core.

    Parameters
    ----------
    nbytes : int, optional
        Of the buffer; by default four times the last-level cache, at least 128 MB.
    rounds : int
        Turns; the shortest counts, for an interruption can only make one longer.
    reads : int
        Lines that are read in a turn.
    seed : int
        Of the order of lines.

    Returns
    -------
    DataFrame
        `chains`, `ns_per_line`, `gb_s` (whole lines) and `lines_in_flight` (the time of one
        chain over the time of so many). Addresses are translated on the way: with pages of
        4 KiB some of the time is for that.

    Raises
    ------
    EmulatedTimingError
        If the processor is emulated.
    BackendError
        If there is no C++ compiler.
    """
    import pandas as pd

    from awqbench.bench.emulation import why_emulated

    reason = why_emulated()
    if reason:
        raise EmulatedTimingError(f"this is {reason}: its times say nothing of the processor.")
    chase = _library().chase
    nbytes = nbytes or max(_LEAST_BYTES, CACHE_MULTIPLE * last_level_cache_bytes())
    reads = min(reads, nbytes // LINE)
    order = np.random.default_rng(seed).permutation(nbytes // LINE).astype(np.uint32)
    lines = np.zeros((len(order), _WORDS), np.uint32)
    lines[order, 0] = np.roll(order, -1)  # one cycle through all lines
    times: dict[int, list[float]] = {chains: [] for chains in CHAINS}
    # Chains begin evenly apart, so that no line is met twice in a turn; and what an earlier turn
    # has left in the caches is driven out, or the next one would be said to wait for less.
    other = np.ones(nbytes // 4, np.float32)
    for _ in range(rounds):
        for chains in CHAINS:
            at = order[np.arange(chains) * (len(order) // chains)].copy()
            other.sum()
            started = time.perf_counter()
            chase(lines.ctypes.data, at.ctypes.data, chains, reads // chains)
            times[chains].append((time.perf_counter() - started) / (reads // chains * chains))
    table = pd.DataFrame({"chains": list(times)})
    table["ns_per_line"] = [min(found) * 1e9 for found in times.values()]
    table["gb_s"] = LINE / table["ns_per_line"]
    table["lines_in_flight"] = table["ns_per_line"].iloc[0] / table["ns_per_line"]
    return table


@cache
def _library() -> ctypes.CDLL:
    from awqbench.gemm.native_build import find_compiler

    compiler = find_compiler()
    if compiler is None:
        raise BackendError("timing chains of reads takes a C++ compiler, and none is found.")
    with tempfile.TemporaryDirectory(prefix="awqbench-chains-") as scratch:
        source, library = Path(scratch) / "chains.cpp", Path(scratch) / "chains.so"
        source.write_text(_SOURCE)
        command = [*compiler, "-O2", "-shared", "-fPIC", str(source), "-o", str(library)]
        try:
            subprocess.run(command, capture_output=True, timeout=_TIME_LIMIT_S, check=True)
            found = ctypes.CDLL(str(library))
        except (OSError, subprocess.SubprocessError) as error:
            raise BackendError(f"{compiler[0]} does not build the chains of reads.") from error
    found.chase.restype = None
    found.chase.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int, ctypes.c_uint64]
    return found
