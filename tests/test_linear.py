"""QuantLinear, and whole models against logits recorded from the tools that made them."""

import copy
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from awqbench.errors import AlignmentError, BackendError, DeviceError, FormatError, ParameterError
from awqbench.linear import QuantLinear, load_quantized
from awqbench.packed import quantize_weight

LOCAL = Path(__file__).parent / "data" / "autoawq_gemm_qwen3_g32_bf16"
# Recorded logits of other models; beside a developer's checkout, not in the repository.
RECORDED = Path(__file__).resolve().parents[2] / "shared" / "conformance" / "model"
# Largest differences of logits: of weights as the tool decodes them, and of the tool's run.
MODELS = {
    "autoawq_gemm_qwen3_g32_bf16": (1e-4, 1e-1),
    "autoawq_gemm_qwen2_g64": (1e-4, 5e-2),
    "autoawq_gemm_llama_g128_skip": (1e-4, 5e-2),
    "autoround_awq_w4g64_asym_llama": (1e-4, 5e-2),
    "gptqmodel_awq_gemm_g64_qwen3": (5e-2, 5e-2),
}


@pytest.fixture(params=MODELS)
def recorded(request):
    folder = LOCAL if LOCAL.name == request.param else RECORDED / request.param
    if not folder.is_dir():
        pytest.skip(f"{request.param} is not on this machine")
    return folder, load_file(folder / "expected.safetensors"), MODELS[request.param]


@pytest.fixture
def folder(tmp_path):
    """A copy of the local model that a test may damage."""
    return shutil.copytree(LOCAL, tmp_path / "model")


def logits(model, input_ids):
    with torch.no_grad():
        return model(input_ids).logits.float()


def decoded_twin(model, dtype):
    """Return a copy of the model with dense linears, their weights rounded once to `dtype`."""
    twin = copy.deepcopy(model)
    for path, module in list(twin.named_modules()):
        if isinstance(module, QuantLinear):
            dense = nn.Linear(module.in_features, module.out_features, bias=False)
            dense.weight = nn.Parameter(module.dequantize(dtype).float())
            dense.bias = module.bias
            twin.set_submodule(path, dense)
    return twin


def largest_difference(a, b):
    return float((a - b).abs().max())


def test_weights_are_the_tool_s(recorded):
    path, expected, (decoded_tolerance, _) = recorded
    if "logits_dequant_fp32" not in expected:
        pytest.skip("no logits of decoded weights were recorded")
    twin = decoded_twin(load_quantized(path, dtype="float32"), torch.float16)
    found = logits(twin, expected["input_ids"])
    assert largest_difference(found, expected["logits_dequant_fp32"]) <= decoded_tolerance


@pytest.mark.parametrize("backend", ["auto", "numpy", "numexpr"])
def test_logits(recorded, backend):
    path, expected, (_, tool_tolerance) = recorded
    model = load_quantized(path, backend=backend, dtype="float32")
    found = logits(model, expected["input_ids"])
    twin = decoded_twin(model, torch.float32)
    assert largest_difference(found, logits(twin, expected["input_ids"])) <= 1e-4
    assert largest_difference(found, expected["logits_tool"]) <= tool_tolerance
    if "logits_dequant_fp32" in expected:
        # The tool rounds decoded weights to float16, a multiplication in float32 does not:
        # 0.003 at most on these models, whose logits differ by 1 from full precision.
        assert largest_difference(found, expected["logits_dequant_fp32"]) <= 5e-3


@pytest.mark.parametrize("dtype, tolerance", [("bfloat16", 1e-1), ("float16", 5e-2)])
def test_logits_in_half_precision(recorded, dtype, tolerance):
    path, expected, _ = recorded
    model = load_quantized(path, dtype=dtype)
    assert model.dtype == getattr(torch, dtype)
    found = logits(model, expected["input_ids"])
    assert largest_difference(found, expected["logits_tool"]) <= tolerance


@pytest.mark.parametrize("dtype", [None, "float32"])
def test_generates_without_cuda(monkeypatch, dtype):
    def refuse(*args, **kwargs):
        raise AssertionError("Torch not compiled with CUDA enabled")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "current_device", refuse)
    model = load_quantized(LOCAL, dtype=dtype)
    prompt = torch.tensor([[5, 6, 7], [8, 9, 10]])
    first = model.generate(prompt, max_new_tokens=6, do_sample=False)
    assert first.shape[0] == 2 and 3 < first.shape[1] <= 9
    assert torch.equal(first, model.generate(prompt, max_new_tokens=6, do_sample=False))
    assert torch.equal(
        first,
        load_quantized(LOCAL, dtype=dtype).generate(prompt, max_new_tokens=6, do_sample=False),
    )


def test_model_is_an_ordinary_one():
    model = load_quantized(LOCAL)
    assert not model.training and model.dtype == torch.bfloat16
    assert getattr(model.config, "quantization_config", None) is None
    assert model.name_or_path == str(LOCAL)
    assert model.generation_config.eos_token_id == 2
    assert not any(tensor.is_meta for tensor in [*model.parameters(), *model.buffers()])
    assert model.lm_head.weight is model.model.embed_tokens.weight
    inverse = model.model.rotary_emb.inv_freq
    torch.testing.assert_close(inverse, 10000.0 ** -(torch.arange(0, 32, 2) / 32))
    assert inverse.dtype == torch.float32
    name = "model.layers.1.mlp.up_proj"
    assert model.get_submodule(name).spec.name == name


def test_float16_checkpoint_runs_in_float32(folder):
    config = json.loads((folder / "config.json").read_text()) | {"torch_dtype": "float16"}
    (folder / "config.json").write_text(json.dumps(config))
    assert load_quantized(folder).dtype == torch.float32


