"""How much memory reading and converting a quantized folder takes, against its size.

    python benchmarks/read_memory.py --size-mb 2000

Writes a folder of that size (4096 x 4096 linears at 4 bits, random words), reads every
linear, converts the folder, and prints the peak of resident memory above what the imports
and one linear took, as one JSON line.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from pathlib import Path

import numpy as np

SIZE, GROUP_SIZE = 4096, 128
# Scales and zero points included.
LINEAR_BYTES = SIZE * SIZE // 2 + SIZE * SIZE // GROUP_SIZE * 2 + SIZE * SIZE // GROUP_SIZE // 2


def write_folder(folder: Path, n_linears: int) -> None:
    """Write linears of random codes through the package's own writer."""
    import torch

    from awqbench.formats.layouts.awq import quantization_config
    from awqbench.formats.writer import CheckpointWriter

    rng = np.random.default_rng(0)
    with CheckpointWriter(folder, max_shard_bytes=500_000_000) as writer:
        for i in range(n_linears):
            name = f"model.layers.{i}.mlp.up_proj"
            for part, rows in (("qweight", SIZE), ("qzeros", SIZE // GROUP_SIZE)):
                words = rng.integers(-(2**31), 2**31, (rows, SIZE // 8), dtype=np.int64)
                writer.add(f"{name}.{part}", torch.from_numpy(words.astype(np.int32)))
            scales = rng.random((SIZE // GROUP_SIZE, SIZE), dtype=np.float32) + 0.5
            writer.add(f"{name}.scales", torch.from_numpy(scales).half())
        section = quantization_config(bits=4, group_size=GROUP_SIZE, modules_to_not_convert=None)
        writer.finish({"model_type": "llama", "quantization_config": section})


def peak_mb() -> float:
    """Return the peak resident memory of this process so far, MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def measure(folder: Path, out: Path) -> dict:
    """Read every linear, then convert the folder; return peaks above the first linear."""
    import awqbench as ab

    ckpt = ab.open_checkpoint(folder)
    names = ckpt.quantized_linears()
    ckpt.linear(names[0])
    base = peak_mb()
    started = time.perf_counter()
    for name in names:
        ckpt.linear(name)
    read_s, after_read = time.perf_counter() - started, peak_mb()
    started = time.perf_counter()
    ab.convert(ckpt, out, "gptq-v2")
    return {
        "folder_mb": ckpt.nbytes / 1e6,
        "linears": len(names),
        "largest_linear_mb": LINEAR_BYTES / 1e6,
        "codes_of_a_linear_mb": SIZE * SIZE / 1e6,
        "base_mb": base,
        "reading_mb": after_read - base,
        "converting_mb": peak_mb() - base,
        "read_s": read_s,
        "convert_s": time.perf_counter() - started,
    }


def main() -> None:
    """Write, measure, print, remove."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size-mb", type=float, default=2000)
    parser.add_argument("--write", type=Path, help="only write the folder")
    parser.add_argument("--folder", type=Path, help="measure this folder")
    args = parser.parse_args()
    n_linears = max(1, round(args.size_mb * 1e6 / LINEAR_BYTES))
    with tempfile.TemporaryDirectory() as scratch:
        if args.write:
            write_folder(args.write, n_linears)
            return
        folder = args.folder
        if folder is None:  # in a process of its own, whose memory is not counted
            import subprocess
            import sys

            folder = Path(scratch) / "folder"
            size = ["--size-mb", str(args.size_mb)]
            subprocess.run([sys.executable, __file__, "--write", folder, *size], check=True)
        print(json.dumps(measure(folder, Path(scratch) / "out")))


if __name__ == "__main__":
    main()
