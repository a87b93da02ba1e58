"""Time the search from statistics against AutoAWQ's way, on one block, in one run.

The block has Qwen3-0.6B's shape (hidden 1024, intermediate 3072, 16 heads of 128, 8 of
keys and values) and random weights; the calibration text is random too: neither matters
for the time. AutoAWQ's way, written here from its formulas: for each of 20 alphas the
module that holds a site's linears runs on all tokens with scaled and rounded weights; its
o_proj scales are skipped under grouped-query attention; then for each linear but q and k
ten shares of each group's range are tried on 512 tokens, 256 output channels at a time.

    python benchmarks/search_speed.py --record data/records/search_speed.jsonl
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch

from awqbench.bench.machine import machine_record
from awqbench.bench.timing import ReadProbe
from awqbench.formats.checkpoint import open_checkpoint
from awqbench.model import BlockRunner
from awqbench.quantize.calibrate import calibrate
from awqbench.quantize.choices.block_objective import (
    _keep_calls,
    is_searched,
    parent_of,
    search_by_output,
)
from awqbench.quantize.choices.rounding import grid_of, group_ranges, quantization_error
from awqbench.quantize.search import block_weights, make_settings, search_block

SEQ_LEN = 512
CLIP_TOKENS, CLIP_ROWS, CLIP_STEPS = 512, 256, 10
CALIBRATE, SEARCH = "calibrate (forward, H, magnitudes)", "search one setting"
SWEEP = [(bits, group) for bits in (4, 3, 2) for group in (32, 64, 128, -1)]


def make_model(folder: Path) -> None:
    """Save a one-block bfloat16 model of Qwen3-0.6B's block shape and a small vocabulary."""
    from transformers import AutoModelForCausalLM, Qwen3Config

    config = Qwen3Config(
        vocab_size=1024,
        hidden_size=1024,
        intermediate_size=3072,
        num_hidden_layers=1,
        num_attention_heads=16,
        num_key_value_heads=8,
        head_dim=128,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).to(torch.bfloat16)
    with torch.no_grad():  # transformers' initial embeddings are tiny
        model.model.embed_tokens.weight.normal_()
    model.save_pretrained(folder)


class Clock:
    """Seconds of named steps."""

    def __init__(self):
        self.seconds: dict[str, float] = {}

    def time(self, name: str, function, *args, **kwargs):
        """Run a step and keep its time."""
        started = time.perf_counter()
        result = function(*args, **kwargs)
        self.seconds[name] = time.perf_counter() - started
        print(f"{name:<44} {self.seconds[name]:8.2f} s", flush=True)
        return result


