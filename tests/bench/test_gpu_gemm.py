"""The GPU benchmark's own logic, with the interpreter for a GPU and made-up times."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch
from fake_gpu import FakeGpu

from awqbench.bench import gpu_gemm, gpu_paths
from awqbench.bench.gpu_timing import GpuCeilings, GpuTime
from awqbench.errors import DeviceError
from awqbench.gemm import cuda, cuda_choice, cuda_nvrtc, cuda_tune

GPU_ALL = Path(__file__).parents[2] / "benchmarks" / "gpu_all.py"
CEILINGS = GpuCeilings("fake", 4000.0, 800.0, 1000, "")

needs_nvrtc = pytest.mark.skipif(
    bool(cuda_nvrtc.why_absent()), reason=cuda_nvrtc.why_absent() or "NVRTC is there"
)


@pytest.fixture
def small(monkeypatch):
    """Run the benchmark's paths on small weights, on the CPU."""
    gpu = FakeGpu(monkeypatch)
    own = [path for path in gpu_paths.PATHS if not path.is_peer or "cuBLAS" in path.name]
    monkeypatch.setattr(gpu_gemm, "PATHS", tuple(own))
    monkeypatch.setattr(gpu_gemm, "_MIN_COPIED_BYTES", 1)
    return gpu


def made_up(paths):
    """Call everything once; the n-th path takes n microseconds."""
    for calls in paths.values():
        for call in calls:
            call()
    return {name: GpuTime(1e-6 * n, 1e-8, 2e-6) for n, name in enumerate(paths, start=1)}


@needs_nvrtc
def test_checks_compare_every_kernel_with_float64(monkeypatch, small):
    checks = ((256, 40, 4, 128, (1, 35)), (128, 24, 8, 128, (2,)))
    monkeypatch.setattr(gpu_gemm, "CHECKS", checks)
    table = gpu_gemm.check_kernels("cpu")
    assert len(table) == 2 * 3 + 1 * 2  # the direct path takes 4 bits alone
    assert not table["is_wrong"].any() and (table["rel_error"] > 0).all()
    right = cuda.matmul
    monkeypatch.setattr(cuda, "matmul", lambda x, weight: right(x, weight) * 1.05)
    table = gpu_gemm.check_kernels("cpu")
    assert table.set_index("path")["is_wrong"]["awqbench tiles float16"].all()


@needs_nvrtc
def test_an_output_that_is_not_written_is_seen(monkeypatch, small):
    monkeypatch.setattr(gpu_gemm, "CHECKS", ((128, 24, 4, 128, (2,)),))
    monkeypatch.setattr(cuda, "multiply", lambda x, weight, chosen, y: None)
    table = gpu_gemm.check_kernels("cpu").set_index("path")
    assert table["is_wrong"]["awqbench tiles float16"]


@needs_nvrtc
def test_rows_hold_ratios_of_one_run(monkeypatch, small):
    paths = [p._replace(max_tokens=8) if "direct" in p.name else p for p in gpu_gemm.PATHS]
    monkeypatch.setattr(gpu_gemm, "PATHS", tuple(paths))
    monkeypatch.setattr(gpu_gemm, "time_in_turns", made_up)
    table = gpu_gemm.bench_gemm(CEILINGS, device="cpu", shapes=((256, 64),), tokens=(1, 9))
    assert table.attrs == {"absent": {}, "is_complete": True}
    first = table[(table["tokens"] == 1) & (table["path"] == "awqbench tiles float16")].iloc[0]
    assert first["vs_cublas"] == pytest.approx(4) and first["vs_best_peer"] == pytest.approx(4)
    assert first["floor_bytes"] == 256 * 64 // 2 + 2 * 64 * 5 // 2 + 2 * (256 + 64)
    assert first["gb_s"] == pytest.approx(first["floor_bytes"] / 1e-6 / 1e9)
    # (one path is not timed for 9 tokens)
    assert table.groupby("tokens").size().to_dict() == {1: 5, 9: 4}
    assert not table["is_wrong"].any()


