r"""Quantize one folder with this package and with its peers, same tokens, same threads.

The folder has Qwen3-0.6B's shape with some of its blocks and random weights; random tokens:
neither matters for the time. Each tool quantizes to 4 bits, groups of 128 with zero points,
with its scale and range search, in a process of its own, and writes a checkpoint:

    python benchmarks/peer_quantize.py build/peers --autoawq A/bin/python \
        --llm-compressor B/bin/python --record data/records/peer_quantize.jsonl

where A has autoawq 0.2.9 (torch, transformers 4.51.3) and B has llmcompressor. On a CPU AutoAWQ's
search keeps aliases of the weights it changes for copies of them, so that trial scales
accumulate; it is run with copies, which costs it next to nothing. llm-compressor pins memory for
a device that is not there, and fails; it is run without.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

MODEL, TOKENS = "model", "tokens.npy"
TOOLS = ("awqbench", "autoawq", "llm-compressor")


def make(folder: Path, blocks: int, windows: int, seq_len: int) -> None:
    """Save the model and the tokens, where they are not there yet."""
    import numpy as np
    import torch
    from transformers import AutoModelForCausalLM, Qwen3Config

    folder.mkdir(parents=True, exist_ok=True)
    config = Qwen3Config(
        vocab_size=4096,  # plays no part in the time, and is quick to write
        hidden_size=1024,
        intermediate_size=3072,
        num_hidden_layers=blocks,
        num_attention_heads=16,
        num_key_value_heads=8,
        head_dim=128,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder / MODEL)
    np.save(folder / TOKENS, np.random.default_rng(0).integers(0, 4096, (windows, seq_len)))


def by_awqbench(model: str, tokens, out: str) -> dict:
    """Calibrate, search and write; returns the parts of the time."""
    import awqbench as ab

    return ab.quantize(model, out, tokens=tokens)["times"]


def by_autoawq(model: str, tokens, out: str) -> dict:
    """Run AutoAWQ's own quantizer, its aliases made copies."""
    import inspect
    import textwrap

    from awq import AutoAWQForCausalLM
    from awq.quantize import quantizer

    source = textwrap.dedent(inspect.getsource(quantizer.AwqQuantizer._compute_best_scale))
    mended = source.replace("v.cpu()", "v.cpu().clone()")
    if mended == source:
        raise SystemExit("this version of AutoAWQ has no alias to mend; look at its source.")
    names = vars(quantizer)
    exec(mended.replace("@torch.no_grad()\n", ""), names)
    quantizer.AwqQuantizer._compute_best_scale = quantizer.torch.no_grad()(
        names["_compute_best_scale"]
    )
    loaded = AutoAWQForCausalLM.from_pretrained(model, torch_dtype="auto", use_cache=False)
    settings = {"zero_point": True, "q_group_size": 128, "w_bit": 4, "version": "GEMM"}
    loaded.quantize(
        None,
        quant_config=settings,
        calib_data=[row.tolist() for row in tokens],
        max_calib_samples=len(tokens),
        max_calib_seq_len=tokens.shape[1],
    )
    loaded.save_quantized(out)
    return {}


def by_llm_compressor(model: str, tokens, out: str) -> dict:
    """Run llm-compressor's AWQ."""
    from datasets import Dataset
    from llmcompressor import oneshot
    from llmcompressor.modifiers.awq import AWQModifier
    from llmcompressor.pipelines.cache import IntermediatesCache
    from transformers import AutoModelForCausalLM

    # It pins memory for copies to a device, and fails where there is none.
    IntermediatesCache.pin_memory = lambda *args, **kwargs: None
    loaded = AutoModelForCausalLM.from_pretrained(model, dtype="auto")
    rows = [row.tolist() for row in tokens]
    data = Dataset.from_dict({"input_ids": rows, "attention_mask": [[1] * len(r) for r in rows]})
    recipe = AWQModifier(ignore=["lm_head"], scheme="W4A16_ASYM", targets=["Linear"])
    oneshot(
        model=loaded,
        dataset=data,
        recipe=recipe,
        max_seq_length=tokens.shape[1],
        num_calibration_samples=len(tokens),
    )
    loaded.save_pretrained(out, save_compressed=True)
    return {}


def run(tool: str, folder: Path) -> None:
    """Quantize with one tool in this process, and print what it took as JSON."""
    import numpy as np

    tokens = np.load(folder / TOKENS)
    quantize = {"awqbench": by_awqbench, "autoawq": by_autoawq}.get(tool, by_llm_compressor)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        started = time.perf_counter()
        parts = quantize(str(folder / MODEL), tokens, str(Path(scratch) / "out"))
        facts = {"tool": tool, "total_s": time.perf_counter() - started, "parts": parts}
    facts["versions"] = _versions()
    if sys.platform == "linux":
        import resource

        facts["peak_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps(facts))


def _versions() -> dict[str, str]:
    from importlib import metadata

    names = ("autoawq", "llmcompressor", "compressed-tensors", "torch", "transformers")
    found = {}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def compare(args: argparse.Namespace) -> None:
    """Run every tool in its own interpreter, twice where asked, and print ratios."""
    from datetime import UTC, datetime

    from awqbench.bench.machine import machine_record
    from awqbench.bench.timing import ReadProbe

    make(args.folder, args.blocks, args.windows, args.seq_len)
    pythons = {
        "awqbench": sys.executable,
        "autoawq": args.autoawq,
        "llm-compressor": args.llm_compressor,
    }
    probe = ReadProbe()
    rows = []
    for turn in range(args.turns):
        for tool, python in pythons.items():
            if python is None:
                continue
            words = [python, __file__, str(args.folder), "--run", tool]
            done = subprocess.run(words, capture_output=True, text=True, check=False)
            if done.returncode:
                print(f"{tool} failed: {done.stderr.strip().splitlines()[-1]}", file=sys.stderr)
                continue
            facts = json.loads(done.stdout.strip().splitlines()[-1])
            rows.append(facts | {"turn": turn, "read_gb_s": probe.bandwidth_gb_s()})
            print(f"{tool:<15} {facts['total_s']:8.1f} s  {facts['peak_bytes'] / 1e9:5.1f} GB")
    ours = [row["total_s"] for row in rows if row["tool"] == "awqbench"]
    for tool in TOOLS[1:]:
        theirs = [row["total_s"] for row in rows if row["tool"] == tool]
        if ours and theirs:
            print(f"{tool}: {min(theirs) / min(ours):.1f} times our time")
    if args.record:
        record = {
            "benchmark": "peer_quantize",
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
            "blocks": args.blocks,
            "windows": args.windows,
            "seq_len": args.seq_len,
            "rows": rows,
            "machine": machine_record().to_dict(),
        }
        with args.record.open("a") as file:
            file.write(json.dumps(record) + "\n")


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--blocks", type=int, default=4)
    parser.add_argument("--windows", type=int, default=16)
    parser.add_argument("--seq-len", type=int, default=512)
    parser.add_argument("--turns", type=int, default=1)
    parser.add_argument("--autoawq", metavar="PYTHON")
    parser.add_argument("--llm-compressor", metavar="PYTHON")
    parser.add_argument("--record", type=Path)
    parser.add_argument("--run", choices=TOOLS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.run:
        run(args.run, args.folder)
    else:
        compare(args)


if __name__ == "__main__":
    main()
