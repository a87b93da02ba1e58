"""Every tensor of a full-precision model by name and shape, from config.json alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from awqbench.errors import FormatError
from awqbench.inspect.parallel.model_shapes import language_config, model_shapes
from awqbench.inspect.parallel.shape_types import LinearShape, ModelShapes
from awqbench.inspect.placement.packed_sizes import ITEM_BYTES, TensorSize

# Of these only the linears are known; a folder's headers say the rest.
_HEADERS_ONLY = ("gpt_neox", "falcon", "opt", "phi", "starcoder2")
_TIED = ("gemma", "gemma2", "gemma3_text", "cohere", "cohere2")
_EXPERT_KEYS = ("n_routed_experts", "num_local_experts", "num_experts", "moe_num_experts")
_TWO_NORMS = ("input_layernorm", "post_attention_layernorm")
_FOUR_NORMS = (*_TWO_NORMS, "pre_feedforward_layernorm", "post_feedforward_layernorm")
# Norms of a layer over the hidden size; Llama's two where a type is not listed.
_NORMS = {
    "qwen": ("ln_1", "ln_2"),
    "gemma2": _FOUR_NORMS,
    "gemma3_text": _FOUR_NORMS,
    "olmo2": ("post_attention_layernorm", "post_feedforward_layernorm"),
    "cohere": ("input_layernorm",),
    "glm4": (*_TWO_NORMS, "post_self_attn_layernorm", "post_mlp_layernorm"),
}
# Types that normalise queries and keys: each head, or all heads together.
_HEAD_NORMS = ("qwen3", "qwen3_moe", "qwen3_vl_moe_text", "gemma3_text")
_FULL_NORMS = ("olmo2", "olmoe")
# Linears with a bias whatever the config says; others by attention_bias and mlp_bias.
_ALWAYS_BIAS = {
    "qwen": ("c_attn",),
    "qwen2": ("q_proj", "k_proj", "v_proj"),
    "qwen2_moe": ("q_proj", "k_proj", "v_proj"),
}
_ATTENTION_BIAS = {
    "glm": ("q_proj", "k_proj", "v_proj"),
    "glm4": ("q_proj", "k_proj", "v_proj"),
    "deepseek_v2": ("q_a_proj", "kv_a_proj_with_mqa", "o_proj"),
    "deepseek_v3": ("q_a_proj", "kv_a_proj_with_mqa", "o_proj"),
}
_PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj")


# A config comes from a stranger: one of a million layers would be counted for hours.
_MOST_LAYERS, _MOST_LINEARS = 10_000, 2_000_000


class Ends(NamedTuple):
    """What stands before and after the layers."""

    embedding: str
    norm: str
    head: str


_LLAMA_ENDS = Ends("model.embed_tokens", "model.norm", "lm_head")
_ENDS = {
    "qwen": Ends("transformer.wte", "transformer.ln_f", "lm_head"),
    "chatglm": Ends(
        "transformer.embedding.word_embeddings",
        "transformer.encoder.final_layernorm",
        "transformer.output_layer",
    ),
}


def dense_tensors(config: Mapping) -> dict[str, TensorSize]:
    """List every tensor of the language model in full precision.

    Norms and biases of a type that is not known are taken to be Llama's; they are some
    thousandths of a per cent of a model. Without a dtype in the config, 16 bits are assumed.

    Parameters
    ----------
    config : mapping
        Content of config.json.

    Returns
    -------
    dict of str to TensorSize
        In the order in which they are used: embedding, layers, norm, head.

    Raises
    ------
    FormatError
        If keys are missing, or the type's tensors do not follow from its config.

    Examples
    --------
    >>> config = {"model_type": "llama", "hidden_size": 8, "num_hidden_layers": 1,
    ...           "intermediate_size": 16, "num_attention_heads": 2, "vocab_size": 32}
    >>> sum(t.nbytes for t in dense_tensors(config).values())  # of 16 bits
    2352
    """
    part, _ = language_config(config)
    n_layers(part)  # refused before layers are counted one by one
    shapes, dtype = model_shapes(config), model_dtype(config)
    if shapes.model_type in _HEADERS_ONLY or not shapes.vocab_size:
        raise FormatError(
            f"config.json (model_type {shapes.model_type!r}) does not tell every tensor; give a "
            "folder with weights, in full precision or quantized: its headers do."
        )
    return {name: TensorSize(shape, dtype) for name, shape in _shapes(shapes, part)}


def model_dtype(config: Mapping) -> str:
    """Return torch's name of a config's dtype; bfloat16 where it says none that is known."""
    part, _ = language_config(config)
    for source in (part, config):
        for key in ("dtype", "torch_dtype"):
            name = str(source.get(key) or "").removeprefix("torch.")
            if name in ITEM_BYTES:
                return name
    return "bfloat16"


def ties_embeddings(config: Mapping) -> bool:
    """Tell whether the head is the embedding; types have different defaults."""
    part, _ = language_config(config)
    default = str(part.get("model_type") or "") in _TIED
    return bool(part.get("tie_word_embeddings", config.get("tie_word_embeddings", default)))


def _shapes(shapes: ModelShapes, config: Mapping) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield names and shapes; layer by layer, as they are used."""
    hidden, vocab = shapes.hidden_size, shapes.vocab_size
    ends = _ENDS.get(shapes.model_type, _LLAMA_ENDS)
    yield f"{ends.embedding}.weight", (vocab, hidden)
    if shapes.model_type == "chatglm":  # the one type that saves its rotary frequencies
        yield "transformer.rotary_pos_emb.inv_freq", (config["kv_channels"] // 4,)
    total = sum(linear.count for linear in shapes.linears)
    if total > _MOST_LINEARS:
        raise FormatError(f"config.json has {total:,} linears, above {_MOST_LINEARS:,}.")
    places = {linear.name: layers_of(linear, config) for linear in shapes.linears}
    _check_counts(shapes, places, config)
    for layer in range(n_layers(config)):
        for linear in shapes.linears:
            if layer in places[linear.name]:
                yield from _linear(linear, layer, shapes.model_type, config)
        yield from _small(shapes, layer, config)
    yield f"{ends.norm}.weight", (hidden,)
    if not ties_embeddings(config):
        yield f"{ends.head}.weight", (vocab, hidden)


def n_layers(config: Mapping) -> int:
    """Return the number of decoder layers that a language model's config says.

    Raises
    ------
    FormatError
        If it is no positive integer, or more than any model has.
    """
    count = config.get("num_hidden_layers") or config.get("num_layers") or 1
    if not isinstance(count, int) or not 0 < count <= _MOST_LAYERS:
        raise FormatError(
            f"config.json has {repr(count)[:40]} layers; it must be 1 to {_MOST_LAYERS:,}."
        )
    return count


def n_experts(config: Mapping) -> int:
    """Return the number of routed experts of a sparse layer, 0 without experts."""
    return next((int(config[key]) for key in _EXPERT_KEYS if config.get(key)), 0)


def layers_of(linear: LinearShape, config: Mapping) -> list[int]:
    """Return the layers that hold a kind of linear: experts are in the sparse ones only."""
    every = range(n_layers(config))
    if ".mlp." not in linear.name or not n_experts(config):
        return list(every)
    in_sparse = linear.is_expert or ".shared_expert" in linear.name
    return [i for i in every if _is_sparse(i, config) == in_sparse]


def _is_sparse(layer: int, config: Mapping) -> bool:
    if config.get("n_routed_experts"):
        first, every = config.get("first_k_dense_replace") or 0, config.get("moe_layer_freq") or 1
        return layer >= first and layer % every == 0
    step, kept = config.get("decoder_sparse_step") or 1, config.get("mlp_only_layers") or ()
    return layer not in kept and (layer + 1) % step == 0


def _check_counts(shapes: ModelShapes, places: Mapping[str, list[int]], config: Mapping) -> None:
    for linear in shapes.linears:
        listed = len(places[linear.name]) * (n_experts(config) if linear.is_expert else 1)
        if listed != linear.count:
            raise FormatError(
                f"config.json (model_type {shapes.model_type!r}): {linear.name} is listed "
                f"{listed} times and counted {linear.count} times; please report it."
            )


def _linear(linear: LinearShape, layer: int, model_type: str, config: Mapping):
    name = linear.name.replace("*", str(layer), 1)
    names = [name.replace("*", str(i)) for i in range(n_experts(config))]
    for path in names if linear.is_expert else [name]:
        yield f"{path}.weight", (linear.out_features, linear.in_features)
        if has_bias(linear.role, linear.module, model_type, config):
            yield f"{path}.bias", (linear.out_features,)


def has_bias(role: str, module: str, model_type: str, config: Mapping) -> bool:
    """Tell whether a linear has a bias, by its type's rule and the config's keys."""
    if role in _ALWAYS_BIAS.get(model_type, ()):
        return True
    if model_type == "chatglm":
        is_qkv = role == "query_key_value"
        return bool(config.get("add_bias_linear") or (is_qkv and config.get("add_qkv_bias")))
    if module.endswith(".mlp"):
        return bool(config.get("mlp_bias"))
    return bool(config.get("attention_bias")) and role in _ATTENTION_BIAS.get(
        model_type, _PROJECTIONS
    )


def _small(shapes: ModelShapes, layer: int, config: Mapping):
    """Yield the norms and the router of one layer."""
    first = shapes.linears[0].name
    path = first[: first.index("*")] + str(layer)
    for name in _NORMS.get(shapes.model_type, _TWO_NORMS):
        yield f"{path}.{name}.weight", (shapes.hidden_size,)
    yield from _attention_norms(shapes, f"{path}.self_attn", config)
    experts = n_experts(config)
    if not experts or not any(lin.is_expert for lin in shapes.linears):
        return
    if ".mlp." in next(lin.name for lin in shapes.linears if lin.is_expert):
        if not _is_sparse(layer, config):
            return
        path = f"{path}.mlp"
        if config.get("topk_method") == "noaux_tc":
            yield f"{path}.gate.e_score_correction_bias", (experts,)
        if shapes.model_type == "qwen2_moe":
            yield f"{path}.shared_expert_gate.weight", (1, shapes.hidden_size)
    else:
        path = f"{path}.block_sparse_moe"
    yield f"{path}.gate.weight", (experts, shapes.hidden_size)


def _attention_norms(shapes: ModelShapes, path: str, config: Mapping):
    heads, kv_heads = shapes.num_attention_heads, shapes.num_key_value_heads
    size = int(config.get("head_dim") or shapes.hidden_size // heads)
    if shapes.model_type in _HEAD_NORMS:
        yield f"{path}.q_norm.weight", (size,)
        yield f"{path}.k_norm.weight", (size,)
    if shapes.model_type in _FULL_NORMS:
        yield f"{path}.q_norm.weight", (heads * size,)
        yield f"{path}.k_norm.weight", (kv_heads * size,)
    if config.get("kv_lora_rank"):
        yield f"{path}.kv_a_layernorm.weight", (int(config["kv_lora_rank"]),)
        if config.get("q_lora_rank"):
            yield f"{path}.q_a_layernorm.weight", (int(config["q_lora_rank"]),)
