"""The CUDA kernels compile for every architecture, without spills and within their registers.

Every program is compiled by benchmarks/cuda_compile.py, whose record is held against the
sources here; a test run compiles a part of them again, chosen to touch each kernel, shape, kind
of weight and architecture.
"""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from awqbench.errors import BackendError
from awqbench.gemm import cuda_build, cuda_nvrtc, cuda_programs
from awqbench.gemm.cuda_build import ARCHITECTURES, Program
from awqbench.gemm.cuda_programs import Kind

RECORD = Path(__file__).parents[2] / "data" / "records" / "cuda_compile.jsonl"
# Of the 958 pairs of program and architecture. A prime, so that neighbours in the list, which
# share an architecture or a kind, are told apart.
EVERY = 19
# Kinds that the record leaves out, bfloat16 tokens on a checkpoint of float16 scales first: of
# their programs every 31st, and two of wgmma.
OTHER_KINDS = (
    Kind(4, True, 128, "float16"),
    Kind(8, True, 128, "float16"),
    Kind(4, False, 64, "float16"),
    Kind(4, True, 32, "float32"),
    Kind(8, False, 0, "float32"),
)

needs_nvrtc = pytest.mark.skipif(
    bool(cuda_nvrtc.why_absent()), reason=cuda_nvrtc.why_absent() or "NVRTC is there"
)


def other_jobs():
    """Return some of the programs that the record leaves out, with their architectures."""
    known = set(cuda_programs.matrix())
    pairs = [(p, arch) for arch in ARCHITECTURES for p in cuda_programs.programs(arch, OTHER_KINDS)]
    others = [pair for pair in pairs if pair not in known]
    return others[::31] + [pair for pair in others if pair[0].kernel == "w4a16_wgmma"][::5]


@pytest.fixture(scope="module")
def built():
    jobs = [*cuda_programs.matrix()[::EVERY], *other_jobs()]
    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(lambda job: cuda_build.compile_program(*job), jobs))
    return dict(zip(jobs, results, strict=True))


@needs_nvrtc
def test_no_program_spills_or_takes_too_many_registers(built):
    for (program, arch), result in built.items():
        usage, limit = result.usage, cuda_programs.register_limit(program)
        assert usage.spill_bytes == usage.stack_bytes == 0, (str(program), arch, usage)
        assert usage.registers <= limit, (str(program), arch, usage)
        assert usage.shared_bytes <= 48 * 1024, (str(program), arch, usage)
        # ptxas says so where it must wait between wgmma instructions.
        assert "serializ" not in result.log and "warning" not in result.log, result.log


def test_the_part_touches_every_kernel_and_architecture():
    part = cuda_programs.matrix()[::EVERY]
    assert {program.kernel for program, _ in part} == set(cuda_programs.KERNELS)
    assert {arch for _, arch in part} == set(ARCHITECTURES)
    others = other_jobs()
    assert {"w4a16_skinny", "w4a16_mma", "w4a16_wgmma"} <= {program.kernel for program, _ in others}


def test_wgmma_is_for_sm_90a_and_bfloat16_from_sm_80():
    for program, arch in cuda_programs.matrix():
        assert (program.kernel == "w4a16_wgmma") <= (arch == "90a")
        assert dict(program.macros).get("BF16", 0) <= (arch != "75")


def test_the_record_is_of_these_sources_and_has_no_spills():
    record = json.loads(RECORD.read_text(encoding="utf-8").splitlines()[-1])
    redo = "run: python benchmarks/cuda_compile.py --write data/records/cuda_compile.jsonl"
    assert record["settings"]["sources"] == cuda_programs.sources_digest(), redo
    assert record["settings"]["programs"] == len(cuda_programs.matrix()), redo
    pairs = {(row["kernel"], row["arch"]) for row in record["rows"]}
    assert pairs == {(program.kernel, arch) for program, arch in cuda_programs.matrix()}
    assert all(row["spill_bytes"] == row["stack_bytes"] == 0 for row in record["rows"])


