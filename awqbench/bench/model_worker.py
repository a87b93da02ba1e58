"""A process that holds one model and generates when told to.

Each backend gets a process of its own, so that its peak memory is its own and backends can
take turns. Told and answered in JSON, a line each; see `model_bench`.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TextIO

from awqbench.errors import AwqbenchError

if TYPE_CHECKING:
    import torch

DENSE = "dense"


class Generation(NamedTuple):
    """Times of one generation: the prompt with the first new token, and the tokens after it."""

    prompt_tokens: int
    new_tokens: int
    prefill_s: float
    decode_s: float

    @property
    def token_s(self) -> float:
        """Seconds a token, after the first."""
        return self.decode_s / (self.new_tokens - 1)


def generate(model: torch.nn.Module, prompt: torch.Tensor, new_tokens: int) -> Generation:
    """Generate greedily with a key-value cache, and no end of sequence.

    Parameters
    ----------
    model : transformers.PreTrainedModel
    prompt : (1, n) torch.Tensor of int64
    new_tokens : int
        At least 2: the first comes with the prompt.

    Returns
    -------
    Generation
    """
    import torch

    keep = _last_logits_only(model)
    with torch.inference_mode():
        started = time.perf_counter()
        out = model(input_ids=prompt, use_cache=True, **keep)
        token = out.logits[:, -1:].argmax(dim=-1)
        first = time.perf_counter()
        for _ in range(new_tokens - 1):
            out = model(input_ids=token, past_key_values=out.past_key_values, use_cache=True)
            token = out.logits[:, -1:].argmax(dim=-1)
        token.item()
        ended = time.perf_counter()
    return Generation(prompt.shape[1], new_tokens, first - started, ended - first)


def _last_logits_only(model: torch.nn.Module) -> dict[str, int]:
    """Ask for the last token's logits, as `generate` of transformers does, where it can be."""
    import inspect

    takes = inspect.signature(model.forward).parameters
    return {"logits_to_keep": 1} if "logits_to_keep" in takes else {}


def peak_bytes() -> int:
    """Return the most resident memory that this process has had.

    From the kernel's VmHWM where there is one: `ru_maxrss` of a child begins at what its
    parent had.
    """
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def load(folder: str, backend: str, dtype: str | None) -> tuple[torch.nn.Module, dict[str, Any]]:
    """Load a quantized folder; return the model and what loading took.

    Parameters
    ----------
    folder : str
    backend : str
        One of `load_quantized`, or "dense": every weight decoded, transformers' own linears.
    dtype : str, optional
    """
    from awqbench.linear import load_quantized

    imported = peak_bytes()
    started = time.perf_counter()
    is_dense = backend == DENSE
    backend = "auto" if is_dense else backend
    model = load_quantized(folder, backend, "cpu", dtype, dequantize=is_dense)
    facts = {
        "load_s": time.perf_counter() - started,
        "imported_bytes": imported,
        "dtype": str(model.dtype).removeprefix("torch."),
        "parameter_bytes": _parameters_read(model),
        "vocab_size": int(model.config.get_text_config().vocab_size),
    }
    return model, facts


def _parameters_read(model: torch.nn.Module) -> int:
    """Return the bytes of parameters that a token needs whole: not an embedding of its own."""
    inputs, outputs = model.get_input_embeddings(), model.get_output_embeddings()
    is_tied = getattr(outputs, "weight", None) is inputs.weight
    own = 0 if is_tied else inputs.weight.nbytes
    return sum(parameter.nbytes for parameter in model.parameters()) - own


def serve(orders: TextIO, replies: TextIO, setting: dict[str, Any]) -> None:
    """Load a model, then generate for each order until there are no more.

    Parameters
    ----------
    orders : text file
        Lines of ``{"prompt_tokens": n, "new_tokens": n}``.
    replies : text file
        Gets a line for the loading and one for each order.
    setting : dict
        `folder`, `backend`, `dtype`, `threads`.
    """
    import torch

    from awqbench.bench.probes import limited_threads

    def reply(**facts: Any) -> None:
        print(json.dumps(facts), file=replies, flush=True)

    with limited_threads(setting["threads"]):
        try:
            model, facts = load(setting["folder"], setting["backend"], setting["dtype"])
        except AwqbenchError as error:
            reply(error=type(error).__name__, text=str(error))
            return
        reply(**facts)
        generator = torch.Generator().manual_seed(0)
        for line in orders:
            order = json.loads(line)
            shape = (1, order["prompt_tokens"])
            prompt = torch.randint(facts["vocab_size"], shape, generator=generator)
            times = generate(model, prompt, order["new_tokens"])
            reply(**times._asdict(), peak_bytes=peak_bytes())


def main() -> None:
    """Serve the process that started this one; whatever else is printed goes to stderr."""
    with os.fdopen(os.dup(1), "w") as replies:
        os.dup2(2, 1)
        serve(sys.stdin, replies, json.loads(sys.argv[1]))


if __name__ == "__main__":
    main()
