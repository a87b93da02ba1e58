"""Quantize a synthetic model of a known shape under a memory limit of the operating system.

    python benchmarks/quantize_large.py --model 8b --memory 6GiB --folder build/large

Weights are random, with outlier channels; what counts is size. The model is made once in
the folder and kept there. A record is appended to data/records/quantize_large.jsonl.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pandas as pd
import torch

import awqbench as ab
from awqbench.bench.probes import compute_probes
from awqbench.bench.records import append_record, make_record, require_appendable
from awqbench.bench.synthetic import MODELS, linear_shapes
from awqbench.formats.writer import CheckpointWriter
from awqbench.inspect.doctor import predict_seconds
from awqbench.quantize.run.cost import block_operations
from awqbench.sizes import GIB, parse_bytes

RECORDS = Path(__file__).parents[1] / "data" / "records" / "quantize_large.jsonl"
SHAPES = {
    "0.6b": MODELS["qwen3-0.6b"],
    "8b": MODELS["qwen3-0.6b"]
    | {
        "hidden_size": 4096,
        "intermediate_size": 12288,
        "num_attention_heads": 32,
        "num_hidden_layers": 36,
        "tie_word_embeddings": False,
    },
}
# Channels of each norm that are this many times louder, as in trained models.
OUTLIERS, LOUDNESS = 6, 30.0
SHARD_BYTES = 1_000_000_000
_CHILD = """
import json, sys
import numpy as np
import awqbench as ab
arguments = json.loads(sys.argv[1])
tokens = np.random.default_rng(0).integers(0, arguments["vocabulary"], arguments["shape"])
record = ab.quantize(arguments["model"], arguments["out"], tokens=tokens, **arguments["settings"])
print(json.dumps({key: record[key] for key in ("times", "memory", "computed_with")}))
"""


def make_model(folder: Path, shape: dict) -> Path:
    """Write a random bfloat16 model with outlier channels, a tensor at a time."""
    if (folder / "config.json").is_file():
        return folder
    generator = torch.Generator().manual_seed(0)
    width = shape["hidden_size"]

    def normal(rows: int, columns: int, spread: float) -> torch.Tensor:
        tensor = torch.empty(rows, columns, dtype=torch.bfloat16)
        return tensor.normal_(0, spread, generator=generator)

    def norm(size: int) -> torch.Tensor:
        weight = 1 + 0.2 * torch.randn(size, generator=generator)
        if size == width:
            weight[torch.randperm(size, generator=generator)[:OUTLIERS]] *= LOUDNESS
        return weight.bfloat16()

    with CheckpointWriter(folder, max_shard_bytes=SHARD_BYTES) as writer:
        writer.add("model.embed_tokens.weight", normal(shape["vocab_size"], width, 1.0))
        if not shape["tie_word_embeddings"]:
            writer.add("lm_head.weight", normal(shape["vocab_size"], width, width**-0.5))
        writer.add("model.norm.weight", norm(width))
        for i in range(shape["num_hidden_layers"]):
            head = f"model.layers.{i}"
            for name in ("input_layernorm", "post_attention_layernorm"):
                writer.add(f"{head}.{name}.weight", norm(width))
            for name in ("self_attn.q_norm", "self_attn.k_norm"):
                writer.add(f"{head}.{name}.weight", norm(shape["head_dim"]))
            for name, (into, out) in linear_shapes(shape).items():
                writer.add(f"{head}.{name}.weight", normal(out, into, into**-0.5))
        return writer.finish(shape)


class Limit:
    """A memory limit for a child: a control group where one can be made, else RLIMIT_DATA.

    A control group counts the page cache too; what of it can be dropped is not a need, so
    the peak of anonymous memory is sampled beside it.
    """

    def __init__(self, nbytes: int):
        self.nbytes, self.peak_anonymous = nbytes, 0
        self.group, self.how = None, "RLIMIT_DATA"
        name = f"awqbench-{os.getpid()}"
        for root, file, how in (
            (Path("/sys/fs/cgroup"), "memory.max", "cgroup v2"),
            (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes", "cgroup v1"),
        ):
            try:
                (root / name).mkdir()
            except OSError:
                continue
            try:
                with (root / name / file).open("r+") as limit:  # no such file: no such control
                    limit.write(str(nbytes))
            except OSError:
                (root / name).rmdir()
                continue
            self.group, self.how = root / name, how
            break

    def enter(self) -> None:
        """Put the calling process under the limit; in the child, before it starts."""
        if self.group is not None:
            (self.group / "cgroup.procs").write_text(str(os.getpid()))
        else:
            resource.setrlimit(resource.RLIMIT_DATA, (self.nbytes, self.nbytes))

    def watch(self, child: subprocess.Popen) -> None:
        """Sample the anonymous memory until the child ends."""
        while child.poll() is None:
            self.peak_anonymous = max(self.peak_anonymous, self._anonymous(child.pid))
            time.sleep(0.05)

    def _anonymous(self, pid: int) -> int:
        try:
            if self.group is not None:
                lines = (self.group / "memory.stat").read_text().split("\n")
                stat = dict(line.split() for line in lines if line)
                return int(stat.get("anon", stat.get("rss", 0)))
            for line in Path(f"/proc/{pid}/status").read_text().split("\n"):
                if line.startswith("RssAnon"):
                    return int(line.split()[1]) * 1024
        except (OSError, ValueError):
            pass
        return 0

    def close(self) -> int | None:
        """Remove the group; return its peak with page cache."""
        if self.group is None:
            return None
        peak = None
        for name in ("memory.peak", "memory.max_usage_in_bytes"):
            if (self.group / name).is_file():
                peak = int((self.group / name).read_text())
        self.group.rmdir()
        return peak


def matrix_rate() -> float:
    """Return the rate of bfloat16 matrix products here, operations a second."""
    probe = compute_probes(2048)["bfloat16"]
    best = min(_seconds(probe.call) for _ in range(7))
    return probe.amount / best


def _seconds(call) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def run_limited(arguments: dict, limit: Limit) -> tuple[dict, int | None, float]:
    """Quantize in a child under the limit; return its figures, peak and seconds."""
    started = time.perf_counter()
    child = subprocess.Popen(
        [sys.executable, "-c", _CHILD, json.dumps(arguments)],
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=limit.enter,
    )
    sampler = threading.Thread(target=limit.watch, args=(child,))
    sampler.start()
    text, _ = child.communicate()
    sampler.join()
    seconds, peak = time.perf_counter() - started, limit.close()
    if child.returncode:
        sys.exit(f"the child ended with status {child.returncode} (-9: killed for its memory).")
    return json.loads(text), peak, seconds


def main() -> None:
    """Make the model, quantize it, print and append what was measured."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", choices=SHAPES, default="8b")
    parser.add_argument("--blocks", type=int, help="default all of the model's")
    parser.add_argument("--windows", type=int, default=32)
    parser.add_argument("--seq-len", type=int, default=512)
    parser.add_argument("--memory", default="6GiB")
    parser.add_argument("--folder", type=Path, default=Path("build/large"))
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--records", type=Path, default=RECORDS)
    options = parser.parse_args()
    require_appendable(options.records)
    shape = SHAPES[options.model]
    shape = shape | {"num_hidden_layers": options.blocks or shape["num_hidden_layers"]}
    name = f"qwen3-{options.model}-{shape['num_hidden_layers']}-blocks"
    model = make_model(options.folder / name, shape)
    nbytes = parse_bytes(options.memory)
    out = options.folder / f"{name}-w4"
    shutil.rmtree(out, ignore_errors=True)
    settings = dict(item.split("=", 1) for item in options.set)
    # The process is told a little less than the system enforces.
    settings |= {"max_memory": int(0.95 * nbytes)}
    rate = matrix_rate()
    n_tokens = options.windows * options.seq_len
    arguments = {
        "model": str(model),
        "out": str(out),
        "vocabulary": shape["vocab_size"],
        "shape": [options.windows, options.seq_len],
        "settings": settings,
    }
    predicted = predict_seconds(model, n_tokens)
    limit = Limit(nbytes)
    figures, peak, seconds = run_limited(arguments, limit)
    linears = [(n, k) for k, n in linear_shapes(shape).values()]
    widths = (shape["hidden_size"], linears[3][1], shape["hidden_size"], shape["intermediate_size"])
    operations = block_operations(linears, widths, n_tokens)
    n_blocks, times = shape["num_hidden_layers"], figures["times"]
    forward = n_blocks * operations.forward / times["forward_s"]
    calibration_s = times["forward_s"] + times["statistics_s"]
    row = {
        "model": name,
        "model_bytes": ab.open_checkpoint(model).nbytes,
        "tokens": n_tokens,
        "limit": limit.how,
        "limit_bytes": nbytes,
        "peak_anonymous_bytes": limit.peak_anonymous,
        "peak_with_cache_bytes": peak,
        "peak_rss_bytes": figures["memory"]["peak_bytes"],
        "planned_peak_bytes": figures["memory"]["planned_peak_bytes"],
        "process_s": seconds,
        "predicted_s": predicted.seconds,
        "predicted_low_s": predicted.low_s,
        "predicted_high_s": predicted.high_s,
        "matrix_gflop_per_s": rate / 1e9,
        "forward_share_of_matrix_rate": forward / rate,
        "calibration_share_of_matrix_rate": n_blocks * sum(operations) / calibration_s / rate,
    }
    print(f"{name}, {n_tokens} tokens, {options.memory} by {limit.how}, {figures['computed_with']}")
    for key, value in times.items():
        print(f"  {key:<14} {value:9.1f}   {value / times['total_s']:6.1%}")
    for key, value in row.items():
        if key.endswith("_bytes") and value:
            print(f"  {key:<22} {value / GIB:8.2f} GiB")
    print(
        f"  bf16 products here {rate / 1e9:.0f} GFLOP/s; reached in the forward pass "
        f"{row['forward_share_of_matrix_rate']:.0%}, in calibration "
        f"{row['calibration_share_of_matrix_rate']:.0%}"
    )
    print(f"  predicted {predicted.describe()}; {predicted.seconds / times['total_s']:.2f} of real")
    for part, value in predicted.parts.items():
        print(f"    {part:<14} {value:9.1f}")
    table = pd.DataFrame([row | times])
    asked = arguments | {"model": model.name, "out": out.name}  # names: folders are the machine's
    append_record(options.records, make_record("quantize_large", table, asked))


if __name__ == "__main__":
    main()
