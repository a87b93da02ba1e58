"""Make the records of this machine: kernels and memory in turns, in blocks that lie apart.

A run visits every case once in each of several blocks, with buffers allocated anew, so that
what drifts (a neighbour, the clock, where pages lie) falls on all cases and shows in their
intervals.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from itertools import cycle
from typing import Any, NamedTuple

import numpy as np

from awqbench.bench.gemm_cases import copies_needed, exact_product, parse_shape, relative_error
from awqbench.bench.probes import CACHE_MULTIPLE, last_level_cache_bytes, limited_threads
from awqbench.bench.record.check import Record
from awqbench.bench.record.inputs import BITS, GROUP_SIZE, digest, make_tokens, make_weight
from awqbench.bench.record.kernels import Kernel, Problem, bytes_per_call, usable_kernels
from awqbench.bench.record.series import Series, shared_fields, timed_records, untimed_record
from awqbench.errors import EmulatedTimingError, ParameterError

TOKENS = 1
SHAPES = ("4096x4096", "1024x3072")
# Fewest blocks that an interval can be had from.
LEAST_BLOCKS = 3
_LEAST_READ_BYTES = 128_000_000


class Plan(NamedTuple):
    """How much is measured: about two minutes on two cores at the defaults."""

    shapes: Sequence[str] = SHAPES
    threads: Sequence[int] = ()
    blocks: int = 10
    block_size: int = 5
    everywhere_only: bool = False


def thread_counts(usable: int | None = None) -> list[int]:
    """Return one, half and all of the processors that this process may use.

    Examples
    --------
    >>> thread_counts(64), thread_counts(1)
    ([1, 32, 64], [1])
    """
    if usable is None:
        has_affinity = hasattr(os, "sched_getaffinity")
        usable = len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1
    return sorted({1, max(1, usable // 2), usable})


def measure(
    plan: Plan | None = None,
    *,
    note: str = "",
    progress: Callable[..., Any] | None = None,
) -> tuple[list[Record], bool]:
    """Measure this machine.

    Parameters
    ----------
    plan : Plan, optional
    note : str
        Kept in every record.
    progress : callable, optional
        Wraps the iteration over blocks and shapes, as `awqbench.progress.progress_bar`.

    Returns
    -------
    tuple of (list of dict, bool)
        The records, not yet sealed, and whether the run came to its end. After Ctrl-C the
        blocks that were whole are kept; no record if there were fewer than three.

    Raises
    ------
    EmulatedTimingError
        If the processor is emulated.
    ParameterError
        If the plan has too few blocks or samples.
    """
    from awqbench.bench.clock import measured_mhz
    from awqbench.bench.record.host import load_average

    plan = plan or Plan()
    _refuse_emulated()
    if plan.blocks < LEAST_BLOCKS or plan.block_size < 1:
        raise ParameterError(
            f"{plan.blocks} blocks of {plan.block_size} samples: at least {LEAST_BLOCKS} blocks "
            "of one sample are needed for an interval."
        )
    threads = list(plan.threads) or thread_counts()
    kernels, absent = usable_kernels(everywhere_only=plan.everywhere_only)
    problems = {shape: _problem(shape) for shape in plan.shapes}
    before, clock = load_average(), measured_mhz()
    series: dict[tuple, Series] = {}
    steps = [(block, shape) for block in range(plan.blocks) for shape in [None, *plan.shapes]]
    whole, is_complete = 0, False
    try:
        for block, shape in progress(steps) if progress else steps:
            if shape is None:
                _add_reads(series, threads, plan.block_size)
            else:
                _add_kernels(series, kernels, problems[shape], threads, plan.block_size)
            whole = block + (shape == plan.shapes[-1])
        is_complete = True
    except KeyboardInterrupt:
        pass
    if whole < LEAST_BLOCKS:
        return [], is_complete
    shared = shared_fields(note or _absent_note(absent))
    shared |= {"freq": {"measured_mhz": clock}, "load_avg": [before, load_average()]}
    return timed_records(list(series.values()), shared, plan.block_size, whole), is_complete


def check_correctness(plan: Plan | None = None, *, note: str = "") -> list[Record]:
    """Run every kernel once and return records without times, on emulated processors too.

    Returns
    -------
    list of dict
        Of provenance ``emulated``, not yet sealed. Needs NumPy and numexpr alone where the
        plan says so.
    """
    plan = plan or Plan()
    kernels, absent = usable_kernels(everywhere_only=plan.everywhere_only)
    shared = shared_fields(note or _absent_note(absent)) | {"provenance": "emulated"}
    records = []
    for problem in map(_problem, plan.shapes):
        for kernel in kernels:
            made = _series(kernel, problem, 1)
            _check_output(made, kernel, problem, kernel.prepare(problem, 1, 1)[0]())
            records.append(untimed_record(made, shared))
    return records


def _refuse_emulated() -> None:
    from awqbench.bench.emulation import why_emulated

    reason = why_emulated()
    if reason:
        raise EmulatedTimingError(
            f"this is {reason}: it is emulated, and its times say nothing about the processor. "
            "--correctness-only records digests and errors without times."
        )


def _absent_note(absent: dict[str, str]) -> str:
    return "; ".join(f"without {name}: {reason}" for name, reason in absent.items())


def _problem(shape: str) -> Problem:
    in_features, out_features = parse_shape(shape)
    if in_features % GROUP_SIZE or out_features % 8:
        raise ParameterError(
            f"shape {shape}: K must be a multiple of {GROUP_SIZE} and N of 8 to be recorded."
        )
    return Problem(make_weight(in_features, out_features), make_tokens(TOKENS, in_features))


def _series(kernel: Kernel, problem: Problem, threads: int) -> Series:
    k, n = problem.packed.in_features, problem.packed.out_features
    case = {
        "kernel": kernel.name,
        "backend": kernel.backend,
        "M": TOKENS,
        "K": k,
        "N": n,
        "bits": BITS,
        "group_size": GROUP_SIZE,
        "act_dtype": kernel.act_dtype,
        "threads": threads,
    }
    nbytes = bytes_per_call(kernel.name, TOKENS, k, n, act_dtype=kernel.act_dtype)
    return Series(case, nbytes, nbytes)


def _add_kernels(
    series: dict[tuple, Series],
    kernels: Sequence[Kernel],
    problem: Problem,
    threads: Sequence[int],
    block_size: int,
) -> None:
    """Add a block of samples of every kernel and number of threads on one problem."""
    for kernel in kernels:
        for count in _threads_of(kernel, threads):
            with limited_threads(count):
                made = _series(kernel, problem, count)
                kept = series.setdefault(tuple(made.case.items()), made)
                copies = copies_needed(kept.nbytes)
                calls = kernel.prepare(problem, copies, count)
                kept.working_set = copies * kept.nbytes
                if not kept.digests:
                    _check_output(kept, kernel, problem, calls[0]())
                kept.samples_s += _timed(calls, block_size)


def _threads_of(kernel: Kernel, threads: Sequence[int]) -> list[int]:
    if not kernel.takes_threads:
        return [1]
    if kernel.backend == "numexpr":
        import numexpr

        # It stops at this number whatever is asked for.
        return [count for count in threads if count <= numexpr.MAX_THREADS]
    return list(threads)


def _timed(calls: Sequence[Callable[[], Any]], count: int) -> list[float]:
    """Time calls in rotation, after one that is not timed."""
    turns = cycle(calls)
    next(turns)()
    found = []
    for _ in range(count):
        call = next(turns)
        started = time.perf_counter()
        call()
        found.append(time.perf_counter() - started)
    return found


def _check_output(series: Series, kernel: Kernel, problem: Problem, output: Any) -> None:
    """Keep the digest of an exact output, or the error of a product."""
    packed = problem.packed
    series.digests["input"] = digest(packed.codes, packed.scales, packed.zeros, problem.x)
    series.digests["output"] = None if kernel.is_product else digest(output)
    if kernel.is_product:
        from awqbench.bench.gemm_paths import as_array

        series.rel_error = relative_error(as_array(output), exact_product(problem.x, packed))


def _add_reads(series: dict[tuple, Series], threads: Sequence[int], block_size: int) -> None:
    """Add a block of samples of reading memory, by as many threads of our own as are asked for.

    A dot product of each thread's part with itself, on one BLAS thread each: unlike a BLAS's
    own threads it does the same on every machine.
    """
    from concurrent.futures import ThreadPoolExecutor

    nbytes = max(_LEAST_READ_BYTES, CACHE_MULTIPLE * last_level_cache_bytes())
    values = np.ones(nbytes // 4, np.float32)
    for count in threads:
        case = {"kernel": "read", "backend": "numpy dot", "threads": count}
        kept = series.setdefault(tuple(case.items()), Series(case, values.nbytes, values.nbytes))
        kept.digests = {"input": None, "output": None}
        parts = np.array_split(values, count)
        with limited_threads(1), ThreadPoolExecutor(count) as pool:
            kept.samples_s += _timed([lambda p=parts, e=pool: _read_all(e, p)], block_size)


def _read_all(pool: Any, parts: Sequence[np.ndarray]) -> None:
    for future in [pool.submit(part.dot, part) for part in parts]:
        future.result()


def default_name() -> str:
    """Return a file name for this machine's records, such as ``x86_64-20260101.jsonl``."""
    return f"{platform.machine()}-{datetime.now(UTC):%Y%m%dT%H%M%S}.jsonl"
