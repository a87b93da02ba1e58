"""Bytes of keys and values that a model keeps for a context, layer by layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from awqbench.errors import FormatError, ParameterError
from awqbench.inspect.parallel.model_shapes import language_config, model_shapes
from awqbench.inspect.placement.dense_sizes import model_dtype, n_layers
from awqbench.inspect.placement.packed_sizes import ITEM_BYTES

# Types whose layers all look through the window where the config has no list of layers.
_ALL_WINDOWED = ("mistral", "mixtral", "phi3", "phimoe", "starcoder2")


class KVLayer(NamedTuple):
    """What one layer keeps.

    Parameters
    ----------
    elements : int
        Numbers for one token: keys and values of all key-value heads, or the compressed
        form of multi-head latent attention.
    window : int or None
        Tokens at most; None for the whole context.
    """

    elements: int
    window: int | None

    def nbytes(self, context: int, batch: int, dtype: str) -> int:
        """Return the bytes for `batch` sequences of `context` tokens."""
        tokens = context if self.window is None else min(context, self.window)
        return self.elements * tokens * batch * ITEM_BYTES[dtype]


def kv_layers(config: Mapping) -> list[KVLayer]:
    """List what each layer of a model keeps for a token.

    Latent attention (DeepSeek) is counted compressed, as vLLM and transformers 5 keep it;
    before, transformers kept keys and values of all heads, which is many times as much.

    Parameters
    ----------
    config : mapping
        Content of config.json.

    Returns
    -------
    list of KVLayer

    Raises
    ------
    FormatError
        If the config does not tell.

    Examples
    --------
    >>> sizes = {"hidden_size": 8192, "intermediate_size": 29568, "num_hidden_layers": 80}
    >>> heads = {"num_attention_heads": 64, "num_key_value_heads": 8}
    >>> kv_layers(sizes | heads)[0]  # 2 x 8 heads of 128
    KVLayer(elements=2048, window=None)
    """
    part, _ = language_config(config)
    n_layers(part)  # refused before layers are counted one by one
    shapes = model_shapes(config)
    if part.get("kv_lora_rank"):
        elements = int(part["kv_lora_rank"]) + int(part["qk_rope_head_dim"])
    else:
        heads = [p for linear in shapes.linears for p in linear.parts if p.head_size]
        elements = sum(p.out_features for p in heads)
    return [KVLayer(elements, window) for window in _windows(part, shapes.model_type)]


def _windows(config: Mapping, model_type: str) -> list[int | None]:
    layers, window = n_layers(config), config.get("sliding_window")
    kinds = config.get("layer_types")
    if not window or config.get("use_sliding_window") is False:
        return [None] * layers
    if not isinstance(window, int) or window < 1:
        raise FormatError(f"config.json: sliding_window is {window!r}, not a positive integer.")
    if isinstance(kinds, list | tuple) and len(kinds) == layers:
        return [window if kind == "sliding_attention" else None for kind in kinds]
    if model_type == "gemma2":  # every other layer, the first one included
        return [None if i % 2 else window for i in range(layers)]
    if model_type == "gemma3_text":
        every = int(config.get("sliding_window_pattern") or 6)
        return [window if (i + 1) % every else None for i in range(layers)]
    if model_type in _ALL_WINDOWED:
        return [window] * layers
    if config.get("use_sliding_window"):  # Qwen2: layers after the first so many
        first = int(config.get("max_window_layers") or 0)
        return [window if i >= first else None for i in range(layers)]
    return [None] * layers


def kv_cache_bytes(
    config: Mapping, *, context: int, batch: int = 1, dtype: str | None = None
) -> list[int]:
    """Return the bytes of the KV cache, layer by layer.

    Parameters
    ----------
    config : mapping
    context : int
        Tokens of a sequence, prompt and answer together.
    batch : int
        Sequences at a time.
    dtype : str, optional
        Torch's name; by default the model's.

    Raises
    ------
    ParameterError
        If a number is negative or the dtype is not known.
    FormatError
        As `kv_layers`.
    """
    check_context(context, batch)
    dtype = dtype or model_dtype(config)
    if dtype not in ITEM_BYTES:
        raise ParameterError(f"dtype {dtype!r} is not known; one of {', '.join(ITEM_BYTES)}.")
    return [layer.nbytes(context, batch, dtype) for layer in kv_layers(config)]


def check_context(context: int, batch: int) -> None:
    """Raise ParameterError unless 0 or more tokens and 1 or more sequences are asked for."""
    if context < 0 or batch < 1:
        raise ParameterError(
            f"context {context}, batch {batch}: need 0 or more tokens and 1 or more sequences."
        )
