"""ChatGLM's own quantization: its codes on normal rows, better ones on its edge cases."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from awqbench.errors import (
    AlreadyQuantizedError,
    DeviceError,
    FormatError,
    NonFiniteError,
    OutputError,
    ParameterError,
)
from awqbench.formats.checkpoint import open_checkpoint
from awqbench.formats.layouts.chatglm import read_linear, write_linear
from awqbench.quantize.chatglm import quantize_channels, quantize_chatglm

TESTS = Path(__file__).parents[1]
OWN_CASES = sorted((TESTS / "data" / "chatglm").glob("*.safetensors"))
# A wider collection may lie beside the repository; these tests stand without it.
COLLECTION = Path(__file__).resolve().parents[2].parent / "shared" / "conformance"
WIDER_CASES = sorted((COLLECTION / "linear" / "chatglm").glob("*.safetensors")) or [
    pytest.param(None, marks=pytest.mark.skip(reason="no wider collection"), id="wider")
]
# Row 0 of the golden weights is zero and row 2 tiny: what ChatGLM makes of them is undefined.
EDGE_ROWS = (0, 2)
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}


@pytest.mark.parametrize("path", [*OWN_CASES, *WIDER_CASES], ids=lambda path: path.stem)
def test_codes_and_scales_are_chatglm_s_on_normal_rows(path):
    bits, tensors = int(path.stem[1]), load_file(path)
    written = write_linear(quantize_channels(tensors["weight"], bits=bits, name="l"))
    normal = [row for row in range(len(tensors["weight"])) if row not in EDGE_ROWS]
    assert torch.equal(written["weight"][normal], tensors["qweight"][normal])
    assert torch.equal(written["weight_scale"][normal], tensors["weight_scale"][normal])
    assert written["weight_scale"].dtype == tensors["weight"].dtype


@pytest.mark.parametrize("path", OWN_CASES, ids=lambda path: path.stem)
def test_edge_rows_decode_to_what_they_were(path):
    bits, weight = int(path.stem[1]), load_file(path)["weight"]
    packed = quantize_channels(weight, bits=bits)
    zero, tiny = EDGE_ROWS
    assert packed.scales[zero, 0] == 1
    assert (packed.dequantize()[zero] == 0).all()
    error = np.abs(packed.dequantize()[tiny] - weight[tiny].float().numpy())
    assert error.max() <= 0.51 * packed.scales[tiny, 0]


def steps_off(weight, packed):
    """Return the error of each element in steps of its row."""
    return np.abs(packed.dequantize() - weight.double().numpy()) / packed.scales


@given(
    bits=st.sampled_from([4, 8]),
    dtype=st.sampled_from(list(DTYPES)),
    exponent=st.integers(-150, 120),
    seed=st.integers(0, 99),
)
@settings(max_examples=300, deadline=None)
def test_error_is_half_a_step_at_every_magnitude(bits, dtype, exponent, seed):
    """Also among subnormals; what the quotient's own rounding adds is allowed for."""
    torch.manual_seed(seed)
    weight = (torch.randn(8, 6, dtype=torch.float64) * 2.0**exponent).to(DTYPES[dtype])
    if not torch.isfinite(weight).all():
        return
    packed = quantize_channels(weight, bits=bits)
    top, half = 2 ** (bits - 1) - 1, 2 ** (bits - 1)
    assert packed.codes.min() >= half - top and packed.codes.max() <= half + top
    assert (packed.scales > 0).all()
    quotient_step = top * {"float16": 2.0**-11, "bfloat16": 2.0**-8, "float32": 2.0**-24}[dtype]
    assert steps_off(weight, packed).max() <= 0.5 + quotient_step


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=list(DTYPES))
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("multiple", [1, 2, 3, 10, 100, 190, 1000])
def test_scale_too_small_for_its_dtype_is_rounded_up(dtype, bits, multiple):
    smallest = {torch.float16: 2.0**-24, torch.bfloat16: 2.0**-133, torch.float32: 2.0**-149}
    absmax = multiple * smallest[dtype]
    weight = torch.tensor([[absmax, -absmax, absmax / 2, 0.0]], dtype=dtype)
    packed = quantize_channels(weight, bits=bits)
    assert packed.scales[0, 0] >= smallest[dtype]
    assert steps_off(weight, packed).max() <= 0.5 + 2.0**-3
    half = 2 ** (bits - 1)
    codes = packed.codes[0].astype(int) - half
    assert codes[0] > 0 and codes[1] == -codes[0] and codes[3] == 0  # no wrap, no lost sign


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=list(DTYPES))
def test_nonfinite_weight_is_named_by_its_row(value, dtype):
    weight = torch.ones(5, 4, dtype=dtype)
    weight[3, 1] = weight[4, 0] = value
    with pytest.raises(NonFiniteError, match=r"l row 3 holds NaN or inf \(2 rows of 5\)"):
        quantize_channels(weight, name="l")


