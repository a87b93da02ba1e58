"""Load checkpoints written here with the tools that their layouts belong to; compare logits.

The peers want an environment of their own (gptqmodel 7.6.0, optimum without its
dependencies, compressed-tensors 0.19.0, torch 2.13, transformers 5.23):

    python benchmarks/peer_load.py write build/peer            # with awqbench
    OTHER/bin/python benchmarks/peer_load.py read build/peer   # with the peers

`write` quantizes the embedded model and converts AWQ folders to other layouts. `read` loads
each folder with its own tool on the CPU and writes, as JSON Lines, the largest and the mean
difference of logits from ours: from the model with decoded weights (`dequantize=True`, the
tools' own numbers) and from the packed one. Last come our own bfloat16 against our float32,
and what transformers chooses for AWQ there (ATen's int4 operator, in bfloat16).
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import NamedTuple

RESULTS = "peer_load.jsonl"


class Case(NamedTuple):
    """A folder to write: how it is quantized, and the layout it is converted to."""

    layout: str
    group_size: int
    zero_point: bool

    @property
    def name(self) -> str:
        """Folder name."""
        return f"{self.layout}-g{self.group_size}-{'asym' if self.zero_point else 'sym'}"


CASES = [
    Case("awq-gemm", 128, True),
    Case("awq-gemm", 32, True),
    Case("gptq-v2", 32, True),
    Case("gptq", 128, False),
    Case("compressed-tensors", 128, True),
    Case("compressed-tensors", 32, False),
]


def write(folder: Path) -> None:
    """Quantize the embedded model and keep our own logits beside it."""
    import torch
    from safetensors.torch import save_file

    import awqbench as ab

    tokens = ab.text_tokens("tiny", n_samples=16)
    ids = torch.from_numpy(ab.text_tokens("tiny", split="evaluation", n_samples=4, seq_len=128))
    stats = ab.calibrate("tiny", tokens, folder / "stats")
    for case in CASES:
        out = folder / case.name
        first = folder / f"awq-gemm-g{case.group_size}-asym"
        if case.zero_point and first.exists():
            ab.convert(first, out, case.layout)
        else:
            changes = {"group_size": case.group_size, "zero_point": case.zero_point}
            ab.quantize("tiny", out, stats=stats, layout=case.layout, **changes)
        logits = {"ids": ids}
        with torch.no_grad():
            for dtype in ("float32", "bfloat16"):
                logits[dtype] = ab.load_quantized(out, dtype=dtype)(ids).logits.float()
            decoded = ab.load_quantized(out, dtype="float32", dequantize=True)
            logits["decoded"] = decoded(ids).logits
        save_file(logits, folder / f"ours-{case.name}.safetensors")


def read(folder: Path) -> None:
    """Load every folder with its tool and print differences as JSON Lines."""
    os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")  # it refuses machines of two cores
    from safetensors.torch import load_file

    (folder / RESULTS).unlink(missing_ok=True)
    for case in CASES:
        ours = load_file(folder / f"ours-{case.name}.safetensors")
        for path, model in _models(case, folder / case.name):
            _write_row(folder, case, path, _logits(model, ours["ids"]), ours)
        _write_row(folder, case, "our bfloat16", ours["bfloat16"], ours)


def _models(case: Case, path: Path):
    import torch
    from transformers import AutoModelForCausalLM

    if case.layout == "compressed-tensors":
        from transformers import CompressedTensorsConfig

        # By default transformers 5.23 refuses zero points, llm-compressor's own files too.
        decoded = CompressedTensorsConfig(run_compressed=False)
        yield (
            "compressed-tensors in transformers",
            AutoModelForCausalLM.from_pretrained(
                path, dtype=torch.float32, quantization_config=decoded
            ),
        )
        return
    from gptqmodel import BACKEND, GPTQModel

    is_awq = case.layout.startswith("awq")
    backend = BACKEND.AWQ_TORCH if is_awq else BACKEND.GPTQ_TORCH
    dtype = torch.float32 if is_awq else torch.float16  # its GPTQ kernel refuses float32
    loaded = GPTQModel.load(path, backend=backend, device="cpu", dtype=dtype)
    yield f"GPTQModel {_kinds(loaded.model)}", loaded.model
    if case.layout == "awq-gemm":
        chosen = AutoModelForCausalLM.from_pretrained(path, device_map="cpu", dtype=torch.float32)
        yield f"transformers {_kinds(chosen)}", chosen


def _kinds(model) -> str:
    kinds = {type(m).__name__ for m in model.modules() if hasattr(m, "qweight")}
    return "/".join(sorted(kinds))


def _logits(model, ids):
    import torch

    with torch.no_grad():
        return model(ids).logits.float()


def _write_row(folder: Path, case: Case, path: str, logits, ours: dict) -> None:
    row = {"case": case.name, "path": path}
    for name in ("decoded", "float32"):
        difference = (logits - ours[name]).abs()
        row[f"largest_{name}"] = float(difference.max())
        row[f"mean_{name}"] = float(difference.mean())
    row["logits_std"] = float(ours["float32"].std())
    print(json.dumps(row), flush=True)
    with (folder / RESULTS).open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("stage", choices=("write", "read"))
    parser.add_argument("folder", type=Path)
    args = parser.parse_args()
    (write if args.stage == "write" else read)(args.folder)
