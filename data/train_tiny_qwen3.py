"""Train the embedded model `data/tiny-qwen3` on the standard library's source.

The text is what `awqbench.text.stdlib_modules("training")` lists on the machine where
this runs; modules held out for evaluation are never read here but to measure perplexity.

    python data/train_tiny_qwen3.py prepare --work build/tiny      # tokenizer and tokens
    python data/train_tiny_qwen3.py train --work build/tiny --minutes 60
    python data/train_tiny_qwen3.py export --work build/tiny --out data/tiny-qwen3

Stages are separate so that `train` can run on another machine than the one whose
standard library is read. Training needs torch >= 2.9 (for the Muon optimizer).
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import time
from pathlib import Path

import numpy as np

VOCAB_SIZE = 4096
END_OF_TEXT = "<|endoftext|>"
SEQ_LEN = 512
# Library modules are what the model is judged on: they are seen twice as often as the
# standard library's own tests.
LIBRARY_WEIGHT = 2
MUON_LR = 3e-3
ADAM_LR = 3e-3
WARMUP = 0.02


def model_config():
    """Return the Qwen3 configuration: 8.1 M parameters, intermediate 896 = 7 x 128."""
    from transformers import Qwen3Config

    return Qwen3Config(
        vocab_size=VOCAB_SIZE,
        hidden_size=256,
        intermediate_size=896,
        num_hidden_layers=8,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
    )


def prepare(work: Path) -> None:
    """Train the tokenizer on the training text and write token files of both splits."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    from awqbench.text import stdlib_modules

    work.mkdir(parents=True, exist_ok=True)
    tokenizer = Tokenizer(models.BPE())
    # Runs of spaces stay whole (indentation is one token), digits are single.
    pattern = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+ *|\s+(?!\S)|\s+"
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    calibration = set(stdlib_modules("calibration"))
    texts = {
        split: {
            name: path.read_text(encoding="utf-8", errors="replace")
            for name, path in stdlib_modules(split).items()
        }
        for split in ("training", "evaluation")
    }
    tokenizer.train_from_iterator(
        (text for name, text in texts["training"].items() if name in calibration), trainer
    )
    tokenizer.save(str(work / "tokenizer.json"))
    facts = {"python": platform.python_version(), "end_of_text": END_OF_TEXT}
    for split, modules in texts.items():
        for part, wanted in (("library", True), ("tests", False)):
            names = [name for name in modules if (name in calibration) == wanted]
            if split == "evaluation":
                names = list(modules) if wanted else []
            if not names:
                continue
            ids = [encoding.ids for encoding in tokenizer.encode_batch([modules[n] for n in names])]
            tokens = np.concatenate([np.array([*i, 0], dtype=np.uint16) for i in ids])
            np.save(work / f"{split}-{part}.npy", tokens)
            characters = sum(len(modules[n]) for n in names)
            facts[f"{split}-{part}"] = {
                "modules": len(names),
                "characters": characters,
                "tokens": len(tokens),
            }
    (work / "text.json").write_text(json.dumps(facts, indent=1))
    print(json.dumps(facts, indent=1))


class Windows:
    """Shuffled windows of both parts of the text, at a new offset in every epoch."""

    def __init__(self, parts: dict[str, np.ndarray], batch: int, seed: int = 0):
        self.parts, self.size = parts, batch
        self.rng, self.queue = random.Random(seed), []

    def _refill(self) -> None:
        for part, tokens in self.parts.items():
            for _ in range(LIBRARY_WEIGHT if part == "library" else 1):
                first = self.rng.randrange(SEQ_LEN)
                starts = range(first, len(tokens) - SEQ_LEN - 1, SEQ_LEN)
                self.queue += [(part, start) for start in starts]
        self.rng.shuffle(self.queue)

    def batch(self) -> np.ndarray:
        """Return (batch, SEQ_LEN + 1) int64 token ids."""
        if len(self.queue) < self.size:
            self._refill()
        picks = [self.queue.pop() for _ in range(self.size)]
        rows = [self.parts[part][start : start + SEQ_LEN + 1] for part, start in picks]
        return np.stack(rows).astype(np.int64)


