"""Experts one by one compute what transformers' fused experts do, from files of either naming."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_experts import CONFIGS, N_EXPERTS, save_model

import awqbench as ab
from awqbench.formats.checkpoint import open_checkpoint
from awqbench.formats.fused import split_experts
from awqbench.formats.headers import TensorInfo
from awqbench.formats.layouts.awq import quantization_config, write_linear
from awqbench.model_build import build_skeleton
from awqbench.model_experts import Experts, every_expert, name_in_model, unfuse_experts

TOKENS = torch.randint(3, 128, (2, 11), generator=torch.Generator().manual_seed(1))


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


def random_experts(seed):
    torch.manual_seed(seed)
    experts = Experts(4, 8, 16, torch.nn.SiLU()).to_empty(device="cpu")
    for param in experts.parameters():
        torch.nn.init.normal_(param)
    weights, index = torch.randn(9, 4).softmax(dim=1)[:, :3].topk(2)  # none goes to expert 3
    return experts, torch.randn(9, 8), index, weights


@torch.no_grad()
def test_every_expert_sees_every_token_and_the_output_stays():
    experts, x, index, weights = random_experts(0)
    expected = experts(x, index, weights)
    seen = {}
    for i in range(4):
        for linear in ("gate_proj", "down_proj"):
            path = f"{i}.{linear}"
            experts.get_submodule(path).register_forward_pre_hook(
                lambda _m, args, path=path: seen.setdefault(path, []).append(args[0].clone())
            )
    with every_expert(experts):
        output = experts(x, index, weights)
    assert torch.equal(output, expected)
    assert {path: len(calls) for path, calls in seen.items()} == dict.fromkeys(seen, 1)
    assert len(seen) == 8 and all(len(calls[0]) == 9 for calls in seen.values())
    assert torch.equal(seen["3.gate_proj"][0], x)
    seen.clear()
    experts(x, index, weights)  # as before, once the context is left
    assert "3.gate_proj" not in seen and len(seen["0.gate_proj"][0]) < 9


@torch.no_grad()
def test_mixed_routing_is_routing_plus_an_even_share():
    experts, x, index, weights = random_experts(1)
    index[0, 1] = 4  # a place that is masked out
    with every_expert(experts, mixed=True):
        mixed = experts(x, index, weights)
    every = sum(experts.get_submodule(str(i))(x) for i in range(4)) / 4
    torch.testing.assert_close(mixed, experts(x, index, weights) + every)


@pytest.mark.parametrize("architecture", CONFIGS)
def test_fused_files_are_read_expert_by_expert(architecture, tmp_path):
    model = save_model(architecture, tmp_path / "parts")
    model.save_pretrained(tmp_path / "fused", save_original_format=False)
    stored = load_file(tmp_path / "fused" / "model.safetensors")
    assert stored["model.layers.0.mlp.experts.gate_up_proj"].shape == (N_EXPERTS, 64, 64)
    parts, fused = (open_checkpoint(tmp_path / name) for name in ("parts", "fused"))
    assert parts.tensors.keys() == fused.tensors.keys()
    assert parts.nbytes == fused.nbytes
    for name in parts.tensors:
        assert torch.equal(parts.read(name), fused.read(name)), name
    logits = ab.load_model(fused)(TOKENS).logits
    torch.testing.assert_close(logits, model(TOKENS).logits)


def fused_headers(gate_up, down, dtype="bfloat16", names=("gate_up_proj", "down_proj"), more=()):
    names = [f"model.layers.0.mlp.experts.{name}" for name in names]
    shapes = dict(zip(names, (gate_up, down), strict=True)) | {name: (2,) for name in more}
    return {
        n: TensorInfo(n, s, dtype, "f", 0, 2 * torch.Size(s).numel()) for n, s in shapes.items()
    }


@pytest.mark.parametrize(
    "headers",
    [
        fused_headers((2, 8, 12), (2, 6, 8)),  # transposed, as Llama 4 has them
        fused_headers((2, 12, 8), (2, 8, 6), more=["model.layers.0.mlp.experts.gate_up_proj_bias"]),
        fused_headers((2, 12, 8), (2, 8, 6), dtype="int8"),
        fused_headers((2, 12, 8), (3, 8, 6)),
        fused_headers((2, 12, 8), (2, 8, 6), names=("gate_up_proj", "down")),
    ],
)
def test_other_fused_tensors_stay_as_they_are(headers):
    assert split_experts(headers) == headers
