"""Small random mixtures of experts, saved as checkpoints."""

import torch
import transformers

SIZES = dict(
    vocab_size=128,
    hidden_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    num_experts_per_tok=2,
    max_position_embeddings=64,
    pad_token_id=0,
    bos_token_id=1,
    eos_token_id=2,
)
# The config class of each architecture, and what it needs beside the sizes.
CONFIGS = {
    "qwen3_moe": (
        "Qwen3MoeConfig",
        dict(
            num_experts=5,
            moe_intermediate_size=32,
            head_dim=16,
            intermediate_size=96,
            mlp_only_layers=[1],
        ),
    ),
    "qwen2_moe": (
        "Qwen2MoeConfig",
        dict(
            num_experts=5,
            moe_intermediate_size=32,
            shared_expert_intermediate_size=64,
            intermediate_size=96,
        ),
    ),
    "mixtral": ("MixtralConfig", dict(num_local_experts=5, intermediate_size=32, head_dim=16)),
}
N_EXPERTS = 5


def save_model(architecture, folder, *, unreached=None, outliers=False, dtype="float32"):
    """Save a random model and return it.

    Parameters
    ----------
    architecture : str
    folder : Path
    unreached : int, optional
        Expert of every mixture that no token is sent to: channel 0 of the residual stream is
        positive for all tokens, and the expert's row of the router reads it alone, times -100.
    outliers : bool
        Norms before mixtures give four channels 30 times as large as others.
    dtype : str
    """
    name, sizes = CONFIGS[architecture]
    torch.manual_seed(0)
    config = getattr(transformers, name)(**SIZES | sizes)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for param in model.parameters():
            param.copy_(torch.randn_like(param) * param.shape[-1] ** -0.5 + (param.ndim == 1))
        for layer in model.model.layers:
            if outliers:
                layer.post_attention_layernorm.weight[:4] *= 30
            if unreached is not None:
                _starve(layer, unreached)
        if unreached is not None:
            model.model.embed_tokens.weight[:, 0] = 0.25
    model.to(getattr(torch, dtype)).save_pretrained(folder)
    return model


def _starve(layer, expert):
    """Leave channel 0 of the stream alone and send tokens away from one expert by it."""
    layer.post_attention_layernorm.weight[0] = 1.0
    layer.self_attn.o_proj.weight[0] = 0
    for name, param in layer.mlp.named_parameters():
        if name.endswith("down_proj"):  # (experts, hidden, inner)
            param[:, 0] = 0
        elif name.endswith("down_proj.weight"):
            param[0] = 0
        elif name == "gate.weight":
            param[:, 0] = 0
            param[expert] = 0
            param[expert, 0] = -100.0
