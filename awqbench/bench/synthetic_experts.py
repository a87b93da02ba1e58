"""A small random mixture of experts, one of whose experts no token reaches."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_SIZES = {
    "vocab_size": 128,
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "intermediate_size": 96,
    "moe_intermediate_size": 32,
    "num_experts_per_tok": 2,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def synthetic_experts(
    out: str | Path, *, n_experts: int = 8, n_blocks: int = 4, unreached: int = 3, seed: int = 0
) -> Path:
    """Save a random Qwen3-MoE model; of every block one expert gets no token.

    Channel 0 of the residual stream is positive for all tokens and nothing changes it; the
    expert's row of the router reads it alone, times -100.

    Parameters
    ----------
    out : str or Path
        Folder to make.
    n_experts, n_blocks : int
    unreached : int
        The expert that is cut off.
    seed : int

    Returns
    -------
    Path
        The folder.
    """
    import torch
    from transformers import AutoModelForCausalLM, Qwen3MoeConfig

    config = Qwen3MoeConfig(**_SIZES, num_experts=n_experts, num_hidden_layers=n_blocks)
    generator = torch.Generator().manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config).float().eval()
    with torch.no_grad():
        for param in model.parameters():
            noise = torch.randn(param.shape, generator=generator) * param.shape[-1] ** -0.5
            param.copy_(noise + (param.ndim == 1))  # norms are about 1
        for layer in model.model.layers:
            _cut_off(layer, unreached)
        model.model.embed_tokens.weight[:, 0] = 0.25
    with _no_bar():
        model.save_pretrained(out)
    return Path(out)


@contextmanager
def _no_bar() -> Iterator[None]:
    """Keep transformers' progress bar, which a report would show, out of a second's work."""
    from transformers.utils import logging

    is_enabled = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if is_enabled:
            logging.enable_progress_bar()


def _cut_off(layer, expert: int) -> None:
    layer.post_attention_layernorm.weight[0] = 1.0
    layer.self_attn.o_proj.weight[0] = 0
    for name, param in layer.mlp.named_parameters():
        if name.endswith("down_proj"):  # of all experts: (experts, hidden, inner)
            param[:, 0] = 0
        elif name.endswith("down_proj.weight"):  # of one, in transformers 4
            param[0] = 0
        elif name == "gate.weight":
            param[:, 0] = 0
            param[expert] = 0
            param[expert, 0] = -100.0