@pytest.mark.parametrize(
    "weight",
    [torch.zeros(4), torch.zeros(0, 4), torch.zeros(4, 0), torch.zeros(2, 2).double()],
    ids=["vector", "no rows", "no columns", "float64"],
)
def test_what_is_no_weight(weight):
    with pytest.raises(FormatError, match=r"l is .* of shape .*expected a matrix \(N, K\)"):
        quantize_channels(weight, name="l")


@pytest.mark.parametrize("bits", [0, 1, 9])
def test_impossible_bits(bits):
    with pytest.raises(ParameterError, match=f"bits is {bits}"):
        quantize_channels(torch.ones(2, 2), bits=bits)


def test_weight_is_left_as_it_was():
    weight = torch.randn(4, 8, requires_grad=True)
    before = weight.detach().clone()
    quantize_channels(weight)
    assert torch.equal(weight.detach(), before)


CONFIG = {
    "model_type": "chatglm",
    "architectures": ["ChatGLMModel"],
    "auto_map": {"AutoModel": "modeling_chatglm.ChatGLMForConditionalGeneration"},
    "hidden_size": 32,
    "ffn_hidden_size": 48,
    "num_layers": 2,
    "padded_vocab_size": 60,
    "torch_dtype": "float16",
}


def tensors_of(dtype=torch.float16, *, version=2):
    """Return the tensors of a ChatGLM of 2 layers, hidden size 32."""
    torch.manual_seed(0)
    root = "transformer" if version == 1 else "transformer.encoder"
    attention = "attention" if version == 1 else "self_attention"
    shapes = {
        "transformer.embedding.word_embeddings.weight": (60, 32),
        f"{root}.final_layernorm.weight": (32,),
        "transformer.output_layer.weight": (60, 32),
        "transformer.rotary_pos_emb.inv_freq": (8,),
    }
    for i in range(2):
        layer = f"{root}.layers.{i}"
        shapes |= {
            f"{layer}.input_layernorm.weight": (32,),
            f"{layer}.{attention}.query_key_value.weight": (64, 32),
            f"{layer}.{attention}.query_key_value.bias": (64,),
            f"{layer}.{attention}.dense.weight": (32, 32),
            f"{layer}.mlp.dense_h_to_4h.weight": (96, 32),
            f"{layer}.mlp.dense_4h_to_h.weight": (32, 48),
        }
    return {name: (torch.randn(shape) / 8).to(dtype) for name, shape in shapes.items()}


def is_linear(name):
    parts = ("query_key_value.weight", "dense.weight", "h_to_4h.weight", "4h_to_h.weight")
    return name.endswith(parts)


def write_folder(path, tensors=None, **config):
    path.mkdir()
    save_file(tensors_of() if tensors is None else tensors, path / "model.safetensors")
    (path / "config.json").write_text(json.dumps(CONFIG | config))
    (path / "tokenizer_config.json").write_text('{"a": 1}')
    (path / "modeling_chatglm.py").write_text("raise RuntimeError('never run')\n")
    return path


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
def test_written_folder_decodes_to_the_weights(tmp_path, bits, version, dtype):
    originals = tensors_of(dtype, version=version)
    quantize_chatglm(write_folder(tmp_path / "in", originals), tmp_path / "out", bits=bits)
    written = load_file(tmp_path / "out" / "model.safetensors")
    slack = 2 ** (bits - 1) * (2.0**-11 if dtype == torch.float16 else 2.0**-8)
    for name, tensor in originals.items():
        if not is_linear(name):
            assert torch.equal(written.pop(name), tensor)
            continue
        linear = {"weight": written.pop(name), "weight_scale": written.pop(f"{name}_scale")}
        assert linear["weight"].dtype == torch.int8 and linear["weight_scale"].dtype == dtype
        packed = read_linear(linear, bits=bits, name=name)
        assert steps_off(tensor, packed).max() <= 0.5 + slack
    assert not written


def test_config_and_side_files(tmp_path):
    source = write_folder(tmp_path / "in", quantization_bit=0, extra={"kept": True})
    record = quantize_chatglm(source, tmp_path / "out", bits=8)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config == CONFIG | {"quantization_bit": 8, "extra": {"kept": True}}
    assert (tmp_path / "out" / "tokenizer_config.json").read_text() == '{"a": 1}'
    assert record["not_copied"] == ["modeling_chatglm.py"]
    assert not (tmp_path / "out" / "modeling_chatglm.py").exists()


def test_record_names_the_device_and_every_linear(tmp_path, capsys):
    tensors = tensors_of()
    dense = "transformer.encoder.layers.0.self_attention.dense"
    tensors[f"{dense}.weight"][:3] = 0
    record = quantize_chatglm(write_folder(tmp_path / "in", tensors), tmp_path / "out")
    assert (record["device"], record["bits"], record["model"]) == ("cpu", 4, "in")
    assert record["seconds"] > 0
    rows = {row["name"]: row for row in record["linears"]}
    assert set(rows) == {n.removesuffix(".weight") for n in tensors if is_linear(n)}
    assert rows[dense]["zero_rows"] == 3 and sum(r["zero_rows"] for r in rows.values()) == 3
    assert (rows[dense]["out_features"], rows[dense]["in_features"]) == (32, 32)
    assert all(0.01 < row["relative_error"] < 0.2 for row in rows.values())
    assert json.loads((tmp_path / "out" / "awqbench_run.json").read_text()) == record
    assert capsys.readouterr().out == ""