def autoawq_clip(weight: torch.Tensor, x: torch.Tensor, settings, group_size: int) -> torch.Tensor:
    """Search ranges as AutoAWQ does: compare outputs of each group on 512 tokens."""
    n_rows, in_features = weight.shape
    step = max(1, len(x) // CLIP_TOKENS)
    tokens = x[::step].reshape(1, -1, in_features // group_size, group_size)
    best = []
    for rows in weight.split(CLIP_ROWS):
        grouped = rows.reshape(len(rows), 1, -1, group_size)
        largest = grouped.abs().amax(dim=-1, keepdim=True)
        before = (tokens * grouped).sum(dim=-1)
        least = torch.full_like(largest, 1e9)
        chosen = largest.clone()
        for i in range(CLIP_STEPS):
            limit = largest * (1 - i / 20)
            clipped = grouped.clamp(-limit, limit).reshape(len(rows), in_features).float()
            grid = grid_of(*group_ranges(clipped, group_size), settings)
            rounded = (clipped + quantization_error(clipped, grid, settings.bits)).to(x.dtype)
            after = (tokens * rounded.reshape(grouped.shape)).sum(dim=-1)
            error = (after - before).square().mean(dim=1).view(largest.shape)
            better = error < least
            least = torch.where(better, error, least)
            chosen = torch.where(better, limit, chosen)
        best.append(chosen.flatten(1))
    return torch.cat(best)


def autoawq_setting(runner, block, records, chunks, settings) -> None:
    """Search one setting in AutoAWQ's way: forward, scales of three sites, clip."""
    searched = [r for r in records if is_searched(r, settings) or "down" in r.site.name]
    parents = {r.site.name: parent_of(r.site.linears) for r in searched}
    calls = {parent: [] for parent in parents.values()}
    inputs: dict[str, list] = {r.site.name: [] for r in records}
    handles = [_keep_calls(block.get_submodule(p), calls[p]) for p in calls]
    for r in records:
        keep = inputs[r.site.name]
        hook = block.get_submodule(r.site.linears[0]).register_forward_pre_hook
        handles.append(hook(lambda module, args, keep=keep: keep.append(args[0])))
    for chunk in chunks:
        runner.run_block(block, 0, chunk)
    for handle in handles:
        handle.remove()
    for r in searched:
        if len(r.site.linears) > 1:
            search_by_output(block, r, calls[parents[r.site.name]], settings)
        else:  # down_proj: the module that is run is the linear itself
            linear = block.get_submodule(r.site.linears[0])
            own = [((x,), {}, linear(x)) for x in inputs[r.site.name]]
            search_linear(linear, r, own, settings)
    with torch.no_grad():
        for r in records:
            x = torch.cat([part.flatten(0, 1) for part in inputs[r.site.name]])
            group_size = settings.group_size_for(r.site.in_features, name=r.site.name)
            for path in r.site.linears:
                if not path.endswith(("q_proj", "k_proj")):
                    autoawq_clip(block.get_submodule(path).weight, x, settings, group_size)


def search_linear(linear, record, calls, settings) -> None:
    """Search the scales of one linear by its own output, for every alpha."""
    holder = torch.nn.Module()
    holder.only = linear
    site = record.site._replace(linears=("only",), name="only")
    # parent_of(("only",)) is "" - the holder: give it the linear's forward.
    holder.forward = linear.forward
    search_by_output(holder, record._replace(site=site), calls, settings)


def main() -> None:
    """Run both ways, print times and ratios, append a record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=128, help="windows of 512 tokens")
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--group-size", type=int, default=128)
    parser.add_argument("--record", type=Path, help="JSON Lines file to append to")
    args = parser.parse_args()
    settings = make_settings(None, bits=args.bits, group_size=args.group_size)
    with tempfile.TemporaryDirectory() as work:
        result = measure(Path(work), args.samples, settings)
    print(json.dumps(result["ratios"], indent=1))
    if args.record:
        with args.record.open("a") as file:
            file.write(json.dumps(result) + "\n")


def measure(work: Path, samples: int, settings) -> dict:
    """Return times of both ways and their ratios."""
    make_model(work / "model")
    ckpt = open_checkpoint(work / "model")
    tokens = np.random.default_rng(0).integers(0, 1024, (samples, SEQ_LEN))
    clock = Clock()
    bandwidth = ReadProbe(256_000_000).bandwidth_gb_s()
    calibrate(ckpt, tokens[:2], work / "warm")  # imports, tracing code, oneDNN's primitives
    stats = clock.time(CALIBRATE, calibrate, ckpt, tokens, work / "before")
    records = stats.block(0)
    weights = block_weights(ckpt, records, "model.layers.0")

    def search(changed):
        return search_block(records, weights, changed, name="model.layers.0")

    search(settings)
    clock.time(SEARCH, search, settings)
    clock.time("search 12 settings", lambda: [search(_changed(settings, c)) for c in SWEEP])
    runner = BlockRunner(ckpt)
    chunks = [runner.embed(batch) for batch in torch.from_numpy(tokens).split(8)]
    block = runner.load_block(0)
    case = (runner, block, records, chunks, settings)
    clock.time("AutoAWQ's way, one setting", autoawq_setting, *case)
    # Ours once more: what the machine did meanwhile shows in the difference.
    clock.time(f"{CALIBRATE}, again", calibrate, ckpt, tokens, work / "after")
    clock.time(f"{SEARCH}, again", search, settings)
    t = clock.seconds
    theirs = t["AutoAWQ's way, one setting"]
    ours = (t[SEARCH] + t[f"{SEARCH}, again"]) / 2
    collected = (t[CALIBRATE] + t[f"{CALIBRATE}, again"]) / 2
    return {
        "benchmark": "search_speed",
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "shape": "Qwen3-0.6B block, bf16",
        "tokens": samples * SEQ_LEN,
        "setting": settings.label(),
        "read_bandwidth_gb_s": bandwidth,
        "seconds": t,
        "ratios": {
            "per setting": theirs / ours,
            "one setting, collection included": theirs / (collected + ours),
            "12 settings, collection included": 12 * theirs / (collected + t["search 12 settings"]),
        },
        "machine": machine_record().to_dict(),
    }


def _changed(settings, change):
    return make_settings(settings, bits=change[0], group_size=change[1])


if __name__ == "__main__":
    main()
