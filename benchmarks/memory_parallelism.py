"""Time random reads in one to 32 chains on this machine: latency, and lines in flight.

python benchmarks/memory_parallelism.py [--out data/records/memory_parallelism.jsonl]

Some seconds, on a quiet machine with a C++ compiler.
"""

import argparse
from pathlib import Path

from awqbench.bench.memory_parallelism import measure_parallelism
from awqbench.bench.records import append_record, make_record

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    table = measure_parallelism(rounds=options.rounds)
    print(table.round(2).to_string(index=False))
    if options.out:
        settings = {"rounds": options.rounds, "line_bytes": 64}
        append_record(options.out, make_record("memory_parallelism", table, settings))
