"""Records of a machine: made, sealed, read back, and refused when something is wrong."""

import copy
import json

import pytest
from record_cases import SMALL, resealed
from typer.testing import CliRunner

from awqbench.bench import emulation
from awqbench.bench.record import measure as measuring
from awqbench.bench.record.check import check_digest, check_record, seal
from awqbench.bench.record.files import read_machine_records, write_records
from awqbench.bench.record.inputs import digest, make_tokens, make_weight
from awqbench.bench.record.kernels import bytes_per_call, usable_kernels
from awqbench.bench.record.measure import Plan, check_correctness, measure, thread_counts
from awqbench.cli import app
from awqbench.cli.app import INTERRUPTED
from awqbench.errors import (
    EmulatedTimingError,
    FormatError,
    OutputError,
    ParameterError,
    RecordConsistencyError,
    RecordDigestError,
    RecordSchemaError,
    RecordSealError,
)

# Of make_weight(256, 64): the same on every machine, or its inputs are not.
INPUT = "bec296e1fc7d9137f332d8af3efbdd5976aa1fb07297c6f7c771b482d23bd293"
UNPACKED = "d01e88b1b7d6819eb76ed03b6f12c44d6fac8da93cad009f9898d8e3637c80c0"
DECODED = "e48f7fffc423c06cd1db5dc34de95abcea675410330d9a9e1d8f8b472f198b02"


@pytest.fixture(autouse=True)
def small_buffers(monkeypatch):
    monkeypatch.setattr(measuring, "_LEAST_READ_BYTES", 1_000_000)
    monkeypatch.setattr(measuring, "last_level_cache_bytes", lambda: 100_000)
    monkeypatch.setattr(measuring, "copies_needed", lambda nbytes: 2)


@pytest.fixture(scope="module")
def records():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measuring, "_LEAST_READ_BYTES", 1_000_000)
        patch.setattr(measuring, "last_level_cache_bytes", lambda: 100_000)
        patch.setattr(measuring, "copies_needed", lambda nbytes: 2)
        found, is_complete = measure(SMALL, note="a test")
    assert is_complete
    return [seal(record) for record in found]


def of_kernel(records, kernel, backend="numpy"):
    return copy.deepcopy(
        next(
            r
            for r in records
            if r["case"]["kernel"] == kernel and r["case"]["backend"].startswith(backend)
        )
    )


def test_six_kernels_need_numpy_and_numexpr_alone(records):
    cases = {(r["case"]["kernel"], r["case"]["backend"]) for r in records}
    assert cases == {
        ("read", "numpy dot"),
        ("unpack", "numpy"),
        ("dequantize", "numpy"),
        ("dequantize", "numexpr"),
        ("gemm", "numpy"),
        ("gemm", "numexpr"),
        ("dense", "numpy"),
    }
    assert all(len(r["samples_s"]) == 6 and r["note"] == "a test" for r in records)
    assert {r["case"]["threads"] for r in records if r["case"]["kernel"] == "unpack"} == {1}
    assert set(records[0]["bandwidth"]["read_gb_s"]) == {"1", "2"}


def test_a_record_survives_the_file_and_names_no_user_or_host(records, tmp_path):
    file = write_records(tmp_path / "new" / "a.jsonl", records)
    here = records[0]["machine"]["id"]
    assert read_machine_records(file, here=here) == records
    assert [p.name for p in file.parent.iterdir()] == ["a.jsonl"]
    with pytest.raises(OutputError, match="a.jsonl exists"):
        write_records(file, records)
    foreign = read_machine_records(file, here="another")
    assert {r["provenance"] for r in foreign} == {"recorded"}


def test_inputs_and_exact_outputs_have_the_same_digest_everywhere(records):
    packed = make_weight(256, 64)
    assert digest(packed.codes, packed.scales, packed.zeros, make_tokens(1, 256)) == INPUT
    for kernel, expected in (("unpack", UNPACKED), ("dequantize", DECODED)):
        found = {r["digest"]["output"] for r in records if r["case"]["kernel"] == kernel}
        assert found == {expected}
    for record in records:
        check_digest(record)


def test_products_are_near_float64_whoever_computes_them():
    kernels, _ = usable_kernels()
    found = check_correctness(Plan(shapes=("256x64",)))
    assert len(found) == len(kernels)
    errors = {(r["case"]["backend"], r["case"]["act_dtype"]): r["rel_error"] for r in found}
    assert errors["numpy", "float32"] < 1e-6
    assert all(error is None or error < 0.02 for error in errors.values())


def test_a_doctored_time_is_refused(records):
    record = of_kernel(records, "gemm")
    record["samples_s"][0] /= 2
    with pytest.raises(RecordSealError, match="changed after it was written"):
        check_record(record)
    with pytest.raises(RecordConsistencyError, match=r"stat\.(median|p10|p90|mad)_s is"):
        check_record(seal(record))


@pytest.mark.parametrize(
    ("part", "name", "factor"),
    [("stat", "median_s", 0.5), ("derived", "gb_s", 2), ("derived", "gop_s", 2)],
)
def test_figures_must_follow_from_samples(records, part, name, factor):
    record = of_kernel(records, "gemm")
    record[part][name] *= factor
    with pytest.raises(RecordConsistencyError, match=f"{part}.{name}|derived"):
        check_record(seal(record))


def test_bytes_must_follow_from_the_case(records):
    record = of_kernel(records, "dequantize")
    record["bytes_per_call"] *= 2
    with pytest.raises(RecordConsistencyError, match="of 1 x 256 x 64 moves"):
        check_record(resealed(record))