def test_not_quantized(folder):
    config = json.loads((folder / "config.json").read_text())
    del config["quantization_config"]
    (folder / "config.json").write_text(json.dumps(config))
    save_file({"model.norm.weight": torch.ones(128)}, folder / "model.safetensors")
    with pytest.raises(FormatError, match="not quantized; load it with transformers"):
        load_quantized(folder)


def rewrite(folder, *, drop=(), **extra):
    tensors = load_file(folder / "model.safetensors")
    for name in drop:
        del tensors[name]
    save_file(tensors | extra, folder / "model.safetensors")


@pytest.mark.parametrize(
    "name",
    ["model.norm.weight", "model.embed_tokens.weight", "model.layers.0.mlp.up_proj.qzeros"],
)
def test_missing_tensor_is_named(folder, name):
    rewrite(folder, drop=[name])
    with pytest.raises(FormatError, match=name.replace(".", r"\.")):
        load_quantized(folder)


def test_missing_linear_is_named(folder):
    prefix = "model.layers.0.mlp.up_proj"
    rewrite(folder, drop=[f"{prefix}.{part}" for part in ("qweight", "qzeros", "scales")])
    with pytest.raises(FormatError, match=r"no tensor model\.layers\.0\.mlp\.up_proj\.weight"):
        load_quantized(folder)


def test_unexpected_tensor_is_named(folder):
    rewrite(folder, **{"model.layers.7.extra.weight": torch.ones(3)})
    with pytest.raises(FormatError, match=r"no place for: model\.layers\.7\.extra\.weight"):
        load_quantized(folder)


def test_config_of_another_size(folder):
    config = json.loads((folder / "config.json").read_text()) | {"intermediate_size": 512}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(FormatError, match=r"\(128, 256\), and by config.json \(128, 512\)"):
        load_quantized(folder)


def test_cuda_asked_for_and_absent(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(DeviceError, match="'cuda:0' is asked for.*device='cpu'"):
        load_quantized(LOCAL, device="cuda:0")


@pytest.fixture
def linear():
    weight = torch.randn(128, 256, generator=torch.Generator().manual_seed(0))
    packed = quantize_weight(weight, group_size=64, scale_dtype="float16", name="layers.3.up_proj")
    return QuantLinear(packed, torch.arange(128.0))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_forward(linear, dtype):
    x = torch.randn(2, 5, 256, dtype=dtype)
    y = linear(x)
    assert y.dtype == dtype and y.shape == (2, 5, 128)
    exact = x.double() @ linear.dequantize().double().T + linear.bias.double()
    accuracy = {torch.float16: 2e-3, torch.bfloat16: 1e-2}.get(dtype, 1e-6)
    assert float((y.double() - exact).norm() / exact.norm()) <= accuracy


def test_devices_are_both_named(linear):
    x = torch.ones(1, 256, device="meta")
    with pytest.raises(DeviceError, match="x is on meta, weight of layers.3.up_proj is on cpu; "):
        linear(x)


def test_wrong_input(linear):
    with pytest.raises(AlignmentError, match="layers.3.up_proj takes in_features 256"):
        linear(torch.ones(2, 255))
    with pytest.raises(ParameterError, match="floating point"):
        linear(torch.ones(2, 256, dtype=torch.int64))


def test_backend_can_be_chosen(linear):
    x = torch.randn(3, 256)
    expected = linear(x)
    for backend in ("numpy", "numexpr", "torch"):
        linear.backend = backend
        torch.testing.assert_close(linear(x), expected, rtol=1e-5, atol=1e-4)
    with pytest.raises(BackendError, match="not available"):
        linear.backend = "cuda"
    with pytest.raises(ParameterError, match="no backend"):
        linear.backend = "best"
    assert "bits=4, group_size=64" in repr(linear) and "backend='torch'" in repr(linear)


def test_state_survives_use_in_bfloat16(linear):
    before = {name: tensor.clone() for name, tensor in linear.state_dict().items()}
    packed = linear.to_packed()
    tokens = torch.randn(2, 256).bfloat16()
    y = linear(tokens)
    after = linear.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    np.testing.assert_array_equal(linear.to_packed().codes, packed.codes)
    other = QuantLinear(
        quantize_weight(np.ones((128, 256)), group_size=64, scale_dtype="float16"), torch.zeros(128)
    )
    other(tokens)
    other.load_state_dict(after)
    assert torch.equal(other(tokens), y)
    assert torch.equal(copy.deepcopy(linear)(tokens), y)


def test_scales_keep_their_dtype(linear):
    decoded = linear.dequantize()
    linear(torch.ones(1, 256).bfloat16())
    linear.to(torch.bfloat16)
    assert linear.scales.dtype == torch.float16 and linear.bias.dtype == torch.bfloat16
    assert torch.equal(linear.dequantize(), decoded)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_holds_the_packed_weight_once(linear, dtype):
    linear(torch.ones(1, 256, dtype=dtype))
    tensors = [*linear.buffers(), *(linear._int4 or ())[:1]]
    held = sum(tensor.nbytes for tensor in tensors)
    # 4 bits a code; 5 bytes for each group of 64, and 4 more for ATen's operator.
    assert held <= (0.5 + 9 / 64) * 128 * 256 + 8 * 4


def test_the_head_gets_a_tensor_of_its_own_strides():
    model = load_quantized(LOCAL, dtype="bfloat16")
    seen = []
    model.get_output_embeddings().register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.no_grad():
        whole = model(torch.arange(9)[None]).logits[:, -1:]
        last = model(torch.arange(9)[None], logits_to_keep=1).logits
    assert torch.equal(last, whole)
    hidden = seen[-1].shape[-1]
    assert seen[-1].stride() == (hidden, hidden, 1)
