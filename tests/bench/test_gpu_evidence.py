"""What is said of the CUDA kernels: records that are there and not there, and the model."""

import json
from pathlib import Path

import pandas as pd
import pytest
from gpu_cases import gpu_record, gpu_rows

from awqbench.bench import gpu_evidence, gpu_model
from awqbench.errors import AlignmentError, FormatError, ParameterError

RECORDS = Path(__file__).parents[2] / "data" / "records"
NAMES = ("cuda_compile", "ptx_proof", "ptx_planted", "ptx_traffic")
H200 = gpu_model.gpu_limits("H200")


@pytest.fixture(scope="module")
def records():
    return {name: gpu_evidence.read_gpu_evidence(name, RECORDS) for name in NAMES}


def test_absent_records_say_what_writes_them(tmp_path):
    for name in NAMES:
        evidence = gpu_evidence.read_gpu_evidence(name, tmp_path)
        assert evidence.rows.empty and f"{name}.jsonl" in evidence.absent
        assert not gpu_evidence.is_current(evidence)
    run = gpu_evidence.read_gpu_run(tmp_path)
    assert run.rows.empty and run.text.startswith("Not run on a GPU.")
    assert "gpu_all.py --write" in run.text


def test_a_damaged_record_is_refused(tmp_path):
    line = json.loads((RECORDS / "ptx_proof.jsonl").read_text().splitlines()[-1])
    line["rows"] = [{"kernel": "sum_splits"}]
    (tmp_path / "ptx_proof.jsonl").write_text(json.dumps(line))
    with pytest.raises(FormatError, match="no column arch, programs, exact"):
        gpu_evidence.read_gpu_evidence("ptx_proof", tmp_path)


def test_every_kernel_is_compiled_run_and_planted(records):
    compiled, proof, planted, _ = (records[name].rows for name in NAMES)
    table = gpu_evidence.proof_table(compiled, proof, planted)
    assert table.loc["all", "bugs"] == len(planted) and (table["bugs"] > 0).all()
    assert table.loc["all", "programs"] == compiled["programs"].sum()
    assert (table["found"] == table["bugs"]).all() and (table["exact"] == table["run"]).all()
    escaped = planted.assign(killed=planted["kernel"] != "tile dequant")
    table = gpu_evidence.proof_table(compiled, proof, escaped)
    assert table.loc["tile_dequant", "found"] == 0 and table.loc["w4_dequant", "found"] > 0


def test_the_answer_claims_no_more_than_the_records(records, tmp_path):
    compiled, proof, planted, traffic = (records[name].rows for name in NAMES)
    proof_rows = gpu_evidence.proof_table(compiled, proof.assign(exact=0), planted)
    counted = gpu_evidence.counted(traffic, arch="90a", bits=4, group_size=128, dtype="float16")
    predicted = gpu_model.predict(["4096x4096"], [1], H200, {})
    run = gpu_evidence.read_gpu_run(tmp_path)
    text = gpu_evidence.describe(proof_rows, counted, predicted, run, 0.5195)
    assert f"0 of {proof['programs'].sum()} give" in text and text.endswith("Not run on a GPU.")
    (tmp_path / "gpu_gemm.jsonl").write_text(gpu_record(gpu_rows()) + gpu_record([]))
    run = gpu_evidence.read_gpu_run(tmp_path)
    text = gpu_evidence.describe(proof_rows, counted[:0], predicted, run, 0.5195)
    assert text.endswith("Measured on made-up GPU, 2030-01-02, commit 0123456789.")
    assert "bytes a weight" not in text
    assert len(gpu_evidence.measured_table(run.rows)) == 12


def test_counted_keeps_the_leanest_shape(records):
    rows = records["ptx_traffic"].rows
    table = gpu_evidence.counted(rows, arch="90a", bits=4, group_size=128, dtype="float16")
    assert not table.duplicated(["kernel", "arch", "m"]).any()
    for row in table.itertuples():
        same = rows[
            (rows["kernel"] == row.kernel) & (rows["m"] == row.m) & (rows["arch"] == row.arch)
            & (rows["bits"] == 4) & (rows["group_size"] == 128) & (rows["dtype"] == "float16")
        ]  # fmt: skip
        assert row.instructions_per_word == same["instructions_per_word"].min()
    assert gpu_evidence.counted(rows, arch="90a", bits=4, group_size=96, dtype="float16").empty
    for arch, kernels in {
        "90a": {"w4a16_direct", "w4a16_skinny", "w4a16_wgmma"},
        "89": {"w4a16_direct", "w4a16_skinny", "w4a16_mma"},
        "75": set(),
    }.items():
        table = gpu_evidence.counted(rows, arch=arch, bits=4, group_size=128, dtype="float16")
        assert set(table["kernel"]) == kernels