@pytest.mark.parametrize("name", ["samples_s", "machine", "digest", "bandwidth", "seal"])
def test_a_missing_field_is_named(records, name):
    record = of_kernel(records, "gemm")
    del record[name]
    with pytest.raises(RecordSchemaError, match=name):
        check_record(record, where="a.jsonl, line 3")


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("case", "K"), "256"),
        (("case", "surprise"), 1),
        (("samples_s",), [0.0]),
        (("provenance",), "guessed"),
        (("schema",), 2),
        (("case", "N"), 2**40),
    ],
)
def test_a_field_of_the_wrong_kind_is_refused(records, path, value):
    record = of_kernel(records, "gemm")
    target = record[path[0]] if len(path) == 2 else record
    target[path[-1]] = value
    with pytest.raises(RecordSchemaError, match=path[0]):
        check_record(seal(record))


def test_a_time_that_is_no_number_is_refused(records):
    record = of_kernel(records, "gemm")
    record["samples_s"][0] = float("nan")
    with pytest.raises(RecordSchemaError, match="a.jsonl, line 1"):
        check_record(record, where="a.jsonl, line 1")


def test_another_kernels_digest_is_refused(records):
    record = of_kernel(records, "dequantize")
    record["digest"]["output"] = of_kernel(records, "unpack")["digest"]["output"]
    record = seal(record)
    check_record(record)  # in agreement with itself
    with pytest.raises(RecordDigestError, match="digest is of another kernel"):
        check_digest(record)
    record["digest"]["output"] = None
    with pytest.raises(RecordDigestError, match="is missing"):
        check_record(seal(record))


def test_a_wrong_product_is_refused(records):
    record = of_kernel(records, "gemm") | {"rel_error": 0.3}
    with pytest.raises(RecordDigestError, match="another product"):
        check_record(seal(record))


def test_an_emulated_record_with_a_time_is_refused(records):
    record = of_kernel(records, "gemm") | {"provenance": "emulated"}
    with pytest.raises(EmulatedTimingError, match="holds samples_s"):
        check_record(seal(record))


def test_a_case_stands_once_in_a_file(records, tmp_path):
    file = tmp_path / "a.jsonl"
    line = json.dumps(records[0]) + "\n"
    file.write_text(line + line)
    with pytest.raises(RecordConsistencyError, match="lines 1 and 2"):
        read_machine_records(file)
    file.write_text("")
    with pytest.raises(FormatError, match="no record"):
        read_machine_records(file)


def test_nothing_is_written_where_one_record_is_wrong(records, tmp_path):
    wrong = of_kernel(records, "gemm") | {"rel_error": 1.0}
    with pytest.raises(RecordDigestError, match="line 2"):
        write_records(tmp_path / "a.jsonl", [records[0], wrong])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("stop_at", "blocks"), [(3, 0), (6, 3), (7, 3), (8, 4)])
def test_ctrl_c_keeps_whole_blocks(stop_at, blocks):
    def interrupted(steps):  # two steps a block: memory, then the one shape
        for number, step in enumerate(steps):
            if number == stop_at:
                raise KeyboardInterrupt
            yield step

    found, is_complete = measure(SMALL._replace(blocks=5), progress=interrupted)
    assert not is_complete
    assert {len(r["samples_s"]) for r in found} == ({2 * blocks} if blocks else set())
    for record in found:
        check_record(seal(record))


def test_too_few_blocks_for_an_interval():
    with pytest.raises(ParameterError, match="at least 3 blocks"):
        measure(SMALL._replace(blocks=2))
    with pytest.raises(ParameterError, match="multiple of 128"):
        measure(SMALL._replace(shapes=("100x64",)))


def test_bytes_of_a_call():
    # 4096 x 4096 at 4 bits: codes, 131072 scales in 2 bytes, zero points in half a byte.
    assert bytes_per_call("gemm", 1, 4096, 4096) == 2**23 + 131072 * 5 // 2 + 4 * 8192
    assert bytes_per_call("dense", 1, 128, 8, act_dtype="bfloat16") == 2 * 1024 + 4 * 136
    assert thread_counts(3) == [1, 3] and thread_counts(2) == [1, 2]


def test_under_emulation_nothing_is_timed(monkeypatch, tmp_path):
    monkeypatch.setattr(emulation, "why_emulated", lambda: "a made-up reason")
    with pytest.raises(EmulatedTimingError, match="a made-up reason.*--correctness-only"):
        measure(SMALL)
    out = tmp_path / "a.jsonl"
    words = ["record", "-o", str(out), "--quick", "--everywhere-only"]
    result = CliRunner().invoke(app, words)
    assert isinstance(result.exception, EmulatedTimingError) and not out.exists()
    result = CliRunner().invoke(app, [*words, "--correctness-only"])
    assert result.exit_code == 0, result.output
    for record in read_machine_records(out):
        assert record["provenance"] == "emulated" and "samples_s" not in record
        check_digest(record)


def test_the_command_writes_into_a_folder_and_tells_when_stopped(monkeypatch, tmp_path):
    done = measure(SMALL)[0]
    monkeypatch.setattr(measuring, "measure", lambda *_, **__: (done, True))
    result = CliRunner().invoke(app, ["record", "-o", str(tmp_path)])
    assert result.exit_code == 0 and f"{len(done)} cases" in result.output
    assert len(list(tmp_path.glob("*.jsonl"))) == 1
    monkeypatch.setattr(measuring, "measure", lambda *_, **__: ([], False))
    result = CliRunner().invoke(app, ["record", "-o", str(tmp_path / "b.jsonl")])
    assert result.exit_code == INTERRUPTED and not (tmp_path / "b.jsonl").exists()
