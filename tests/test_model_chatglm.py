"""ChatGLM2 and 3 run as transformers' GLM, from their own names, without their code."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import awqbench as ab
from awqbench import cli
from awqbench.errors import FormatError, TraceError
from awqbench.model_chatglm import as_glm, is_chatglm

INT4 = Path(__file__).parent / "data" / "conformance" / "model" / "chatglm2_int4"


@pytest.fixture
def folder(tmp_path):
    copy = tmp_path / "chatglm"
    shutil.copytree(INT4, copy, copy_function=shutil.copyfile)
    return copy


def edit_config(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    config = {k: v for k, v in (config | changes).items() if v is not None}
    (folder / "config.json").write_text(json.dumps(config))


def test_the_view_cuts_the_fused_projection_by_rows():
    ckpt = ab.open_checkpoint(INT4)
    view = as_glm(ckpt)
    assert is_chatglm(ckpt) and not is_chatglm(view)
    fused = ckpt.linear("transformer.encoder.layers.1.self_attention.query_key_value")
    parts = [view.linear(f"model.layers.1.self_attn.{name}_proj") for name in "qkv"]
    assert [part.out_features for part in parts] == [128, 64, 64]
    stacked = torch.cat([torch.from_numpy(part.dequantize()) for part in parts])
    assert torch.equal(stacked, torch.from_numpy(fused.dequantize()))
    bias = torch.cat([view.read(f"model.layers.1.self_attn.{n}_proj.bias") for n in "qkv"])
    name = "transformer.encoder.layers.1.self_attention.query_key_value.bias"
    assert torch.equal(bias, ckpt.read(name))


def test_logits_are_those_of_the_tools_own_code():
    expected = load_file(INT4 / "expected.safetensors")
    model = ab.load_quantized(INT4, dtype="float32")
    with torch.no_grad():
        logits = model(expected["input_ids"]).logits
    assert (logits - expected["logits_tool"]).abs().max() < 1e-5
    assert not hasattr(model.config, "quantization_bit")


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"position_encoding_2d": True}, TraceError, "first ChatGLM.*read and converted"),
        ({"rmsnorm": False}, TraceError, "rmsnorm = False"),
        ({"num_layers": None}, FormatError, "num_layers is 'None', not a positive number"),
        ({"kv_channels": "32"}, FormatError, "kv_channels is '32'"),
        ({"multi_query_group_num": 4}, FormatError, r"256.*384 rows \(128 \+ 128 \+ 128"),
        ({"rope_ratio": "x"}, FormatError, "rope_ratio"),
    ],
)
def test_what_is_no_chatglm2(folder, changes, error, words):
    edit_config(folder, **changes)
    with pytest.raises(error, match=words):
        ab.load_quantized(folder)


def full_precision_folder(folder):
    """Decode the packed weights into a folder as ChatGLM2 publishes it."""
    ckpt = ab.open_checkpoint(folder)
    tensors = {}
    for name in ckpt.tensors:
        module = name.removesuffix(".weight").removesuffix("_scale").removesuffix(".weight")
        if not ckpt.is_packed(module):
            tensors[name] = ckpt.read(name)
        elif name.endswith(".weight"):
            tensors[name] = torch.from_numpy(ckpt.linear(module).dequantize()).half()
        elif name.endswith(".bias"):
            tensors[name] = ckpt.read(name)
    save_file(tensors, folder / "model.safetensors")
    edit_config(folder, quantization_bit=None)


def test_quantized_from_the_command_line_it_runs_again(folder, tmp_path, monkeypatch, capsys):
    full_precision_folder(folder)
    out = tmp_path / "int8"
    command = ["awqbench", "quantize", str(folder), str(out), "--layout", "chatglm"]
    monkeypatch.setattr("sys.argv", [*command, "--set", "bits=8"])
    with pytest.raises(SystemExit) as done:
        cli.main()
    assert done.value.code == 0
    assert "8 linears to 8 bits on cpu" in capsys.readouterr().out
    tokens = torch.arange(10)[None]
    with torch.no_grad():
        int8 = ab.load_quantized(out, dtype="float32")(tokens).logits
        int4 = ab.load_quantized(INT4, dtype="float32")(tokens).logits
    assert (int8 - int4).abs().max() < 0.1 * int4.std()
    monkeypatch.setattr("sys.argv", [*command, "--set", "group_size=32"])
    with pytest.raises(SystemExit) as done:
        cli.main()
    assert done.value.code == 2 and "bits=4 or 8" in capsys.readouterr().err
