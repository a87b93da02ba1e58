"""What llama-bench writes becomes records, or says why not."""

import csv
import json

import pytest
from typer.testing import CliRunner

from awqbench.bench.record.files import read_machine_records
from awqbench.bench.record.llama_bench import import_llama_bench
from awqbench.bench.throughput import record_rows
from awqbench.cli import app
from awqbench.errors import FormatError, ParameterError

# Fields as in llama-bench's README; those that are not read are left out.
ROW = {
    "build_commit": "d73c1d6",
    "build_number": 4321,
    "cpu_info": "Neoverse-V1",
    "backends": "CPU",
    "model_type": "llama 8B Q4_K - Medium",
    "model_size": 4_912_898_048,
    "n_threads": 16,
    "n_gpu_layers": 99,
    "n_prompt": 0,
    "n_gen": 128,
    "n_depth": 0,
    "test_time": "2025-06-27T17:29:21Z",
    "avg_ns": 9_000_000_000,
    "stddev_ns": 10_000_000,
    "samples_ns": [8_900_000_000, 9_000_000_000, 9_200_000_000],
}


def test_json_lines_and_csv_say_the_same(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps([ROW]))
    (tmp_path / "a.jsonl").write_text(json.dumps(ROW) + "\n")
    plain = {name: value for name, value in ROW.items() if name != "samples_ns"}
    with (tmp_path / "a.csv").open("w", newline="") as out:
        writer = csv.DictWriter(out, plain, quoting=csv.QUOTE_ALL)
        writer.writeheader()
        writer.writerow(plain)
    found = [import_llama_bench(tmp_path / f"a.{end}")[0][0] for end in ("json", "jsonl", "csv")]
    for record in found:
        assert record["case"]["model"] == "llama 8B" and record["case"]["n_gen"] == 128
        assert record["case"]["quant"] == "Q4_K - Medium" and record["case"]["threads"] == 16
        assert record["machine"]["arch"] == "aarch64" and record["provenance"] == "recorded"
        assert record["stat"]["median_s"] == pytest.approx(9 / 128)
        assert record["derived"]["tok_per_s"] == pytest.approx(128 / 9)
    assert found[0]["samples_s"] == pytest.approx([8.9 / 128, 9 / 128, 9.2 / 128])
    assert found[2]["samples_s"] == [] and "llama-bench's mean" in found[2]["note"]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"backends": "CUDA"}, "not on the CPU alone"),
        ({"backends": "Metal,BLAS"}, "not on the CPU alone"),
        ({"n_prompt": 512, "n_gen": 0}, "a prompt, not decoding"),
        ({"n_prompt": 512}, "cannot be told apart"),
    ],
)
def test_what_is_no_decoding_on_the_cpu_is_left_out(tmp_path, changes, reason):
    (tmp_path / "a.jsonl").write_text(json.dumps(ROW | changes))
    records, left_out = import_llama_bench(tmp_path / "a.jsonl")
    assert records == [] and reason in left_out[0] and "a.jsonl, row 1" in left_out[0]


def test_a_gpu_build_on_the_cpu_is_taken(tmp_path):
    (tmp_path / "a.jsonl").write_text(json.dumps(ROW | {"backends": "Metal", "n_gpu_layers": 0}))
    assert len(import_llama_bench(tmp_path / "a.jsonl")[0]) == 1


@pytest.mark.parametrize("text", ["", "{", "[]", "[1]", "just text", '{"n_gen": 1}'])
def test_other_files_are_refused(tmp_path, text):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(FormatError, match="a.json"):
        import_llama_bench(tmp_path / "a.json")


@pytest.mark.parametrize(
    "changes",
    [
        {"avg_ns": "soon"},
        {"avg_ns": "0"},
        {"n_prompt": "many"},
        {"model_type": "llama"},
        {"test_time": "noon"},
    ],
)
def test_fields_that_cannot_be_read_are_named(tmp_path, changes):
    (tmp_path / "a.json").write_text(json.dumps([ROW | changes]))
    with pytest.raises(FormatError, match="a.json, row 1.*" + next(iter(changes.values()))):
        import_llama_bench(tmp_path / "a.json")


def test_an_unknown_processor_needs_its_architecture(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps([ROW | {"cpu_info": "Mystery 9"}]))
    with pytest.raises(ParameterError, match="give --arch"):
        import_llama_bench(tmp_path / "a.json")
    record = import_llama_bench(tmp_path / "a.json", arch="x86_64")[0][0]
    assert record["machine"]["arch"] == "x86_64"
    with pytest.raises(ParameterError, match="choose x86_64 or aarch64"):
        import_llama_bench(tmp_path / "a.json", arch="vax")


def test_the_command_writes_records_that_give_rows_of_throughput(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps([ROW, ROW | {"n_gen": 0, "n_prompt": 9}]))
    out = tmp_path / "out.jsonl"
    words = ["import-llama-bench", str(tmp_path / "a.json"), "-o", str(out), "--source", "a paper"]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0 and "a prompt, not decoding" in result.stderr
    row = record_rows(read_machine_records(out)).iloc[0]
    assert row["provenance"] == "published" and row["source"] == "a paper"
    assert row["low"] < row["tok_per_s"] < row["high"]
    (tmp_path / "b.json").write_text(json.dumps([ROW | {"backends": "CUDA"}]))
    words[1:4] = [str(tmp_path / "b.json"), "-o", str(tmp_path / "none.jsonl")]
    result = CliRunner().invoke(app, words)
    assert isinstance(result.exception, FormatError) and not (tmp_path / "none.jsonl").exists()
