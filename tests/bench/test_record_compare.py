"""Two files of records, case by case: what is equal, what is faster, and what is refused."""

import copy
import json

import numpy as np
import pytest
from record_cases import BYTES, made_up, noisy, resealed, with_samples
from typer.testing import CliRunner

from awqbench.bench.record.check import seal
from awqbench.bench.record.compare import compare_records
from awqbench.bench.record.files import write_records
from awqbench.bench.record.kernels import expected_digest
from awqbench.bench.record.statistics import ratio_interval, summarise
from awqbench.cli import app
from awqbench.errors import (
    EmulatedTimingError,
    ParameterError,
    RecordConsistencyError,
    RecordDigestError,
    RecordSealError,
)


def test_a_planted_factor_is_found_and_the_rest_is_equal():
    table = compare_records(made_up(), made_up(speed=2.0, seed=7)).set_index("kernel")
    assert table.loc["read", "verdict"] == "equal"
    row = table.loc["dequantize"]
    assert row["verdict"] == "b faster" and row["low"] < 2 < row["high"]
    assert row["ratio"] == pytest.approx(row["a_s"] / row["b_s"])
    back = compare_records(made_up(speed=2.0, seed=7), made_up()).set_index("kernel")
    assert back.loc["dequantize", "verdict"] == "b slower"


def test_a_record_is_equal_to_itself_made_again():
    wrong = 0
    for seed in range(0, 60, 2):
        table = compare_records(made_up(seed=seed), made_up(seed=1000 + seed))
        wrong += int((table["verdict"] != "equal").sum())
    assert wrong <= 3  # of 60 cases, where plain 95 % intervals would allow 3


def test_intervals_cover_what_blocks_do_to_samples():
    hits = 0
    for seed in range(200):
        a, b = (np.median(noisy(1.0, s).reshape(-1, 5), axis=1) for s in (2 * seed, 2 * seed + 1))
        hits += ratio_interval(a, b, level=0.95).holds_one
    assert 183 <= hits <= 199


def test_a_restless_machine_is_undecided():
    records = made_up()
    samples = noisy(1e-3, 5) * np.repeat(np.geomspace(0.1, 10, 10), 5)
    restless = [records[0], with_samples(records[1], samples)]
    table = compare_records(records, restless).set_index("kernel")
    assert table.loc["dequantize", "verdict"] == "undecided"


def test_bandwidth_and_clock_take_out_what_they_explain():
    slow, fast = made_up(), made_up("Other", speed=3.0, bandwidth=30.0, mhz=4500.0, seed=9)
    table = compare_records(slow, fast, normalize="bandwidth")
    assert table["kernel"].tolist() == ["dequantize"]
    assert table["verdict"].tolist() == ["equal"] and 0.8 < table["ratio"][0] < 1.25
    by_clock = compare_records(slow, fast, normalize="clock").set_index("kernel")
    assert by_clock.loc["dequantize", "low"] < 2 < by_clock.loc["dequantize", "high"]
    no_clock = made_up(mhz=None)
    with pytest.raises(ParameterError, match="clock was not measured"):
        compare_records(slow, no_clock, normalize="clock")
    with pytest.raises(ParameterError, match="no bandwidth at 1 threads"):
        compare_records(slow[1:], fast[1:], normalize="bandwidth")
    with pytest.raises(ParameterError, match="choose none, bandwidth, clock"):
        compare_records(slow, fast, normalize="size")


def test_what_differs_beside_the_machine_is_told():
    table = compare_records(made_up(), made_up("Other", numpy="2.1", seed=3))
    assert table.attrs["warnings"] == [
        "machines differ: Some CPU and Other",
        "numpy differs: 2.0 and 2.1",
    ]
    only = compare_records(made_up(), made_up(seed=3)[:1])
    assert only.attrs["only_a"] == 1 and only.attrs["only_b"] == 0 and not only.attrs["warnings"]


def test_nothing_in_common_is_said():
    with pytest.raises(RecordConsistencyError, match="none is in both"):
        compare_records(made_up()[:1], made_up()[1:])


def test_emulated_changed_and_foreign_outputs_are_refused(tmp_path):
    good = made_up()
    dropped = ("samples_s", "stat", "derived", "bandwidth", "freq", "bytes_per_call")
    emulated = {k: v for k, v in good[1].items() if k not in dropped}
    with pytest.raises(EmulatedTimingError, match="B, line 1"):
        compare_records(good, [seal(emulated | {"provenance": "emulated"})])
    other = copy.deepcopy(good[1])
    other["digest"]["output"] = expected_digest("unpack", 256, 64)
    with pytest.raises(RecordDigestError, match="b.jsonl, line 2"):
        file = write_records(tmp_path / "b.jsonl", [good[0], other])
        compare_records(good, file)
    lines = [json.dumps(record) for record in good]
    (tmp_path / "c.jsonl").write_text("\n".join(lines).replace("0.001", "0.0005", 1))
    with pytest.raises(RecordSealError, match="c.jsonl, line"):
        compare_records(good, tmp_path / "c.jsonl")


def test_the_command_prints_a_line_a_case(tmp_path):
    a = write_records(tmp_path / "a.jsonl", made_up())
    b = write_records(tmp_path / "b.jsonl", made_up(speed=2.0, seed=7))
    result = CliRunner().invoke(app, ["compare", str(a), str(b)])
    assert result.exit_code == 0 and "1 of 2 cases are equal" in result.stdout
    assert "b faster" in result.stdout and "256" in result.stdout
    found = json.loads(CliRunner().invoke(app, ["compare", str(a), str(b), "--json"]).stdout)
    assert [row["verdict"] for row in found["rows"]] == ["equal", "b faster"]


def test_figures_of_samples_in_blocks():
    found = summarise([1.0, 3.0, 2.0, 2.0], 2)
    assert found["median_s"] == 2 and found["mad_s"] == 0.5 and found["stable"]
    assert not summarise([1.0, 1.0, 2.0, 2.0], 2)["stable"]
    record = resealed(made_up()[1])
    assert record["derived"]["gb_s"] == pytest.approx(BYTES / record["stat"]["median_s"] / 1e9)
