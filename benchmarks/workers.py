"""Time the same quantization in one process and with 1, 2 and 4 worker processes, in turns.

    python benchmarks/workers.py

With one worker it searches while this process runs the text; several share the text too,
chunk by chunk. Every process computes on one thread, and every result must be the same, byte for
byte. The models are the embedded one and one of Qwen3-0.6B's block shape with random weights. In a
round each way has its turn; what is told is the round with the least total of each way.
All processes are there, with torch and the model's code imported, before the clock starts; what
that takes is told apart. A record is appended to data/records/workers.jsonl.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
from quantize_large import SHAPES, make_model

import awqbench as ab
from awqbench.bench.records import append_record, make_record, require_appendable
from awqbench.bench.run_results import result_digests
from awqbench.bench.scaling import best_rounds, speedups
from awqbench.cluster import open_client, run_tasks
from awqbench.quantize.run.loop import MakeQueue
from awqbench.quantize.run.queue import SerialQueue
from awqbench.quantize.run.task import run_block
from awqbench.quantize.run.workers import WorkerQueue
from awqbench.quantize.statistics.chunk import SUM_WINDOWS

RECORDS = Path(__file__).parents[1] / "data" / "records" / "workers.jsonl"
SHAPED = "0.6b"
# Plays no part in the search, and is quick to write.
VOCABULARY = 4096


def import_all(_: int) -> str:
    """Import what a task needs, on a worker."""
    import torch
    from transformers.models.qwen3 import modeling_qwen3

    from awqbench import model

    return f"{torch.__version__} {run_block.__name__} {modeling_qwen3.__name__} {model.__name__}"


@contextmanager
def queue_of(workers: int) -> Iterator[tuple[MakeQueue, float]]:
    """Give what makes a run's queue, and the seconds until its workers were ready."""
    if workers == 0:
        yield SerialQueue, 0.0
        return
    started = time.perf_counter()
    with open_client(workers, threads=1) as client:
        list(run_tasks(client, import_all, range(4 * workers)))
        ready_s = time.perf_counter() - started
        yield lambda arguments: WorkerQueue(client, arguments), ready_s


def run(model: Path, tokens: np.ndarray, workers: int) -> tuple[dict, dict[str, str]]:
    """Quantize once; return a row of figures, and the digests of the result."""
    with tempfile.TemporaryDirectory() as scratch, queue_of(workers) as (make_queue, ready_s):
        out = Path(scratch) / "out"
        record = ab.quantize(model, out, tokens=tokens, threads=1, make_queue=make_queue)
        row = {"model": model.name, "blocks": _blocks(record), "tokens": tokens.size}
        row["chunks"] = -(-len(tokens) // SUM_WINDOWS)
        row |= {"workers": workers, "ready_s": ready_s} | record["times"]
        return row, result_digests(out)


def _blocks(record: dict) -> int:
    return len({linear["block"] for linear in record["linears"]})


def measure(model: Path, tokens: np.ndarray, ways: list[int], rounds: int) -> list[dict]:
    """Run every way in every round; print each, and refuse results that differ."""
    rows, first = [], None
    for number in range(rounds):
        for workers in ways:
            row, digests = run(model, tokens, workers)
            first = first or digests
            if digests != first:
                differs = [name for name in first if digests.get(name) != first[name]]
                raise SystemExit(f"{workers} workers: {', '.join(differs)} differ")
            rows.append(row | {"round": number})
            print(
                f"{model.name:<14} round {number}: {workers} workers {row['total_s']:7.2f} s, "
                f"search {row['search_s']:7.2f} s, ready after {row['ready_s']:.1f} s",
                flush=True,
            )
    return rows


def main() -> None:
    """Measure both models, print the speedups, append a record."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--workers", type=int, nargs="*", default=[0, 1, 2, 4])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--blocks", type=int, default=3, help="of the shaped model; 0 for none")
    parser.add_argument("--windows", type=int, default=128)
    parser.add_argument("--seq-len", type=int, default=256)
    parser.add_argument("--records", type=Path, default=RECORDS)
    options = parser.parse_args()
    require_appendable(options.records)
    ways = sorted({0, *options.workers})
    # Of the libraries that are not torch; workers get theirs from `open_client`.
    os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    import_all(0)
    tokens = ab.text_tokens("tiny", n_samples=options.windows, seq_len=options.seq_len)
    rows = measure(ab.open_checkpoint("tiny").path, tokens, ways, options.rounds)
    if options.blocks:
        shape = SHAPES[SHAPED] | {"num_hidden_layers": options.blocks, "vocab_size": VOCABULARY}
        with tempfile.TemporaryDirectory() as folder:
            model = make_model(Path(folder) / f"qwen3-{SHAPED}", shape)
            random = np.random.default_rng(0).integers(0, VOCABULARY, tokens.shape)
            rows += measure(model, random, ways, options.rounds)
    table = pd.DataFrame(rows)
    arguments = {"rounds": options.rounds, "windows": options.windows, "threads": 1}
    arguments["seq_len"] = options.seq_len
    record = make_record("workers", table, arguments)
    cores = record["machine"]["cores_usable"]
    print(speedups(best_rounds(table), cores=cores).round(2).to_string(index=False))
    append_record(options.records, record)


if __name__ == "__main__":
    main()
