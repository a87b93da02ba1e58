"""The GPU benchmark's own logic, with the interpreter for a GPU and made-up times."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch
from fake_gpu import FakeGpu

from awqbench.bench import gpu_check, gpu_gemm, gpu_paths
from awqbench.bench.gpu_timing import GpuCeilings, GpuTime
from awqbench.errors import DeviceError
from awqbench.gemm import cuda, cuda_build, cuda_choice, cuda_nvrtc, cuda_programs, cuda_tune
from awqbench.gemm.cuda_layout import TileSpec

GPU_ALL = Path(__file__).parents[2] / "benchmarks" / "gpu_all.py"
CEILINGS = GpuCeilings("fake", 4000.0, 800.0, 1, "")  # a cache so small: two copies of a weight

needs_nvrtc = pytest.mark.skipif(
    bool(cuda_nvrtc.why_absent()), reason=cuda_nvrtc.why_absent() or "NVRTC is there"
)


@pytest.fixture
def small(monkeypatch):
    """Run the benchmark's paths on small weights, on the CPU."""
    gpu = FakeGpu(monkeypatch)
    own = [path for path in gpu_paths.PATHS if not path.is_peer or "cuBLAS" in path.name]
    monkeypatch.setattr(gpu_gemm, "PATHS", tuple(own))
    monkeypatch.setattr(gpu_check, "PATHS", tuple(own))
    monkeypatch.setattr(gpu_gemm, "_MIN_COPIED_BYTES", 1)
    return gpu


def made_up(paths):
    """Call everything once; the n-th path takes n microseconds."""
    for calls in paths.values():
        for call in calls:
            call()
    return numbered(paths)


def numbered(paths):
    return {name: GpuTime(1e-6 * n, 1e-8, 2e-6) for n, name in enumerate(paths, start=1)}, {}


@needs_nvrtc
def test_checks_compare_every_kernel_with_float64(monkeypatch, small):
    checks = ((256, 40, 4, 128, (1, 35)), (128, 24, 8, 128, (2,)))
    monkeypatch.setattr(gpu_check, "CHECKS", checks)
    table = gpu_check.check_kernels("cpu")
    assert len(table) == 2 * 3 + 1 * 2  # the direct path takes 4 bits alone
    assert not table["is_wrong"].any() and (table["rel_error"] > 0).all()
    assert (table["failure"] == "").all()
    right = cuda.matmul
    monkeypatch.setattr(cuda, "matmul", lambda x, weight: right(x, weight) * 1.05)
    table = gpu_check.check_kernels("cpu")
    assert table.set_index("path")["is_wrong"]["awqbench tiles float16"].all()


@needs_nvrtc
def test_an_output_that_is_not_written_is_seen(monkeypatch, small):
    monkeypatch.setattr(gpu_check, "CHECKS", ((128, 24, 4, 128, (2,)),))
    monkeypatch.setattr(cuda, "multiply", lambda x, weight, chosen, y: None)
    table = gpu_check.check_kernels("cpu").set_index("path")
    assert table["is_wrong"]["awqbench tiles float16"]


@needs_nvrtc
def test_rows_hold_ratios_of_one_run(monkeypatch, small):
    paths = [p._replace(max_tokens=8) if "direct" in p.name else p for p in gpu_gemm.PATHS]
    monkeypatch.setattr(gpu_gemm, "PATHS", tuple(paths))
    monkeypatch.setattr(gpu_gemm, "time_in_turns", made_up)
    table = gpu_gemm.bench_gemm(CEILINGS, device="cpu", shapes=((256, 64),), tokens=(1, 9))
    assert table.attrs == {"absent": {}, "failed": [], "is_complete": True}
    first = table[(table["tokens"] == 1) & (table["path"] == "awqbench tiles float16")].iloc[0]
    assert first["vs_cublas"] == pytest.approx(4) and first["vs_best_peer"] == pytest.approx(4)
    assert first["floor_bytes"] == 256 * 64 // 2 + 2 * 64 * 5 // 2 + 2 * (256 + 64)
    assert first["gb_s"] == pytest.approx(first["floor_bytes"] / 1e-6 / 1e9)
    # (one path is not timed for 9 tokens)
    assert table.groupby("tokens").size().to_dict() == {1: 5, 9: 4}
    assert not table["is_wrong"].any()


SIZE = {"device": "cpu", "shapes": ((128, 16),), "tokens": (1,)}


def fails_with(error):
    def prepare(case):
        raise error

    return prepare


