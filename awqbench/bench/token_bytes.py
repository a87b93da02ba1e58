"""What a token reads, part by part, of a folder or of a config: exact bytes."""

from __future__ import annotations

import re
from typing import NamedTuple

from awqbench.inspect.decode_bound import bytes_read
from awqbench.inspect.placement.kv_cache import kv_cache_bytes
from awqbench.inspect.placement.module_bytes import ModelBytes

_EMBEDDING = re.compile(r"(^|\.)(embed_tokens|wte|word_embeddings|tok_embeddings|embed_in)\.weight")
_HEAD = re.compile(r"(^|\.)(lm_head|output_layer|embed_out)\.")
_FLOATS = ("float16", "bfloat16", "float32", "float64")


class TokenBytes(NamedTuple):
    """Bytes that one token of one sequence reads.

    `packed` of quantized linears (codes, scales, zero points; of experts the chosen ones),
    `dense` of all other weights inside, `head` of the output layer (the table of embeddings
    where it is tied), `embedding_row`, and `kv` of the keys and values of the context.
    """

    packed: int
    dense: int
    head: int
    embedding_row: int
    kv: int

    @property
    def total(self) -> int:
        """Sum of all parts."""
        return sum(self)


def token_bytes(model: ModelBytes, *, context: int = 0) -> TokenBytes:
    """Count what a token reads.

    Parameters
    ----------
    model : ModelBytes
        By `stored_model`, `predicted_model` or `as_model`.
    context : int
        Tokens that the sequence holds.

    Returns
    -------
    TokenBytes
        `packed + dense + head` is `decode_bound.bytes_read`.

    Raises
    ------
    ParameterError, FormatError
        As `kv_cache_bytes`.
    """
    weights = bytes_read(model)
    embedding = next((name for name in model.tensors if _EMBEDDING.search(name)), None)
    heads = [name for name in model.tensors if _HEAD.search(name)]
    is_tied = embedding is not None and not heads
    head = sum(model.tensors[name].nbytes for name in ([embedding] if is_tied else heads))
    row = 0
    if embedding is not None and not is_tied:
        table = model.tensors[embedding]
        row = table.nbytes // table.shape[0]
    inside = {name: size for name, size in model.tensors.items() if name not in (embedding, *heads)}
    packed = bytes_read(model._replace(tensors=_packed_only(inside)))
    kv = sum(kv_cache_bytes(model.config, context=context, dtype=model.kv_dtype))
    return TokenBytes(packed, weights - head - packed, head, row, kv)


def _packed_only(tensors: dict) -> dict:
    """Return the tensors of modules that hold codes, which no floating-point tensor is."""
    modules = {
        name.rpartition(".")[0] for name, size in tensors.items() if size.dtype not in _FLOATS
    }
    return {
        name: size
        for name, size in tensors.items()
        if name.rpartition(".")[0] in modules and not name.endswith(".bias")
    }
