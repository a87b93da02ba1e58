"""Conversion keeps every number, or writes nothing."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_models import save_tiny_model

import awqbench as ab
from awqbench.errors import AlignmentError, FormatError, OutputError, ParameterError
from awqbench.formats.config.quantization import Scheme
from awqbench.formats.config.section import inside, quantization_section
from awqbench.formats.convert import convert
from awqbench.formats.layouts.table import LAYOUTS, write_linear
from awqbench.formats.writer import CheckpointWriter

DATA = Path(__file__).resolve().parents[1] / "data"
AWQ = DATA / "autoawq_gemm_qwen3_g32_bf16"
MODELS = DATA / "conformance" / "model"
MIXED = MODELS / "gptqmodel_gptq_v1_dynamic_qwen3"
CHATGLM = MODELS / "chatglm2_int4"
COMPRESSED = MODELS / "llmc_awq_w4a16_asym_qwen2"


def assert_same_numbers(first, second):
    first, second = ab.open_checkpoint(first), ab.open_checkpoint(second)
    assert first.quantized_linears() == second.quantized_linears() != []
    for name in first.quantized_linears():
        a, b = first.linear(name), second.linear(name)
        for field in ("codes", "scales", "zeros"):
            assert np.array_equal(getattr(a, field), getattr(b, field)), (name, field)
        assert np.array_equal(a.group_index(), b.group_index())
    dense = [
        n for n in first.tensors if n in second.tensors and n.endswith(("norm.weight", "bias"))
    ]
    assert dense or "chatglm" in str(first.path)
    for name in dense:
        assert torch.equal(first.read(name), second.read(name))


@pytest.mark.parametrize("layout", ["awq-gemv", "gptq", "gptq-v2", "compressed-tensors"])
def test_there_and_back(tmp_path, layout):
    there = convert(AWQ, tmp_path / "there", layout)
    assert ab.open_checkpoint(there.out).quantization.layout == layout
    back = convert(there.out, tmp_path / "back", "awq-gemm")
    assert_same_numbers(AWQ, there.out)
    assert_same_numbers(AWQ, back.out)
    assert (there.linears, there.source_layout, back.layout) == (14, "awq-gemm", "awq-gemm")
    # The round trip gives the tool's own tensors and its own section of the configuration.
    first, last = ab.open_checkpoint(AWQ), ab.open_checkpoint(back.out)
    assert first.tensors.keys() == last.tensors.keys()
    for name in first.tensors:
        assert torch.equal(first.read(name), last.read(name))
    assert first.config["quantization_config"] == last.config["quantization_config"]


@pytest.mark.parametrize(
    ("source", "layout"),
    [
        (COMPRESSED, "gptq-v2"),
        (COMPRESSED, "awq-gemm"),
        (MIXED, "compressed-tensors"),
        (MIXED, "gptq-v2"),
        (CHATGLM, "gptq-v2"),
        (CHATGLM, "compressed-tensors"),
        (CHATGLM, "chatglm"),
    ],
    ids=lambda value: value if isinstance(value, str) else value.name,
)
def test_other_tools_folders_keep_their_numbers(tmp_path, source, layout):
    done = convert(source, tmp_path / "out", layout)
    assert_same_numbers(source, done.out)
    written = ab.open_checkpoint(done.out)
    assert done.out_bytes == written.nbytes
    assert done.source_bytes == ab.open_checkpoint(source).nbytes


def test_mixed_bits_are_written_as_rules(tmp_path):
    for layout in ("gptq-v2", "compressed-tensors"):
        done = convert(MIXED, tmp_path / layout, layout)
        found = ab.open_checkpoint(done.out).quantization
        assert found.scheme("model.layers.0.mlp.up_proj")[:2] == (8, 32)
        assert found.scheme("model.layers.0.self_attn.q_proj")[:2] == (4, 64)
        with torch.no_grad():
            tokens = torch.arange(10)[None]
            expected = ab.load_quantized(MIXED, dtype="float32")(tokens).logits
            logits = ab.load_quantized(done.out, dtype="float32")(tokens).logits
        assert torch.equal(logits, expected)


def test_gptq_writes_the_file_that_its_tools_read(tmp_path):
    done = convert(AWQ, tmp_path / "out", "gptq-v2")
    section = ab.open_checkpoint(done.out).config["quantization_config"]
    assert json.loads((done.out / "quantize_config.json").read_text()) == section
    assert section["checkpoint_format"] == "gptq_v2" and section["sym"] is False


def test_a_chatglm_in_another_layout_says_how_to_run_it(tmp_path):
    done = convert(CHATGLM, tmp_path / "out", "gptq-v2")
    with pytest.raises(FormatError, match="convert it back"):
        ab.load_quantized(done.out)
    back = convert(done.out, tmp_path / "back", "chatglm")
    assert "quantization_config" not in ab.open_checkpoint(back.out).config
    with torch.no_grad():
        tokens = torch.arange(10)[None]
        logits = [ab.load_quantized(f, dtype="float32")(tokens).logits for f in (CHATGLM, back.out)]
    assert torch.equal(*logits)


def packed_folder(out, layout, packed, *, section=None):
    """Write a folder of one packed linear."""
    with CheckpointWriter(out) as writer:
        for part, tensor in write_linear(layout, packed).items():
            writer.add(f"model.layers.0.proj.{part}", tensor)
        section = section or quantization_section(
            layout, {"p": Scheme(packed.bits, packed.group_size, True)}, [], desc_act=True
        )
        return writer.finish({"model_type": "llama", "quantization_config": section})


def random_packed(*, bits=4, n=64, k=128, group_size=32, **changes):
    rng = np.random.default_rng(0)
    packed = ab.quantize_weight(
        rng.normal(size=(n, k)), bits, group_size, scale_dtype=changes.pop("scale_dtype", "float16")
    )
    from dataclasses import replace

    return replace(packed, **changes)


@pytest.mark.parametrize(
    ("packed", "layout", "words"),
    [
        (random_packed(bits=3), "awq-gemm", ["model.layers.0.proj has 3 bits", "GPTQ"]),
        (
            random_packed(g_idx=np.random.default_rng(1).permutation(128).astype("i4") // 32),
            "awq-gemm",
            ["activation order", "g_idx"],
        ),
        (
            random_packed(g_idx=np.random.default_rng(1).permutation(128).astype("i4") // 32),
            "compressed-tensors",
            ["activation order"],
        ),
        (random_packed(zeros=np.zeros((64, 4), "u1")), "gptq", ["zero point", "gptq-v2"]),
        (random_packed(), "chatglm", ["'llama'"]),
    ],
    ids=["3 bits", "act-order", "act-order to ct", "zero of 0", "chatglm"],
)
def test_what_a_layout_cannot_hold_is_refused(tmp_path, packed, layout, words):
    source = packed_folder(tmp_path / "source", "gptq-v2", packed)
    with pytest.raises(FormatError) as error:
        convert(source, tmp_path / "out", layout)
    for word in words:
        assert word in str(error.value)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["source"]


def test_group_sizes_that_awq_cannot_mix(tmp_path):
    with pytest.raises(FormatError, match="8 bits"):
        convert(MIXED, tmp_path / "out", "awq-gemm")
    schemes = {"model.layers.0.a": Scheme(4, 64, True), "model.layers.1.a": Scheme(4, 64, True)}
    with pytest.raises(FormatError, match=r"model.layers.0.b has 4 and 32 \(1 such\)"):
        quantization_section("awq-gemm", schemes | {"model.layers.0.b": Scheme(4, 32, True)}, [])


def test_misalignment_is_refused(tmp_path):
    source = packed_folder(tmp_path / "source", "compressed-tensors", random_packed(n=20))
    with pytest.raises(AlignmentError, match="20"):
        convert(source, tmp_path / "out", "awq-gemm")


def test_misuse(tmp_path):
    with pytest.raises(ParameterError, match="'awq' is not known; layouts that are written: awq-"):
        convert(AWQ, tmp_path / "out", "awq")
    with pytest.raises(ParameterError, match="read but not written"):
        convert(AWQ, tmp_path / "out", "awq-marlin")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    with pytest.raises(OutputError, match="not empty"):
        convert(AWQ, tmp_path / "full", "gptq-v2")
    dense = tmp_path / "dense"
    save_tiny_model("qwen3", dense)
    with pytest.raises(FormatError, match="not quantized.*awqbench quantize"):
        convert(dense, tmp_path / "out", "gptq-v2")


def test_an_interrupted_conversion_leaves_nothing(tmp_path, monkeypatch):
    import awqbench.formats.convert as module

    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "write_linear", interrupted)
    with pytest.raises(KeyboardInterrupt):
        convert(AWQ, tmp_path / "out", "gptq-v2")
    assert list(tmp_path.iterdir()) == []


def test_a_writer_that_changes_numbers_is_caught(tmp_path, monkeypatch):
    import awqbench.formats.convert as module

    def wrong(layout, packed):
        tensors = write_linear(layout, packed)
        tensors["scales"] = tensors["scales"] * 2
        return tensors

    monkeypatch.setattr(module, "write_linear", wrong)
    with pytest.raises(FormatError, match="scales changed in gptq-v2"):
        convert(AWQ, tmp_path / "out", "gptq-v2")


def test_dense_linears_are_listed_as_each_tool_looks_for_them(tmp_path):
    dense = [
        "model.layers.0.self_attn.k_proj",
        "model.layers.1.self_attn.k_proj",
        "model.layers.1.mlp.up_proj",
        "lm_head",
    ]
    schemes = dict.fromkeys(
        ["model.layers.0.mlp.up_proj", "model.layers.0.mlp.down_proj"], Scheme(4, 64, True)
    )
    listed = quantization_section("awq-gemm", schemes, dense)["modules_to_not_convert"]
    assert listed == ["self_attn.k_proj", "model.layers.1.mlp.up_proj"]
    rules = quantization_section("gptq-v2", schemes, dense)["dynamic"]
    assert r"-:model\.layers\.1\.mlp\.up_proj(\.|$)" in rules and len(rules) == 3
    assert quantization_section("compressed-tensors", schemes, dense)["ignore"] == dense
    assert inside("lm_head") == "lm_head"


def test_every_written_layout_is_tried():
    written = {layout.name for layout in LAYOUTS.values() if layout.is_written}
    assert written == {"awq-gemm", "awq-gemv", "gptq", "gptq-v2", "compressed-tensors", "chatglm"}


def test_the_command(tmp_path, capsys, monkeypatch):
    from awqbench import cli

    out = tmp_path / "out"
    command = ["awqbench", "convert", str(AWQ), str(out), "--layout", "gptq-v2"]
    monkeypatch.setattr("sys.argv", command)
    with pytest.raises(SystemExit) as done:
        cli.main()
    assert done.value.code == 0
    assert "14 linears from awq-gemm to gptq-v2, the same numbers" in capsys.readouterr().out
    shutil.rmtree(out)
    monkeypatch.setattr("sys.argv", [*command[:-1], "awq-marlin"])
    with pytest.raises(SystemExit) as done:
        cli.main()
    assert done.value.code == 2
    assert "ParameterError: layout 'awq-marlin' is read but not written" in capsys.readouterr().err