def test_the_floors_of_a_weight_that_is_read_once():
    row = gpu_model.predict(["4096x4096"], [1], H200, {}).iloc[0]
    weight = 4096 * 4096 * (1 / 2 + 2 / 128 + 1 / 128)  # a zero point is a byte in tiles
    assert row["memory_s"] == pytest.approx((weight + 2 * 2 * 4096) / 4.3e12)
    assert row["bound"] == "memory" and row["floor_s"] == row["memory_s"]
    assert row["fp16_floor_s"] == pytest.approx((2 * 4096 * 4096 + 4 * 4096) / 4.3e12)
    assert row["issue_s"] != row["issue_s"]  # not counted: no limit


def test_instructions_beyond_the_budget_are_the_limit():
    program = gpu_model.predict(["4096x4096"], [1], H200, {}).iloc[0]["program"]
    budget = H200.instructions_for_a_word(4, 0.5234)
    assert budget == pytest.approx(4 * 132 * 1.98e9 / (4.3e12 / 0.5234 / 256))
    for share, bound in ((0.9, "memory"), (1.1, "instructions")):
        row = gpu_model.predict(["4096x4096"], [1], H200, {program: share * budget}).iloc[0]
        assert row["bound"] == bound
        assert row["issue_s"] == pytest.approx(share * row["memory_s"], rel=2e-3)


def test_many_tokens_are_limited_by_tensor_cores_and_decoding_is_added():
    table = gpu_model.predict(["8192x29568"], [512, 4096], H200, {}).set_index("tokens")
    assert (table["bound"] == "tensor cores").all()
    assert table.loc[512, "floor_s"] == pytest.approx(2 * 512 * 8192 * 29568 / 790e12)
    decoding = 8192 * 29568 * (0.5 + 3 / 128 + 2) / 4.3e12
    flop = 2 * 4096 * 8192 * 29568
    assert table.loc[4096, "floor_s"] == pytest.approx(decoding + flop / 790e12)
    assert table.loc[4096, "kernel"] == gpu_model.DECODED


def test_every_block_of_tokens_decodes_the_weight_again():
    first = gpu_model.predict(["8192x29568"], [128, 512], H200, {})
    assert first["program"].nunique() == 1
    counts = {first["program"].iloc[0]: 60.0}
    issue_s = gpu_model.predict(["8192x29568"], [128, 512], H200, counts)["issue_s"]
    words = 8192 * 29568 / 256
    assert issue_s[0] == pytest.approx(60 * words / (4 * 132 * 1.98e9))
    assert issue_s[1] == pytest.approx(4 * issue_s[0])


def test_counts_are_of_one_block_of_tokens():
    rows = pd.DataFrame(
        {
            "program": ["w4a16_mma BM=64 RT=2", "w4a16_mma BM=64 RT=2", "w4a16_direct"],
            "m": [64, 128, 8],
            "instructions_per_word": [50.0, 96.0, 31.0],
        }
    )
    found = gpu_model.counts_by_program(rows)
    assert found == {"w4a16_mma BM=64 RT=2": 50.0, "w4a16_direct": 31.0}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bits": 3}, "bits is 3"),
        ({"dtype": "float32"}, "'float32' is neither"),
        ({"group_size": 48}, "group_size is 48, not a multiple of 32"),
        ({"limits": gpu_model.gpu_limits("T4"), "dtype": "bfloat16"}, "sm_75 has no bfloat16"),
        ({"shapes": ["4096"]}, "is not KxN"),
        ({"tokens": [0]}, "tokens from 1"),
    ],
)
def test_what_cannot_be_predicted_is_refused(changes, message):
    given = {"shapes": ["4096x4096"], "tokens": [1], "limits": H200, "counts": {}} | changes
    with pytest.raises(ParameterError, match=message):
        gpu_model.predict(**given)


def test_groups_and_gpus_that_do_not_fit_are_refused():
    with pytest.raises(AlignmentError):
        gpu_model.predict(["4128x4096"], [1], H200, {})
    with pytest.raises(ParameterError, match="'V100' is none of T4, A100"):
        gpu_model.gpu_limits("V100")
    with pytest.raises(ParameterError, match="peak_tflop_s is -1"):
        gpu_model.gpu_limits("H200", peak_tflop_s=-1)
    assert gpu_model.gpu_limits("A100", bandwidth_gb_s=1800).bandwidth_gb_s == 1800


def test_without_records_nothing_is_claimed(records, tmp_path):
    absent = [gpu_evidence.read_gpu_evidence(name, tmp_path).rows for name in NAMES]
    table = gpu_evidence.proof_table(*absent[:2], records["ptx_planted"].rows)
    assert (table.loc["all", ["programs", "run", "exact"]] == 0).all()
    counted = gpu_evidence.counted(absent[3], arch="90a", bits=4, group_size=128, dtype="float16")
    assert gpu_evidence.counted_table(counted).empty
    predicted = gpu_model.predict(["4096x4096"], [1], H200, {})
    run = gpu_evidence.read_gpu_run(tmp_path)
    text = gpu_evidence.describe(table, counted, predicted, run, 0.5195)
    assert text.startswith("Nothing is recorded of compiled programs here. Predicted of 4096x4096")
