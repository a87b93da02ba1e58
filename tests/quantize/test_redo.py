"""Chosen blocks of a finished folder once more: equal to a run that had their settings at once."""

import json

import numpy as np
import pytest
from tiny_models import VOCABULARY, save_tiny_model

import awqbench as ab
from awqbench.errors import FormatError, ParameterError, ResumeError
from awqbench.quantize.redo import redo

TOKENS = np.random.default_rng(0).integers(0, VOCABULARY, (12, 24))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny_model("qwen3", tmp_path_factory.mktemp("qwen3"), dtype="bfloat16")


@pytest.mark.parametrize("kept", [True, False])
@pytest.mark.parametrize("single", [True, False])
def test_a_block_gets_other_groups(folder, tmp_path, kept, single, monkeypatch):
    if not single:
        monkeypatch.setattr("awqbench.quantize.run.publish.SINGLE_FILE_BYTES", 1000)
    common = {"group_size": 32, "layout": "gptq-v2"}
    stats = tmp_path / "stats"
    ab.quantize(folder, tmp_path / "out", tokens=TOKENS, keep_stats=stats, **common)
    source = {"stats": stats} if kept else {"tokens": TOKENS}
    record = redo(folder, tmp_path / "out", ["model.layers.1"], **source, group_size=16)
    rules = [{"pattern": r"^model\.layers\.1\.", "group_size": 16}]
    ab.quantize(folder, tmp_path / "at_once", tokens=TOKENS, rules=rules, **common)
    for path in (tmp_path / "at_once").iterdir():
        if path.suffix == ".safetensors" or path.name == "config.json":
            assert path.read_bytes() == (tmp_path / "out" / path.name).read_bytes(), path.name
    assert record["redone"] == [{"blocks": ["model.layers.1"], "changes": {"group_size": 16}}]
    assert {row["group_size"] for row in record["linears"]} == {16, 32}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["at_once", "out", "stats"]


def test_another_rounding_needs_no_other_layout(folder, tmp_path):
    ab.quantize(folder, tmp_path / "out", tokens=TOKENS, group_size=32)
    before = json.loads((tmp_path / "out" / "awqbench_run.json").read_text())["linears"]
    record = redo(folder, tmp_path / "out", [0], tokens=TOKENS, rounding="gptq")
    for one, two in zip(before, record["linears"], strict=True):
        assert (one["output_error"] != two["output_error"]) == (one["block"] == "model.layers.0")


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"group_size": 16}, FormatError, "one group size and width for all"),
        ({"blocks": [7], "rounding": "gptq"}, ParameterError, "no block 7: .*model.layers.1"),
        ({"tokens": TOKENS % 7, "rounding": "gptq"}, ResumeError, "another text"),
    ],
)
def test_what_cannot_be_redone_is_refused_and_the_folder_stays(
    folder, tmp_path, arguments, error, text
):
    out = tmp_path / "out"
    ab.quantize(folder, out, tokens=TOKENS, group_size=32)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    with pytest.raises(error, match=text):
        redo(folder, out, **({"blocks": [1], "tokens": TOKENS} | arguments))
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_an_exchange_that_was_stopped_is_completed(folder, tmp_path, monkeypatch):
    from awqbench.quantize import redo as module

    out = tmp_path / "out"
    ab.quantize(folder, out, tokens=TOKENS, group_size=32)
    with monkeypatch.context() as patch:
        patch.setattr(module, "_finish_exchange", lambda out: None)
        redo(folder, out, [0], tokens=TOKENS, rounding="gptq")
    assert not out.exists()
    record = redo(folder, out, [1], tokens=TOKENS, rounding="gptq")
    assert [item["blocks"] for item in record["redone"]] == [["model.layers.0"], ["model.layers.1"]]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
