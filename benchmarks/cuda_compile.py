"""Compile every CUDA program for every architecture: seconds, registers, spills. Needs no GPU.

Prints a table of kernels by architectures and, with --write, adds the run to a record file,
which tests/gemm/test_cuda_compile.py holds against the sources. Some minutes on two cores.

    python benchmarks/cuda_compile.py [--arch 80 90a] [--write data/records/cuda_compile.jsonl]
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from concurrent.futures import ThreadPoolExecutor

import pandas as pd

from awqbench.bench.records import append_record, make_record
from awqbench.errors import AwqbenchError
from awqbench.gemm import cuda_nvrtc, cuda_programs
from awqbench.gemm.cuda_build import ARCHITECTURES, Program, compile_program
from awqbench.progress import progress_bar


def compile_all(jobs: list[tuple[Program, str]], threads: int) -> pd.DataFrame:
    """Compile programs; return a row for each."""
    with ThreadPoolExecutor(threads) as pool:
        built = pool.map(lambda job: compile_program(*job), jobs)
        following = progress_bar(built, "compile", unit="program", total=len(jobs))
        rows = []
        for (program, arch), result in zip(jobs, following, strict=True):
            rows.append(
                {
                    "kernel": program.kernel,
                    "arch": arch,
                    "macros": " ".join(f"{name}={value}" for name, value in program.macros),
                    "registers": result.usage.registers,
                    "register_limit": cuda_programs.register_limit(program),
                    "spill_bytes": result.usage.spill_bytes,
                    "stack_bytes": result.usage.stack_bytes,
                    "shared_bytes": result.usage.shared_bytes,
                    "cubin_bytes": len(result.code),
                    "time_s": round(result.time_s, 3),
                }
            )
    return pd.DataFrame(rows)


def summarize(table: pd.DataFrame) -> pd.DataFrame:
    """Return programs, seconds, registers and spills by kernel and architecture."""
    grouped = table.groupby(["kernel", "arch"], sort=False)
    summary = grouped.agg(
        programs=("macros", "size"),
        median_s=("time_s", "median"),
        min_registers=("registers", "min"),
        max_registers=("registers", "max"),
        spill_bytes=("spill_bytes", "sum"),
        stack_bytes=("stack_bytes", "sum"),
    )
    order = [(k, a) for k in cuda_programs.KERNELS for a in ARCHITECTURES]
    return summary.reindex([pair for pair in order if pair in summary.index]).reset_index()


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arch", nargs="+", choices=ARCHITECTURES, default=list(ARCHITECTURES))
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--write", help="record file to add this run to")
    parser.add_argument("--json", action="store_true", help="print rows as JSON")
    args = parser.parse_args()
    try:
        jobs = [job for job in cuda_programs.matrix() if job[1] in args.arch]
        table = compile_all(jobs, args.threads)
        summary = summarize(table)
        if args.write:
            settings = {
                "nvrtc": cuda_nvrtc.version(),
                "architectures": args.arch,
                "sources": cuda_programs.sources_digest(),
                "programs": len(table),
            }
            append_record(args.write, make_record("cuda_compile", summary, settings))
    except AwqbenchError as error:
        print(error, file=sys.stderr)
        return 1
    if args.json:
        print(json.dumps(json.loads(table.to_json(orient="records"))))
    else:
        print(summary.to_string(index=False))
    bad = table[(table["spill_bytes"] > 0) | (table["registers"] > table["register_limit"])]
    if len(bad):
        print(f"{len(bad)} programs spill or take too many registers:\n{bad.to_string()}")
    return int(len(bad) > 0)


if __name__ == "__main__":
    sys.exit(main())
