"""The card: a verdict first, then reasons with numbers and a fix, for every kind of folder."""

import json
import math
import re
import struct

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import save_tiny_model
from typer.testing import CliRunner

import awqbench.cli.doctor  # noqa: F401 (registers the command)
from awqbench.cli.app import FAILED, app
from awqbench.errors import FormatError, ParameterError, StatisticsError
from awqbench.formats.checkpoint import open_checkpoint
from awqbench.formats.headers import DTYPES
from awqbench.inspect.doctor import CARE, NO, NOTE, doctor, resources, versions
from awqbench.inspect.doctor.alignment import alignment_findings
from awqbench.inspect.doctor.resources import Needs, Room, resource_findings
from awqbench.inspect.doctor.versions import Versions, is_older, version_findings
from awqbench.quantize.calibrate import calibrate
from awqbench.quantize.job import quantize
from awqbench.quantize.run.memory import statistics_bytes
from awqbench.quantize.statistics.collect import Sketching

QWEN2_72B = {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "hidden_size": 8192,
    "intermediate_size": 29568,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "vocab_size": 152064,
    "tie_word_embeddings": False,
    "transformers_version": "4.40.1",
}


def qwen2_shapes(config):
    """Return every tensor of a Qwen2 model by name."""
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    keys = hidden // config["num_attention_heads"] * config["num_key_value_heads"]
    shapes = {"model.embed_tokens.weight": (config["vocab_size"], hidden)}
    for i in range(config["num_hidden_layers"]):
        block = f"model.layers.{i}"
        for name, out in (("q", hidden), ("k", keys), ("v", keys)):
            shapes[f"{block}.self_attn.{name}_proj.weight"] = (out, hidden)
            shapes[f"{block}.self_attn.{name}_proj.bias"] = (out,)
        shapes[f"{block}.self_attn.o_proj.weight"] = (hidden, hidden)
        for name in ("gate", "up"):
            shapes[f"{block}.mlp.{name}_proj.weight"] = (inner, hidden)
        shapes[f"{block}.mlp.down_proj.weight"] = (hidden, inner)
        for name in ("input", "post_attention"):
            shapes[f"{block}.{name}_layernorm.weight"] = (hidden,)
    head = (config["vocab_size"], hidden)
    return shapes | {"model.norm.weight": (hidden,), "lm_head.weight": head}


def write_headers(folder, config, shapes, dtype="BF16"):
    """Write a folder whose one file has the header of a model and a hole for its data."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    header, at = {}, 0
    for name, shape in shapes.items():
        size = math.prod(shape) * DTYPES[dtype][0]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as out:
        out.write(struct.pack("<Q", len(text)) + text)
        out.truncate(8 + len(text) + at)
    return folder


@pytest.fixture
def roomy(monkeypatch):
    """Free memory and disk without end, so that a verdict is of the model alone."""
    room = Room(10**15, 10**15)
    monkeypatch.setattr("awqbench.inspect.doctor.card.room_here", lambda folder: room)


@pytest.fixture
def tiny(tmp_path):
    """A small bfloat16 model that every group size from 32 on divides."""
    return save_tiny_model("qwen3", tmp_path / "model", dtype="bfloat16")


def edit_weight(folder, name, change):
    """Change one tensor of a folder in place."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors[name])
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def subjects(report, severity):
    return [finding.subject for finding in report.findings if finding.severity == severity]


def of_subject(report, subject):
    return next(finding for finding in report.findings if finding.subject == subject)


def test_72_billion_parameters_from_headers_alone(tmp_path, roomy):
    report = doctor(write_headers(tmp_path / "m", QWEN2_72B, qwen2_shapes(QWEN2_72B)), scan=False)
    assert report.verdict == "with care" and not report.is_no
    assert report.facts["parameters"] == 72_706_203_648
    assert report.facts["linears"] == 560
    assert report.facts["undivided"] == {"128": 0, "64": 0, "32": 0}
    assert "80 blocks of 1 kind" in report.facts["card"]["architecture"]
    fits = report.table[report.table["engine"] == "vllm"]
    fits = {(row.group_size, row.tp_size) for row in fits.itertuples() if row.fits}
    assert fits == {(128, 1), (64, 1), (64, 2), (32, 1), (32, 2), (32, 4)}
    finding = of_subject(report, "tensor parallel")
    assert "29568 / 8 = 3696" in finding.sentence and "29696" in finding.fix
    # H of q, o and gate in full, of down_proj in a sketch, for two blocks at a time.
    expected = 2 * (3 * statistics_bytes(8192, Sketching()) + statistics_bytes(29568, Sketching()))
    assert report.facts["disk"]["needed_bytes"]["statistics"] == expected
    assert 8e9 < max(report.facts["memory"]["needed_bytes"].values()) < 24e9


