"""Two folders compared: every change of a number is seen, and measured as it is."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_models import save_tiny_model

from awqbench.errors import FormatError
from awqbench.formats.checkpoint import open_checkpoint
from awqbench.formats.convert import convert
from awqbench.formats.layouts.table import write_linear
from awqbench.formats.writer import CheckpointWriter
from awqbench.inspect.folders import weight_difference
from awqbench.inspect.folders.diff import diff
from awqbench.inspect.folders.weight_difference import distance, linear_difference
from awqbench.packed import quantize_weight

DATA = Path(__file__).resolve().parents[1] / "data"
AWQ = DATA / "autoawq_gemm_qwen3_g32_bf16"
MODELS = DATA / "conformance" / "model"
SAME = ["same_codes", "same_scales", "same_zeros", "same_groups"]


def random_packed(seed=0, bits=4, group_size=32, n=32, k=128):
    weight = np.random.default_rng(seed).standard_normal((n, k)).astype(np.float32)
    return quantize_weight(weight, bits, group_size, scale_dtype="float16", name="m.q")


def folder(out, linears, **dense):
    """Write packed linears and dense tensors in GPTQ's second layout, or full precision."""
    section = {"quant_method": "gptq", "bits": 4, "group_size": 32, "checkpoint_format": "gptq_v2"}
    with CheckpointWriter(out) as writer:
        for name, packed in linears.items():
            for part, tensor in write_linear("gptq-v2", packed).items():
                writer.add(f"{name}.{part}", tensor)
        for name, tensor in dense.items():
            writer.add(name.replace("__", "."), tensor)
        config = {"model_type": "llama"} | ({"quantization_config": section} if linears else {})
        return writer.finish(config)


@pytest.mark.parametrize("layout", ["awq-gemv", "gptq", "gptq-v2", "compressed-tensors"])
def test_layouts_of_one_folder_are_the_same(tmp_path, layout):
    found = diff(AWQ, convert(AWQ, tmp_path / "x", layout).out)
    assert found.is_same
    assert found.verdict.startswith(f"the same numbers in another layout (awq-gemm, {layout}): ")
    assert found.linears[SAME].all(axis=None) and len(found.linears) == 14
    assert (found.linears[["codes_differ", "largest_difference", "relative_error"]] == 0).all(
        axis=None
    )
    assert found.tensors["equal"].all() and found.only_a == found.only_b == ()
    assert any(found.config["key"].str.startswith("quantization_config."))


def test_a_folder_is_itself():
    found = diff(AWQ, AWQ)
    assert found.is_same and len(found.config) == 0
    assert found.verdict == (
        "the same numbers in the same layout (awq-gemm): codes, scales and zero points of 14 "
        "linears and 10 dense tensors"
    )


@pytest.mark.parametrize("field", ["codes", "scales", "zeros", "g_idx"])
def test_one_changed_number_is_seen(tmp_path, field):
    packed = random_packed()
    if field == "g_idx":
        changed = np.arange(128, dtype=np.int32) // 32
        changed[[0, -1]] = changed[[-1, 0]]
    else:
        changed = getattr(packed, field).copy()
        changed[3, 1] = changed[3, 1] ^ 1 if field != "scales" else 2 * changed[3, 1]
    other = dataclasses.replace(packed, **{field: changed})
    same = random_packed(1)
    found = diff(
        folder(tmp_path / "a", {"m.q": packed, "m.k": same}),
        folder(tmp_path / "b", {"m.q": other, "m.k": same}),
    )
    row = found.linears.set_index("name").loc["m.q"]
    column = "same_groups" if field == "g_idx" else f"same_{field}"
    assert not found.is_same and [c for c in SAME if not row[c]] == [column]
    assert row["codes_differ"] == (1 / packed.codes.size if field == "codes" else 0)
    first, second = packed.dequantize(), other.dequantize()
    assert row["largest_difference"] == pytest.approx(np.abs(first - second).max())
    expected = np.linalg.norm(first - second) / np.linalg.norm(first)
    assert row["relative_error"] == pytest.approx(expected, rel=1e-5)
    assert found.verdict.startswith("other numbers in 1 of 2 packed linears, most m.q (")
    assert str(found).count("\n") < 12


def test_nan_scales_are_the_same_where_both_have_them():
    packed = random_packed()
    packed.scales[0, 0] = np.nan
    row = linear_difference(packed, dataclasses.replace(packed, scales=packed.scales.copy()))
    assert row["same_scales"] and row["relative_error"] == 0
    row = linear_difference(packed, random_packed())
    assert not row["same_scales"] and np.isnan(row["largest_difference"])


def test_other_widths_and_group_sizes_are_compared_decoded():
    row = linear_difference(random_packed(), random_packed(bits=8))
    assert not row["same_codes"] and np.isnan(row["codes_differ"])
    assert 0.01 < row["relative_error"] < 0.2
    row = linear_difference(random_packed(), random_packed(group_size=64))
    assert not row["same_scales"] and not row["same_groups"] and 0 < row["codes_differ"] < 1
    row = linear_difference(random_packed(), random_packed(n=64))
    assert np.isnan(row["relative_error"]) and not row["same_codes"]


def test_packed_against_dense(tmp_path):
    packed = random_packed()
    weight = torch.from_numpy(np.random.default_rng(0).standard_normal((32, 128))).float()
    found = diff(
        folder(tmp_path / "a", {}, m__q__weight=weight), folder(tmp_path / "b", {"m.q": packed})
    )
    row = found.linears.iloc[0]
    assert row["packed_in"] == "b" and found.linears[SAME].isna().all(axis=None)
    error = np.linalg.norm(weight.numpy() - packed.dequantize()) / np.linalg.norm(weight.numpy())
    assert row["relative_error"] == pytest.approx(error, rel=1e-5)
    assert (found.only_a, found.only_b) == ((), ("m.q",))
    assert found.tensors_only_a == () and not found.is_same
    assert (
        "1 linear packed in b and dense in a: median relative error 0.079, most m.q"
        in found.verdict
    )
    assert "norms differ" not in found.verdict


