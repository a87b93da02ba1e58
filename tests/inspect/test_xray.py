"""An X-ray counts what the slow way counts, and says what is wrong and where."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from tiny_models import save_tiny_model

from awqbench import cli
from awqbench.errors import FormatError
from awqbench.formats.checkpoint import open_checkpoint
from awqbench.formats.convert import convert
from awqbench.formats.layouts.awq import quantization_config
from awqbench.formats.layouts.table import write_linear
from awqbench.formats.writer import CheckpointWriter
from awqbench.inspect.folders import packed_figures
from awqbench.inspect.folders.packed_figures import COLUMNS, code_figures, linear_figures
from awqbench.inspect.folders.rewrite import compare_layouts, rewrite
from awqbench.inspect.folders.tensor_kinds import KINDS, tensor_kind
from awqbench.inspect.folders.words import first_words
from awqbench.inspect.folders.xray import xray
from awqbench.packed import PackedWeight, quantize_weight

DATA = Path(__file__).resolve().parents[1] / "data"
AWQ = DATA / "autoawq_gemm_qwen3_g32_bf16"
MODELS = DATA / "conformance" / "model"
MIXED = MODELS / "gptqmodel_gptq_v1_dynamic_qwen3"
# A wider collection may lie beside the repository; these tests stand without it.
WIDER = Path(__file__).resolve().parents[2].parent / "shared" / "conformance" / "model"
FOLDERS = sorted(path for path in WIDER.glob("*") if path.is_dir()) or [
    AWQ,
    *sorted(MODELS.iterdir()),
]
FROM_HEADERS = ("bits", "group_size", "out_features", "in_features", "groups", "weight_bytes")


def random_packed(*, bits=4, n=32, k=128, group_size=32, seed=0, name="l", **kwargs):
    weight = np.random.default_rng(seed).standard_normal((n, k)).astype(np.float32)
    kwargs = {"scale_dtype": "float16", "name": name} | kwargs
    return quantize_weight(weight, bits, group_size, **kwargs)


def folder_of(out, tensors, section, **config):
    with CheckpointWriter(out) as writer:
        for name, tensor in tensors.items():
            writer.add(name, tensor)
        return writer.finish({"model_type": "llama", "quantization_config": section} | config)


def awq_folder(out, *weights, **dense):
    """Write packed linears in AWQ's layout as they are, with scales that may be NaN."""
    tensors = {}
    for packed in weights:
        finite = dataclasses.replace(packed, scales=np.ones_like(packed.scales))
        parts = write_linear("awq-gemm", finite)
        parts["scales"] = torch.from_numpy(packed.scales.T.astype(np.float16).copy())
        tensors |= {f"{packed.name}.{part}": tensor for part, tensor in parts.items()}
    section = quantization_config(
        bits=4, group_size=weights[0].group_size, modules_to_not_convert=None
    )
    return folder_of(out, tensors | dense, section)


def slow_figures(packed):
    """Count group by group in plain Python."""
    index, group_levels, dead = packed.group_index(), 0, 0
    for row in range(packed.out_features):
        for group in range(packed.n_groups):
            codes = packed.codes[row, index == group].tolist()
            group_levels += len(set(codes))
            dead += bool(codes) and set(codes) == {int(packed.zeros[row, group])}
    levels = [int((packed.codes == level).sum()) for level in range(1 << packed.bits)]
    return levels, group_levels, dead