def test_the_result_is_predicted_to_the_byte(tiny, tmp_path):
    tokens = torch.randint(0, 64, (2, 16), generator=torch.Generator().manual_seed(0)).numpy()
    report = doctor(tiny, group_sizes=(32,), scan=False)
    quantize(tiny, tmp_path / "q", tokens=tokens, group_size=32)
    disk = report.facts["disk"]["needed_bytes"]
    assert disk["result"] == open_checkpoint(tmp_path / "q").nbytes


def test_the_statistics_are_predicted(tiny, tmp_path):
    tokens = torch.randint(0, 64, (2, 16), generator=torch.Generator().manual_seed(0)).numpy()
    calibrate(tiny, tokens, tmp_path / "s")
    written = sum(file.stat().st_size for file in (tmp_path / "s").glob("block-*"))
    predicted = doctor(tiny, scan=False).facts["disk"]["needed_bytes"]["statistics"]
    assert predicted == pytest.approx(written, rel=0.25)  # headers weigh much in small files


def test_a_healthy_model_gets_a_yes(tiny, roomy):
    report = doctor(tiny, (1,), (32,))
    assert report.verdict == "yes" and subjects(report, NO) == subjects(report, CARE) == []
    assert str(report).startswith(f"yes: {tiny.name} can be quantized (14 linears, group size 32)")
    assert len(report.health) == len(open_checkpoint(tiny).tensors)


def test_headers_alone_are_read_without_scan(tiny, monkeypatch, roomy):
    monkeypatch.setattr("awqbench.inspect.health.scan.look_at_window", None)
    assert doctor(tiny, (1,), (32,), scan=False).health is None


def test_nan_is_a_no(tiny, roomy):
    name = "model.layers.1.mlp.up_proj.weight"
    edit_weight(tiny, name, lambda tensor: tensor[3, 4:6].fill_(torch.nan))
    report = doctor(tiny, (1,), (32,))
    assert report.is_no and "2 weights are NaN" in report.sentence and name in report.sentence
    assert report.findings[0].severity == NO and "convert it again" in report.findings[0].fix


def test_what_float16_would_lose_is_counted(tiny, roomy):
    name = "model.layers.0.mlp.gate_proj.weight"

    def plant(tensor):
        tensor[0] = 1e-9
        tensor[1, 0] = 7e4

    edit_weight(tiny, name, plant)
    report = doctor(tiny, (1,), (32,))
    sentences = " ".join(finding.sentence for finding in report.findings)
    assert report.verdict == "with care"
    assert "1 weights are above float16's 65504" in sentences and "7.014e+04" in sentences
    groups = open_checkpoint(tiny).tensors[name].shape[1] // 32
    assert f"would make {groups} groups all zero" in sentences
    assert f"({groups} of" in sentences


@pytest.mark.parametrize(
    ("sizes", "severities", "fix"),
    [
        ((64, 32), [CARE], "--group-size 32"),
        ((32, 64), [NOTE], "--group-size 32"),
        ((128, 64), [NO, NO], "--group-size 32"),
        ((16,), [], ""),
    ],
)
def test_alignment_names_linears_and_the_size_that_fits(sizes, severities, fix):
    linears = {f"layers.{i}.down": (64, 96) for i in range(3)} | {"layers.0.up": (96, 128)}
    found = list(alignment_findings(linears, sizes))
    assert [finding.severity for finding in found] == severities
    for finding in found:
        assert fix in finding.fix
        assert "3 of 4 linears: layers.*.down (3 times, in_features 96" in finding.sentence


def test_outputs_that_fill_no_word_are_named():
    found = list(alignment_findings({"a.up": (12, 64)}, (32,)))
    assert found[0].severity == NO and "a.up" in found[0].sentence


