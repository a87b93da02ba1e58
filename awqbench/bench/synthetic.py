"""Quantized folders to time, without a download: random ones, and a model plainly rounded."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from awqbench.errors import ParameterError
from awqbench.formats.checkpoint import Checkpoint, open_checkpoint
from awqbench.formats.convert import dense_linears
from awqbench.formats.layouts.awq import quantization_config, write_linear
from awqbench.formats.writer import CheckpointWriter
from awqbench.grid import check_settings
from awqbench.packed import quantize_weight

if TYPE_CHECKING:
    import torch

_QWEN3 = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "attention_bias": False,
    "attention_dropout": 0.0,
    "dtype": "bfloat16",
    "head_dim": 128,
    "hidden_act": "silu",
    "initializer_range": 0.02,
    "max_position_embeddings": 40960,
    "num_attention_heads": 16,
    "num_hidden_layers": 28,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000,
    "tie_word_embeddings": True,
    "use_cache": True,
    "vocab_size": 151936,
}
# Sizes as in the config.json of the models; all else is random.
MODELS = {
    "qwen3-0.6b": _QWEN3 | {"hidden_size": 1024, "intermediate_size": 3072},
    "qwen3-1.7b": _QWEN3 | {"hidden_size": 2048, "intermediate_size": 6144},
}
_MAX_SHARD_BYTES = 1_000_000_000
# Eight zero points of 8, the middle of the range, in a word: -2004318072 as int32.
_MIDDLE_ZEROS = np.array(0x88888888, np.uint32).astype(np.int32)


def synthetic_folder(
    out: str | Path, like: str = "qwen3-1.7b", *, group_size: int = 128, seed: int = 0, **changes
) -> Path:
    """Write a W4 folder (AWQ GEMM layout) of a known model's shape with random numbers.

    It loads and runs like the model; what it says is noise.

    Parameters
    ----------
    out : str or Path
        Folder to make.
    like : {"qwen3-0.6b", "qwen3-1.7b"}
    group_size : int
    seed : int
    **changes
        Keys of config.json that shall differ, such as ``num_hidden_layers=2``.

    Returns
    -------
    Path
        The folder.

    Raises
    ------
    ParameterError
        If `like` is no model known here.
    AlignmentError
        If a group size does not divide the in_features of a linear.
    OutputError
        If the folder exists or cannot be written.
    """
    import torch

    if like not in MODELS:
        raise ParameterError(f"no model {like!r}; choose one of {', '.join(MODELS)}.")
    config = MODELS[like] | changes
    linears = linear_shapes(config)
    for name, (in_features, _) in linears.items():
        check_settings(4, group_size, in_features, name=name)
    rng = np.random.default_rng(seed)
    generator = torch.Generator().manual_seed(seed)
    width, head_dim = config["hidden_size"], config["head_dim"]
    with CheckpointWriter(out, max_shard_bytes=_MAX_SHARD_BYTES) as writer:
        embedding = torch.empty(config["vocab_size"], width, dtype=torch.bfloat16)
        writer.add("model.embed_tokens.weight", embedding.normal_(generator=generator))
        writer.add("model.norm.weight", torch.ones(width, dtype=torch.bfloat16))
        for layer in range(config["num_hidden_layers"]):
            prefix = f"model.layers.{layer}"
            for norm, size in _norms(width, head_dim).items():
                writer.add(f"{prefix}.{norm}.weight", torch.ones(size, dtype=torch.bfloat16))
            for name, shape in linears.items():
                parts = _random_linear(rng, *shape, group_size)
                for part, tensor in parts.items():
                    writer.add(f"{prefix}.{name}.{part}", tensor)
        return writer.finish(config | _section(group_size))


def linear_shapes(config: dict) -> dict[str, tuple[int, int]]:
    """Return (in_features, out_features) of a block's linears."""
    width, hidden = config["hidden_size"], config["intermediate_size"]
    q = config["num_attention_heads"] * config["head_dim"]
    kv = config["num_key_value_heads"] * config["head_dim"]
    return {
        "self_attn.q_proj": (width, q),
        "self_attn.k_proj": (width, kv),
        "self_attn.v_proj": (width, kv),
        "self_attn.o_proj": (q, width),
        "mlp.gate_proj": (width, hidden),
        "mlp.up_proj": (width, hidden),
        "mlp.down_proj": (hidden, width),
    }


def _norms(width: int, head_dim: int) -> dict[str, int]:
    return {
        "input_layernorm": width,
        "post_attention_layernorm": width,
        "self_attn.q_norm": head_dim,
        "self_attn.k_norm": head_dim,
    }


def _section(group_size: int) -> dict:
    section = quantization_config(bits=4, group_size=group_size, modules_to_not_convert=None)
    return {"quantization_config": section}


def _random_linear(
    rng: np.random.Generator, in_features: int, out_features: int, group_size: int
) -> dict[str, torch.Tensor]:
    """Return random codes, with scales that keep the outputs as large as the inputs."""
    import torch

    words = rng.integers(-(2**31), 2**31, (in_features, out_features // 8), dtype=np.int32)
    n_groups = in_features // group_size
    zeros = np.full((n_groups, out_features // 8), _MIDDLE_ZEROS)
    # Codes of 0 to 15 about 8 have a standard deviation of 4.6.
    scales = (0.75 + 0.5 * rng.random((n_groups, out_features))) / (4.6 * in_features**0.5)
    return {
        "qweight": torch.from_numpy(words),
        "qzeros": torch.from_numpy(zeros),
        "scales": torch.from_numpy(scales.astype(np.float16)),
    }


def rounded_folder(model: str | Path | Checkpoint, out: str | Path, *, group_size: int = 128):
    """Write a W4 folder of a full-precision model by plain rounding: for timing, not for use.

    Parameters
    ----------
    model : str, Path or Checkpoint
        Full precision; ``"tiny"`` for the embedded one.
    out : str or Path
        Folder to make.
    group_size : int

    Returns
    -------
    Path
        The folder. Linears inside the blocks are packed, all else is copied.

    Raises
    ------
    AlreadyQuantizedError
        If the folder is quantized.
    AlignmentError, NonFiniteError, OverflowCastError
        If a linear cannot be quantized so; names it.
    """
    ckpt = open_checkpoint(model)
    ckpt.require_full_precision()
    linears = {name for name in dense_linears(ckpt, list(ckpt.tensors)) if ".layers." in name}
    with CheckpointWriter(out, max_shard_bytes=_MAX_SHARD_BYTES) as writer:
        for name in ckpt.tensors:
            module = name.removesuffix(".weight")
            if module not in linears or module == name:
                writer.add(name, ckpt.read(name))
                continue
            packed = quantize_weight(
                ckpt.read(name), 4, group_size, scale_dtype="float16", name=module
            )
            for part, tensor in write_linear(packed).items():
                writer.add(f"{module}.{part}", tensor)
        return writer.finish(ckpt.config | _section(group_size), side_files=ckpt)
