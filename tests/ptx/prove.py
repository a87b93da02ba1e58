"""Run every program for every architecture on a small product, and record what came out.

    PYTHONPATH=tests nice python -m ptx.prove --out data/records/ptx_proof.jsonl

Takes about ten minutes of one core; a test run does a part of it (test_kernels.py).
"""

import argparse
import time
from pathlib import Path

import numpy as np
import pandas as pd

from awqbench.bench.records import append_record, make_record
from awqbench.gemm import cuda_nvrtc, cuda_programs
from awqbench.progress import progress_bar
from ptx import kernels
from ptx.build import kernel_program
from ptx.faults import PtxFault
from ptx.problems import Problem, is_close, to_bits

# N and K with tails of tiles, chunks and groups; tokens of dense kernels, beyond one block of 32.
_N, _K, _FEW_K, _MANY = 40, 328, 1160, 37


def problem_for(program):
    """Return a small product that a program is for."""
    macros = dict(program.macros)
    m = {"w4a16_skinny": macros.get("TOKENS"), "w4a16_direct": 8}.get(program.kernel, _MANY)
    m = m - 3 if m in (8, 16, 32) else m
    n = 48 if macros.get("WIDE") else _N
    return Problem(
        m,
        n,
        _FEW_K if program.kernel == "w4a16_skinny" else _K,
        macros.get("GROUP", 128),
        bits=macros.get("BITS", 4),
        bf16=macros.get("BF16", 0),
        scale=macros.get("SCALE", 0),
    )


def is_exact(program, arch):
    """Run a program and tell whether its result is the exact one, rounded as it should be.

    Raises
    ------
    PtxFault
        If the kernel does what it must not.
    """
    compiled = kernel_program.__wrapped__(program.kernel, arch, **dict(program.macros))
    problem = problem_for(program)
    match program.kernel:
        case "sum_splits":
            partial = np.random.default_rng(0).standard_normal((3, 300)).astype(np.float32)
            y, _ = kernels.run_sum(partial, program["BF16"], compiled)
            return is_close(y, partial.astype(np.float64).sum(0), problem.kind)
        case "w4_repack":
            out, _ = kernels.run_repack(problem, arch, compiled, awq=program["AWQ"])
            return np.array_equal(out, problem.tiles()[0])
        case "w4_dequant":
            out, _ = kernels.run_dequantize(problem, arch, compiled, rows=program["ROWS"])
            return np.array_equal(out, to_bits(problem.weight, problem.kind).T)
        case "tile_dequant":
            out, _ = kernels.run_tile_dequantize(problem, arch, compiled)
            return np.array_equal(out, to_bits(problem.weight, problem.kind))
        case "w4a16_direct":
            y, _ = kernels.run_direct(problem, arch, compiled, warps=program["WARPS"])
            return is_close(y, problem.reference(), problem.kind)
    (chosen,) = [
        found for found in kernels.launches(problem, arch, n_sm=1) if found.program == program
    ]
    y, _ = kernels.run_tiles(problem, chosen, arch, compiled)
    rounded = program.kernel != "w4a16_skinny"
    return is_close(y, problem.reference(rounded=rounded), problem.kind)


def proof_table(pairs):
    """Return a row for each program and architecture: whether it is exact, or its fault."""
    rows = []
    for program, arch in progress_bar(pairs, "proving", unit="program"):
        started = time.perf_counter()
        try:
            outcome = "exact" if is_exact(program, arch) else "wrong"
        except PtxFault as fault:
            outcome = f"{type(fault).__name__}: {fault}"
        seconds = time.perf_counter() - started
        rows.append((program.kernel, arch, str(program), outcome, round(seconds, 3)))
    return pd.DataFrame(rows, columns=["kernel", "arch", "program", "outcome", "time_s"])


def summary(table):
    """Return a row for each kernel and architecture: programs, and how many are exact."""
    exact = table.assign(exact=table.outcome == "exact")
    return exact.groupby(["kernel", "arch"], as_index=False).agg(
        programs=("exact", "size"), exact=("exact", "sum"), median_s=("time_s", "median")
    )


def main():
    """Write the record; print what is not exact."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="JSON Lines file to append to")
    out = parser.parse_args().out
    sources = cuda_programs.sources_digest()
    table = proof_table(cuda_programs.matrix())
    if cuda_programs.sources_digest() != sources:
        raise SystemExit("kernels/ changed while they were proven: run it again")
    settings = {
        "nvrtc": cuda_nvrtc.version(),
        "sources": sources,
        "programs": len(table),
        "exact": int((table.outcome == "exact").sum()),
    }
    append_record(out, make_record("ptx_proof", summary(table), settings))
    print(settings)
    for row in table[table.outcome != "exact"].itertuples():
        print(row.program, row.arch, row.outcome)


if __name__ == "__main__":
    main()
