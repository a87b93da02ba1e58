"""Experts one by one compute what transformers' fused experts do, from files of either naming."""

import json

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import awqbench as ab
from awqbench.formats.checkpoint import open_checkpoint
from awqbench.formats.layouts.awq import quantization_config, write_linear
from awqbench.model_build import build_skeleton
from awqbench.model_experts import Experts, name_in_model, unfuse_experts

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
TOKENS = torch.randint(3, 128, (2, 11), generator=torch.Generator().manual_seed(1))


def save_model(architecture, folder):
    name, sizes = CONFIGS[architecture]
    torch.manual_seed(0)
    config = getattr(transformers, name)(**SIZES | sizes)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for param in model.parameters():
            param.copy_(torch.randn_like(param) * param.shape[-1] ** -0.5 + (param.ndim == 1))
    model.save_pretrained(folder)
    return model


def quantized_copy(source, folder):
    """Pack every linear of every expert, under the names of the file, as AutoAWQ does."""
    folder.mkdir()
    tensors = load_file(source / "model.safetensors")
    for name in [name for name in tensors if ".experts." in name]:
        module = name.removesuffix(".weight")
        packed = ab.quantize_weight(tensors.pop(name), 4, 32, scale_dtype="float16", name=module)
        tensors |= {f"{module}.{part}": t for part, t in write_linear(packed).items()}
    save_file(tensors, folder / "model.safetensors")
    section = quantization_config(bits=4, group_size=32, modules_to_not_convert=None)
    config = json.loads((source / "config.json").read_text()) | {"quantization_config": section}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def decoded_copy(quantized, folder):
    """Decode the packed experts back into a dense folder."""
    folder.mkdir()
    ckpt = open_checkpoint(quantized)
    tensors = {
        f"{name}.weight": torch.from_numpy(ckpt.linear(name).dequantize())
        for name in ckpt.quantized_linears()
    }
    packed = {name.rpartition(".")[0] for name in tensors}
    for name in ckpt.tensors:
        if name.rpartition(".")[0] not in packed:
            tensors[name] = ckpt.read(name)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = {k: v for k, v in ckpt.config.items() if k != "quantization_config"}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("architecture", CONFIGS)
def test_packed_experts_give_the_logits_of_decoded_ones(tmp_path, architecture):
    save_model(architecture, tmp_path / "dense")
    quantized = quantized_copy(tmp_path / "dense", tmp_path / "quantized")
    n_layers = 1 if architecture == "qwen3_moe" else 2
    assert len(open_checkpoint(quantized).quantized_linears()) == n_layers * 5 * 3
    model = ab.load_quantized(quantized, dtype="float32")
    decoded = ab.load_model(decoded_copy(quantized, tmp_path / "decoded"))
    with torch.no_grad():
        difference = (model(TOKENS).logits - decoded(TOKENS).logits).abs().max()
        assert difference < 1e-4
        assert model.generate(TOKENS[:1], max_new_tokens=3, do_sample=False).shape[1] > 11


def test_a_skeleton_has_its_experts_one_by_one(tmp_path):
    save_model("qwen3_moe", tmp_path / "m")
    skeleton = build_skeleton(open_checkpoint(tmp_path / "m"), dtype=torch.float32)
    linear = skeleton.get_submodule("model.layers.0.mlp.experts.4.up_proj")
    assert isinstance(linear, torch.nn.Linear) and linear.weight.is_meta
    assert unfuse_experts(skeleton) == 0


def test_experts_take_masked_places_and_no_tokens():
    experts = Experts(2, 4, 8, torch.nn.SiLU()).to_empty(device="cpu")
    for param in experts.parameters():
        torch.nn.init.normal_(param)
    x = torch.randn(3, 4)
    index = torch.tensor([[0, 2], [1, 0], [2, 2]])  # 2 is no expert
    weights = torch.full((3, 2), 0.5)
    with torch.no_grad():
        y = experts(x, index, weights)
        first, second = experts.get_submodule("0"), experts.get_submodule("1")
        torch.testing.assert_close(y[0], 0.5 * first(x[0]))
        torch.testing.assert_close(y[1], 0.5 * first(x[1]) + 0.5 * second(x[1]))
        assert not y[2].any()
        assert experts(x[:0], index[:0], weights[:0]).shape == (0, 4)


def test_names_of_other_modules_stay():
    for name in ("model.layers.0.mlp.w1.weight", "lm_head.weight", "model.experts.w1"):
        assert name_in_model(name) == name
