"""Kill a quantization at random instants, again and again, and compare every byte at the end.

    python benchmarks/kill_runs.py --kills 50

An undisturbed run is the reference. Then runs in child processes are killed (SIGKILL) after
a random time, started again, killed again; every result must be the reference, byte for
byte. A disk that is full is simulated by a limit on the size of files, at a random size.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import random
import resource
import shutil
import sys
import tempfile
import time
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np

import awqbench as ab

# What a record says of its run, not of its result.
OF_THE_RUN = ("finished", "times", "resumed_blocks", "damaged_blocks", "memory")
# Exit status of a child whose disk was full, as the named error says.
FULL = 3
# Processes are forked from one that has imported all: a run of a few seconds is not worth ten
# of imports.
_PROCESSES = multiprocessing.get_context("forkserver")


def run(arguments: dict, ready: Connection, file_bytes: int | None) -> None:
    """Quantize; in a child process."""
    from awqbench.errors import OutputError

    if file_bytes is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, file_bytes))
    tokens = np.array(arguments["tokens"])
    ready.send(True)
    try:
        ab.quantize(arguments["model"], arguments["out"], tokens=tokens, **arguments["settings"])
    except OutputError:
        sys.exit(FULL)


def fingerprint(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of every file; of the record without what tells of the run."""
    found = {}
    for file in sorted(folder.rglob("*")):
        data = file.read_bytes()
        if file.name == "awqbench_run.json":
            record = {k: v for k, v in json.loads(data).items() if k not in OF_THE_RUN}
            data = json.dumps(record).encode()
        found[file.name] = hashlib.sha256(data).hexdigest()
    return found


def start(arguments: dict, *, file_bytes: int | None = None) -> BaseProcess:
    """Start a run in a process of its own and wait until it begins."""
    here, there = _PROCESSES.Pipe(duplex=False)
    child = _PROCESSES.Process(target=run, args=(arguments, there, file_bytes))
    child.start()
    here.recv()
    return child


def finish(arguments: dict) -> float:
    """Let a run end; return its seconds."""
    child = start(arguments)
    began = time.perf_counter()
    child.join()
    if child.exitcode:
        sys.exit("a run that nobody disturbed failed.")
    return time.perf_counter() - began


def main() -> None:
    """Run the kills and print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--windows", type=int, default=40, help="32 of them are a chunk")
    parser.add_argument("--seq-len", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--max-memory", default=None)
    parser.add_argument("--workers", type=int, help="of every run; they outlive its kill a little")
    options = parser.parse_args()
    chance = random.Random(options.seed)
    folder = Path(tempfile.mkdtemp(prefix="awqbench-kills-"))
    settings = {"group_size": 64, "threads": 1}
    settings |= {"max_memory": options.max_memory} if options.max_memory else {}
    settings |= {"workers": options.workers} if options.workers else {}
    tokens = ab.text_tokens(options.model, n_samples=options.windows, seq_len=options.seq_len)
    base = {"model": options.model, "tokens": tokens.tolist(), "settings": settings}
    _PROCESSES.set_forkserver_preload(
        [
            "awqbench.quantize.job",
            "awqbench.model_experts",
            "transformers.models.qwen3.modeling_qwen3",
        ]
    )
    reference = base | {"out": str(folder / "reference")}
    whole_s = finish(reference)
    expected = fingerprint(folder / "reference")
    print(f"undisturbed: {whole_s:.1f} s, {len(expected)} files")
    kills = same = results = full = 0
    while kills < options.kills:
        out = folder / f"run-{results}"
        arguments = base | {"out": str(out)}
        for _ in range(min(chance.randint(1, 4), options.kills - kills)):
            if chance.random() < 0.2:  # a full disk in place of a kill
                child = start(arguments, file_bytes=chance.randint(1, 1500) * 1024)
                child.join()
                if child.exitcode not in (0, FULL):
                    sys.exit(f"a full disk ended a run with status {child.exitcode}.")
                full += child.exitcode == FULL
            else:
                child = start(arguments)
                time.sleep(chance.uniform(0, 1.05) * whole_s)
                child.kill()
                child.join()
            kills += 1
        if not (out / "config.json").is_file() or out.with_name(f".{out.name}.unfinished").exists():
            finish(arguments)
        found = fingerprint(out)
        left = [p.name for p in folder.iterdir() if p.name not in ("reference", out.name)]
        is_same = found == expected and not left
        differs = [name for name in expected if found.get(name) != expected[name]] + left
        results += 1
        same += is_same
        print(f"{kills:3d} kills, result {results}: {'identical' if is_same else differs}")
        shutil.rmtree(out)
    shutil.rmtree(folder)
    print(
        f"{kills} of {options.kills} disturbances ({full} by a full disk): {same} of {results} "
        "results identical to the undisturbed run"
    )
    sys.exit(same != results)


if __name__ == "__main__":
    main()
