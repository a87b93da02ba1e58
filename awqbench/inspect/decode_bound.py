"""How fast can a model decode? The bound by memory: every weight is read for every token."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from awqbench.errors import ParameterError
from awqbench.formats.checkpoint import Checkpoint
from awqbench.inspect.parallel.known_configs import KNOWN_CONFIGS
from awqbench.inspect.placement.dense_sizes import n_experts
from awqbench.inspect.placement.kv_cache import kv_cache_bytes
from awqbench.inspect.placement.module_bytes import ModelBytes, as_model, predicted_model
from awqbench.quantize.settings import Settings

if TYPE_CHECKING:
    import pandas as pd

# Memory bandwidth by the makers' data sheets, GB/s; what a program gets is 5 to 20 % less.
NOMINAL_GB_S = {
    "2 channels of DDR5-5600": 89.6,
    "12 channels of DDR5-4800": 460.8,
    "Apple M2 Ultra": 800.0,
    "RTX 4090": 1008.0,
    "A100 80GB SXM": 2039.0,
    "H100 SXM": 3350.0,
    "H200": 4800.0,
}
# Layers of known models as in their config.json, which how they split does not depend on.
_LAYERS = {
    "Qwen2-7B": 28,
    "Llama-2-13B": 40,
    "Qwen2.5-14B": 48,
    "Qwen2.5-32B": 64,
    "Qwen2-72B": 80,
    "Mixtral-8x7B": 32,
}
_MORE = {"Mixtral-8x7B": {"num_experts_per_tok": 2}}
KNOWN_MODELS = {
    name: KNOWN_CONFIGS[name] | {"num_hidden_layers": layers} | _MORE.get(name, {})
    for name, layers in _LAYERS.items()
}
# Weights of one expert among many.
_EXPERT = re.compile(r"\.experts\.\d+\.")
# Tables of which a token reads one row.
_EMBEDDING = re.compile(
    r"(^|\.)(embed_tokens|wte|word_embeddings|tok_embeddings|embed_in)\.weight$"
)


class DecodeBound(NamedTuple):
    """Tokens a second that memory allows, of all sequences together, and what is read.

    `weight_bytes` and `kv_bytes` are of one step, which gives one token to each sequence.
    """

    tok_per_s: float
    weight_bytes: int
    kv_bytes: int


def decode_bound(
    model: ModelBytes, bandwidth_gb_s: float, *, context: int = 4096, batch: int = 1
) -> DecodeBound:
    """Return the most tokens a second that reading weights and KV cache leaves room for.

    A step reads every weight once, whatever the batch, and each sequence's keys and values:
    ``tok_per_s = batch * bandwidth / (weight bytes + KV bytes)``. Arithmetic, dequantizing
    and everything else come on top, so that no engine is faster. The table of embeddings is
    read in full only where it is the output layer too. Of a mixture of experts the chosen
    ones are counted, as if all sequences chose the same.

    Parameters
    ----------
    model : ModelBytes
        By `stored_model` or `predicted_model`.
    bandwidth_gb_s : float
        Read bandwidth of the memory that holds the weights, 1e9 bytes a second.
    context : int
        Tokens that a sequence holds when the token is made.
    batch : int
        Sequences at a time.

    Returns
    -------
    DecodeBound

    Raises
    ------
    ParameterError
        If the bandwidth is not above 0, or context or batch are out of range.

    Examples
    --------
    >>> from awqbench.inspect.placement.module_bytes import TensorSize
    >>> sizes = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1}
    >>> weights = {"lm_head.weight": TensorSize((1000, 64), "bfloat16")}
    >>> model = ModelBytes("m", sizes | {"num_attention_heads": 1}, weights, "bfloat16", "")
    >>> decode_bound(model, 1.0, context=0)
    DecodeBound(tok_per_s=7812.5, weight_bytes=128000, kv_bytes=0)
    """
    kv_bytes = sum(kv_cache_bytes(model.config, context=context, batch=batch, dtype=model.kv_dtype))
    return _bound(bytes_read(model), kv_bytes, bandwidth_gb_s, batch)


def _bound(weight_bytes: int, kv_bytes: int, bandwidth_gb_s: float, batch: int) -> DecodeBound:
    if not bandwidth_gb_s > 0:
        raise ParameterError(f"bandwidth is {bandwidth_gb_s} GB/s; give one above 0.")
    seconds = (weight_bytes + kv_bytes) / (bandwidth_gb_s * 1e9)
    return DecodeBound(batch / seconds, weight_bytes, kv_bytes)


def bytes_read(model: ModelBytes) -> int:
    """Return the bytes of weights that one step reads.

    Parameters
    ----------
    model : ModelBytes

    Returns
    -------
    int
    """
    has_head = any("lm_head" in name or "output_layer" in name for name in model.tensors)
    experts = n_experts(model.config)
    chosen = int(model.config.get("num_experts_per_tok") or experts or 1)
    total = 0.0
    for name, tensor in model.tensors.items():
        if has_head and _EMBEDDING.search(name):
            continue
        share = min(1.0, chosen / experts) if experts and _EXPERT.search(name) else 1.0
        total += tensor.nbytes * share
    return round(total)


def bounds_by_setting(
    source: Checkpoint | Mapping | str | Path,
    settings: Mapping[str, Settings | None],
    bandwidth_gb_s: float,
    *,
    contexts: Iterable[int],
    batch: int = 1,
) -> pd.DataFrame:
    """Return the bound of a model at several settings and contexts.

    Parameters
    ----------
    source : Checkpoint or mapping or str or Path
        As `predicted_model` takes it.
    settings : mapping of str to Settings or None
        By the name of the case; None for the model as it is.
    bandwidth_gb_s, batch
        As in `decode_bound`.
    contexts : iterable of int

    Returns
    -------
    DataFrame
        `case`, `context`, and the fields of `DecodeBound`.

    Raises
    ------
    AlreadyQuantizedError, FormatError, AlignmentError
        As `predicted_model`.
    """
    import pandas as pd

    models = {
        case: as_model(source) if setting is None else predicted_model(source, setting)
        for case, setting in settings.items()
    }
    weights = {case: bytes_read(model) for case, model in models.items()}
    any_model = next(iter(models.values()))  # the cache is not quantized
    of_cache = {"batch": batch, "dtype": any_model.kv_dtype}
    caches = {n: sum(kv_cache_bytes(any_model.config, context=n, **of_cache)) for n in contexts}
    rows = [
        {"case": case, "context": context}
        | _bound(weight_bytes, kv_bytes, bandwidth_gb_s, batch)._asdict()
        for case, weight_bytes in weights.items()
        for context, kv_bytes in caches.items()
    ]
    return pd.DataFrame(rows)
