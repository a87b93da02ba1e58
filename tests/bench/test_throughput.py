"""One table for all kinds of evidence, and what it says of each architecture."""

import pandas as pd
import pytest
from record_cases import made_up

from awqbench.bench.predict import Prediction
from awqbench.bench.record.decode import decode_record
from awqbench.bench.record.files import write_records
from awqbench.bench.throughput import (
    PROVENANCES,
    ROW,
    coverage,
    evidence_title,
    predicted_row,
    read_folder,
    record_rows,
)
from awqbench.errors import EmulatedTimingError


def rows_of(*pairs):
    return pd.DataFrame(pairs, columns=["arch", "provenance"])


@pytest.fixture
def decoded():
    return decode_record(
        made_up()[0],
        [0.1, 0.11, 0.12],
        model="tiny",
        quant="W4 g128",
        backend="native",
        threads=1,
        prompt_tokens=4,
        new_tokens=8,
        bytes_per_token=10**9,
    )


def test_coverage_counts_and_shows_zeros():
    table = rows_of(("aarch64", "published"), ("aarch64", "published"), ("riscv64", "recorded"))
    found = coverage(table)
    assert found.index.tolist() == ["x86_64", "aarch64", "riscv64"]
    assert found.columns.tolist() == list(PROVENANCES)
    assert found.loc["aarch64", "published"] == 2 and found.loc["x86_64"].sum() == 0


@pytest.mark.parametrize(
    ("pairs", "text"),
    [
        (
            [("x86_64", "measured"), ("aarch64", "published"), ("aarch64", "predicted")],
            "x86 measured, ARM published and predicted",
        ),
        (
            [("x86_64", "published"), ("aarch64", "recorded"), ("aarch64", "published")],
            "x86 published, ARM recorded",
        ),
        ([("x86_64", "measured"), ("aarch64", "emulated")], "x86 measured, ARM without figures"),
    ],
)
def test_the_title_follows_from_the_rows(pairs, text):
    assert evidence_title(rows_of(*pairs)) == text


def test_decoding_in_a_folder_becomes_rows(decoded, tmp_path):
    write_records(tmp_path / "a.jsonl", [*made_up(), decoded])
    records = read_folder(tmp_path, here="another machine")
    (row,) = record_rows(records).to_dict(orient="records")
    assert list(row) == list(ROW)
    assert row["provenance"] == "recorded" and len(row["machine_id"]) == 8
    assert row["tok_per_s"] == pytest.approx(1 / 0.11) and row["bandwidth_gb_s"] == 10
    assert row["gb_s"] == pytest.approx(1 / 0.11) and row["low"] < row["tok_per_s"] < row["high"]
    assert read_folder(tmp_path, isa_filter=["aarch64"]) == []


def test_emulated_records_have_no_row(decoded):
    with pytest.raises(EmulatedTimingError):
        record_rows([decoded | {"provenance": "emulated"}])


def test_a_prediction_is_a_row_with_its_interval():
    found = Prediction(10.0, 8.0, 13.0, "packed", 0.05, 0.03, 0.02)
    row = predicted_row(
        found, arch="aarch64", chip="Some Neoverse", model="m", quant="W4", threads=4,
        bytes_per_token=2 * 10**9, bandwidth_gb_s=40.0, source="a sweep",
    )  # fmt: skip
    assert list(row) == list(ROW) and row["provenance"] == "predicted"
    assert row["gb_s"] == 20 and row["note"] == "bound by packed"
