"""ChatGLM2 and ChatGLM3 folders under the names of transformers' own GLM model.

These folders come with code of their own, which awqbench never runs. Their architecture is
that of `transformers.GlmForCausalLM`, but for names and for one fused projection whose rows
are queries, keys and values; so a folder is read through a view: other names, other byte
ranges, the same file.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import replace

from awqbench.errors import FormatError, TraceError
from awqbench.formats.checkpoint import Checkpoint
from awqbench.formats.headers import TensorInfo

_NAMES = (
    (r"transformer\.embedding\.word_embeddings\.", "model.embed_tokens."),
    (r"transformer\.encoder\.final_layernorm\.", "model.norm."),
    (r"transformer\.output_layer\.", "lm_head."),
    (r"transformer\.encoder\.layers\.", "model.layers."),
    (r"\.self_attention\.dense\.", ".self_attn.o_proj."),
    (r"\.self_attention\.query_key_value\.", ".self_attn.query_key_value."),
    (r"\.dense_h_to_4h\.", ".gate_up_proj."),
    (r"\.dense_4h_to_h\.", ".down_proj."),
)
_FUSED = ".self_attn.query_key_value."
# What the architectures share must be as GLM has it.
_EXPECTED = {
    "rmsnorm": True,
    "post_layer_norm": True,
    "apply_residual_connection_post_layernorm": False,
    "add_bias_linear": False,
    "original_rope": True,
}


def is_chatglm(ckpt: Checkpoint) -> bool:
    """Tell whether a folder is a ChatGLM that brings its own code."""
    return ckpt.config.get("model_type") == "chatglm"


def as_glm(ckpt: Checkpoint) -> Checkpoint:
    """Return a view of a ChatGLM2 or ChatGLM3 folder with GLM's names and configuration.

    Parameters
    ----------
    ckpt : Checkpoint
        Full precision, or int8 and int4 of ChatGLM's own quantization.

    Returns
    -------
    Checkpoint
        Its tensors are those of the folder, the fused projection in three parts of rows.

    Raises
    ------
    TraceError
        If it is another architecture under the same name, such as the first ChatGLM.
    FormatError
        If the configuration lacks a size, or the fused projection has other rows than it
        says.
    """
    config = _glm_config(ckpt)
    rows = {
        "q_proj": config["num_attention_heads"] * config["head_dim"],
        "k_proj": config["num_key_value_heads"] * config["head_dim"],
        "v_proj": config["num_key_value_heads"] * config["head_dim"],
    }
    tensors = {}
    for name, info in ckpt.tensors.items():
        for pattern, ours in _NAMES:
            name = re.sub(pattern, ours, name)
        if name.endswith("rotary_pos_emb.inv_freq"):
            continue
        for part in _parts(info._replace(name=name), rows):
            tensors[part.name] = part
    return replace(ckpt, config=config, tensors=tensors)


def _parts(info: TensorInfo, rows: dict[str, int]) -> Iterator[TensorInfo]:
    """Cut the fused projection's tensors by rows, which lie one after another in the file."""
    if _FUSED not in info.name:
        yield info
        return
    if not info.name.endswith((".weight", ".bias", ".weight_scale")):
        raise FormatError(
            f"{info.name}: queries, keys and values of a ChatGLM can be told apart in its own "
            "layout only; to run it here, convert it back: awqbench convert SRC OUT --layout "
            "chatglm."
        )
    if not info.shape or info.shape[0] != sum(rows.values()):
        raise FormatError(
            f"{info.name} has shape {info.shape}; by config.json it has {sum(rows.values())} rows "
            f"({' + '.join(map(str, rows.values()))} of queries, keys and values)."
        )
    row_bytes = info.nbytes // info.shape[0]
    start = info.start
    for part, count in rows.items():
        stop = start + count * row_bytes
        name = info.name.replace("query_key_value", part)
        yield info._replace(name=name, shape=(count, *info.shape[1:]), start=start, stop=stop)
        start = stop


def _glm_config(ckpt: Checkpoint) -> dict:
    config = ckpt.config
    if "position_encoding_2d" in config or "inner_hidden_size" in config:
        raise TraceError(
            f"{ckpt.path.name} is the first ChatGLM (2-dimensional positions), for which "
            "transformers has no model without code from the folder, which awqbench never runs. "
            "Its linears can be read and converted; to run it use ChatGLM2 or later."
        )
    for key, expected in _EXPECTED.items():
        if config.get(key, expected) != expected:
            raise TraceError(
                f"{ckpt.path.name}: config.json has {key} = {config[key]!r}; only {expected!r} "
                "has a model in transformers."
            )
    heads = _size(config, "num_attention_heads")
    is_grouped = config.get("multi_query_attention", False)
    kept = {k: config[k] for k in ("torch_dtype", "dtype", "quantization_bit") if k in config}
    rope_ratio = config.get("rope_ratio", 1)
    if not isinstance(rope_ratio, (int, float)) or not math.isfinite(rope_ratio):
        raise FormatError(f"config.json: rope_ratio is {str(rope_ratio)[:80]!r}, not a number.")
    return kept | {
        "model_type": "glm",
        "vocab_size": _size(config, "padded_vocab_size"),
        "hidden_size": _size(config, "hidden_size"),
        "intermediate_size": _size(config, "ffn_hidden_size"),
        "num_hidden_layers": _size(config, "num_layers"),
        "num_attention_heads": heads,
        "num_key_value_heads": _size(config, "multi_query_group_num") if is_grouped else heads,
        "head_dim": _size(config, "kv_channels"),
        "max_position_embeddings": _size(config, "seq_length"),
        "rms_norm_eps": config.get("layernorm_epsilon", 1e-5),
        "attention_bias": bool(config.get("add_qkv_bias", False)),
        "tie_word_embeddings": bool(config.get("tie_word_embeddings", False)),
        "partial_rotary_factor": 0.5,
        "rope_theta": 10000.0 * rope_ratio,
        "eos_token_id": config.get("eos_token_id"),
        "pad_token_id": config.get("pad_token_id"),
    }


def _size(config: dict, key: str) -> int:
    value = config.get(key)
    if type(value) is not int or value < 1:
        raise FormatError(f"config.json: {key} is {str(value)[:80]!r}, not a positive number.")
    return value
