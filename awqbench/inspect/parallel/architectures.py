"""The linears of each architecture family: attention, MLP and experts, by config keys."""

from __future__ import annotations

from awqbench.errors import FormatError
from awqbench.inspect.parallel.shape_types import (
    COLUMN,
    REPLICATED,
    ROW,
    ConfigReader,
    LinearShape,
    ModelShapes,
    Part,
    Width,
)

# Keys of parts that the functions below do not know: state-space and linear attention,
# layers of different widths.
_UNKNOWN_PARTS = (
    "ssm_cfg",
    "ssm_state_size",
    "state_size",
    "mamba_d_state",
    "linear_num_key_heads",
    "block_configs",
    "intermediate_size_mlp",
)
_EXPERT_COUNTS = ("n_routed_experts", "num_local_experts", "num_experts", "moe_num_experts")
_BLOCK_SPARSE = ("mixtral", "phimoe")
_QWEN_MOE = ("qwen2_moe", "qwen3_moe", "qwen3_vl_moe_text", "olmoe")
_FUSED_GATE_UP = ("phi3", "glm", "glm4")
# MLP of two linears: model type -> layers, attention, output, MLP in, MLP out, width key.
_PLAIN_MLP = {
    "gpt_neox": ("gpt_neox.layers.*", "attention.query_key_value", "attention.dense")
    + ("mlp.dense_h_to_4h", "mlp.dense_4h_to_h", "intermediate_size"),
    "falcon": ("transformer.h.*", "self_attention.query_key_value", "self_attention.dense")
    + ("mlp.dense_h_to_4h", "mlp.dense_4h_to_h", "ffn_hidden_size"),
    "opt": ("model.decoder.layers.*", "self_attn", "self_attn.out_proj", "fc1", "fc2", "ffn_dim"),
    "phi": ("model.layers.*", "self_attn", "self_attn.dense")
    + ("mlp.fc1", "mlp.fc2", "intermediate_size"),
    "starcoder2": ("model.layers.*", "self_attn", "self_attn.o_proj")
    + ("mlp.c_fc", "mlp.c_proj", "intermediate_size"),
}


def build_shapes(reader: ConfigReader) -> ModelShapes:
    """Return the shapes of a model by its type, or by its keys if the type is not known.

    Raises
    ------
    FormatError
        As `model_shapes`.
    """
    _refuse_unknown(reader)
    model_type = reader.model_type
    if model_type == "qwen":
        return _first_qwen(reader)
    if model_type == "chatglm":
        return _chatglm(reader)
    if model_type in _PLAIN_MLP:
        return _plain(reader)
    return _llama_like(reader)


def _refuse_unknown(reader: ConfigReader) -> None:
    found = [key for key in _UNKNOWN_PARTS if reader.config.get(key)]
    if found:
        raise FormatError(
            f"config.json (model_type {reader.model_type!r}) has {', '.join(found)}: an "
            "architecture whose linears awqbench cannot list."
        )


def _llama_like(reader: ConfigReader) -> ModelShapes:
    # All keys at once, so that an unknown architecture is told everything that is missing.
    last = "num_hidden_layers" if _experts(reader) else "intermediate_size"
    _, heads, _ = reader.sizes("hidden_size", "num_attention_heads", last)
    layers = reader.get("num_hidden_layers", 1)
    if reader.config.get("kv_lora_rank"):
        attention, kv_heads = _latent_attention(reader, layers), 0
    else:
        attention = _attention(reader, layers)
        kv_heads = reader.get("num_key_value_heads", heads)
    linears, widths = _feed_forward(reader, layers)
    return _shapes(reader, (*attention, *linears), widths, kv_heads)


def _shapes(reader, linears, widths, kv_heads: int) -> ModelShapes:
    hidden, heads = reader.sizes("hidden_size", "num_attention_heads")
    vocab = reader.get("vocab_size", 0) or reader.get("padded_vocab_size", 0)
    by_key = {width.key: width for width in widths}
    return ModelShapes(reader.model_type, hidden, vocab, heads, kv_heads, tuple(linears), by_key)


