"""All that is to be done on a machine with an NVIDIA GPU, in one run of under 8 minutes.

Compiles the kernels, checks each against float64, times every candidate and keeps the fastest,
measures the ceilings and the products beside their peers (twice: the spread between the two is
printed), and adds a record. A part that fails is printed and the others go on: what was measured
is written, and the exit status is 1. Without a GPU it says so and exits with 1. Not run on a GPU
so far.

    pip install -e '.[cuda]' humming-kernels gemlite   # the last two are peers, and may be missing
    python benchmarks/gpu_all.py [--write data/records/gpu_gemm.jsonl] [--quick]
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pandas as pd

from awqbench.bench import gpu_check, gpu_gemm, gpu_timing
from awqbench.bench.gpu_paths import GpuCase
from awqbench.bench.records import append_record, make_record, require_appendable
from awqbench.errors import AwqbenchError, BackendError
from awqbench.gemm import cuda, cuda_build, cuda_nvrtc, cuda_programs, cuda_tune

# Of the 8 minutes, for all but the last size that is begun; seconds that tuning may take of it;
# and the first bench's part of what is left, in which peers compile.
LIMIT_S, TUNE_S, FIRST_PART = 440, 100, 0.6
DEVICE = "cuda:0"


class Parts:
    """The parts of a run: each is timed, and one that raises ends alone."""

    def __init__(self) -> None:
        self.started = time.monotonic()
        self.failed: list[str] = []

    @property
    def left_s(self) -> float:
        """Seconds until the limit."""
        return LIMIT_S - (time.monotonic() - self.started)

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Print what a part raises, and go on."""
        try:
            yield
        # What was measured before is to be written, whatever comes after it.
        except Exception:
            traceback.print_exc()
            self.failed.append(name)
        print(f"-- {name}: after {time.monotonic() - self.started:.0f} s")


def compile_here(arch: str) -> None:
    """Compile the programs that this run launches into the cache, several at a time."""
    kinds = {
        cuda_programs.Kind(bits, is_bf16, group_size, "float16")
        for _, _, bits, group_size, _ in gpu_check.CHECKS
        for is_bf16 in (False, True)
    }
    with ThreadPoolExecutor() as pool:
        jobs = cuda_programs.programs(arch, kinds)
        list(pool.map(lambda program: cuda_build.cubin_file(program, arch), jobs))


def check_here(parts: Parts) -> pd.DataFrame:
    """Check every kernel; a wrong one fails the run, and is timed and marked all the same."""
    checks = gpu_check.check_kernels(DEVICE)
    print(checks.groupby("path").agg(rows=("tokens", "size"), worst=("rel_error", "max")))
    if checks["is_wrong"].any():
        print(f"WRONG:\n{checks[checks['is_wrong']].to_string(index=False)}")
        parts.failed.append("check")
    return checks


def tune_here(parts: Parts, shapes: tuple, tokens: tuple[int, ...], l2_bytes: int) -> None:
    """Time every candidate at the sizes that are benched, and keep what wins."""
    import torch

    def timer(calls: dict[str, list[Callable]]) -> dict[str, float]:
        times, failures = gpu_timing.time_in_turns(calls)
        for name, error in failures.items():
            print(f"FAILED: {name}: {error}")
            parts.failed.append("tune")
        return {name: t.median_s for name, t in times.items()}

    deadline = time.monotonic() + TUNE_S
    has_bf16 = cuda.device_facts(torch.device(DEVICE)).arch != "75"
    dtypes = (torch.float16, torch.bfloat16) if has_bf16 else (torch.float16,)
    for k, n in shapes:
        packed = GpuCase(k, n, 4, 128, device=DEVICE).packed
        weights = [cuda.to_device(packed, torch.device(DEVICE))]
        n_copies = gpu_gemm.copies(weights[0].spec.nbytes, l2_bytes)
        weights += [cuda.to_device(packed, torch.device(DEVICE)) for _ in range(n_copies - 1)]
        for m in tokens:
            for dtype in dtypes:
                if time.monotonic() > deadline:
                    print(f"tuning ends before {k}x{n} M={m} {dtype}: {TUNE_S} s are over")
                    return
                times = cuda_tune.tune(weights, m, dtype, timer)
                if times:
                    best = min(times, key=times.__getitem__)
                    print(f"{k}x{n} M={m} {dtype}: {best} {times[best] * 1e6:.1f} us")


