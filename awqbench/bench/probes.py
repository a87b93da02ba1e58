"""What this machine can do at this moment: the ceilings that measured rates are shares of.

A ceiling taken an hour ago means nothing on a shared machine: its bandwidth moves by a factor
of two. So a probe is a function that takes its turn among those it is compared with.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from awqbench.bench.timing import Timing, time_in_turns
from awqbench.errors import ParameterError

# An array of this many times the last-level cache comes from memory, however the cache
# chooses what to keep.
CACHE_MULTIPLE = 4
_LEAST_READ_BYTES = 256_000_000
# Rows of the square matrices: 2 GFLOP, tens of milliseconds on one core.
_MATRIX_SIZE = 1024
_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30}


class Probe(NamedTuple):
    """A call of known size: `amount` bytes read, or operations (two for a multiply-add)."""

    name: str
    amount: float
    call: Callable[[], Any]

    def rate(self, timing: Timing) -> float:
        """Return the median rate, 1e9 a second."""
        return self.amount / timing.median_s / 1e9

    def best_rate(self, timing: Timing) -> float:
        """Return the rate of the shortest call, 1e9 a second."""
        return self.amount / timing.min_s / 1e9


class Ceilings(NamedTuple):
    """Best rates seen by probes alone, units in the names (1e9 a second).

    The float32 product runs on FMA, the bfloat16 one on AMX or AVX512-BF16 where oneDNN finds
    them, the int8 one on AMX or VNNI; None where this torch has none.
    """

    threads: int
    read_1_thread_gb_s: float
    read_gb_s: float
    float32_gflop_per_s: float
    bfloat16_gflop_per_s: float
    int8_gop_per_s: float | None


def last_level_cache_bytes(root: Path = Path("/sys/devices/system/cpu/cpu0/cache")) -> int:
    """Return the size of the largest cache that the first CPU reports, 32 MiB if none does.

    Examples
    --------
    >>> last_level_cache_bytes(Path("no such folder"))
    33554432
    """
    sizes = []
    for file in root.glob("index*/size"):
        text = file.read_text().strip()
        if text[:-1].isdigit() and text[-1:] in _UNITS:
            sizes.append(int(text[:-1]) * _UNITS[text[-1]])
    return max(sizes, default=32 * 2**20)


def available_bytes() -> int:
    """Return the memory that can be had without swapping."""
    import psutil

    return psutil.virtual_memory().available


def read_probe(nbytes: int | None = None) -> Probe:
    """Return the probe that reads memory: a sum, on torch's threads.

    Parameters
    ----------
    nbytes : int, optional
        By default four times the last-level cache, at least 256 MB, at most an eighth of the
        memory that is free.
    """
    import torch

    if nbytes is None:
        nbytes = max(_LEAST_READ_BYTES, CACHE_MULTIPLE * last_level_cache_bytes())
        nbytes = min(nbytes, available_bytes() // 8)
    # Of five ways (sums, maxima, dot products of torch and NumPy) mostly the fastest.
    values = torch.ones(max(1, nbytes // 4), dtype=torch.float32)
    return Probe("read", float(values.nbytes), values.sum)


def dot_probe(nbytes: int = _LEAST_READ_BYTES) -> Probe:
    """Return the other probe that reads memory: a dot product, on the threads of NumPy's BLAS."""
    from awqbench.bench.timing import ReadProbe

    probe = ReadProbe(nbytes)
    return Probe("read by dot", float(nbytes // 4 * 4), probe.read)


def compute_probes(size: int = _MATRIX_SIZE) -> dict[str, Probe]:
    """Return a product of two square matrices for each dtype, float32, bfloat16 and int8.

    Parameters
    ----------
    size : int
        Rows and columns.

    Returns
    -------
    dict of str to Probe
        Without int8 where this torch has no such product on the CPU.
    """
    import torch

    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, size, size, generator=generator)
    a16, b16 = a.bfloat16(), b.bfloat16()
    amount = 2.0 * size**3
    probes = {
        "float32": Probe("float32", amount, lambda: a @ b),
        "bfloat16": Probe("bfloat16", amount, lambda: a16 @ b16),
    }
    a8, b8 = (torch.clamp(m * 40, -127, 127).to(torch.int8) for m in (a, b))
    try:
        torch._int_mm(a8[:32], b8)
    except (AttributeError, RuntimeError):  # a private function; not on every CPU
        return probes
    return probes | {"int8": Probe("int8", amount, lambda: torch._int_mm(a8, b8))}


def measure_ceilings(*, nbytes: int | None = None, rounds: int = 5) -> Ceilings:
    """Measure all ceilings, in turns, on the threads torch has now.

    Parameters
    ----------
    nbytes : int, optional
        Of the read probe.
    rounds : int

    Returns
    -------
    Ceilings

    Examples
    --------
    >>> measure_ceilings(nbytes=1_000_000, rounds=1).threads >= 1
    True
    """
    import torch

    threads = torch.get_num_threads()
    read, compute = read_probe(nbytes), compute_probes()
    calls = {name: probe.call for name, probe in {"read": read, **compute}.items()}
    times = time_in_turns(calls, rounds=rounds)
    with limited_threads(1):
        alone = time_in_turns({"read": read.call}, rounds=rounds)["read"]
    best = {name: probe.best_rate(times[name]) for name, probe in compute.items()}
    return Ceilings(
        threads=threads,
        read_1_thread_gb_s=read.best_rate(alone),
        read_gb_s=read.best_rate(times["read"]),
        float32_gflop_per_s=best["float32"],
        bfloat16_gflop_per_s=best["bfloat16"],
        int8_gop_per_s=best.get("int8"),
    )


@contextmanager
def limited_threads(threads: int | None) -> Iterator[None]:
    """Give torch, NumPy's BLAS and numexpr so many threads, and back what they had.

    The native backend takes torch's number. Where torch is not installed it is left out.

    Parameters
    ----------
    threads : int or None
        None changes nothing.

    Raises
    ------
    ParameterError
        If it is below 1.
    """
    if threads is None:
        yield
        return
    if threads < 1:
        raise ParameterError(f"threads is {threads}; at least 1 is needed.")
    import numexpr
    from threadpoolctl import threadpool_limits

    torch = import_module("torch") if find_spec("torch") else None
    before = torch.get_num_threads() if torch else None
    before_numexpr = numexpr.get_num_threads()
    with threadpool_limits(threads):
        try:
            if torch:
                torch.set_num_threads(threads)
            numexpr.set_num_threads(min(threads, numexpr.MAX_THREADS))
            yield
        finally:
            if torch:
                torch.set_num_threads(before)
            numexpr.set_num_threads(before_numexpr)