@needs_nvrtc
def test_a_path_that_fails_is_named_and_the_others_are_timed(monkeypatch, small):
    # (Compilers of peers raise what they like.)
    peer = gpu_paths.GpuPath("peer", True, "float16", fails_with(KeyError("no kernel")))
    missing = peer._replace(name="missing", package="no_such_package_here")
    ours = peer._replace(name="ours", is_peer=False, prepare=fails_with(RuntimeError("no memory")))
    monkeypatch.setattr(gpu_gemm, "PATHS", (*gpu_gemm.PATHS, peer, missing, ours))
    monkeypatch.setattr(gpu_gemm, "time_in_turns", made_up)
    table = gpu_gemm.bench_gemm(CEILINGS, **SIZE)
    assert len(table) == 5
    assert table.attrs["absent"] == {
        "peer": "KeyError: 'no kernel'",
        "missing": "no_such_package_here is not installed",
        "ours": "RuntimeError: no memory",
    }
    assert table.attrs["failed"] == ["ours"]
    mistake = ours._replace(prepare=fails_with(TypeError("a mistake in this package")))
    monkeypatch.setattr(gpu_gemm, "PATHS", (mistake,))
    with pytest.raises(TypeError, match="a mistake"):
        gpu_gemm.bench_gemm(CEILINGS, **SIZE)


@needs_nvrtc
def test_a_path_without_a_graph_is_left_out(monkeypatch, small):
    """Also cuBLAS: its ratios are missing then."""

    def captured(paths):
        times, _ = made_up(paths)
        lost = ("cuBLAS float16", "awqbench direct float16")
        failures = {name: RuntimeError("not in a graph") for name in lost}
        return {name: times[name] for name in times if name not in lost}, failures

    monkeypatch.setattr(gpu_gemm, "time_in_turns", captured)
    table = gpu_gemm.bench_gemm(CEILINGS, **SIZE).set_index("path")
    assert table.attrs["failed"] == ["awqbench direct float16"]
    assert table.attrs["absent"]["cuBLAS float16"] == "RuntimeError: not in a graph"
    assert table["vs_cublas"].isna().to_dict() == {
        "awqbench tiles float16": True,
        "awqbench tiles bfloat16": False,
        "cuBLAS bfloat16": False,
    }


@needs_nvrtc
def test_a_size_that_breaks_does_not_take_the_others_along(monkeypatch, small):
    begun = []

    def breaks(paths):
        begun.append(paths)
        if len(begun) == 2:
            raise RuntimeError("an illegal memory access was encountered")
        return numbered(paths)

    monkeypatch.setattr(gpu_gemm, "time_in_turns", breaks)
    table = gpu_gemm.bench_gemm(CEILINGS, **SIZE | {"tokens": (1, 2, 3)})
    assert table["tokens"].unique().tolist() == [1, 3]
    assert table.attrs["failed"] == ["128x16 M=2"]
    assert "illegal memory access" in table.attrs["absent"]["128x16 M=2"]


@needs_nvrtc
def test_paths_of_a_type_share_their_tokens(monkeypatch, small):
    """At 4096 tokens a set for each path would take 8 GB."""
    made = []
    random_tokens = gpu_gemm.random_tokens
    monkeypatch.setattr(
        gpu_gemm, "random_tokens", lambda *args: made.append(args[2]) or random_tokens(*args)
    )
    monkeypatch.setattr(gpu_gemm, "time_in_turns", made_up)
    gpu_gemm.bench_gemm(CEILINGS, **SIZE)
    assert sorted(made) == ["bfloat16"] * 2 + ["float16"] * 2  # two copies of the weight


@needs_nvrtc
def test_a_gpu_without_bfloat16_is_not_asked_for_it(monkeypatch):
    FakeGpu(monkeypatch, "75")
    monkeypatch.setattr(gpu_check, "CHECKS", ((128, 16, 4, 128, (1,)),))
    table = gpu_check.check_kernels("cpu")
    assert set(table["path"]) == {"awqbench tiles float16", "awqbench direct float16"}
    assert not table["is_wrong"].any()
    case = gpu_paths.GpuCase(128, 16, 4, 128, device="cpu")
    named = {path.name: path.why_not(case) for path in gpu_paths.PATHS}
    assert named["cuBLAS bfloat16"] == "interpreter has no bfloat16" and not named["cuBLAS float16"]