@st.composite
def any_packed(draw):
    bits, n = draw(st.sampled_from([2, 3, 4, 8])), draw(st.integers(1, 5))
    k, group_size = draw(st.integers(1, 40)), draw(st.integers(1, 12))
    n_groups = -(-k // group_size)
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    high = draw(st.integers(1, 1 << bits))  # few levels make dead groups likely
    g_idx = rng.integers(0, n_groups, k).astype(np.int32) if draw(st.booleans()) else None
    return PackedWeight(
        codes=rng.integers(0, high, (n, k)).astype(np.uint8),
        scales=np.ones((n, n_groups), np.float32),
        zeros=rng.integers(0, high, (n, n_groups)).astype(np.uint8),
        bits=bits,
        group_size=group_size,
        g_idx=g_idx,
    )


@settings(max_examples=60, deadline=None)
@given(packed=any_packed())
def test_counts_are_those_of_the_slow_way(packed):
    found = code_figures(packed)
    levels, group_levels, dead = slow_figures(packed)
    assert found.level_counts.tolist() == levels
    assert (found.group_levels, found.dead_groups) == (group_levels, dead)


def test_rows_at_once_do_not_matter(monkeypatch):
    packed = random_packed(n=40)
    whole = code_figures(packed)
    monkeypatch.setattr(packed_figures, "_CODES_AT_ONCE", 300)
    parts = code_figures(packed)
    assert parts.level_counts.tolist() == whole.level_counts.tolist()
    assert parts[1:] == whole[1:]


def test_a_zero_point_beyond_the_levels_is_not_dead():
    codes, ones = np.full((1, 4), 15, np.uint8), np.ones((1, 1), np.float32)
    packed = PackedWeight(codes, ones, np.full((1, 1), 16, np.uint8), bits=4, group_size=4)
    assert code_figures(packed).dead_groups == 0


def test_figures_of_scales():
    packed = random_packed()
    scales = packed.scales.copy()
    scales[3, 1], scales[5, 0], scales[7, 2] = np.nan, np.inf, 0
    scales[8, :2] = 2.0**-15, -(2.0**-20)
    row = linear_figures(dataclasses.replace(packed, scales=scales))
    assert (row["nonfinite_scales"], row["nonfinite_at"]) == (2, "row 3, group 1")
    assert (row["zero_scales"], row["subnormal_scales"]) == (1, 2)
    assert row["scale_min"] == -(2.0**-20) and row["scale_max"] == packed.scales.max()
    wide = linear_figures(dataclasses.replace(packed, scales=scales, scale_dtype="bfloat16"))
    assert wide["subnormal_scales"] == 0
    nothing = linear_figures(dataclasses.replace(packed, scales=np.full_like(scales, np.nan)))
    assert np.isnan(nothing["scale_min"]) and nothing["nonfinite_scales"] == scales.size


def test_figures_of_zero_points():
    packed = random_packed()
    zeros = np.clip(packed.zeros, 1, 14)
    zeros[0, :3] = 0, 15, 15
    row = linear_figures(dataclasses.replace(packed, zeros=zeros))
    assert (row["zero_min"], row["zero_max"], row["zeros_at_limits"]) == (0, 15, 3)


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: path.name)
def test_headers_say_what_the_scan_finds(folder):
    seen, headers = xray(folder), xray(folder, scan=False)
    ckpt = open_checkpoint(folder)
    for column in FROM_HEADERS:
        assert headers.linears[column].equals(seen.linears[column]), column
    assert headers.linears["dead_groups"].isna().all() and len(headers.zero_points) == 0
    assert "headers only" in str(headers)
    assert not seen.is_bad and seen.linears["nonfinite_scales"].sum() == 0
    assert list(seen.linears) == list(COLUMNS)
    assert seen.zero_points["groups"].sum() == seen.linears["groups"].sum()
    assert seen.linears["name"].tolist() == ckpt.quantized_linears()


@pytest.mark.parametrize(
    ("file", "version"),
    [
        ("gemv_k96_n96_g32", "gemv"),
        ("gemv_fast_k256_n64_g64", "gemv_fast"),
        ("marlin_k256_n64_g64", "marlin"),
    ],
)
def test_headers_of_the_rarer_awq_layouts(tmp_path, file, version):
    tensors = load_file(DATA / "awq_variants" / f"{file}.safetensors")
    parts = {
        f"m.q.{part}": tensors[part] for part in ("qweight", "qzeros", "scales") if part in tensors
    }
    group_size = int(file.rpartition("g")[2])
    section = {"quant_method": "awq", "bits": 4, "group_size": group_size, "version": version}
    section["zero_point"] = version != "marlin"
    folder = folder_of(tmp_path / "x", parts, section)
    seen, headers = xray(folder).linears, xray(folder, scan=False).linears
    assert seen["levels_used"].notna().all() and len(seen) == 1
    for column in FROM_HEADERS:
        assert headers[column].equals(seen[column]), column


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: path.name)
def test_every_byte_has_a_kind(folder):
    ckpt = open_checkpoint(folder)
    found = xray(ckpt, scan=False)
    table = found.bytes_by_kind
    assert table["weight_bytes"].sum() == ckpt.nbytes == found.summary.total_bytes
    assert table["tensors"].sum() == len(ckpt.tensors)
    assert table["share"].sum() == pytest.approx(1)
    packed = table[table["kind"].isin(["codes", "scales", "zero points", "g_idx"])]
    shapes = [name for name in ckpt.tensors if name.endswith("weight_shape")]
    rest = sum(ckpt.tensors[name].nbytes for name in shapes)
    assert packed["weight_bytes"].sum() + rest == found.summary.linear_bytes


