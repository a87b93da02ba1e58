"""Time from a moved control to the new figure, for every explorer on the embedded model.

    python benchmarks/widget_latency.py --rounds 3

Moves controls one at a time through the values below, each state new to the explorer, and takes
the time from the change of the value to the picture being in its widget: numbers, figure and PNG,
in this process (a browser adds its own share; the first move after a pause does not wait for the
debounce timer of 120 ms). Prints a line of JSON for each explorer and one for all.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import awqbench as ab
from awqbench.bench.machine import machine_record
from awqbench.widgets import (
    layer_browser,
    placement,
    roofline,
    tensor_parallel,
    what_if,
    xray,
)
from awqbench.widgets.controls import Explorer

# States by explorer: (control, value), each moved from the one before.
MOVES = {
    "what_if": [
        *[("bits", b) for b in (3, 5, 6, 8, 4)],
        ("clip", True),
        *[("bits", b) for b in (3, 2, 5, 6)],
        *[("group_size", g) for g in (64, 32)],
        ("rounding", "gptq"),
        *[("bits", b) for b in (3, 4, 5)],
        ("zero_point", False),
        ("group_size", 128),
        ("clip", False),
    ],
    "layer_browser": [
        *[
            ("linear", f"model.layers.{i}.{path}")
            for i in (1, 4)
            for path in (
                "self_attn.q_proj",
                "self_attn.k_proj",
                "self_attn.o_proj",
                "mlp.gate_proj",
                "mlp.up_proj",
                "mlp.down_proj",
            )
        ],
        ("bits", 3),
        ("clip", False),
        ("group_size", 64),
    ],
    "tensor_parallel": [
        ("model", "Qwen2-72B"),
        ("engine", "vllm-marlin"),
        ("model", "Qwen2-7B"),
        ("engine", "vllm"),
    ],
    "placement": [
        *[("context", 2**i) for i in (10, 11, 13, 14)],
        ("batch", 2),
        ("cuda_0", 20.0),
        ("cuda_1", 5.0),
        ("strategy", "in_order"),
    ],
    "roofline": [
        ("machine", "H200"),
        ("bits", 3),
        ("batch", 8),
        ("model", "Qwen2-72B"),
        ("group_size", 64),
        ("bits", 2),
    ],
    "xray": [("view", "bytes"), ("view", "zero points"), ("view", "levels used")],
}


def explorers(folder: Path) -> Iterator[tuple[str, Explorer]]:
    """Make every explorer anew on the embedded model."""
    ckpt = ab.open_checkpoint("tiny")
    stats = folder / "stats"
    if not stats.exists():
        tokens = ab.text_tokens(ckpt, n_samples=8, seq_len=256)
        ab.calibrate(ckpt, tokens, stats)
        ab.quantize(ckpt, folder / "quantized", stats=stats)
    yield "what_if", what_if.explore(ckpt, stats, bandwidth_gb_s=10.0)
    yield "layer_browser", layer_browser.explore(ckpt, stats)
    yield "tensor_parallel", tensor_parallel.explore(ckpt)
    yield "placement", placement.explore(ckpt)
    yield "roofline", roofline.explore(ckpt, bandwidth_gb_s=10.0)
    yield "xray", xray.explore([folder / "quantized", ckpt])


def latencies(explorer: Explorer, moves: list[tuple[str, object]]) -> list[tuple[float, float]]:
    """Return the seconds from each move to its figure, and those of them on the processor."""
    times = []
    for name, value in moves:
        before = explorer.picture.png
        start, start_cpu = time.perf_counter(), time.process_time()
        explorer.controls[name].value = value
        times.append((time.perf_counter() - start, time.process_time() - start_cpu))
        if explorer.error or explorer.picture.png == before:
            raise RuntimeError(f"{name} = {value!r} drew nothing: {explorer.error}")
    return times


def summary(name: str, times: list[tuple[float, float]]) -> dict:
    """Return median, 90th percentile and longest, in milliseconds.

    The processor's time tells what a machine without other load would take.
    """
    ordered = sorted(wall for wall, _ in times)
    return {
        "explorer": name,
        "moves": len(times),
        "median_ms": round(1e3 * statistics.median(ordered)),
        "median_cpu_ms": round(1e3 * statistics.median(cpu for _, cpu in times)),
        "p90_ms": round(1e3 * ordered[int(0.9 * (len(times) - 1))]),
        "max_ms": round(1e3 * ordered[-1]),
    }


def main() -> None:
    """Run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in MOVES}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(arguments.rounds):
            for name, explorer in explorers(Path(folder)):
                found[name] += latencies(explorer, MOVES[name])
    for name, times in found.items():
        print(json.dumps(summary(name, times)))
    every = summary("all", [t for times in found.values() for t in times])
    when = datetime.now(UTC).isoformat(timespec="seconds")
    print(
        json.dumps(every | {"debounce_ms": 120, "finished": when})[:-1]
        + f', "machine": {json.dumps(machine_record().to_dict())}}}'
    )


if __name__ == "__main__":
    main()
