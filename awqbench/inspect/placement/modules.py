"""What is placed as one piece, in the order in which a model runs it."""

from __future__ import annotations

import re
from typing import NamedTuple

from awqbench.errors import FormatError
from awqbench.inspect.placement.dense_sizes import ties_embeddings
from awqbench.inspect.placement.kv_cache import KVLayer, kv_layers
from awqbench.inspect.placement.module_bytes import ModelBytes, block_of, bytes_by_block

_STACK = re.compile(r"^(?P<stack>.*)\.(?P<number>\d+)$")
_FIRST = re.compile(r"(embed\w*|wte|wpe|word_embeddings|embd|rotary\w*)$")
_HEAD = re.compile(r"(lm_head|output_layer|embed_out)$")


class Piece(NamedTuple):
    """A block, or a module outside the blocks: what one device holds whole."""

    module: str
    kind: str
    weight_bytes: int
    kv_layer: KVLayer | None = None


class Pieces(NamedTuple):
    """A model cut into pieces.

    Parameters
    ----------
    placed : tuple of Piece
        In the order in which they run.
    followers : dict of str to str
        Modules without bytes of their own, and whose device they must share: a head tied to
        the embedding, the rotary frequencies that no file holds.
    """

    placed: tuple[Piece, ...]
    followers: dict[str, str]


def pieces_of(model: ModelBytes, *, with_kv: bool = True) -> Pieces:
    """Cut a model into what is placed as one piece.

    Parameters
    ----------
    model : ModelBytes
    with_kv : bool
        Whether layers' KV caches are looked up, for which the config must be known.

    Returns
    -------
    Pieces

    Raises
    ------
    FormatError
        If the model has no layers, or their number is not the config's.
    """
    sizes = bytes_by_block(model)
    stacks: dict[str, list[str]] = {}
    for module in sizes:
        found = _STACK.match(module)
        if found:
            stacks.setdefault(found["stack"], []).append(module)
    if not stacks:
        raise FormatError(f"{model.name} has no numbered blocks, such as model.layers.0.")
    main = max(stacks, key=lambda stack: sum(sizes[module] for module in stacks[stack]))
    layers = _kv_layers(model, main, len(stacks[main])) if with_kv else []
    kinds = {module: _kind(module, main) for module in sizes}
    ordered = sorted(sizes, key=lambda module: _place(module, kinds[module]))
    placed = []
    # A head that is tied is the embedding once loaded, even where a folder holds it too.
    is_tied = ties_embeddings(model.config)
    for module in ordered:
        if is_tied and kinds[module] == "head":
            continue
        is_layer = kinds[module] == "block"
        layer = layers[int(_STACK.match(module)["number"])] if is_layer and layers else None
        placed.append(Piece(module, kinds[module], sizes[module], layer))
    return Pieces(tuple(placed), _followers(model, placed, main))


def _kv_layers(model: ModelBytes, stack: str, count: int) -> list[KVLayer]:
    try:
        layers = kv_layers(model.config)
    except FormatError as error:
        raise FormatError(f"{error} context=0 plans the weights without a KV cache.") from error
    if len(layers) != count:
        raise FormatError(
            f"{model.name} has {count} blocks {stack}.*, and its config says {len(layers)}."
        )
    return layers


def _kind(module: str, main: str) -> str:
    found = _STACK.match(module)
    if found:
        return "block" if found["stack"] == main else "other block"
    if _HEAD.search(module):
        return "head"
    return "embedding" if _FIRST.search(module) else "other"


def _place(module: str, kind: str) -> tuple:
    """Embeddings run first, other towers next, then the layers, norms and last the head."""
    rank = ("embedding", "other block", "block", "other", "head").index(kind)
    found = _STACK.match(module)
    return (rank, found["stack"], int(found["number"])) if found else (rank, module, 0)


def _followers(model: ModelBytes, placed: list[Piece], main: str) -> dict[str, str]:
    first = next((p.module for p in placed if p.kind == "embedding"), placed[0].module)
    body = main.rpartition(".")[0]
    followers = {}
    if not any("rotary" in piece.module for piece in placed):
        followers[f"{body}.rotary_emb" if body else "rotary_emb"] = first
    if ties_embeddings(model.config):
        heads = (block_of(name) for name in model.tensors)
        followers[next((name for name in heads if _HEAD.search(name)), "lm_head")] = first
    elif any(piece.module == "embed_out" for piece in placed):
        followers["lm_head"] = "embed_out"  # GPT-NeoX's name on disk; transformers 5 renames it
    return followers
