"""Small random models of many architectures, saved as checkpoints."""

from __future__ import annotations

from pathlib import Path

VOCABULARY = 128
_SIZES = dict(
    vocab_size=VOCABULARY,
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=2,
    num_attention_heads=4,
    max_position_embeddings=64,
    pad_token_id=0,
    bos_token_id=1,
    eos_token_id=2,
)
_GQA = _SIZES | dict(num_key_value_heads=2)
# The config class of each architecture, and what it needs beside the sizes.
CONFIGS = {
    "llama": ("LlamaConfig", _GQA | dict(attention_bias=True, mlp_bias=True)),
    "mistral": ("MistralConfig", _GQA | dict(sliding_window=8)),
    "qwen2": ("Qwen2Config", _GQA),
    "qwen3": ("Qwen3Config", _GQA | dict(head_dim=16, tie_word_embeddings=True)),
    "phi3": ("Phi3Config", _GQA),
    "glm": ("GlmConfig", _GQA | dict(head_dim=16, attention_bias=True)),
    "glm4": ("Glm4Config", _GQA | dict(head_dim=16, attention_bias=True)),
    "gemma": ("GemmaConfig", _GQA | dict(head_dim=16)),
    "gemma2": ("Gemma2Config", _GQA | dict(head_dim=16, sliding_window=8)),
    "gemma3": ("Gemma3TextConfig", _GQA | dict(head_dim=16, sliding_window=8)),
    "olmo2": ("Olmo2Config", _GQA),
    "cohere": ("CohereConfig", _GQA),
    "gpt_neox": ("GPTNeoXConfig", _SIZES),
    "falcon": ("FalconConfig", _SIZES | dict(multi_query=True, bias=True)),
    "phi": ("PhiConfig", _SIZES),
    "opt": ("OPTConfig", _SIZES | dict(ffn_dim=96, word_embed_proj_dim=64)),
}


def save_tiny_model(architecture: str, folder: Path, *, dtype: str = "float32", **changes) -> Path:
    """Save a random model; every weight, norms and biases too, is drawn with a fixed seed."""
    import torch
    import transformers

    name, settings = CONFIGS[architecture]
    config = getattr(transformers, name)(**settings | changes)
    if architecture == "gemma3":
        config.layer_types = ["sliding_attention", "full_attention"]
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for param in model.parameters():
            # Around 1 for norms, as in trained models; Gemma adds that 1 itself.
            centre = 1.0 if param.ndim == 1 and bool((param == 1).all()) else 0.0
            spread = 0.2 if param.ndim == 1 else param.shape[-1] ** -0.5
            param.copy_(centre + spread * torch.randn_like(param))
    model.to(getattr(torch, dtype)).save_pretrained(folder)
    return folder