@needs_nvrtc
def test_messages_point_at_the_lines_of_the_files(monkeypatch):
    source = cuda_build.expand_source("w4a16_skinny.cu")
    path = Path(__file__).parents[2] / "kernels"
    for name, text in (
        ("codes.cuh", "DEVICE void decode_step"),
        ("w4a16_skinny.cu", "struct Tiles"),
    ):
        broken = source.replace(text, f"this_is_no_type {text}", 1)
        monkeypatch.setattr(cuda_build, "expand_source", lambda name, broken=broken: broken)
        lines = (path / name).read_text(encoding="utf-8").splitlines()
        number = next(i for i, line in enumerate(lines, start=1) if text in line)
        with pytest.raises(BackendError, match=rf"kernels/{name}\({number}\)"):
            cuda_build.compile_program(Program.of("w4a16_skinny"), "80")


@needs_nvrtc
def test_cubins_are_kept_until_something_changes(monkeypatch, tmp_path):
    monkeypatch.setenv("AWQBENCH_CACHE", str(tmp_path))
    program = Program.of("sum_splits", BF16=0)
    file = cuda_build.cubin_file(program, "80")
    assert file.read_bytes()[:4] == b"\x7fELF" and file.parent == tmp_path
    monkeypatch.setattr(cuda_build, "compile_program", None)  # a call fails
    assert cuda_build.cubin_file(program, "80") == file
    monkeypatch.undo()
    monkeypatch.setenv("AWQBENCH_CACHE", str(tmp_path))
    other = cuda_build.cubin_file(Program.of("sum_splits", BF16=1), "80")
    assert other != file and cuda_build.cubin_file(program, "86") not in (file, other)
    blocked = tmp_path / "file"
    blocked.write_text("")
    monkeypatch.setenv("AWQBENCH_CACHE", str(blocked))
    with pytest.raises(BackendError, match="AWQBENCH_CACHE"):
        cuda_build.cubin_file(program, "80")


@needs_nvrtc
def test_a_gpu_newer_than_nvrtc_gets_ptx(monkeypatch, tmp_path):
    monkeypatch.setenv("AWQBENCH_CACHE", str(tmp_path))
    known = cuda_nvrtc.architectures()
    assert {75, 80, 86, 89, 90, 100, 120} <= set(known) and list(known) == sorted(known)
    monkeypatch.setattr(cuda_nvrtc, "architectures", lambda: (75, 80, 90))
    program = Program.of("sum_splits", BF16=0)
    file = cuda_build.cubin_file(program, "120")
    assert file.name.startswith("sum_splits-compute_90-") and file.suffix == ".ptx"
    assert ".target sm_90" in file.read_text() and cuda_build.cubin_file(program, "120") == file
    assert cuda_build.cubin_file(program, "89").name.startswith("sum_splits-compute_80-")
    assert cuda_build.cubin_file(program, "90a").suffix == ".cubin"


def test_a_log_without_figures_is_an_error():
    with pytest.raises(BackendError, match="registers and spills"):
        cuda_build.read_usage("ptxas info : 0 bytes gmem")
    log = (
        "ptxas info    : 0 bytes gmem\nptxas info    : Function properties for f\n"
        "    8 bytes stack frame, 12 bytes spill stores, 16 bytes spill loads\n"
        "ptxas info    : Used 40 registers, used 1 barriers, 1024 bytes smem\n"
    )
    assert cuda_build.read_usage(log) == (40, 8, 28, 1024)


def test_nvrtc_absent_is_said(monkeypatch):
    monkeypatch.setattr(cuda_nvrtc, "_load", lambda: "NVRTC is not found; pip install it.")
    assert "pip install" in cuda_nvrtc.why_absent()
    with pytest.raises(BackendError, match="cannot be compiled: NVRTC is not found"):
        cuda_nvrtc.version()
