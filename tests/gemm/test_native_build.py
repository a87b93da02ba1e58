"""Compiling the native kernels: compilers, the cache, what is said when it fails."""

import os
import platform
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from awqbench.errors import BackendError
from awqbench.gemm import native_build

needs_compiler = pytest.mark.skipif(
    bool(native_build.why_absent()), reason="there is no compiler here"
)


@pytest.fixture
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "awqbench" / "native"


@pytest.fixture
def quick(monkeypatch, tmp_path):
    """Sources that compile in a moment."""
    kernels = tmp_path / "kernels"
    kernels.mkdir()
    (kernels / "native_api.cpp").write_text('extern "C" int answer() { return 42; }\n')
    monkeypatch.setattr(native_build, "files", lambda package: kernels)
    monkeypatch.setattr(native_build, "SOURCES", ("native_api.cpp",))
    monkeypatch.setattr(native_build, "LEVELS", {})
    return kernels


def without_compilers(monkeypatch):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(native_build.shutil, "which", lambda name: None)
    monkeypatch.setattr(native_build, "find_spec", lambda name: None)


def test_no_compiler(monkeypatch):
    without_compilers(monkeypatch)
    assert native_build.find_compiler() is None
    reason = native_build.why_absent()
    assert "no C++ compiler is found (c++, g++, clang++)" in reason and "ziglang" in reason
    with pytest.raises(BackendError, match="cannot be built: no C"):
        native_build.build_library()


def test_zig_is_the_last_resort(monkeypatch):
    without_compilers(monkeypatch)
    monkeypatch.setattr(native_build, "find_spec", lambda name: name == "ziglang")
    assert native_build.find_compiler() == [sys.executable, "-m", "ziglang", "c++"]
    assert native_build.why_absent() == ""


def test_cxx_is_respected(monkeypatch):
    monkeypatch.setenv("CXX", f"{sys.executable} -Wall")
    assert native_build.find_compiler() == [sys.executable, "-Wall"]
    monkeypatch.setenv("CXX", "no-such-compiler -O2")
    assert native_build.find_compiler() is None
    assert "'no-such-compiler -O2', which is not found" in native_build.why_absent()


def test_other_systems(monkeypatch):
    monkeypatch.setattr(native_build.platform, "system", lambda: "Windows")
    assert "not on Windows" in native_build.why_absent()


@needs_compiler
def test_built_once(cache, quick):
    library = native_build.build_library()
    assert library.parent == cache
    before = library.stat().st_mtime_ns
    assert native_build.build_library() == library and library.stat().st_mtime_ns == before
    assert [path.name for path in cache.iterdir()] == [library.name]  # no scratch left


@needs_compiler
def test_source_and_flags_are_in_the_name(cache, quick, monkeypatch):
    first = native_build.build_library()
    (quick / "native_extra.h").write_text("// changes nothing\n")
    second = native_build.build_library()
    monkeypatch.setattr(native_build, "FLAGS", (*native_build.FLAGS, "-g"))
    third = native_build.build_library()
    assert len({first, second, third}) == 3


@needs_compiler
def test_builders_do_not_hurt_each_other(cache, quick):
    with ThreadPoolExecutor(4) as pool:
        built = set(pool.map(lambda _: native_build.build_library(), range(4)))
    assert [path.name for path in cache.iterdir()] == [built.pop().name]


@needs_compiler
def test_error_names_file_and_line(cache, quick):
    (quick / "native_api.cpp").write_text("int fine;\nint broken = nothing;\n")
    with pytest.raises(BackendError, match=r"do not compile: .*\n.*native_api.cpp:2:\d+: error"):
        native_build.build_library()
    assert not list(cache.iterdir())


@needs_compiler
def test_level_that_the_compiler_does_not_know_is_left_out(monkeypatch, tmp_path):
    old = tmp_path / "old"
    real = native_build.find_compiler()
    old.write_text(f'#!/bin/sh\ncase "$*" in *-mamx*) exit 1;; esac\nexec {" ".join(real)} "$@"\n')
    old.chmod(0o755)
    levels = {"native_amx.cpp": ("-mamx-tile",), "native_other.cpp": ("-O1",)}
    known, told = native_build._known_levels([str(old)], levels)
    assert known == {"native_other.cpp": ("-O1",)} and told == ["-DAWQ_WITHOUT_AMX"]


@needs_compiler
def test_compiler_that_hangs(cache, quick, monkeypatch, tmp_path):
    slow = tmp_path / "slow"
    slow.write_text("#!/bin/sh\nexec sleep 30\n")
    slow.chmod(0o755)
    monkeypatch.setenv("CXX", str(slow))
    monkeypatch.setattr(native_build, "_TIME_LIMIT_S", 0.2)
    with pytest.raises(BackendError, match="cannot be built: .*timed out"):
        native_build.build_library()


@needs_compiler
@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root writes everywhere")
def test_cache_that_cannot_be_written(cache, quick):
    cache.mkdir(parents=True)
    cache.chmod(0o500)
    library = native_build.build_library()
    assert library.exists() and library.parent != cache


@needs_compiler
def test_cache_is_a_file(cache, quick):
    cache.parent.mkdir(parents=True)
    cache.write_text("in the way")
    library = native_build.build_library()
    assert library.exists()
    shutil.rmtree(library.parent)


@needs_compiler
def test_sources_need_no_torch():
    kernels = Path(native_build.__file__).resolve().parents[2] / "kernels"
    for source in kernels.glob("native_*"):
        assert "torch/" not in source.read_text(), source.name


@needs_compiler
@pytest.mark.skipif(shutil.which("objdump") is None, reason="objdump is not installed")
def test_amx_level_holds_every_tile_instruction(tmp_path):
    compiler = native_build.find_compiler()
    levels = native_build.LEVELS.get(platform.machine(), {})
    known, _ = native_build._known_levels(compiler, levels)
    if "native_amx.cpp" not in known:
        pytest.skip("this compiler has no AMX")
    source = Path(native_build.__file__).parents[2] / "kernels" / "native_amx.cpp"
    target = tmp_path / "amx.o"
    flags = (*native_build.FLAGS, *known["native_amx.cpp"])
    subprocess.run([*compiler, *flags, "-c", str(source), "-o", str(target)], check=True)
    listing = subprocess.run(["objdump", "-d", target], capture_output=True, text=True).stdout
    for name in ("ldtilecfg", "tilerelease", "tileloadd", "tilestored", "tilezero"):
        assert name in listing
    for name in ("tdpbssd", "tdpbusd", "tdpbsud", "tdpbuud"):
        assert name in listing


@needs_compiler
def test_random_calls_under_sanitizers():
    script = Path(__file__).with_name("sanitize_native.py")
    command = [sys.executable, str(script), "--calls", "200"]
    done = subprocess.run(command, capture_output=True, text=True)
    if "cannot find" in done.stderr and "asan" in done.stderr:
        pytest.skip("this compiler has no sanitizers")
    assert done.returncode == 0, done.stdout + done.stderr