def test_folded_norms_are_told_of(tmp_path):
    packed, weight, norm = random_packed(), torch.randn(32, 128), torch.ones(8)
    found = diff(
        folder(tmp_path / "a", {}, m__q__weight=weight, m__norm__weight=norm),
        folder(tmp_path / "b", {"m.q": packed}, m__norm__weight=2 * norm),
    )
    assert "norms differ too, as where AWQ folded channel scales" in found.verdict
    assert found.tensors["relative_error"].tolist() == [1.0]


def test_dense_tensors(tmp_path):
    norm = torch.linspace(0.5, 2, 8)
    a = folder(tmp_path / "a", {}, norm__weight=norm, x=torch.ones(3), only_here=torch.ones(2))
    b = folder(tmp_path / "b", {}, norm__weight=norm + 0.5, x=torch.ones(3).half())
    found = diff(a, b)
    rows = found.tensors.set_index("name")
    assert rows["equal"].to_dict() == {"norm.weight": False, "x": True}
    assert rows.loc["norm.weight", "largest_difference"] == pytest.approx(0.5)
    assert rows.loc["x", ["dtype_a", "dtype_b"]].tolist() == ["float32", "float16"]
    assert found.tensors_only_a == ("only_here",) and not found.is_same
    assert (
        "other numbers in 1 of 2 dense tensors, most norm.weight (relative error" in found.verdict
    )
    other = folder(tmp_path / "c", {}, norm__weight=torch.ones(9))
    assert "not comparable" in diff(a, other).verdict


def test_tensors_of_one_folder_only(tmp_path):
    linears, norm = {"m.q": random_packed()}, torch.ones(8)
    a = folder(tmp_path / "a", linears)
    b = folder(tmp_path / "b", linears, norm__weight=norm)
    found = diff(a, b)
    assert not found.is_same and found.tensors_only_b == ("norm.weight",)
    assert "1 tensor only in b: norm.weight" in str(found)
    assert found.verdict == "the same numbers in 1 packed linear; 1 dense tensor in b only"


def test_modules_of_one_folder_only(tmp_path):
    a = folder(tmp_path / "a", {"m.q": random_packed(), "m.k": random_packed(1)})
    b = folder(tmp_path / "b", {"m.q": random_packed()})
    found = diff(a, b)
    assert not found.is_same and (found.only_a, found.only_b) == (("m.k",), ())
    assert found.verdict == ("the same numbers in 1 packed linear; 1 module packed in a only")
    assert "1 module packed only in a: m.k" in str(found)


def test_folders_of_different_models():
    found = diff(AWQ, MODELS / "chatglm2_int4")
    assert found.verdict.startswith("nothing in common: 14 packed modules only in a, 8 only in b")
    keys = found.config.set_index("key")
    assert json.loads(keys.loc["model_type", "b"]) == "chatglm"
    assert len(str(found).splitlines()) < 20 and json.dumps(found.as_dict())


def test_full_precision_folders_are_compared(tmp_path):
    first = save_tiny_model("llama", tmp_path / "a")
    assert diff(first, first).verdict.startswith("the same numbers in the same layout (full prec")
    half = save_tiny_model("llama", tmp_path / "b", dtype="bfloat16")
    found = diff(first, half)
    assert not found.is_same and 0 < found.tensors["relative_error"].max() < 2**-8


def test_methods_that_cannot_be_read_are_refused(tmp_path):
    with CheckpointWriter(tmp_path / "x") as writer:
        writer.add("l.weight", torch.zeros(8, 8))
        out = writer.finish({"quantization_config": {"quant_method": "hqq"}})
    with pytest.raises(FormatError, match="quantized by 'hqq'"):
        diff(AWQ, out)


def test_distance_is_that_of_float64(monkeypatch):
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 50, 40)).astype(np.float32)
    whole = distance(a, b)
    assert whole.relative_error == pytest.approx(
        np.linalg.norm(a.astype(float) - b) / np.linalg.norm(a.astype(float)), rel=1e-12
    )
    monkeypatch.setattr(weight_difference, "_NUMBERS_AT_ONCE", 7)
    assert distance(a, b) == pytest.approx(whole)
    assert distance(np.zeros(3), np.zeros(3)) == (0, 0)
    assert distance(np.zeros(3), np.ones(3)) == (1, np.inf)
    assert np.isnan(distance(np.array([np.inf, 1.0]), np.array([np.inf, 1.0])).largest)


def test_keys_of_a_config_are_escaped(tmp_path):
    a = folder(tmp_path / "a", {"m.q": random_packed()})
    b = folder(tmp_path / "b", {"m.q": random_packed()})
    config = json.loads((b / "config.json").read_text()) | {"\x1b[2J\ud800": 1, "hidden": "\x1b"}
    (b / "config.json").write_text(json.dumps(config))
    found = diff(a, b)
    assert found.config["key"].tolist() == ["\\u001b[2J\\ud800", "hidden"]
    assert json.dumps(found.as_dict()) and "\x1b" not in str(found)


def test_pages_are_escaped(tmp_path):
    a = folder(tmp_path / "a<i>", {"m.q": random_packed()})
    page = diff(open_checkpoint(a), a)._repr_html_()
    assert "a&lt;i&gt;" in page and "the same numbers" in page
