"""Bandwidth of the health scan, against reading the same bytes, in turns in one run.

    python benchmarks/health_scan.py --size-mb 1000 --rounds 5

Writes one bfloat16 folder of 4096 x 4096 linears (normal, standard deviation 0.02), then takes
turns at: `memory`, a dot product over a large array; `file`, the folder read from the page cache
into one buffer of 4 MB; `scan`, awqbench.health. With `--cold` also both from the disk, the
files dropped from the page cache before each. Prints one JSON line; ratios are of medians.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from awqbench.bench.machine import machine_record
from awqbench.bench.timing import ReadProbe, Timing, time_in_turns

SIZE = 4096
BUFFER_BYTES = 1 << 22


def write_folder(folder: Path, n_linears: int) -> None:
    """Write linears of normal weights through the package's own writer."""
    import torch

    from awqbench.formats.writer import CheckpointWriter

    generator = torch.Generator().manual_seed(0)
    with CheckpointWriter(folder) as writer:
        for i in range(n_linears):
            weight = torch.randn(SIZE, SIZE, generator=generator).mul_(0.02).bfloat16()
            writer.add(f"model.layers.{i}.mlp.up_proj.weight", weight)
        writer.finish({"model_type": "llama"})


def read_files(files: list[Path]) -> None:
    """Read files into one buffer, as fast as the system copies."""
    buffer = memoryview(bytearray(BUFFER_BYTES))
    for path in files:
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass


def drop_from_cache(files: list[Path]) -> None:
    """Ask the system to forget clean pages of files, so that the disk is read again."""
    for path in files:
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def measure(folder: Path, *, rounds: int, cold: bool) -> dict[str, float]:
    """Time probe, file and scan in turns; return rates in GB/s and ratios."""
    from awqbench.formats.checkpoint import open_checkpoint
    from awqbench.inspect.health import health

    ckpt = open_checkpoint(folder)
    files = sorted({info.file for info in ckpt.tensors.values()})
    probe = ReadProbe()
    ways = {"file": lambda: read_files(files), "scan": lambda: health(ckpt)}
    warm = time_in_turns(ways | {"memory": probe.read}, rounds=rounds)
    facts = _rates(warm, {"file": ckpt.nbytes, "scan": ckpt.nbytes, "memory": 256_000_000})
    facts |= {
        "scan_of_file": warm["file"].median_s / warm["scan"].median_s,
        "scan_of_memory": facts["scan_gb_s"] / facts["memory_gb_s"],
    }
    if cold:
        before = time_in_turns(ways, rounds=rounds, before_each=lambda: drop_from_cache(files))
        sizes = dict.fromkeys(before, ckpt.nbytes)
        facts |= {f"cold_{name}": rate for name, rate in _rates(before, sizes).items()}
        facts["cold_scan_of_file"] = before["file"].median_s / before["scan"].median_s
    return facts


def _rates(timings: dict[str, Timing], nbytes: dict[str, int]) -> dict[str, float]:
    rates = {f"{name}_gb_s": nbytes[name] / t.median_s / 1e9 for name, t in timings.items()}
    return rates | {f"{name}_spread": timing.spread for name, timing in timings.items()}


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--size-mb", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cold", action="store_true")
    parser.add_argument("--folder", type=Path, help="where to write; a real disk for --cold")
    args = parser.parse_args()
    n_linears = max(1, round(args.size_mb * 1e6 / (2 * SIZE * SIZE)))
    with tempfile.TemporaryDirectory(dir=args.folder) as scratch:
        write_folder(Path(scratch) / "model", n_linears)
        facts = measure(Path(scratch) / "model", rounds=args.rounds, cold=args.cold)
    head = {"benchmark": "health_scan", "date": datetime.now(UTC).isoformat(timespec="seconds")}
    facts = {name: round(float(np.float32(value)), 3) for name, value in facts.items()}
    print(json.dumps(head | facts | {"machine": machine_record().to_dict()}))


if __name__ == "__main__":
    main()
