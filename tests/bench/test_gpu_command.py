"""`bench gemm --device cuda`, with and without a GPU."""

import json
import sys

import pandas as pd
import pytest
import torch
from gpu_cases import gpu_rows
from typer.testing import CliRunner

from awqbench.bench import gpu_gemm, gpu_timing
from awqbench.cli import main
from awqbench.cli.app import app
from awqbench.gemm import cuda

ARGUMENTS = ["bench", "gemm", "--device", "cuda"]


def run_main(monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", ["awqbench", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    return ended.value.code, capsys.readouterr()


def test_without_a_gpu_one_sentence_and_status_2(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    file = tmp_path / "gpu.jsonl"
    code, (out, err) = run_main(monkeypatch, capsys, *ARGUMENTS, "--out", str(file))
    assert code == 2 and not out and not file.exists()
    assert err.startswith("DeviceError: no GPU") and err.count("\n") == 1


def test_a_device_that_is_none_is_refused(monkeypatch, capsys):
    code, (_, err) = run_main(monkeypatch, capsys, "bench", "gemm", "--device", "rocm")
    assert code == 2 and "'rocm' is none of cpu, cuda" in err


def test_without_cupy_it_says_what_is_missing(monkeypatch, capsys):
    monkeypatch.setattr(gpu_gemm, "require_gpu", lambda: None)
    monkeypatch.setattr(cuda, "why_absent", lambda: "CuPy is not installed")
    code, (out, err) = run_main(monkeypatch, capsys, *ARGUMENTS)
    assert code == 2 and not out and "CuPy is not installed" in err


@pytest.fixture
def gpu(monkeypatch):
    """Stand in for the GPU; returns what the benchmark was asked for."""
    asked = {}
    table = pd.DataFrame(gpu_rows())
    absent = {"gemlite float16": "gemlite is not installed"}
    table.attrs |= {"absent": absent, "failed": [], "is_complete": True}

    def bench_gemm(ceilings, **settings):
        asked.update(settings)
        return table

    ceilings = gpu_timing.GpuCeilings("made-up GPU", 4000.0, 700.0, 1000, "")
    monkeypatch.setattr(gpu_gemm, "require_gpu", lambda: None)
    monkeypatch.setattr(cuda, "why_absent", lambda: "")
    monkeypatch.setattr(gpu_timing, "measure_ceilings", lambda: ceilings)
    monkeypatch.setattr(gpu_gemm, "bench_gemm", bench_gemm)
    asked["table"] = table
    return asked


def test_what_is_measured_is_printed_recorded_and_drawn(gpu, tmp_path):
    file, figure = tmp_path / "gpu.jsonl", tmp_path / "gpu.png"
    options = ["--shape", "256x64", "--shape", "512x96", "--tokens", "1", "--tokens", "8"]
    options += ["--group-size", "64", "--out", str(file), "--figure", str(figure)]
    result = CliRunner().invoke(app, [*ARGUMENTS, *options])
    assert result.exit_code == 0, result.output
    assert gpu["shapes"] == ((256, 64), (512, 96)) and gpu["tokens"] == (1, 8)
    assert (gpu["bits"], gpu["group_size"], gpu["device"]) == (4, 64, "cuda:0")
    assert "made-up GPU: copy 4000 GB/s" in result.output
    assert "gemlite is not installed" in result.output and figure.stat().st_size
    record = json.loads(file.read_text())
    assert record["benchmark"] == "gpu_gemm" and record["is_complete"]
    assert record["ceilings"]["device"] == "made-up GPU" and len(record["rows"]) == 12


def test_wrong_and_unfinished_results_are_said(gpu):
    gpu["table"].attrs["is_complete"] = False
    gpu["table"]["is_wrong"] = gpu["table"]["path"].str.startswith("awqbench")
    result = CliRunner().invoke(app, [*ARGUMENTS, "--quick"])
    assert result.exit_code == 1 and "WRONG results: awqbench tiles float16" in result.output
    assert "time ran out" in result.output
    assert gpu["shapes"] == gpu_gemm.SHAPES[:1]


def test_a_peer_that_rounds_more_is_said_and_a_kernel_that_fails_fails(gpu):
    gpu["table"]["is_wrong"] = gpu["table"]["path"].str.startswith("humming")
    result = CliRunner().invoke(app, [*ARGUMENTS, "--quick"])
    assert result.exit_code == 0 and "WRONG results: humming float16" in result.output
    gpu["table"].attrs["failed"] = ["awqbench direct float16"]
    result = CliRunner().invoke(app, [*ARGUMENTS, "--quick"])
    assert result.exit_code == 1 and "FAILED: awqbench direct float16" in result.output
