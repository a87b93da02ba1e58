"""Load a checkpoint written here with GPTQModel on the CPU and compare logits.

GPTQModel wants an environment of its own (gptqmodel 7.6.0, torch 2.13, transformers 5.23):

    python benchmarks/peer_load.py write build/peer            # with awqbench
    OTHER/bin/python benchmarks/peer_load.py read build/peer   # with gptqmodel

`read` prints the largest and the mean difference of logits for GPTQModel's exact path
(AWQ_TORCH: decode to float16, multiply) and for what transformers chooses there (ATen's
int4 operator, which computes in bfloat16), beside our own bfloat16 against our float32.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

GROUP_SIZES = (128, 32)


def write(folder: Path) -> None:
    """Quantize the embedded model and keep our own logits beside it."""
    import torch
    from safetensors.torch import save_file

    import awqbench as ab

    tokens = ab.text_tokens("tiny", n_samples=16)
    ids = torch.from_numpy(ab.text_tokens("tiny", split="evaluation", n_samples=4, seq_len=128))
    stats = ab.calibrate("tiny", tokens, folder / "stats")
    for group_size in GROUP_SIZES:
        out = folder / f"g{group_size}"
        ab.quantize("tiny", out, stats=stats, group_size=group_size)
        logits = {"ids": ids}
        for dtype in (torch.float32, torch.bfloat16):
            model = ab.load_quantized(out, dtype=dtype)
            with torch.no_grad():
                logits[str(dtype).removeprefix("torch.")] = model(ids).logits.float()
        save_file(logits, folder / f"ours-g{group_size}.safetensors")


def read(folder: Path) -> None:
    """Load the folders with GPTQModel and print differences as JSON Lines."""
    os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")  # it refuses machines of two cores
    import torch
    from gptqmodel import BACKEND, GPTQModel
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    for group_size in GROUP_SIZES:
        path = folder / f"g{group_size}"
        ours = load_file(folder / f"ours-g{group_size}.safetensors")
        exact = GPTQModel.load(path, backend=BACKEND.AWQ_TORCH, device="cpu", dtype=torch.float32)
        chosen = AutoModelForCausalLM.from_pretrained(path, device_map="cpu", dtype=torch.float32)
        found = {"our bfloat16": ours["bfloat16"]}
        for model in (exact.model, chosen):
            kinds = {type(m).__name__ for m in model.modules() if "Awq" in type(m).__name__}
            with torch.no_grad():
                found["GPTQModel " + "/".join(kinds)] = model(ours["ids"]).logits.float()
        for name, logits in found.items():
            difference = (logits - ours["float32"]).abs()
            row = {
                "group_size": group_size,
                "path": name,
                "largest": float(difference.max()),
                "mean": float(difference.mean()),
                "logits_std": float(ours["float32"].std()),
            }
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("stage", choices=("write", "read"))
    parser.add_argument("folder", type=Path)
    args = parser.parse_args()
    (write if args.stage == "write" else read)(args.folder)