def test_the_facts_of_a_known_folder():
    found = xray(AWQ)
    facts = found.summary
    assert (facts.method, facts.layout, facts.bits, facts.group_size) == ("awq", "awq-gemm", 4, 32)
    assert facts.linears == 14
    assert facts.bits_per_weight == 4 + 20 / 32  # 16 bits of scale and 4 of zero point a group
    kinds = found.bytes_by_kind.set_index("kind")["weight_bytes"].to_dict()
    assert kinds["codes"] == 8 * kinds["scales"] == 32 * kinds["zero points"]
    assert found.skipped == () and found.zero_points["value"].tolist() == list(range(16))
    assert [finding.level for finding in found.verdict] == ["note"]
    assert found.verdict[0].sentence.startswith("nothing wrong in 14 linears")


def test_mixed_widths_and_what_was_skipped():
    found = xray(MIXED)
    assert found.skipped == ("model.layers.1.self_attn.o_proj",)
    text = str(found)
    assert "7 of 4 bits, 6 of 8 bits" in text
    assert "in full precision: model.layers.1.self_attn.o_proj" in text
    assert found.zero_points.groupby("bits")["groups"].sum().index.tolist() == [4, 8]
    assert found.zero_points.query("groups > 0")["value"].tolist() == [8, 128]


def test_scales_that_are_nan_are_bad(tmp_path):
    fine, broken = random_packed(name="m.q"), random_packed(name="m.k", seed=1)
    broken.scales[4, 2], broken.scales[9, 0] = np.nan, np.inf
    found = xray(awq_folder(tmp_path / "x", fine, broken))
    assert found.is_bad and found.verdict[0].level == "bad"
    assert found.verdict[0].sentence.startswith(
        "2 of 256 scales are NaN or infinite, in 1 linear; first m.k, row 4, group 2:"
    )


def test_dead_groups_zero_and_small_scales_are_warned_of(tmp_path):
    packed = random_packed(name="m.q")
    packed.codes[:3, :32] = packed.zeros[:3, :1]
    packed.scales[5, 1] = 0
    packed.scales[6, :2] = 2.0**-20
    found = xray(awq_folder(tmp_path / "x", packed))
    assert not found.is_bad
    warnings = [f.sentence for f in found.verdict if f.level == "warning"]
    assert len(warnings) == 3
    assert warnings[0].startswith("1 of 128 scales are 0") and "m.q (1 of 128)" in warnings[0]
    assert warnings[1].startswith("2 of 128 scales are subnormal in float16")
    assert warnings[2].startswith("3 of 128 groups are dead") and "m.q (3 of 128)" in warnings[2]
    assert not any("nothing wrong" in f.sentence for f in found.verdict)


def test_a_linear_of_zeros_is_bad(tmp_path):
    packed = random_packed(name="m.q")
    packed.codes[:] = packed.zeros.repeat(32, axis=1)
    found = xray(awq_folder(tmp_path / "x", packed))
    assert found.is_bad
    assert "all weights of 1 linear decode to 0, such as m.q" in str(found)
    assert not any("groups are dead" in f.sentence for f in found.verdict)


def test_the_worst_comes_first(tmp_path):
    dead, zero = random_packed(name="m.q"), random_packed(name="m.k", seed=1)
    dead.codes[:] = dead.zeros.repeat(32, axis=1)
    zero.scales[0, 0] = 0
    weight = torch.ones(8, 8)
    found = xray(awq_folder(tmp_path / "x", dead, zero, **{"m.v.weight": weight}))
    levels = [finding.level for finding in found.verdict]
    assert levels[:2] == ["bad", "warning"] and set(levels[2:]) == {"note"}
    assert found.skipped == ("m.v",)


def test_unused_levels_and_zero_points_at_the_limit_are_noted(tmp_path):
    packed = random_packed(name="m.q")
    packed.codes[packed.codes < 2] = 2
    packed.zeros[:4] = 0
    found = xray(awq_folder(tmp_path / "x", packed))
    row = found.linears.iloc[0]
    assert (row["levels_used"], row["wasted_levels"]) == (14, 2)
    assert "most m.q, 2 of 16" in str(found)
    assert row["zeros_at_limits"] >= 16 and "have one sign; most in m.q" in str(found)


