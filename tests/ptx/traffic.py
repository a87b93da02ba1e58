"""What kernels ask of memory and of the pipes, counted by the interpreter.

    PYTHONPATH=tests python -m ptx.traffic --out data/records/ptx_traffic.jsonl

Counts are exact, and of instructions as NVRTC wrote them in PTX: no caches, no time, and ptxas
may still merge or split. A sector is 32 bytes of global memory, a wavefront one pass over the
32 banks of shared memory.
"""

import argparse
import time
from pathlib import Path

import pandas as pd

from awqbench.bench.records import append_record, make_record
from awqbench.gemm import cuda_nvrtc, cuda_programs
from awqbench.progress import progress_bar
from ptx import kernels
from ptx.problems import Problem

# Lanes of a warp times codes of a 32-bit word: what one instruction of a warp can decode.
_WARP_WEIGHTS = {4: 32 * 8, 8: 32 * 4}
_PARTS = {0: "x", 1: "codes", 2: "meta", 3: "meta", 4: "y", 5: "partial"}
_DECODING_PARTS = {0: "codes", 1: "meta", 2: "meta", 3: "weights"}

# Width of codes, bf16 activations, group, architecture, tokens.
TILES = (
    (4, 0, 128, "80", (1, 8, 16, 32, 64, 128)),
    (4, 0, 128, "90a", (64, 128)),
    (4, 0, 32, "80", (1, 64)),
    (4, 1, 128, "80", (1, 8, 64)),
    (4, 1, 128, "90a", (64, 128)),
    (8, 0, 128, "80", (1, 8, 64)),
    (8, 0, 128, "90a", (64, 128)),
)


def cases(n=128, k=2048):
    """Yield a name, a problem, an architecture, parts and ``run()`` for each row."""
    for bits, bf16, group, arch, tokens in TILES:
        for m in tokens:
            problem = Problem(m, n, k, group, bits=bits, bf16=bf16)
            for chosen in kernels.launches(problem, arch, n_sm=1):
                yield str(chosen.program), problem, arch, _PARTS, _tiles(problem, chosen, arch)
    for m in (1, 8):
        yield _row("w4a16_direct", kernels.run_direct, _PARTS, Problem(m, n, k))
    yield _row("w4_dequant", kernels.run_dequantize, _DECODING_PARTS, Problem(1, n, k))
    yield _row("tile_dequant", kernels.run_tile_dequantize, _DECODING_PARTS, Problem(1, n, k))


def _tiles(problem, chosen, arch):
    return lambda: kernels.run_tiles(problem, chosen, arch, count=True)[1]


def _row(name, run, parts, problem):
    return name, problem, "80", parts, lambda: run(problem, "80", count=True)[1]


def row_of(name, problem, arch, parts, counters):
    """Return one row: bytes and sectors by part, wavefronts, instructions for a word.

    ``*_bytes`` are bytes that lanes ask for, each address once a warp; ``*_sector_ratio`` is
    sectors over the fewest that could hold them.
    """
    weights = problem.n * problem.k
    traffic = {}
    for (array, _), counts in counters.traffic.items():
        part = parts[int(array.split()[1])]
        total = traffic.setdefault(part, {"bytes": 0, "sectors": 0, "ideal": 0})
        total["bytes"] += counts["unique_bytes"]
        total["sectors"] += counts["sectors"]
        total["ideal"] += counts["ideal_sectors"]
    shared = [sum(counts[key] for counts in counters.shared.values()) for key in _WAVEFRONTS]
    row = {
        "kernel": name.split()[0],
        "program": name,
        "arch": arch,
        "m": problem.m,
        "n": problem.n,
        "k": problem.k,
        "bits": problem.bits,
        "dtype": "bfloat16" if problem.bf16 else "float16",
        "group_size": problem.group_size,
    }
    for part, total in traffic.items():
        row[f"{part}_bytes"] = total["bytes"]
        row[f"{part}_sector_ratio"] = total["sectors"] / total["ideal"]
    fetched = sum(traffic.get(part, {"bytes": 0})["bytes"] for part in ("codes", "meta"))
    row["bytes_per_weight"] = fetched / weights
    row["shared_wavefronts"] = shared[0]
    row["bank_conflict_ratio"] = shared[0] / shared[1] if shared[1] else None
    words = weights / _WARP_WEIGHTS[problem.bits]
    row["instructions_per_word"] = sum(counters.classes.values()) / words
    for name, count in sorted(counters.classes.items()):
        row[f"{name}_per_word"] = count / words
    return row


_WAVEFRONTS = ("wavefronts", "ideal_wavefronts")


def traffic_table(chosen=None):
    """Run the cases, or those given, and return the table, one row each."""
    found = list(cases() if chosen is None else chosen)
    rows = []
    for name, problem, arch, parts, run in progress_bar(found, "counting", unit="kernel"):
        rows.append(row_of(name, problem, arch, parts, run()))
    return pd.DataFrame(rows)


def main():
    """Write the table as a record."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="JSON Lines file to append to")
    out = parser.parse_args().out
    started, sources = time.perf_counter(), cuda_programs.sources_digest()
    table = traffic_table()
    settings = {
        "nvrtc": cuda_nvrtc.version(),
        "sources": sources,
        "interpreter_s": round(time.perf_counter() - started, 1),
    }
    append_record(out, make_record("ptx_traffic", table, settings))
    print(table.drop(columns="program").to_string(float_format="{:.3g}".format))


if __name__ == "__main__":
    main()
