"""All that is to be done on a machine with an NVIDIA GPU, in one run of under 8 minutes.

Compiles the kernels, checks each against float64, times every candidate and keeps the fastest,
measures the ceilings and the products beside their peers (twice: the spread between the two is
printed), and adds a record. Without a GPU it says so and exits with 1. Not run on a GPU so far.

    pip install -e '.[cuda]' humming-kernels gemlite   # the last two are peers, and may be missing
    python benchmarks/gpu_all.py [--write data/records/gpu_gemm.jsonl] [--quick]
"""

from __future__ import annotations

import argparse
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pandas as pd

from awqbench.bench import gpu_gemm, gpu_timing
from awqbench.bench.gpu_paths import GpuCase
from awqbench.bench.records import append_record, make_record, require_appendable
from awqbench.errors import AwqbenchError, BackendError
from awqbench.gemm import cuda, cuda_build, cuda_programs, cuda_tune

# Of the 8 minutes; the rest is compiling, checking and tuning.
BENCH_LIMIT_S = 150
DEVICE = "cuda:0"


def compile_here(arch: str) -> None:
    """Compile this GPU's programs into the cache, several at a time."""
    with ThreadPoolExecutor() as pool:
        jobs = cuda_programs.programs(arch)
        list(pool.map(lambda program: cuda_build.cubin_file(program, arch), jobs))


def tune_here(shapes: tuple[tuple[int, int], ...], tokens: tuple[int, ...], l2_bytes: int) -> None:
    """Time every candidate at the sizes that are benched, and keep what wins."""
    import torch

    def timer(calls):
        return {name: t.median_s for name, t in gpu_timing.time_in_turns(calls).items()}

    for k, n in shapes:
        packed = GpuCase(k, n, 4, 128, device=DEVICE).packed
        weights = [cuda.to_device(packed, torch.device(DEVICE))]
        n_copies = gpu_gemm.copies(weights[0].spec.nbytes, l2_bytes)
        weights += [cuda.to_device(packed, torch.device(DEVICE)) for _ in range(n_copies - 1)]
        for m in tokens:
            for dtype in (torch.float16, torch.bfloat16):
                times = cuda_tune.tune(weights, m, dtype, timer)
                best = min(times, key=times.__getitem__)
                print(f"{k}x{n} M={m} {dtype}: {best} {times[best] * 1e6:.1f} us")


def run(args: argparse.Namespace) -> int:
    """Do all of it; return the exit status."""
    started = time.monotonic()
    gpu_gemm.require_gpu()
    if reason := cuda.why_absent():
        raise BackendError(f"backend 'cuda' is not available: {reason}")
    import torch

    if args.write:
        require_appendable(args.write)
    facts = cuda.device_facts(torch.device(DEVICE))
    print(f"{facts.name}, sm_{facts.arch}, {facts.n_sm} multiprocessors")
    compile_here(facts.arch)
    print(f"compiled after {time.monotonic() - started:.0f} s")
    checks = gpu_gemm.check_kernels(DEVICE)
    print(checks.groupby("path").agg(rows=("tokens", "size"), worst=("rel_error", "max")))
    if checks["is_wrong"].any():
        print(f"WRONG:\n{checks[checks['is_wrong']].to_string(index=False)}")
        return 1
    shapes = gpu_gemm.SHAPES[:1] if args.quick else gpu_gemm.SHAPES
    tokens = gpu_gemm.TOKENS[:3] if args.quick else gpu_gemm.TOKENS
    ceilings = gpu_timing.measure_ceilings()
    print(ceilings)
    tune_here(shapes, tuple(m for m in tokens if m <= 1024), ceilings.l2_bytes)
    runs = [
        gpu_gemm.bench_gemm(
            ceilings, device=DEVICE, shapes=shapes, tokens=tokens, time_limit_s=BENCH_LIMIT_S
        )
        for _ in range(2)
    ]
    table = with_spread(*runs)
    print(table.to_string(index=False))
    settings = {"shapes": [f"{k}x{n}" for k, n in shapes], "tokens": list(tokens), "bits": 4}
    settings |= {"checked": len(checks), "worst_error": float(checks["rel_error"].max())}
    if args.write:
        is_complete = all(run.attrs["is_complete"] for run in runs)
        record = make_record(
            "gpu_gemm", table, settings, ceilings=ceilings._asdict(), is_complete=is_complete
        )
        append_record(args.write, record)
    print(f"done after {time.monotonic() - started:.0f} s")
    return 0


def with_spread(first: pd.DataFrame, second: pd.DataFrame) -> pd.DataFrame:
    """Return the first run's rows with the ratio of the second's times to them."""
    keys = ["shape", "tokens", "path"]
    again = second.set_index(keys)["median_s"]
    index = pd.MultiIndex.from_frame(first[keys])
    table = first.assign(repeat_ratio=again.reindex(index).to_numpy() / first["median_s"])
    table.attrs = first.attrs
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