def _attention(reader: ConfigReader, layers: int) -> list[LinearShape]:
    """Grouped-query attention with separate projections, or fused ones as in phi3."""
    hidden, heads = reader.sizes("hidden_size", "num_attention_heads")
    kv_heads = reader.get("num_key_value_heads", heads)
    size = reader.get("head_dim", hidden // heads)
    path = "model.layers.*.self_attn"
    parts = _qkv_parts(heads, kv_heads, size)
    out = _row(f"{path}.o_proj", hidden, heads * size, count=layers)
    if reader.model_type == "phi3":
        fused = LinearShape(f"{path}.qkv_proj", parts, hidden, COLUMN, "qkv_proj", count=layers)
        return [fused, out]
    return [*_separate_qkv(path, parts, hidden, layers), out]


def _qkv_parts(heads: int, kv_heads: int, size: int) -> tuple[Part, ...]:
    keys = kv_heads * size
    return Part("query", heads * size), Part("key", keys, size), Part("value", keys, size)


def _separate_qkv(path: str, parts, hidden: int, layers: int) -> list[LinearShape]:
    return [
        LinearShape(
            f"{path}.{part.name[0]}_proj", (part,), hidden, COLUMN, "qkv_proj", count=layers
        )
        for part in parts
    ]


def _latent_attention(reader: ConfigReader, layers: int) -> list[LinearShape]:
    """Multi-head latent attention of DeepSeek: low-rank inputs are copied to every rank."""
    hidden, heads, rank, rope, nope, value = reader.sizes(
        "hidden_size",
        "num_attention_heads",
        "kv_lora_rank",
        "qk_rope_head_dim",
        "qk_nope_head_dim",
        "v_head_dim",
    )
    path, query = "model.layers.*.self_attn", heads * (nope + rope)
    q_rank = reader.get("q_lora_rank", 0)
    linears = [
        _replicated(f"{path}.kv_a_proj_with_mqa", rank + rope, hidden, layers),
        _column(f"{path}.kv_b_proj", heads * (nope + value), rank, count=layers),
        _row(f"{path}.o_proj", hidden, heads * value, count=layers),
    ]
    if not q_rank:
        return [_column(f"{path}.q_proj", query, hidden, count=layers), *linears]
    low = _replicated(f"{path}.q_a_proj", q_rank, hidden, layers)
    return [low, _column(f"{path}.q_b_proj", query, q_rank, count=layers), *linears]


def _column(name: str, out_features: int, in_features: int, **more) -> LinearShape:
    return LinearShape(name, (Part("", out_features),), in_features, COLUMN, **more)


def _row(name: str, out_features: int, in_features: int, **more) -> LinearShape:
    return LinearShape(name, (Part("", out_features),), in_features, ROW, **more)


def _replicated(name: str, out_features: int, in_features: int, layers: int) -> LinearShape:
    return LinearShape(name, (Part("", out_features),), in_features, REPLICATED, count=layers)


def _gated(path: str, hidden: int, width: Width, *, names=(), multiple: int = 1, **more):
    """Return the linears of a gated MLP, gate and up as one weight if `names` has two."""
    names = names or ("gate_proj", "up_proj", "down_proj")
    size = multiple * width.value
    more |= {"width_key": width.key, "multiple": multiple}
    down = _row(f"{path}.{names[-1]}", hidden, size, **more)
    more["fused"] = "gate_up_proj"
    if len(names) == 2:
        parts = (Part("gate", size), Part("up", size))
        return [LinearShape(f"{path}.{names[0]}", parts, hidden, COLUMN, **more), down]
    first = [_column(f"{path}.{name}", size, hidden, **more) for name in names[:2]]
    return [*first, down]


def _experts(reader: ConfigReader) -> int:
    return next((reader.get(key, 0) for key in _EXPERT_COUNTS if reader.config.get(key)), 0)


def _feed_forward(reader: ConfigReader, layers: int) -> tuple[list[LinearShape], list[Width]]:
    n_experts = _experts(reader)
    if not n_experts:
        return _dense(reader, layers)
    if reader.config.get("n_routed_experts"):
        return _deepseek_experts(reader, layers, n_experts)
    if reader.model_type in _BLOCK_SPARSE:
        hidden, inner = reader.sizes("hidden_size", "intermediate_size")
        width = Width("intermediate_size", inner)
        path, more = "model.layers.*.block_sparse_moe.experts.*", {"count": layers * n_experts}
        names = ("w1", "w3", "w2")
        return _gated(path, hidden, width, names=names, is_expert=True, **more), [width]
    if reader.model_type in _QWEN_MOE:
        return _qwen_experts(reader, layers, n_experts)
    raise FormatError(
        f"config.json (model_type {reader.model_type!r}) has {n_experts} experts, and awqbench "
        "does not know how this model type stores them; known are mixtral, qwen2_moe, "
        "qwen3_moe, olmoe, and those with n_routed_experts."
    )


def _dense(reader: ConfigReader, layers: int) -> tuple[list[LinearShape], list[Width]]:
    hidden, inner = reader.sizes("hidden_size", "intermediate_size")
    width = Width("intermediate_size", inner)
    fused = ("gate_up_proj", "down_proj") if reader.model_type in _FUSED_GATE_UP else ()
    return _gated("model.layers.*.mlp", hidden, width, names=fused, count=layers), [width]


def _deepseek_experts(reader: ConfigReader, layers: int, n_experts: int):
    """Dense layers first, then routed experts beside shared ones of n times their width."""
    hidden, inner = reader.sizes("hidden_size", "moe_intermediate_size")
    path, width = "model.layers.*.mlp", Width("moe_intermediate_size", inner)
    every = reader.get("moe_layer_freq", 1)
    first = reader.get("first_k_dense_replace", 0)
    sparse = sum(1 for i in range(layers) if i >= first and i % every == 0)
    linears, widths = [], [width]
    if sparse < layers:
        linears, dense = _dense(reader, layers - sparse)
        widths = [*dense, width]
    linears += _gated(f"{path}.experts.*", hidden, width, is_expert=True, count=sparse * n_experts)
    shared = reader.get("n_shared_experts", 0)
    if shared:
        linears += _gated(f"{path}.shared_experts", hidden, width, multiple=shared, count=sparse)
    return linears, widths


def _qwen_experts(reader: ConfigReader, layers: int, n_experts: int):
    """Layers are sparse by a step and a list; OLMoE's experts have `intermediate_size`."""
    (hidden,) = reader.sizes("hidden_size")
    key = "intermediate_size" if reader.model_type == "olmoe" else "moe_intermediate_size"
    width = Width(key, reader.sizes(key)[0])
    step, kept = reader.get("decoder_sparse_step", 1), reader.config.get("mlp_only_layers") or ()
    sparse = sum(1 for i in range(layers) if i not in kept and (i + 1) % step == 0)
    linears, widths = [], [width]
    if sparse < layers:
        linears, dense = _dense(reader, layers - sparse)
        widths = [*dense, width]
    path, count = "model.layers.*.mlp", sparse * n_experts
    linears += _gated(f"{path}.experts.*", hidden, width, is_expert=True, count=count)
    if reader.config.get("shared_expert_intermediate_size"):
        key = "shared_expert_intermediate_size"
        shared = Width(key, reader.sizes(key)[0])
        linears += _gated(f"{path}.shared_expert", hidden, shared, count=sparse)
        widths.append(shared)
    return linears, widths


def _first_qwen(reader: ConfigReader) -> ModelShapes:
    """Qwen's first release: its config holds twice the width that the weights have."""
    hidden, doubled, heads = reader.sizes("hidden_size", "intermediate_size", "num_attention_heads")
    layers, size = reader.get("num_hidden_layers", 1), reader.get("kv_channels", hidden // heads)
    width = Width("intermediate_size", doubled // 2, config_factor=2)
    path, parts = "transformer.h.*", _qkv_parts(heads, heads, size)
    linears = [
        LinearShape(f"{path}.attn.c_attn", parts, hidden, COLUMN, "qkv_proj", count=layers),
        _row(f"{path}.attn.c_proj", hidden, heads * size, count=layers),
        *_gated(f"{path}.mlp", hidden, width, names=("w2", "w1", "c_proj"), count=layers),
    ]
    return _shapes(reader, linears, [width], heads)


def _chatglm(reader: ConfigReader) -> ModelShapes:
    """ChatGLM2 and 3; the first ChatGLM has none of these keys."""
    hidden, heads, inner, size = reader.sizes(
        "hidden_size", "num_attention_heads", "ffn_hidden_size", "kv_channels"
    )
    layers = reader.get("num_layers", 1)
    is_grouped = reader.config.get("multi_query_attention")
    kv_heads = reader.sizes("multi_query_group_num")[0] if is_grouped else heads
    width, path = Width("ffn_hidden_size", inner), "transformer.encoder.layers.*"
    attention = f"{path}.self_attention"
    parts, names = _qkv_parts(heads, kv_heads, size), ("dense_h_to_4h", "dense_4h_to_h")
    linears = [
        LinearShape(
            f"{attention}.query_key_value", parts, hidden, COLUMN, "qkv_proj", count=layers
        ),
        _row(f"{attention}.dense", hidden, heads * size, count=layers),
        *_gated(f"{path}.mlp", hidden, width, names=names, count=layers),
    ]
    return _shapes(reader, linears, [width], kv_heads)


def _plain(reader: ConfigReader) -> ModelShapes:
    """MLPs of two linears with an activation between."""
    path, attention, out, up, down, key = _PLAIN_MLP[reader.model_type]
    hidden, heads = reader.sizes("hidden_size", "num_attention_heads")
    layers, size = reader.get("num_hidden_layers", 1), hidden // heads
    kv_heads = _falcon_heads(reader, heads) if reader.model_type == "falcon" else heads
    kv_heads = reader.get("num_key_value_heads", kv_heads)
    # Falcon's key is often absent: then it is 4 times hidden_size.
    default = 4 * hidden if reader.model_type == "falcon" else 0
    width = Width(key, reader.get(key, default) or reader.sizes(key)[0])
    parts = _qkv_parts(heads, kv_heads, size)
    if attention.endswith("query_key_value"):
        name = f"{path}.{attention}"
        linears = [LinearShape(name, parts, hidden, COLUMN, "qkv_proj", count=layers)]
    else:
        linears = _separate_qkv(f"{path}.{attention}", parts, hidden, layers)
    more = {"width_key": key, "count": layers}
    linears += [
        _row(f"{path}.{out}", hidden, heads * size, count=layers),
        _column(f"{path}.{up}", width.value, hidden, **more),
        _row(f"{path}.{down}", hidden, width.value, **more),
    ]
    return _shapes(reader, linears, [width], kv_heads)


def _falcon_heads(reader: ConfigReader, heads: int) -> int:
    if reader.config.get("new_decoder_architecture"):
        return reader.get("num_kv_heads", heads)
    return 1 if reader.config.get("multi_query") else heads