@needs_nvrtc
def test_a_kernel_that_does_not_launch_is_a_row_of_the_check(monkeypatch, small):
    monkeypatch.setattr(gpu_check, "CHECKS", ((128, 16, 4, 128, (1, 2)),))

    def refuses(x, weight):
        if len(x) == 2:
            raise RuntimeError("invalid device function")
        return right(x, weight)

    right = cuda.matmul
    monkeypatch.setattr(cuda, "matmul", refuses)
    table = gpu_check.check_kernels("cpu").set_index(["path", "tokens"])
    lost = table.loc["awqbench tiles float16", 2]
    assert lost["is_wrong"] and lost["failure"] == "RuntimeError: invalid device function"
    assert not table.loc["awqbench tiles float16", 1]["is_wrong"]
    assert table["is_wrong"].sum() == 2  # float16 and bfloat16


def test_a_peer_that_compiles_for_long_is_left_out(monkeypatch):
    clock = iter(range(0, 10**6, 30))
    monkeypatch.setattr(gpu_gemm.time, "monotonic", lambda: next(clock))
    notes = gpu_gemm.Notes()
    named = {path.name: path for path in gpu_paths.PATHS}
    tired = []
    for name in ("gemlite float16", "cuBLAS float16", "awqbench tiles float16"):
        for _ in range(2):  # 30 seconds each
            with notes.first_call(named[name]):
                pass
            tired.append(notes.is_tired_of(named[name]))
    assert tired == [False, True, False, False, False, False]
    assert notes.absent == {"gemlite float16": "its first calls took 60 s; left out from there on"}


@needs_nvrtc
def test_time_that_runs_out_is_said(monkeypatch, small):
    monkeypatch.setattr(gpu_gemm, "time_in_turns", numbered)
    table = gpu_gemm.bench_gemm(CEILINGS, **SIZE, time_limit_s=-1)
    assert table.empty and not table.attrs["is_complete"]
    assert not small.launched  # nor is anything prepared

    def slow(paths):
        clock.append(200.0)
        return numbered(paths)

    clock = [0.0]
    monkeypatch.setattr(gpu_gemm.time, "monotonic", lambda: sum(clock))
    monkeypatch.setattr(gpu_gemm, "time_in_turns", slow)
    table = gpu_gemm.bench_gemm(CEILINGS, **SIZE | {"tokens": (1, 2, 3)}, time_limit_s=300)
    assert table["tokens"].unique().tolist() == [1, 2] and not table.attrs["is_complete"]


def test_copies_are_four_caches_together():
    assert gpu_gemm.copies(10_000_000, 60_000_000) == 26  # 256 MB
    assert gpu_gemm.copies(10_000_000, 75_000_000) == 30
    assert gpu_gemm.copies(500_000_000, 60_000_000) == 2


@needs_nvrtc
def test_tuning_keeps_what_was_fastest(monkeypatch, tmp_path, small):
    monkeypatch.undo()
    monkeypatch.setenv("AWQBENCH_CACHE", str(tmp_path))
    cuda_choice.measured.cache_clear()
    read = cuda_choice.measured
    FakeGpu(monkeypatch)
    monkeypatch.setattr(cuda_choice, "measured", read)
    case = gpu_paths.GpuCase(256, 32, 4, 128, device="cpu")
    weights = [cuda.to_device(case.packed, torch.device("cpu")) for _ in range(2)]

    def timer(calls):
        assert all(len(copies) == 2 for copies in calls.values())
        return {name: time.median_s for name, time in made_up(calls)[0].items()}

    try:
        times = cuda_tune.tune(weights, 3, torch.float16, timer)
        assert cuda.choose(4, weights[0], torch.float16).program == min_program(times)
        times = cuda_tune.tune(weights, 3, torch.float16, lambda calls: {"dense": 1.0})
        assert cuda.choose(3, weights[0], torch.float16) is None
        assert len(cuda_choice.measured()) == 1
        assert cuda_tune.tune(weights, 9, torch.float16, lambda calls: {}) == {}
        assert len(cuda_choice.measured()) == 1
    finally:
        cuda_choice.measured.cache_clear()


def min_program(times):
    from awqbench.gemm.cuda_build import Program

    kernel, *macros = min(times, key=times.get).split()
    return Program(kernel, tuple((k, int(v)) for k, v in (macro.split("=") for macro in macros)))


