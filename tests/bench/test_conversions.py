"""Casts by the rules of two processors, beside what an emulated ARM and a real x86 gave."""

import json
from pathlib import Path

import numpy as np
import pytest

from awqbench.bench.conversions import (
    case_codes,
    codes_by_cast,
    int32_here,
    int32_on_arm,
    int32_on_x86,
)

RECORD = Path(__file__).resolve().parents[2] / "data" / "records" / "arm_semantics.jsonl"
VALUES = {"NaN": np.nan, "inf": np.inf, "-inf": -np.inf, "-1": -1, "3e9": 3e9, "-3e9": -3e9,
          "300": 300}  # fmt: skip


@pytest.fixture(scope="module")
def recorded():
    rows = json.loads(RECORD.read_text().splitlines()[-1])["rows"]
    return {row["operation"]: row for row in rows}


@pytest.mark.parametrize("name", VALUES)
def test_rules_are_what_the_processors_did(recorded, name):
    value = np.array([VALUES[name]], np.float32)
    row = recorded[f"{name} to int32"]
    assert int(int32_on_x86(value)[0]) == int(row["x86_64"])
    assert int(int32_on_arm(value)[0]) == int(row["aarch64"])


def test_rules_at_the_edge_of_what_fits():
    below = np.nextafter(np.float32(2**31), np.float32(0))
    edges = np.array([below, 2.0**31, -(2.0**31), -0.9], np.float32)
    assert int32_on_x86(edges).tolist() == [int(below), -(2**31), -(2**31), 0]
    assert int32_on_arm(edges).tolist() == [int(below), 2**31 - 1, -(2**31), 0]


def test_this_processor_is_one_of_the_two():
    values = np.array(list(VALUES.values()), np.float32)
    found = int32_here(values)
    assert any(np.array_equal(found, rule(values)) for rule in (int32_on_x86, int32_on_arm))


def test_codes_differ_only_where_nothing_looked():
    table = case_codes()
    weights, scales = table["weight"].astype(float), table["scale"]
    sound = np.isfinite(weights) & (scales > 0)
    for way in ("masked", "clipped"):
        differs = table[f"{way} x86"] != table[f"{way} ARM"]
        assert differs.any() and not differs[sound].any()
    assert table["repaired"].between(0, 15).all()
    assert (table["repaired"] == table["masked x86"])[sound].all()


def test_repair_keeps_the_zero_point_for_nan():
    (row,) = codes_by_cast([np.nan], 0.1, 3).to_dict(orient="records")
    assert row["repaired"] == 3 and row["clipped x86"] == -(2**31) and row["clipped ARM"] == 0