def nll(model, tokens: np.ndarray, device) -> float:
    """Return the mean negative log-likelihood (nats) over windows (n, SEQ_LEN + 1)."""
    import torch

    total, count = 0.0, 0
    with torch.no_grad():
        for rows in torch.from_numpy(tokens.astype(np.int64)).split(8):
            rows = rows.to(device)
            logits = model(rows[:, :-1]).logits.float()
            loss = torch.nn.functional.cross_entropy(
                logits.flatten(0, 1), rows[:, 1:].flatten(), reduction="sum"
            )
            total, count = total + loss.item(), count + rows[:, 1:].numel()
    return total / count


def optimizers(model) -> list:
    """Muon for the matrices of the blocks, AdamW for the embedding and the norms."""
    import torch

    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    others = [p for n, p in model.named_parameters() if p.ndim != 2 or "embed" in n]
    return [
        torch.optim.Muon(matrices, lr=MUON_LR, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=ADAM_LR, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def train(work: Path, minutes: float, device: str, batch_size: int, seed: int = 0) -> None:
    """Train for a given time; the learning rate falls to zero at its end."""
    import torch
    from safetensors.torch import save_file
    from transformers import Qwen3ForCausalLM

    torch.manual_seed(seed)
    parts = {p.stem.split("-")[1]: np.load(p) for p in sorted(work.glob("training-*.npy"))}
    windows = Windows(parts, batch_size, seed)
    held_out = np.load(work / "evaluation-library.npy")
    starts = np.linspace(0, len(held_out) - SEQ_LEN - 1, 32).astype(int)
    evaluation = np.stack([held_out[s : s + SEQ_LEN + 1] for s in starts])
    model = Qwen3ForCausalLM(model_config()).to(device)
    opts = optimizers(model)
    base = [[g["lr"] for g in o.param_groups] for o in opts]

    @torch.compile
    def loss_of(rows):
        with torch.autocast(device_type=torch.device(device).type, dtype=torch.bfloat16):
            logits = model(rows[:, :-1], use_cache=False).logits
        return torch.nn.functional.cross_entropy(
            logits.flatten(0, 1).float(), rows[:, 1:].flatten()
        )

    def batch():
        return torch.from_numpy(windows.batch()).to(device)

    loss_of(batch()).backward()  # compile before the clock starts
    model.zero_grad(set_to_none=True)
    step, seen, ema, log, started = 0, 0, None, [], time.time()
    last_report = started
    while (done := (time.time() - started) / (60 * minutes)) < 1:
        factor = min(done / WARMUP, 1.0) * min(1.0, (1 - done) / 0.5)
        factor = max(factor, 0.01)
        for opt, rates in zip(opts, base, strict=True):
            for group, rate in zip(opt.param_groups, rates, strict=True):
                group["lr"] = rate * factor
        rows = batch()
        loss = loss_of(rows)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for opt in opts:
            opt.step()
        model.zero_grad(set_to_none=True)
        step, seen = step + 1, seen + rows[:, 1:].numel()
        ema = loss.item() if ema is None else 0.98 * ema + 0.02 * loss.item()
        if time.time() - last_report > min(120, 6 * minutes):
            last_report = time.time()
            row = {
                "minutes": (last_report - started) / 60,
                "step": step,
                "tokens": seen,
                "train_loss": ema,
                "held_out_loss": nll(model, evaluation, device),
            }
            log.append(row)
            print(json.dumps(row), flush=True)
            save_file(state(model), work / "model.safetensors")
    save_file(state(model), work / "model.safetensors")
    facts = {
        "minutes": minutes,
        "device": device,
        "steps": step,
        "tokens": seen,
        "train_loss": ema,
        "held_out_loss": nll(model, evaluation, device),
        "torch": torch.__version__,
        "log": log,
    }
    (work / "train.json").write_text(json.dumps(facts, indent=1))
    print(json.dumps({k: v for k, v in facts.items() if k != "log"}))


def state(model) -> dict:
    """Return the model's own tensors in bfloat16, the tied head left out."""
    import torch

    return {
        name: tensor.detach().to("cpu", torch.bfloat16).contiguous()
        for name, tensor in model.state_dict().items()
        if name != "lm_head.weight"
    }


def export(work: Path, out: Path) -> None:
    """Write the model folder: two shards, tokenizer, model card with measured figures."""
    from safetensors.torch import load_file
    from transformers import PreTrainedTokenizerFast

    import awqbench as ab
    from awqbench.formats.writer import CheckpointWriter

    facts = json.loads((work / "train.json").read_text())
    text = json.loads((work / "text.json").read_text())
    tensors = load_file(work / "model.safetensors")
    total = sum(t.numel() * t.element_size() for t in tensors.values())
    config = model_config().to_dict() | {"architectures": ["Qwen3ForCausalLM"]}
    config["dtype"] = "bfloat16"
    with CheckpointWriter(out, max_shard_bytes=total // 2 + 400_000) as writer:
        for name, tensor in tensors.items():
            writer.add(name, tensor)
        generation = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
        writer.finish(config, generation_config=json.dumps(generation, indent=2) + "\n")
    PreTrainedTokenizerFast(
        tokenizer_file=str(work / "tokenizer.json"),
        eos_token=END_OF_TEXT,
        bos_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
        model_max_length=2048,
    ).save_pretrained(out)
    model = ab.load_model(out)
    evaluation = ab.perplexity(model, ab.text_tokens(out, split="evaluation", n_samples=64))
    parameters = sum(t.numel() for t in tensors.values())
    card = model_card(facts, text, parameters, evaluation, sample(model, out))
    (out / "README.md").write_text(card)


def sample(model, folder: Path) -> str:
    """Return text that the model continues from the head of a function, sampled."""
    import torch
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    prompt = "import os\n\n\ndef copy_file("
    ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
    torch.manual_seed(0)
    with torch.no_grad():
        out = model.generate(ids, max_new_tokens=120, do_sample=True, temperature=0.8, top_k=40)
    return tokenizer.decode(out[0])


def model_card(facts: dict, text: dict, parameters: int, evaluation, generated: str) -> str:
    """Return the model card in Markdown."""
    library, tests = text["training-library"], text["training-tests"]
    held_out = text["evaluation-library"]
    rows = {
        "recipe": "`data/train_tiny_qwen3.py` (stages prepare, train, export)",
        "training text": f"{library['modules']} library modules ({library['tokens']:,} tokens, "
        f"seen {LIBRARY_WEIGHT} times as often) and {tests['modules']} of the library's own tests "
        f"({tests['tokens']:,} tokens)",
        "held out": f"{held_out['modules']} modules, {held_out['tokens']:,} tokens: those whose "
        "path's SHA-1 is divisible by 20; never in training or calibration",
        "trained": f"{facts['minutes']:g} minutes on {facts['device']}, {facts['steps']:,} steps, "
        f"{facts['tokens']:,} tokens, torch {facts['torch']}",
        "optimizer": "Muon for matrices, AdamW for the embedding and norms, rate to zero",
        "training loss": f"{facts['train_loss']:.3f} nats a token (running mean, tests included)",
        "held-out loss": f"{evaluation.nll:.3f} +- {evaluation.nll_se:.3f} nats a token, float32",
        "held-out perplexity": f"**{evaluation.ppl:.2f}** ({evaluation.ppl_low:.2f} to "
        f"{evaluation.ppl_high:.2f}) on 64 windows of 512 tokens",
        "dtype": "bfloat16, embeddings tied",
    }
    table = "\n".join(f"| {name} | {value} |" for name, value in rows.items())
    return f"""# tiny-qwen3

A Qwen3-architecture language model of {parameters / 1e6:.2f} M parameters, small enough for git,
trained on the Python standard library's source (CPython {text["python"]}). It exists so that
quantization can be tried, tested and shown on real trained weights without a download; it is
not useful for anything else. `intermediate_size` is 896 = 7 x 128 on purpose: at group size 128
tensor parallel 2 does not fit, as in Qwen2-72B.

| | |
|---|---|
{table}

A sample (temperature 0.8, top 40):

```python
{generated}
```

The weights are trained on source code under the PSF licence; the text itself is not shipped.
"""


def main() -> None:
    """Parse the command line and run one stage."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("stage", choices=("prepare", "train", "export"))
    parser.add_argument("--work", type=Path, default=Path("build/tiny"))
    parser.add_argument("--out", type=Path, default=Path("data/tiny-qwen3"))
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch", type=int, default=12, help="windows of 512 tokens in a step")
    args = parser.parse_args()
    if args.stage == "prepare":
        prepare(args.work)
    elif args.stage == "train":
        train(args.work, args.minutes, args.device, args.batch)
    else:
        export(args.work, args.out)


if __name__ == "__main__":
    main()