def run(args: argparse.Namespace) -> int:
    """Do all of it; return the exit status."""
    parts = Parts()
    gpu_gemm.require_gpu()
    if reason := cuda.why_absent():
        raise BackendError(f"backend 'cuda' is not available: {reason}")
    import torch

    if args.write:
        require_appendable(args.write)
    facts = cuda.device_facts(torch.device(DEVICE))
    print(f"{facts.name}, sm_{facts.arch}, {facts.n_sm} multiprocessors")
    # The largest first: should time run out, it is what the kernels are for.
    shapes = gpu_gemm.SHAPES[:1] if args.quick else gpu_gemm.SHAPES[::-1]
    tokens = gpu_gemm.TOKENS[:3] if args.quick else gpu_gemm.TOKENS
    checks, ceilings, runs = pd.DataFrame(), None, []
    with parts.part("compile"):
        compile_here(facts.arch)
    with parts.part("check"):
        checks = check_here(parts)
    with parts.part("ceilings"):
        ceilings = gpu_timing.measure_ceilings()
        print(ceilings)
    if ceilings is not None:
        with parts.part("tune"):
            tune_here(parts, shapes, tuple(m for m in tokens if m <= 1024), ceilings.l2_bytes)
        for share in (FIRST_PART, 1):
            limit_s = share * parts.left_s
            with parts.part("bench"):
                table = gpu_gemm.bench_gemm(
                    ceilings, device=DEVICE, shapes=shapes, tokens=tokens, time_limit_s=limit_s
                )
                runs.append(table)
                parts.failed += table.attrs["failed"]
    table = with_spread(*runs) if runs else pd.DataFrame()
    print(table.to_string(index=False))
    for name, reason in table.attrs.get("absent", {}).items():
        print(f"not timed: {name}: {reason}")
    settings = {"shapes": [f"{k}x{n}" for k, n in shapes], "tokens": list(tokens), "bits": 4}
    settings |= {"nvrtc": cuda_nvrtc.version(), "failed": parts.failed}
    settings |= {"checks": json.loads(checks.to_json(orient="records", double_precision=15))}
    if args.write:
        write(args.write, table, settings, ceilings._asdict() if ceilings else None)
    if parts.failed:
        print(f"FAILED: {', '.join(parts.failed)}")
    return int(bool(parts.failed))


def write(file: str, table: pd.DataFrame, settings: dict[str, Any], ceilings: dict | None) -> None:
    """Add the run to a record file."""
    is_complete = table.attrs.get("is_complete", False)
    record = make_record("gpu_gemm", table, settings, ceilings=ceilings, is_complete=is_complete)
    append_record(file, record)
    print(f"appended to {file}")


def with_spread(first: pd.DataFrame, second: pd.DataFrame | None = None) -> pd.DataFrame:
    """Return the first run's rows with the ratio of the second's times to them.

    Of the two runs' `attrs` it has both: what was absent or failed in either.
    """
    if second is None or first.empty or second.empty:
        table = first.assign(repeat_ratio=float("nan"))
        table.attrs = first.attrs | {"is_complete": False}
        return table
    keys = ["shape", "tokens", "path"]
    again = second.set_index(keys)["median_s"]
    index = pd.MultiIndex.from_frame(first[keys])
    table = first.assign(repeat_ratio=again.reindex(index).to_numpy() / first["median_s"])
    both = (first.attrs, second.attrs)
    table.attrs = {
        "absent": both[1]["absent"] | both[0]["absent"],
        "is_complete": all(attrs["is_complete"] for attrs in both),
    }
    return table


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", help="record file to add this run to")
    parser.add_argument("--quick", action="store_true", help="one shape, up to 16 tokens")
    try:
        return run(parser.parse_args())
    except AwqbenchError as error:
        print(error, file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
