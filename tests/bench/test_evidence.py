"""All kinds of evidence in one table, what is predicted from it, and the sentence about it."""

import json

import pandas as pd
import pytest
from record_cases import made_up, resealed

from awqbench.bench.evidence import (
    gather,
    nominal_gb_s,
    open_case,
    per_bandwidth,
    predicted_rows,
    program_spread,
)
from awqbench.bench.evidence_records import read_evidence
from awqbench.bench.evidence_words import coverage_by_figure, describe, digest_counts
from awqbench.bench.literature import published_rows, published_sweeps
from awqbench.bench.memory_bounds import memory_bounds
from awqbench.bench.record.decode import decode_record
from awqbench.bench.throughput import ROW
from awqbench.errors import FormatError, ParameterError

EMPTY = read_evidence("arm_digests").rows.iloc[:0]


def product(kernel, backend, seconds, *, act_dtype="float32", threads=1, k=4096):
    """Return a record of a product that takes so long."""
    from awqbench.bench.record.kernels import bytes_per_call

    like = made_up()[1]
    case = like["case"] | {"kernel": kernel, "backend": backend, "act_dtype": act_dtype}
    case |= {"K": k, "N": 4096, "threads": threads}
    record = like | {"case": case, "rel_error": 1e-6, "samples_s": [seconds] * 15}
    record["bytes_per_call"] = bytes_per_call(kernel, 1, k, 4096, act_dtype=act_dtype)
    return resealed(record)


@pytest.fixture(scope="module")
def records():
    """Return a machine that reads 10 GB/s on one thread, at 3000 MHz."""
    return [
        *made_up(),
        product("gemm", "native", 1e-3, act_dtype="int16"),
        product("gemm", "numpy", 8e-3),
        product("dense", "torch", 4e-3, act_dtype="bfloat16"),
    ]


@pytest.fixture(scope="module")
def case():
    return open_case("qwen3-0.6b")


def test_a_case_has_the_bytes_of_its_shape(case):
    blocks = 28 * (1024 * 2048 + 2 * 1024 * 1024 + 2048 * 1024 + 3 * 1024 * 3072)
    groups = blocks // 128
    assert case.parts.packed == blocks // 2 + groups * 2 + groups // 2
    assert case.parts.head == 151936 * 1024 * 2 and case.quant == "W4 g128"
    assert open_case("tiny", bits=8).parts.packed > 1.8 * open_case("tiny").parts.packed
    assert open_case("tiny", context=7).parts.kv > 0


def test_a_machine_is_predicted_by_its_own_rates(case, records):
    (row,) = predicted_rows(case, records, {}).to_dict(orient="records")
    assert list(row) == list(ROW) and (row["arch"], row["threads"]) == ("x86_64", 1)
    native, dense = records[2], records[4]
    seconds = case.parts.packed / native["derived"]["gb_s"] / 1e9
    seconds += (case.parts.total - case.parts.packed) / dense["derived"]["gb_s"] / 1e9
    assert row["tok_per_s"] == pytest.approx(1 / seconds)
    assert row["low"] <= row["tok_per_s"] / 2  # nothing is known of what comes on top


def test_sweeps_predict_only_models_of_their_size(case):
    sweeps = published_sweeps()
    found = predicted_rows(case, [], sweeps)
    sized = {name for name, sweep in sweeps.items() if sweep["file_gb"].notna().all()}
    assert len(found) == len(sized) and set(found["arch"]) == {"aarch64"}
    # One rate for all parts: the interval is the whole error of the fit.
    assert (found["high"] / found["tok_per_s"]).tolist() == pytest.approx([1.13] * len(found))
    reasons = found.attrs["not_predicted"]
    assert len(reasons) == len(sweeps) - len(sized) and "unknown size" in reasons[0]
    small = predicted_rows(open_case("tiny"), [], sweeps)
    assert small.empty and len(small.attrs["not_predicted"]) == len(sweeps)


def test_a_model_that_fits_into_caches_is_not_predicted(records):
    found = predicted_rows(open_case("tiny"), records, {})
    assert found.empty and "may come from caches" in found.attrs["not_predicted"][0]


def test_what_is_left_out_is_left_out_of_all(case, records):
    whole = gather(case, records)
    assert set(whole["provenance"]) == {"published", "predicted"}
    assert set(gather(case, records, include_published=False)["arch"]) == {"x86_64"}
    assert set(gather(case, records, include_predicted=False)["provenance"]) == {"published"}
    assert set(gather(case, records, isa_filter=["aarch64"])["arch"]) == {"aarch64"}
    nothing = gather(case, [], include_published=False, include_predicted=False)
    assert nothing.empty and list(nothing) == list(ROW)


