import json
import sys
from dataclasses import replace
from types import ModuleType

import numpy as np
import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

import awqbench.bench.gemm_bench as gemm_bench
from awqbench.bench.gemm_bench import (
    bench_gemm,
    choose_paths,
    measure_gemm,
    prepare_paths,
    time_case,
)
from awqbench.bench.gemm_cases import (
    GemmCase,
    Rotation,
    checked_tokens,
    copies_needed,
    exact_product,
    make_cases,
    parse_shape,
    random_weight,
    relative_error,
)
from awqbench.bench.gemm_figures import figures, with_ratios
from awqbench.bench.gemm_paths import Path, as_array, own_paths
from awqbench.bench.peers import peer_paths
from awqbench.bench.peers_onnx import pack_blocks
from awqbench.bench.probes import Probe, compute_probes, read_probe
from awqbench.bench.records import (
    append_record,
    make_record,
    read_records,
    require_appendable,
)
from awqbench.bench.tables import gemm_lines
from awqbench.bench.timing import Timing
from awqbench.cli import bench as _commands  # noqa: F401  registers itself
from awqbench.cli.app import INTERRUPTED, app
from awqbench.errors import AlignmentError, FormatError, OutputError, ParameterError
from awqbench.formats.layouts import awq

CASE = GemmCase(64, 96, tokens=3, bits=4, group_size=32)


@pytest.fixture(autouse=True)
def small_probes(monkeypatch):
    monkeypatch.setattr(gemm_bench, "read_probe", lambda: read_probe(100_000))
    monkeypatch.setattr(gemm_bench, "compute_probes", lambda: compute_probes(32))
    monkeypatch.setattr(gemm_bench, "copies_needed", lambda *_, **__: 3)


def scaled_path(name, factor, *, is_peer=True):
    """Return a path that computes factor times the product."""

    def prepare(packed, copies):
        weights = [factor * packed.dequantize() for _ in range(copies)]
        return [lambda x, w=w: x @ w.T for w in weights]

    return Path(name, is_peer, prepare, dense_bytes=4)


def measured(paths, case=CASE, rounds=2):
    (table,) = measure_gemm([case], rounds=rounds, paths=paths, progress=lambda line: None)
    return table


def made_up(path="numpy", *, is_peer=False, samples=(1.0, 1.0), error=0.0):
    path = Path(path, is_peer, lambda packed, copies: [])
    rates = {"read": 10.0, "float32": 100.0, "bfloat16": 400.0}
    return figures(CASE, path, Timing(samples), rates, error=error)


def test_shapes_are_read_by_name_and_by_size():
    assert parse_shape("4096x12288") == (4096, 12288)
    assert parse_shape("qwen2-72b-up") == (8192, 29568)
    for text in ("4096", "4096x", "0x4", "-1x4", "qwen9"):
        with pytest.raises(ParameterError, match="KxN"):
            parse_shape(text)


def test_cases_are_checked_before_anything_is_timed():
    cases = make_cases(["64x32", "96x32"], [1, 8], bits=3, group_size=-1)
    assert [(c.shape, c.tokens, c.group_size) for c in cases] == [
        ("64x32", 1, 64),
        ("64x32", 8, 64),
        ("96x32", 1, 96),
        ("96x32", 8, 96),
    ]
    with pytest.raises(AlignmentError, match="96, not a multiple of 64"):
        make_cases(["64x32", "96x32"], [1], group_size=64)
    for shapes, tokens in ((["64x32"], [0]), (["64x32"], []), ([], [1])):
        with pytest.raises(ParameterError, match="at least one of each"):
            make_cases(shapes, tokens)