def load_gpu_all():
    spec = importlib.util.spec_from_file_location("gpu_all", GPU_ALL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def gpu_all(monkeypatch, tmp_path, small):
    """Stand in for what the script needs of a GPU; returns a run of it: status and record."""
    module = load_gpu_all()
    file = tmp_path / "gpu.jsonl"
    monkeypatch.setenv("AWQBENCH_CACHE", str(tmp_path))
    monkeypatch.setattr(module, "DEVICE", "cpu")
    monkeypatch.setattr(module, "compile_here", lambda arch: None)
    monkeypatch.setattr(cuda, "why_absent", lambda: "")
    monkeypatch.setattr(cuda_tune, "keep", lambda choices: None)
    monkeypatch.setattr(gpu_gemm, "require_gpu", lambda: None)
    monkeypatch.setattr(gpu_check, "CHECKS", ((128, 16, 4, 128, (1,)),))
    monkeypatch.setattr(gpu_gemm, "SHAPES", ((128, 16), (128, 24)))
    monkeypatch.setattr(gpu_gemm, "TOKENS", (1,))
    monkeypatch.setattr(module.gpu_timing, "measure_ceilings", lambda: CEILINGS)
    for home in (gpu_gemm, module.gpu_timing):
        monkeypatch.setattr(home, "time_in_turns", numbered)
    monkeypatch.setattr(sys, "argv", ["gpu_all.py", "--write", str(file)])
    return lambda: (module.main(), json.loads(file.read_text().splitlines()[-1]))


@needs_nvrtc
def test_the_whole_run_writes_a_record(gpu_all):
    """Everything that the script does on a GPU, but the GPU's own part."""
    status, record = gpu_all()
    assert status == 0 and record["is_complete"]
    assert record["ceilings"]["copy_gb_s"] == 4000 and record["settings"]["failed"] == []
    assert all(row["repeat_ratio"] == 1 for row in record["rows"]) and len(record["rows"]) == 10
    assert [row["shape"] for row in record["rows"][::5]] == ["128x24", "128x16"]  # largest first
    checks = record["settings"]["checks"]
    assert len(checks) == 3 and not any(row["is_wrong"] for row in checks)


@needs_nvrtc
def test_a_wrong_kernel_is_marked_and_fails_the_run(monkeypatch, gpu_all, capsys):
    monkeypatch.setattr(cuda, "multiply", lambda x, weight, chosen, y: None)
    status, record = gpu_all()
    assert status == 1 and "WRONG" in capsys.readouterr().out
    assert record["settings"]["failed"] == ["check"]
    wrong = {row["path"]: row["is_wrong"] for row in record["rows"]}
    assert wrong["awqbench tiles float16"] and not wrong["cuBLAS float16"]


@needs_nvrtc
@pytest.mark.parametrize("part", ["ceilings", "bench", "check"])
def test_a_part_that_fails_leaves_the_others(monkeypatch, gpu_all, capsys, part):
    def fails(*args, **how):
        raise ValueError("not foreseen")

    timing = sys.modules["awqbench.bench.gpu_timing"]
    home, name = {
        "ceilings": (timing, "measure_ceilings"),
        "bench": (gpu_gemm, "bench_gemm"),
        "check": (gpu_check, "check_kernels"),
    }[part]
    monkeypatch.setattr(home, name, fails)
    status, record = gpu_all()
    assert status == 1 and part in record["settings"]["failed"]
    assert "not foreseen" in capsys.readouterr().err
    assert len(record["rows"]) == (10 if part == "check" else 0)
    assert len(record["settings"]["checks"]) == (0 if part == "check" else 3)
    assert (record["ceilings"] is None) == (part == "ceilings")


@pytest.mark.parametrize(("arch", "n_sm"), [("90a", 132), ("75", 40)])
def test_what_is_launched_often_was_compiled_before(monkeypatch, arch, n_sm):
    compiled = set()
    monkeypatch.setattr(cuda_build, "cubin_file", lambda program, arch: compiled.add(program))
    load_gpu_all().compile_here(arch)
    sizes = [*gpu_check.CHECKS, *((k, n, 4, 128, gpu_gemm.TOKENS) for k, n in gpu_gemm.SHAPES)]
    for k, n, bits, group_size, tokens in sizes:
        spec = TileSpec(n, k, bits, group_size, "float16")
        for is_bf16 in (False,) if arch == "75" else (False, True):
            settings = {"arch": arch, "n_sm": n_sm, "is_bf16": is_bf16}
            for m in tokens:
                found = cuda_choice.candidates(m, spec, **settings)
                assert {launch.program for launch in found} <= compiled
            macros = cuda_choice.weight_macros(spec, is_bf16=is_bf16)
            assert cuda_programs.Program.of("tile_dequant", **macros) in compiled


def test_without_a_gpu_one_sentence_is_said(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(DeviceError, match="no GPU"):
        gpu_gemm.require_gpu()
    module = load_gpu_all()
    monkeypatch.setattr(sys, "argv", ["gpu_all.py"])
    assert module.main() == 1
    out, err = capsys.readouterr()
    assert not out and err.startswith("no GPU") and err.count("\n") == 1