def test_a_quantized_folder_is_refused_with_ways_out(tiny, tmp_path):
    tokens = torch.randint(0, 64, (2, 16), generator=torch.Generator().manual_seed(0)).numpy()
    quantize(tiny, tmp_path / "q", tokens=tokens, group_size=32)
    report = doctor(tmp_path / "q")
    assert report.is_no and "already quantized (awq-gemm, 4 bits, group size 32)" in report.sentence
    assert all(w in report.findings[0].fix for w in ("original", "convert", "load_quantized"))
    assert set(report.table["group_size"]) == {32}
    assert report.to_dict()["facts"]["quantization"]["bits"] == 4


def test_a_gguf_file_gets_a_card(tmp_path):
    file = tmp_path / "model.gguf"
    file.write_bytes(b"GGUF" + bytes(100))
    report = doctor(file)
    assert report.is_no and "gguf" in report.sentence
    assert "llama.cpp" in report.findings[0].fix and len(report.table) == 0
    assert "104 bytes" in str(report)


def test_pickles_are_a_named_error(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(FormatError, match=r"pickles.*save_pretrained"):
        doctor(tmp_path)


def test_an_unknown_architecture_is_a_no(tmp_path, roomy):
    config = QWEN2_72B | {"model_type": "nobodys_model", "num_hidden_layers": 2}
    report = doctor(write_headers(tmp_path / "m", config, qwen2_shapes(config)), scan=False)
    assert report.is_no and "nobodys_model" in report.sentence
    assert "pip install -U transformers" in report.findings[0].fix
    assert len(report.table)  # told by its keys all the same


def test_an_architecture_whose_linears_cannot_be_listed(tmp_path, roomy):
    config = {"model_type": "nobodys_model"}
    shapes = {"a.0.weight": (64, 96), "embed.weight": (10, 64)}
    report = doctor(write_headers(tmp_path / "m", config, shapes), scan=False)
    assert report.is_no and len(report.table) == 0
    assert of_subject(report, "tensor parallel").severity == NOTE
    assert "a.* (1 times" in str(report)


def test_tensors_that_are_missing_are_a_no(tiny, roomy):
    tensors = load_file(tiny / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, tiny / "model.safetensors", metadata={"format": "pt"})
    report = doctor(tiny, (1,), (32,), scan=False)
    assert report.is_no and "model.layers.*.mlp.up_proj.weight (1)" in report.sentence


@pytest.mark.parametrize(("free", "severity"), [(100, NO), (149, NO), (160, CARE), (200, None)])
def test_needs_are_compared_with_what_is_free(free, severity):
    needs = Needs({"search": 150 * 10**9, "calibration": 10**9}, {"result": 10**9})
    found = list(resource_findings(needs, Room(free * 10**9, 10**15)))
    assert [finding.severity for finding in found] == ([severity] if severity else [])
    for finding in found:
        assert finding.subject == "memory" and "150.0 GB" in finding.sentence
        assert f"{free}.0 GB are free" in finding.sentence and "search" in finding.sentence


def test_too_little_room_is_a_no(tiny, monkeypatch):
    monkeypatch.setattr(
        "awqbench.inspect.doctor.card.room_here", lambda folder: Room(10**15, 10**5)
    )
    report = doctor(tiny, (1,), (32,), scan=False)
    assert report.is_no and "of disk" in report.sentence


def test_versions_are_compared_as_versions():
    assert is_older("4.9.0", "4.51.0") and not is_older("4.51.0", "4.9.0")
    assert is_older("4.51.0.dev0", "4.51.0") and not is_older("5.0.0", "4.51.0")
    assert not is_older("nonsense", "4.51.0") and not is_older("", "4.51.0")
    old = list(version_findings(Versions("4.9.0", "4.51.0", "4.52.0")))
    assert [f.severity for f in old] == [CARE] and ">=4.51.0" in old[0].fix
    assert [f.severity for f in version_findings(Versions("4.51.3", "4.51.0", "4.52.0"))] == [NOTE]
    assert not list(version_findings(Versions("5.1.0", "4.51.0", "5.0.0")))


def test_an_old_transformers_is_on_the_card(tiny, monkeypatch, roomy):
    monkeypatch.setattr(versions.metadata, "version", lambda name: "4.9.0")
    finding = of_subject(doctor(tiny, (1,), (32,), scan=False), "versions")
    assert "4.9.0 is installed" in finding.sentence and "4.51.0" in finding.fix


def test_one_block_is_timed(tiny, monkeypatch, roomy):
    for name in ("awqbench.inspect.doctor.timing.BATCH_SIZE", f"{resources.__name__}.BATCH_SIZE"):
        monkeypatch.setattr(name, 1)
    monkeypatch.setattr("awqbench.inspect.doctor.timing.SEQ_LEN", 16)
    facts = doctor(tiny, (1,), (32,), scan=False, timing=True).facts
    time = facts["time"]
    assert (time["n_blocks"], time["n_kinds"], time["n_batches"]) == (2, 1, 128)
    one = 2 * time["load_s"] + 128 * time["batch_s"] + time["search_s"]
    assert time["total_s"] == pytest.approx(2 * one + time["trace_s"])
    assert all(time[key] > 0 for key in ("load_s", "trace_s", "batch_s", "search_s"))


def test_activations_are_on_the_card(tiny, tmp_path, roomy):
    tokens = torch.randint(0, 64, (2, 16), generator=torch.Generator().manual_seed(0)).numpy()
    stats = calibrate(tiny, tokens, tmp_path / "s")
    report = doctor(tiny, (1,), (32,), scan=False, stats=stats)
    assert report.facts["activations"] == {"safe in fp16": 2}
    assert "all 2 layers are safe in float16" in of_subject(report, "activations").sentence
    other = save_tiny_model("qwen3", tmp_path / "other", dtype="float32")
    with pytest.raises(StatisticsError, match="another model"):
        doctor(other, (1,), (32,), scan=False, stats=stats)


@pytest.mark.parametrize("sizes", [{"tp_sizes": (0,)}, {"group_sizes": ()}, {"tp_sizes": (1.5,)}])
def test_sizes_must_be_whole_numbers(tiny, sizes):
    with pytest.raises(ParameterError, match="whole numbers"):
        doctor(tiny, **sizes, scan=False)


def test_the_worst_reason_comes_first(tiny, roomy):
    edit_weight(
        tiny, "model.layers.0.mlp.up_proj.weight", lambda tensor: tensor[0].fill_(torch.inf)
    )
    report = doctor(tiny, (1, 2, 4, 8), (128, 32))
    order = [NO, CARE, NOTE]
    ranks = [order.index(finding.severity) for finding in report.findings]
    assert ranks == sorted(ranks) and ranks[0] == 0
    text = str(report).splitlines()
    assert text[0].startswith("no: ") and all(len(line) <= 100 for line in text)


def test_html_escapes_names_and_has_no_fixed_background(tmp_path, roomy):
    config = QWEN2_72B | {"num_hidden_layers": 1, "architectures": ["<script>x</script>"]}
    folder = write_headers(tmp_path / "<b>m", config, qwen2_shapes(config))
    html = doctor(folder, scan=False)._repr_html_()
    assert "<script>" not in html and "&lt;b&gt;m" in html
    assert "with care</b>" in html and "background" not in html
    assert not re.search(r"color:\s*(black|white|#000|#fff)", html)


def test_the_command_prints_a_card_and_fails_on_a_no(tiny, tmp_path, monkeypatch, roomy):
    call = CliRunner().invoke
    arguments = ["doctor", str(tiny), "--no-scan", "--tp", "1", "--group-size", "32"]
    done = call(app, arguments)
    assert done.exit_code == 0 and done.stdout.startswith("yes: ")
    done = call(app, [*arguments, "--json"])
    found = json.loads(done.stdout)
    assert found["verdict"] == "yes" and found["facts"]["linears"] == 14
    assert {row["engine"] for row in found["tensor_parallel"]} >= {"vllm", "cpu"}
    file = tmp_path / "model.gguf"
    file.write_bytes(b"GGUF" + bytes(100))
    assert call(app, ["doctor", str(file)]).exit_code == FAILED
    wrong = call(app, ["doctor", str(tiny), "--tp", "1,x"])
    assert isinstance(wrong.exception, ParameterError)