def test_bytes_of_a_weight_are_those_of_a_checkpoint():
    # 4096 x 4096 in groups of 128: half a byte a code, 2.5 bytes a group.
    groups = 4096 * 32
    assert GemmCase(4096, 4096).weight_bytes == 4096 * 2048 + groups * 2 + groups // 2


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("group_size", [16, 64])
def test_random_weights_are_sane(bits, group_size):
    packed = random_weight(GemmCase(64, 48, 1, bits, group_size))
    assert packed.codes.shape == (48, 64) and packed.codes.max() < 1 << bits
    assert packed.scales.shape == packed.zeros.shape == (48, 64 // group_size)
    assert np.array_equal(packed.scales, packed.scales.astype(np.float16))
    assert packed.zero_point == (group_size != 64)
    x = np.random.default_rng(0).standard_normal((5, 64))
    exact = exact_product(x, packed)
    assert relative_error(x @ packed.dequantize().T.astype(np.float64), exact) < 1e-6


def test_copies_outgrow_the_cache_and_fit_into_memory(monkeypatch):
    import awqbench.bench.gemm_cases as gemm_cases

    monkeypatch.setattr(gemm_cases, "available_bytes", lambda: 10**9)
    assert copies_needed(10**6, cache_bytes=10**7) == 40
    assert copies_needed(10**6, cache_bytes=10**7, n_paths=20) == 20
    assert copies_needed(10**9, cache_bytes=10**7) == 2
    assert copies_needed(1, cache_bytes=10**7) == 256


def test_copies_rotate():
    taken = []
    rotation = Rotation([lambda x, i=i: taken.append((i, x)) for i in range(3)])
    for x in "abcd":
        rotation(x)
    assert taken == [(0, "a"), (1, "b"), (2, "c"), (0, "d")]


def test_timing_goes_round_all_copies_of_a_path():
    calls = []

    def prepare(packed, copies):
        weight = packed.dequantize()
        return [lambda x, i=i: calls.append(i) or x @ weight.T for i in range(copies)]

    table = measured([Path("slow", True, prepare)], rounds=4)
    assert table["copies"].tolist() == [3]
    assert {calls.count(i) for i in range(3)} <= set(range(2, len(calls)))
    # Never the same copy twice in a row, but for the first call, which is checked.
    assert all(a != b for a, b in zip(calls[1:], calls[2:], strict=False))


def test_own_copies_do_not_share_their_repacked_form():
    from awqbench.gemm.layout import cached_form, tile_weight

    packed = random_weight(CASE)
    (path,) = (path for path in own_paths() if path.name == "numpy")
    first, second = path.prepare(packed, 2)
    forms = [cached_form(c.keywords["packed"], "tiles", tile_weight) for c in (first, second)]
    assert not np.shares_memory(forms[0].codes, forms[1].codes)


@pytest.mark.parametrize(
    "case",
    [
        CASE,
        GemmCase(64, 96, 2, 8, 64),
        GemmCase(128, 64, 40, 4, 128),
        GemmCase(48, 40, 2, 3, 16),
    ],
    ids=lambda case: f"{case.shape}-{case.bits}-{case.group_size}",
)
def test_every_usable_path_computes_the_product(case):
    packed = random_weight(case)
    x = np.random.default_rng(0).standard_normal((case.tokens, case.in_features), np.float32)
    paths = [*own_paths(), *peer_paths()]
    prepared, absent = prepare_paths(paths, case, packed)
    assert set(prepared) | set(absent) == {path.name for path in paths}
    assert not [reason for reason in absent.values() if reason.startswith("failed")], absent
    assert {"numpy", "numexpr", "torch float32", "torch dense bfloat16"} <= set(prepared)
    assert ("torch int8pack" in prepared) == (case.bits == 8)
    for name, (path, rotation) in prepared.items():
        y = as_array(rotation.calls[-1](path.convert(x)))
        error = relative_error(y, exact_product(x, packed))
        assert error < (2e-2 if "8" in name or "16" in name or "pack" in name else 1e-6), name


def test_peers_that_are_absent_say_why():
    _, absent = prepare_paths(peer_paths(), GemmCase(64, 96, 1, 5, 32), random_weight(CASE))
    assert "takes 4 bits" in absent["torch int4pack"]
    assert "--bits 8 --group-size -1" in absent["torch int8pack"]
    assert all(reason.endswith(".") for reason in absent.values())


def test_a_peer_that_fails_to_prepare_is_absent_with_its_reason():
    def prepare(packed, copies):
        raise RuntimeError("no kernel for this processor\nand more")

    prepared, absent = prepare_paths([Path("broken", True, prepare)], CASE, random_weight(CASE))
    assert not prepared
    assert absent == {"broken": "failed to prepare: RuntimeError: no kernel for this processor"}


def test_a_wrong_peer_is_caught_by_its_error_and_gets_no_ratio():
    paths = [
        scaled_path("own", 1, is_peer=False),
        scaled_path("right", 1),
        scaled_path("wrong", 1.2),
        scaled_path("nan", np.nan),
    ]
    table = measured(paths).set_index("path")
    assert table["is_wrong"].to_dict() == {"own": False, "right": False, "wrong": True, "nan": True}
    assert table.loc["wrong", "rel_error"] == pytest.approx(0.2)
    assert table.loc["nan", "rel_error"] == np.inf
    assert table["vs wrong"].isna().all() and np.isnan(table.loc["wrong", "vs right"])
    expected = table.loc["right", "median_s"] / table.loc["own", "median_s"]
    assert table.loc["own", "vs right"] == pytest.approx(expected)
    assert "WRONG RESULT" in gemm_lines(table.reset_index())


def test_checked_tokens_are_the_first_the_last_and_some_between():
    assert checked_tokens(1).tolist() == [0]
    assert checked_tokens(3).tolist() == [0, 1, 2]
    assert checked_tokens(512).tolist() == [0, 170, 340, 511]


def test_a_result_of_another_shape_is_infinitely_wrong():
    assert relative_error(np.ones((2, 3)), np.ones((3, 2))) == np.inf


def test_shares_of_the_roofline_from_made_up_numbers():
    row = made_up(samples=(1e-6, 2e-6, 9e-6))
    assert row["min_s"] == 1e-6 and row["median_s"] == 2e-6 and row["spread"] == pytest.approx(9)
    assert row["weight_bytes"] == 64 * 96 // 2 + 96 * 2 * 2 + 96 * 2 // 2
    assert row["gb_s"] == pytest.approx(row["weight_bytes"] / 2e-6 / 1e9)
    assert row["fraction_of_read"] == pytest.approx(row["gb_s"] / 10)
    assert row["gflop_per_s"] == pytest.approx(2 * 3 * 64 * 96 / 2e-6 / 1e9)
    assert row["peak_gflop_per_s"] == 400
    assert row["fraction_of_peak"] == pytest.approx(row["gflop_per_s"] / 400)
    assert row["roofline_fraction"] == max(row["fraction_of_read"], row["fraction_of_peak"])


@pytest.mark.parametrize(
    ("arithmetic", "rate"), [("float32", 100.0), ("bfloat16", 400.0), ("int8", 700.0)]
)
def test_the_bound_is_of_a_path_s_own_arithmetic(arithmetic, rate):
    path = Path("p", False, lambda packed, copies: [], arithmetic=arithmetic)
    rates = {"read": 10.0, "float32": 100.0, "bfloat16": 400.0, "int8": 700.0}
    row = figures(replace(CASE, tokens=1), path, Timing((1.0,)), rates, error=0.0)
    # Reading takes longer than computing one token, and computing 3000 longer than reading.
    assert row["bound_s"] == row["roofline_fraction"] == row["weight_bytes"] / 10e9
    many = replace(CASE, tokens=3000)
    row = figures(many, path, Timing((1.0,)), rates, error=0.0)
    assert row["bound_s"] == pytest.approx(many.flop / rate / 1e9)
    # Where bfloat16 has no instructions its product is slow, and float32 is the ceiling.
    rates["bfloat16"] = 20.0
    row = figures(many, path, Timing((1.0,)), rates, error=0.0)
    rate = 100.0 if arithmetic == "bfloat16" else rate
    assert row["bound_s"] == pytest.approx(many.flop / rate / 1e9)


def test_paths_are_chosen_by_how_their_names_begin():
    names = [path.name for path in choose_paths(["native", "torch int4"])]
    assert names == ["native int16", "native float32", "native int8", "torch int4pack"]
    assert len(choose_paths(None)) > 10
    with pytest.raises(ParameterError, match="no path begins with 'nativ8'; there are numpy"):
        choose_paths(["native", "nativ8"])


def test_ratios_are_of_medians():
    rows = [
        made_up(samples=(1, 2, 9)),
        made_up("p", is_peer=True, samples=(1, 4, 5)),
        made_up("q", is_peer=True, samples=(1, 1, 1)),
    ]
    table = with_ratios(rows)
    assert table["vs p"].tolist() == [2, 1, 4] and table["vs q"].tolist() == [0.5, 0.25, 1]


@pytest.mark.parametrize(
    ("samples", "read", "noisy"),
    [((1.0, 1.4), (1.0, 1.4), False), ((1.0, 1.6), (1.0, 1.0), True), ((1, 1), (1, 1.6), True)],
)
def test_noisy_runs_are_flagged(monkeypatch, samples, read, noisy):
    def times(turns, *, rounds, before_each, wake):
        assert list(turns) == ["probe read", "probe float32", "own"] and rounds == 2
        return {n: Timing(read if n == "probe read" else samples) for n in turns}

    monkeypatch.setattr(gemm_bench, "time_in_turns", times)
    packed = random_weight(CASE)
    prepared, _ = prepare_paths([scaled_path("own", 1, is_peer=False)], CASE, packed)
    probes = {name: Probe(name, 1e9, lambda: None) for name in ("read", "float32")}
    table = time_case(CASE, packed, prepared, probes, rounds=2)
    assert table["is_noisy"].tolist() == [noisy]
    assert ("noisy" in gemm_lines(table)) == noisy
    assert table["read_gb_s"].iloc[0] == pytest.approx(1 / np.median(read))


def test_cases_that_share_a_shape_share_its_copies():
    prepared = []

    def prepare(packed, copies):
        prepared.append(packed.name)
        weight = packed.dequantize()
        return [lambda x: x @ weight.T] * copies

    cases = make_cases(["64x32", "32x64"], [1, 2, 4], group_size=32)
    lines = []
    tables = list(
        measure_gemm(cases, rounds=1, paths=[Path("p", False, prepare)], progress=lines.append)
    )
    assert prepared == ["64x32", "32x64"]
    assert [table["tokens"].iloc[0] for table in tables] == [1, 2, 4, 1, 2, 4]
    assert len(lines) == 6 and lines[0].startswith("64x32, 4 bits, group 32, M = 1: 1 paths in ")


def test_one_call_measures_everything_there_is(capsys):
    table = bench_gemm(["64x96"], [1, 5], group_size=32, rounds=1)
    assert set(table["tokens"]) == {1, 5}
    assert {"numpy", "torch int4pack", "NumPy dense float32"} <= set(table["path"])
    assert set(table.attrs["absent"]).isdisjoint(table["path"])
    assert not table["is_wrong"].any()
    assert capsys.readouterr().err.count("\n") == 2


def test_onnx_blocks_decode_to_the_weight():
    for bits, group_size in ((4, 32), (8, 16)):
        packed = random_weight(GemmCase(96, 8, 1, bits, group_size))
        parts = pack_blocks(packed)
        groups = 96 // group_size
        assert parts["B"].shape == (8, groups, group_size * bits // 8)
        assert parts["zero_points"].shape == (8, -(-groups * bits // 8))
        codes, zeros = (
            np.stack([part & 15, part >> 4], axis=-1).reshape(8, -1) if bits == 4 else part
            for part in (parts["B"], parts["zero_points"])
        )
        codes = codes.reshape(8, groups, group_size).astype(np.float32)
        decoded = (codes - zeros[:, :groups, None]) * parts["scales"][..., None]
        assert np.array_equal(decoded.reshape(8, 96), packed.dequantize())


@pytest.mark.parametrize("level", [0, 4])
def test_onnx_runtime_computes_the_product(level):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    packed = random_weight(CASE)
    (path,) = (p for p in peer_paths() if p.name == f"ONNX Runtime level {level}")
    x = np.random.default_rng(0).standard_normal((3, 64), np.float32)
    for call in path.prepare(packed, 2):
        assert relative_error(call(x), exact_product(x, packed)) < (2e-2 if level else 1e-5)


def test_openvino_computes_the_product():
    pytest.importorskip("openvino")
    pytest.importorskip("onnx")
    packed = random_weight(CASE)
    (path,) = (p for p in peer_paths() if p.name == "OpenVINO")
    x = np.random.default_rng(0).standard_normal((3, 64), np.float32)
    for call in path.prepare(packed, 2):
        # Its float32 takes activations of 8 bits.
        assert relative_error(call(x), exact_product(x, packed)) < 2e-2


def test_gptqmodel_is_given_the_weight_as_its_kernel_reads_it(monkeypatch):
    packed = random_weight(CASE)

    class Kernel:
        @staticmethod
        def cached_validate_once():
            return True, None

        @staticmethod
        def pack_awq_int4_kernel(qweight, qzeros, n, k):
            assert (n, k) == (packed.out_features, packed.in_features)
            return qweight, qzeros

        @staticmethod
        def gemm_int4_qzero_group_scaled_cpu_kernel(x, qweight, qzeros, scales, group_size, bias):
            parts = {"qweight": qweight, "qzeros": qzeros, "scales": scales.half()}
            weight = awq.read_linear(parts, bits=4, group_size=group_size).dequantize()
            return x.float() @ torch.from_numpy(weight).T

    module = ModuleType("gptqmodel.nn_modules.qlinear.torch_cpu_avx512_awq")
    module.TorchCpuAvx512AwqLinear = Kernel
    monkeypatch.setitem(sys.modules, module.__name__, module)
    (path,) = (p for p in peer_paths() if p.name == "GPTQModel")
    x = np.random.default_rng(0).standard_normal((3, packed.in_features), np.float32)
    for call in path.prepare(packed, 2):
        y = call(path.convert(x)).numpy()
        assert relative_error(y, exact_product(x, packed)) < 1e-2
    monkeypatch.setattr(Kernel, "cached_validate_once", lambda: (False, "no AVX-512"))
    with pytest.raises(RuntimeError, match="no AVX-512"):
        path.prepare(packed, 1)


def test_records_go_to_json_lines_and_come_back(tmp_path):
    table = with_ratios([made_up(error=1.0), made_up("p", is_peer=True)])
    table.attrs["absent"] = {"cuda": "no driver."}
    file = tmp_path / "new" / "gemm.jsonl"
    for complete in (True, False):
        record = make_record("gemm", table, {"bits": 4}, is_complete=complete)
        append_record(file, record)
    first, second = read_records(file)
    assert first["rows"][0]["vs p"] is None and first["rows"][1]["vs p"] == 1
    assert pd.DataFrame(first["rows"])["path"].tolist() == ["numpy", "p"]
    assert first["absent"] == {"cuda": "no driver."}
    assert first["machine"]["cpu"] and "isa" in first["machine"]
    assert (first["is_complete"], second["is_complete"]) == (True, False)


def test_bad_record_files_are_named(tmp_path):
    (tmp_path / "bad.jsonl").write_text('{"a": 1}\n[1]\n')
    with pytest.raises(FormatError, match=r"bad\.jsonl, line 2: not a JSON object"):
        read_records(tmp_path / "bad.jsonl")
    with pytest.raises(FormatError, match="cannot be read"):
        read_records(tmp_path / "none.jsonl")
    with pytest.raises(OutputError, match="cannot write"):
        append_record(tmp_path, {})


ARGUMENTS = ["bench", "gemm", "--quick", "--shape", "64x96", "--group-size", "32", "--threads", "1"]


def test_the_command_prints_a_table_and_writes_record_and_figure(tmp_path):
    out, figure = tmp_path / "gemm.jsonl", tmp_path / "gemm.png"
    files = ["--out", str(out), "--figure", str(figure)]
    result = CliRunner().invoke(app, [*ARGUMENTS, "--tokens", "2", *files])
    assert result.exit_code == 0, result.output
    assert "64x96 (K x N), 4 bits, group 32, M = 2" in result.stdout
    assert "times faster than a: torch int4pack" in result.stdout
    assert "not timed:" in result.stdout
    assert figure.stat().st_size > 1000
    (record,) = read_records(out)
    assert record["settings"]["tokens"] == [2] and record["ceilings"]["threads"] == 1
    assert record["is_complete"] and {row["tokens"] for row in record["rows"]} == {2}


def test_the_command_gives_json():
    chosen = ["--path", "numpy", "--path", "NumPy"]
    result = CliRunner().invoke(app, [*ARGUMENTS, "--tokens", "1", *chosen, "--json"])
    record = json.loads(result.stdout)
    assert record["benchmark"] == "gemm" and record["settings"]["paths"] == ["numpy", "NumPy"]
    assert [row["path"] for row in record["rows"]] == ["numpy", "NumPy dense float32"]


def test_ctrl_c_prints_what_was_measured(monkeypatch):
    whole = gemm_bench.time_case

    def interrupted(case, *args, **kwargs):
        if case.tokens == 2:
            raise KeyboardInterrupt
        return whole(case, *args, **kwargs)

    monkeypatch.setattr(gemm_bench, "time_case", interrupted)
    result = CliRunner().invoke(app, [*ARGUMENTS, "--tokens", "1", "--tokens", "2"])
    assert result.exit_code == INTERRUPTED
    assert "M = 1;" in result.stdout and "M = 2;" not in result.stdout
    assert "stopped after 1 of 2 cases." in result.stderr


def test_figures_that_cannot_be_drawn_are_errors(tmp_path):
    files = ["--figure", str(tmp_path / "a.nonsense")]
    result = CliRunner().invoke(app, [*ARGUMENTS, "--tokens", "1", *files])
    assert isinstance(result.exception, OutputError)
    assert "a.nonsense" in str(result.exception)


def test_outputs_are_checked_before_anything_is_timed(tmp_path, monkeypatch):
    monkeypatch.setattr(gemm_bench, "measure_gemm", None)
    for files in (["--figure", str(tmp_path / "none" / "a.png")], ["--out", str(tmp_path)]):
        result = CliRunner().invoke(app, [*ARGUMENTS, *files])
        assert isinstance(result.exception, OutputError), files
    new = tmp_path / "new.jsonl"
    require_appendable(new)
    assert not new.exists()
    new.write_text("{}\n")
    require_appendable(new)
    assert new.read_text() == "{}\n"


def test_torch_results_become_float64():
    assert as_array(torch.ones(2, dtype=torch.bfloat16)).dtype == np.float64