def test_device_that_torch_has_not(tmp_path, monkeypatch):
    source = write_folder(tmp_path / "in")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)

    def no_cuda(*args, device, **kwargs):
        raise AssertionError("Torch not compiled with CUDA enabled")

    monkeypatch.setattr(torch, "zeros", no_cuda)
    with pytest.raises(DeviceError, match=r"'cuda' is asked for.*sees no CUDA.*pass device='cpu'"):
        quantize_chatglm(source, tmp_path / "out", device="cuda")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("device", ["meta", "nonsense", "hpu", "", 3.5])
def test_device_that_is_none(tmp_path, device):
    with pytest.raises(DeviceError, match="cannot compute there"):
        quantize_chatglm(write_folder(tmp_path / "in"), tmp_path / "out", device=device)


@pytest.mark.parametrize("device", ["cpu", torch.device("cpu")])
def test_device_by_name_or_object(tmp_path, device):
    record = quantize_chatglm(write_folder(tmp_path / "in"), tmp_path / "out", device=device)
    assert (record["device"], record["device_name"]) == ("cpu", "cpu")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_gives_the_same_folder(tmp_path):
    source = write_folder(tmp_path / "in")
    quantize_chatglm(source, tmp_path / "on_cpu")
    record = quantize_chatglm(source, tmp_path / "on_cuda", device="cuda")
    assert record["device"].startswith("cuda")
    files = [tmp_path / where / "model.safetensors" for where in ("on_cpu", "on_cuda")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_quantized_folder_is_refused(tmp_path):
    quantize_chatglm(write_folder(tmp_path / "in"), tmp_path / "out")
    with pytest.raises(AlreadyQuantizedError, match="out.*quantized"):
        quantize_chatglm(tmp_path / "out", tmp_path / "again")
    config = tmp_path / "out" / "config.json"
    config.write_text(json.dumps(CONFIG))  # the width is lost, the weights are int8 still
    with pytest.raises(AlreadyQuantizedError, match="weight is int8, quantized already"):
        quantize_chatglm(tmp_path / "out", tmp_path / "again")
    assert not (tmp_path / "again").exists()


@pytest.mark.parametrize("model_type", ["qwen2", None])
def test_other_models_are_refused(tmp_path, model_type):
    source = write_folder(tmp_path / "in", model_type=model_type)
    with pytest.raises(FormatError, match=f"model_type {model_type!r}, .*use awqbench.quantize"):
        quantize_chatglm(source, tmp_path / "out")


def test_folder_without_chatglm_s_linears_is_refused(tmp_path):
    tensors = {n: t for n, t in tensors_of().items() if not is_linear(n)}
    with pytest.raises(FormatError, match="no linear by ChatGLM's names, such as transformer.enc"):
        quantize_chatglm(write_folder(tmp_path / "in", tensors), tmp_path / "out")


@pytest.mark.parametrize("bits", [3, 2, 16, "4", None])
def test_other_widths_are_refused(tmp_path, bits):
    with pytest.raises(ParameterError, match=f"bits is {bits!r}; .*4 or 8"):
        quantize_chatglm(write_folder(tmp_path / "in"), tmp_path / "out", bits=bits)


def test_odd_rows_are_refused_before_any_work(tmp_path, monkeypatch):
    tensors = tensors_of()
    last = "transformer.encoder.layers.1.mlp.dense_4h_to_h"
    tensors[f"{last}.weight"] = torch.ones(32, 47, dtype=torch.float16)
    source = write_folder(tmp_path / "in", tensors)
    with monkeypatch.context() as patch:
        patch.setattr("awqbench.quantize.chatglm.quantize_channels", None)
        with pytest.raises(FormatError, match=f"{last}: in_features is 47, which is odd"):
            quantize_chatglm(source, tmp_path / "out")
    quantize_chatglm(source, tmp_path / "out", bits=8)
    assert open_checkpoint(tmp_path / "out").tensors[f"{last}.weight"].shape == (32, 47)


@pytest.mark.parametrize(
    ("tensor", "text"),
    [
        (torch.ones(32, 48).double(), r"is float64 of shape \(32, 48\); expected a matrix"),
        (torch.ones(32), r"is float32 of shape \(32,\)"),
        (torch.full((32, 48), float("nan")), "row 0 holds NaN"),
    ],
)
def test_damaged_weight_leaves_nothing_behind(tmp_path, tensor, text):
    tensors = tensors_of()
    last = "transformer.encoder.layers.1.mlp.dense_4h_to_h"
    tensors[f"{last}.weight"] = tensor
    source = write_folder(tmp_path / "in", tensors)
    with pytest.raises((FormatError, NonFiniteError), match=f"{last}.*{text}"):
        quantize_chatglm(source, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in"]


def test_folder_that_exists_is_not_overwritten(tmp_path):
    source = write_folder(tmp_path / "in")
    with pytest.raises(OutputError, match="not empty"):
        quantize_chatglm(source, source)