def test_a_linear_that_cannot_be_read_is_a_finding(tmp_path):
    folder = awq_folder(tmp_path / "x", random_packed(name="m.q"), random_packed(name="m.k"))
    ckpt = open_checkpoint(folder)
    tensors = {name: ckpt.read(name) for name in ckpt.tensors if name != "m.k.scales"}
    broken = folder_of(tmp_path / "broken", tensors, ckpt.config["quantization_config"])
    found = xray(broken)
    assert found.is_bad and str(found.verdict[0]).startswith("bad: m.k cannot be read: ")
    assert found.linears["levels_used"].notna().tolist() == [False, True]
    assert json.loads(json.dumps(found.as_dict()))["linears"][0]["levels_used"] is None


def test_activation_order_is_noted(tmp_path):
    packed = dataclasses.replace(
        random_packed(), g_idx=np.random.default_rng(1).permutation(128).astype(np.int32) // 32
    )
    section = {"quant_method": "gptq", "bits": 4, "group_size": 32, "checkpoint_format": "gptq_v2"}
    tensors = {f"m.q.{part}": t for part, t in write_linear("gptq-v2", packed).items()}
    found = xray(folder_of(tmp_path / "x", tensors, section))
    assert found.linears["act_order"].tolist() == [True]
    assert "1 linear is in activation order" in str(found)
    assert "g_idx" in found.bytes_by_kind["kind"].tolist()


def test_a_full_precision_folder(tmp_path):
    found = xray(save_tiny_model("llama", tmp_path / "dense"))
    assert found.summary.method is None and found.summary.what == "full precision, float32"
    assert len(found.linears) == 0 and found.skipped == () and not found.is_bad
    assert "not quantized" in str(found)
    kinds = set(found.bytes_by_kind["kind"])
    assert kinds == {"embeddings", "norms", "dense linears", "biases", "lm_head"}


def test_methods_that_are_only_recognised(tmp_path):
    tensors = {"l.q.weight": torch.zeros(8, 8, dtype=torch.int8), "l.q.SCB": torch.ones(8)}
    folder = folder_of(tmp_path / "x", tensors, {"quant_method": "bitsandbytes"})
    found = xray(folder)
    assert "recognised only" in found.summary.what and not found.is_bad
    assert "package bitsandbytes" in found.verdict[0].sentence
    assert found.bytes_by_kind.set_index("kind")["weight_bytes"].to_dict() == {
        "codes": 64,
        "scales": 32,
    }
    (tmp_path / "m.gguf").write_bytes(b"GGUF" + bytes(20))
    gguf = xray(tmp_path / "m.gguf")
    assert gguf.summary.total_bytes == 24 and "llama.cpp" in str(gguf)
    json.dumps(gguf.as_dict())


def test_terminal_codes_of_a_config_are_not_printed(tmp_path):
    section = {"quant_method": "\x1b[2J\ud800"}
    found = xray(folder_of(tmp_path / "x", {"w": torch.zeros(2)}, section))
    assert "\x1b" not in str(found) and str(found).encode() and json.dumps(found.as_dict())


def test_what_is_no_folder_is_refused(tmp_path):
    with pytest.raises(FormatError, match="not a model folder"):
        xray(tmp_path)


@pytest.mark.parametrize(
    ("name", "shape", "kind"),
    [
        ("model.embed_tokens.weight", (8, 4), "embeddings"),
        ("transformer.wte.weight", (8, 4), "embeddings"),
        ("lm_head.weight", (8, 4), "lm_head"),
        ("transformer.output_layer.weight", (8, 4), "lm_head"),
        ("model.layers.0.input_layernorm.weight", (4,), "norms"),
        ("transformer.h.0.ln_1.bias", (4,), "norms"),
        ("model.layers.0.self_attn.q_proj.bias", (4,), "biases"),
        ("model.layers.0.mlp.up_proj.weight", (8, 4), "dense linears"),
        ("model.layers.0.mlp.experts.gate_up_proj", (2, 8, 4), "dense linears"),
        ("model.rotary.inv_freq", (4,), "other"),
    ],
)
def test_kinds_by_name(tmp_path, name, shape, kind):
    folder = folder_of(tmp_path / "x", {name: torch.zeros(shape)}, None)
    assert tensor_kind(open_checkpoint(folder), name) == kind
    assert kind in KINDS