def test_shares_are_of_the_measured_or_of_the_nominal_bandwidth(case, records):
    table = gather(case, records)
    shares = per_bandwidth(table)
    assert shares["per_gb_s"].between(0, 1.05).all()
    (pi,) = shares[shares["chip"].str.startswith("Raspberry Pi 5")].to_dict(orient="records")
    assert pi["per_gb_s"] == pytest.approx(0.531 * 19.87 / 11.59)
    assert "nominal" not in pi["chip"] and nominal_gb_s()["AWS Graviton4"] == 536.7
    graviton = shares[shares["chip"].str.startswith("AWS Graviton4")]
    assert graviton["chip"].str.endswith("nominal GB/s").all()
    published = shares[shares["provenance"] == "published"]
    assert shares.attrs["left_out"] + len(published) < len(published_rows())
    (own,) = shares[shares["arch"] == "x86_64"].to_dict(orient="records")
    assert own["bandwidth_gb_s"] == 10 and "nominal" not in own["chip"]


def test_programs_are_compared_on_one_machine_only(case):
    found = program_spread(gather(case, [])).set_index(["chip", "quant", "threads"])
    row = found.loc[("Ryzen 7950X", "Q4_K_S", 2)]
    assert row["slowest"].item() == 9.57 and row["fastest"].item() == 13.48
    assert (found["ratio"] >= 1).all() and found["ratio"].is_monotonic_decreasing
    assert "AWS Graviton3 (Neoverse V1)" not in found.index.get_level_values("chip")


def test_coverage_keeps_figures_apart(case, records):
    found = coverage_by_figure(gather(case, records), records, emulated=7)
    assert found.loc[("results", "aarch64"), "emulated"] == 7
    assert found.loc[("kernels and memory", "x86_64"), "measured"] == len(records)
    assert found.loc[("tokens/s", "x86_64"), "measured"] == 0
    assert found.loc[("tokens/s", "aarch64"), "emulated"] == 0


def test_the_sentence_says_what_was_not_measured(case, records):
    decoded = decode_record(
        records[0], [0.1, 0.11], model="qwen3-0.6b", quant="W4 g128", backend="native", threads=1,
        prompt_tokens=4, new_tokens=8, bytes_per_token=case.parts.total,
    )  # fmt: skip
    table = gather(case, [*records, decoded])
    digests, semantics = (read_evidence(name).rows for name in ("arm_digests", "arm_semantics"))
    text = describe(table, per_bandwidth(table), digests, semantics)
    assert text.startswith("x86 measured, ARM published and predicted: ")
    assert "measured at 9.52 tokens/s on Some CPU, 1 thread" in text
    assert text.count("predicted at") == 1  # of x86 nothing, where this model was timed
    assert text.endswith("0 times were measured on ARM.") and "on x86." not in text
    without = gather(case, records, include_published=False, include_predicted=False)
    text = describe(without, per_bandwidth(without), EMPTY, EMPTY)
    assert "0 times were measured on x86; 0 times were measured on ARM." in text
    text = describe(without, per_bandwidth(without), EMPTY, EMPTY, isa_filter=["aarch64"])
    assert "0 times were measured on x86" not in text


def test_digests_are_counted_where_bits_have_to_agree():
    rows = pd.DataFrame({"results": [5, 7, 9], "same_bits": [5, 6, None]})
    assert digest_counts(rows) == (12, 11) and digest_counts(EMPTY) == (0, 0)


def test_a_record_that_is_not_there_says_so(tmp_path):
    found = read_evidence("arm_instructions", tmp_path)
    assert found.absent.startswith("not recorded here: python benchmarks/arm_instructions.py")
    assert found.rows.empty and "instructions_per_1024" in found.rows
    with pytest.raises(ParameterError, match="choose arm_digests"):
        read_evidence("arm_speed")
    run = {"rows": [{"operation": "x"}], "machine": {"cpu": "c"}, "settings": {}}
    (tmp_path / "arm_semantics.jsonl").write_text(json.dumps(run) + "\n")
    with pytest.raises(FormatError, match="no column provenance, x86_64"):
        read_evidence("arm_semantics", tmp_path)


def test_cycles_are_split_by_what_they_wait_for(records):
    loops = pd.DataFrame(
        {"provenance": ["measured_here", "measured_here", "predicted"], "tokens": [1, 1, 1],
         "activations": ["int16"] * 3, "instructions_per_1024": [130.0, 360.0, 84.0],
         "measured_cycles_per_1024": [40.0, 70.0, None]}
    )  # fmt: skip
    fast = product("gemm", "native", 0.95e-3, act_dtype="int16", k=2 * 4096)
    slow = product("gemm", "native", 1e-3, act_dtype="int16", k=1024)
    found = memory_bounds([*records, fast, slow], loops, "Some CPU").set_index("backend")
    native = found.loc["native"]
    assert native["in_cache"] == 40 and native["waits_for"] == "memory"
    assert native["cycles"] == pytest.approx(0.95e-3 * 3e9 / (8192 * 4096 / 1024))
    assert native["reading"] == pytest.approx(native["cycles"] * fast["derived"]["gb_s"] / 10)
    assert found.loc["numpy", "waits_for"] == "arithmetic"
    other = memory_bounds(records, loops, "Another CPU").set_index("backend")
    assert other["in_cache"].isna().all()
    between = product("gemm", "native", 3e-3, act_dtype="int16")
    (row,) = memory_bounds([between], loops, "Some CPU").to_dict(orient="records")
    assert row["waits_for"] == "both in turn"