@needs_nvrtc
def test_a_peer_that_fails_is_named_and_ours_is_not_hidden(monkeypatch, small):
    def fails(case):
        raise RuntimeError("no kernel image")

    peer = gpu_paths.GpuPath("peer", True, "float16", fails)
    missing = peer._replace(name="missing", package="no_such_package_here")
    monkeypatch.setattr(gpu_gemm, "PATHS", (*gpu_gemm.PATHS, peer, missing))
    monkeypatch.setattr(gpu_gemm, "time_in_turns", made_up)
    sizes = {"device": "cpu", "shapes": ((128, 16),), "tokens": (1,)}
    table = gpu_gemm.bench_gemm(CEILINGS, **sizes)
    assert table.attrs["absent"] == {
        "peer": "RuntimeError: no kernel image",
        "missing": "no_such_package_here is not installed",
    }
    monkeypatch.setattr(gpu_gemm, "PATHS", (peer._replace(is_peer=False),))
    with pytest.raises(RuntimeError, match="no kernel image"):
        gpu_gemm.bench_gemm(CEILINGS, **sizes)


@needs_nvrtc
def test_time_that_runs_out_is_said(monkeypatch, small):
    monkeypatch.setattr(gpu_gemm, "time_in_turns", made_up)
    table = gpu_gemm.bench_gemm(
        CEILINGS, device="cpu", shapes=((128, 16),), tokens=(1,), time_limit_s=-1
    )
    assert table.empty and not table.attrs["is_complete"]


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
        return {name: time.median_s for name, time in made_up(calls).items()}

    try:
        times = cuda_tune.tune(weights, 3, torch.float16, timer)
        assert cuda.choose(4, weights[0], torch.float16).program == min_program(times)
        times = cuda_tune.tune(weights, 3, torch.float16, lambda calls: {"dense": 1.0})
        assert cuda.choose(3, weights[0], torch.float16) is None
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


@needs_nvrtc
def test_the_whole_run_writes_a_record(monkeypatch, tmp_path, small, capsys):
    """Everything that the script does on a GPU, but the GPU's own part."""
    monkeypatch.setenv("AWQBENCH_CACHE", str(tmp_path))
    module = load_gpu_all()
    monkeypatch.setattr(module, "DEVICE", "cpu")
    monkeypatch.setattr(module, "compile_here", lambda arch: None)
    monkeypatch.setattr(cuda, "why_absent", lambda: "")
    monkeypatch.setattr(cuda_tune, "keep", lambda choices: None)
    monkeypatch.setattr(gpu_gemm, "require_gpu", lambda: None)
    monkeypatch.setattr(gpu_gemm, "CHECKS", ((128, 16, 4, 128, (1,)),))
    monkeypatch.setattr(gpu_gemm, "SHAPES", ((128, 16),))
    monkeypatch.setattr(gpu_gemm, "TOKENS", (1,))
    monkeypatch.setattr(module.gpu_timing, "measure_ceilings", lambda: CEILINGS)
    for home in (gpu_gemm, module.gpu_timing):
        monkeypatch.setattr(home, "time_in_turns", made_up)
    file = tmp_path / "gpu.jsonl"
    monkeypatch.setattr(sys, "argv", ["gpu_all.py", "--write", str(file)])
    assert module.main() == 0, capsys.readouterr().err
    record = json.loads(file.read_text())
    assert record["ceilings"]["copy_gb_s"] == 4000 and record["is_complete"]
    assert all(row["repeat_ratio"] == 1 for row in record["rows"]) and len(record["rows"]) == 5
    monkeypatch.setattr(cuda, "multiply", lambda x, weight, chosen, y: None)
    assert module.main() == 1  # a wrong kernel is not timed
    assert "WRONG" in capsys.readouterr().out and file.read_text().count("\n") == 1


def test_without_a_gpu_one_sentence_is_said(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(DeviceError, match="no GPU"):
        gpu_gemm.require_gpu()
    module = load_gpu_all()
    monkeypatch.setattr(sys, "argv", ["gpu_all.py"])
    assert module.main() == 1
    out, err = capsys.readouterr()
    assert not out and err.startswith("no GPU") and err.count("\n") == 1