def test_text_and_page_are_short_and_escaped(tmp_path):
    folder = awq_folder(tmp_path / "a<b>", random_packed(name="m.q"))
    found = xray(folder)
    page = found._repr_html_()
    assert "a&lt;b&gt;" in page and "<b>note</b>" in page and "a<b>" not in page
    assert repr(found) == str(found)
    assert len(str(found).splitlines()) < 20 and max(map(len, str(found).splitlines())) < 300


def test_words_are_what_the_layouts_say(tmp_path):
    layouts = ["awq-gemm", "awq-gemv", "gptq", "gptq-v2", "compressed-tensors"]
    folders = [convert(AWQ, tmp_path / name, name).out for name in layouts]
    module = open_checkpoint(AWQ).quantized_linears()[0]
    words = first_words(folders, module).set_index("layout")
    codes = open_checkpoint(AWQ).linear(module).codes
    assert words.loc["awq-gemm", "rows"] == "0 2 4 6 1 3 5 7"
    assert words.loc["awq-gemm", "columns"] == "0"
    for name in layouts[1:]:
        assert (words.loc[name, "rows"], words.loc[name, "columns"]) == ("0", "0 1 2 3 4 5 6 7")
        assert words.loc[name, "codes"] == " ".join(map(str, codes[0, :8]))
        assert words.loc[name, "word"] == "0x" + "".join(f"{c:x}" for c in codes[0, 7::-1])
    chatglm = MODELS / "chatglm2_int4"
    name = open_checkpoint(chatglm).quantized_linears()[0]
    word = first_words([chatglm], name).iloc[0]
    assert word["columns"] == "1 0" and word["word"].startswith("0x") and len(word["word"]) == 4
    with pytest.raises(FormatError, match="no packed linear lm_head"):
        first_words([AWQ], "lm_head")


def test_one_folder_in_many_layouts(tmp_path):
    layouts = ["gptq", "gptq-v2", "awq-gemm", "chatglm"]
    done = rewrite(AWQ, tmp_path, layouts)
    assert list(done.folders) == ["awq-gemm", "gptq", "gptq-v2"]
    assert done.folders["awq-gemm"] == AWQ and "only ChatGLM" in done.refused["chatglm"]
    table = compare_layouts(done.folders)
    assert (table[["same_codes", "same_scales", "same_zeros"]] == 14).all(axis=None)
    for row in table.itertuples():
        assert row.weight_bytes == open_checkpoint(done.folders[row.layout]).nbytes
    assert table["more_bytes"].min() == 0 and table["more_bytes"].max() > 0
    other = compare_layouts({"a": AWQ, "b": MODELS / "llmc_awq_w4a16_asym_qwen2"})
    assert other["same_codes"].tolist() == [14, 0]
    with pytest.raises(FormatError, match="not quantized"):
        rewrite("tiny", tmp_path, layouts)


def run(capsys, monkeypatch, *arguments):
    """Run the command line; returns exit status and standard output."""
    monkeypatch.setattr("sys.argv", ["awqbench", "inspect", *map(str, arguments)])
    with pytest.raises(SystemExit) as done:
        cli.main()
    output = capsys.readouterr()
    return done.value.code, output.out or output.err


@pytest.fixture
def command(capsys, monkeypatch):
    import awqbench.cli.inspect  # noqa: F401

    return lambda *arguments: run(capsys, monkeypatch, *arguments)


def test_the_command(tmp_path, command):
    code, text = command(AWQ)
    assert code == 0 and text.startswith("autoawq_gemm_qwen3_g32_bf16: awq-gemm, 4 bits")
    code, text = command(AWQ, "--json", "--no-scan")
    assert code == 0 and json.loads(text)["summary"]["linears"] == 14
    packed = random_packed(name="m.q")
    packed.scales[0, 0] = np.nan
    code, text = command(awq_folder(tmp_path / "x", packed))
    assert code == 1 and "bad: 1 of 128 scales" in text
    code, text = command(tmp_path / "none")
    assert code == 2


def test_the_command_compares(tmp_path, command):
    other = convert(AWQ, tmp_path / "v2", "gptq-v2").out
    code, text = command(AWQ, other)
    assert code == 0 and "the same numbers in another layout (awq-gemm, gptq-v2)" in text
    code, text = command(AWQ, MODELS / "llmc_awq_w4a16_asym_qwen2", "--json")
    assert code == 1 and json.loads(text)["is_same"] is False
    code, text = command(AWQ, other, "--no-scan")
    assert code == 2 and "--no-scan" in text
