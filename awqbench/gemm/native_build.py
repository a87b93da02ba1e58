"""Compiles the native kernels where they run, once for each machine and version.

The compiler is ``$CXX``, else c++, g++ or clang++, else the one in the `ziglang` package. The
library lies in the user's cache folder under a digest of sources, flags, compiler and
processor type. This takes seconds; Zig, which first builds a C++ library of its own, took two
minutes. Processes that build at the same time do the same work, and the last one to
rename its library wins: no locks. Each source has the flags of its own instruction set, and
the library picks one at run time.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path

from awqbench.errors import BackendError

SOURCES = (
    "native_amx_check.cpp",
    "native_api.cpp",
    "native_arm.cpp",
    "native_exact.cpp",
    "native_portable.cpp",
    "native_scan.cpp",
    "native_threads.cpp",
)
_AVX512 = ("-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512vnni", "-mfma", "-mf16c")
# Without GCC's first scheduling, which hoists loads until accumulators are spilled (Clang has no
# such thing, and says so in a warning).
_ARM = ("-fno-schedule-insns",)
_NEON = {
    "native_neon.cpp": _ARM,
    "native_neon_dotprod.cpp": (*_ARM, "-march=armv8.2-a+dotprod"),
    "native_neon_i8mm.cpp": (*_ARM, "-march=armv8.2-a+dotprod+i8mm"),
}
# Levels of one processor type, as Linux and macOS name it: source and its flags.
LEVELS = {
    "aarch64": {
        **_NEON,
        "native_sve.cpp": (
            *_ARM,
            "-march=armv8.2-a+dotprod+i8mm+sve",
            "-msve-vector-bits=256",
        ),
    },
    "arm64": _NEON,
    "x86_64": {
        "native_amx.cpp": (*_AVX512, "-mamx-tile", "-mamx-int8"),
        "native_avx2.cpp": ("-mavx2", "-mfma", "-mf16c"),
        "native_avx512.cpp": _AVX512,
    },
}
# Levels left out where the compiler does not know their flags (GCC before 11), and what all
# sources are told then.
OPTIONAL = {"native_amx.cpp": "-DAWQ_WITHOUT_AMX", "native_sve.cpp": "-DAWQ_WITHOUT_SVE"}
# No -ffast-math: NaN must stay NaN. No a * b + c made one operation where the source has two:
# activations must become the same integers on every processor.
FLAGS = (
    "-O3",
    "-std=c++17",
    "-ffp-contract=off",
    "-fPIC",
    "-fvisibility=hidden",
    "-pthread",
)
_COMPILERS = ("c++", "g++", "clang++")
_TIME_LIMIT_S = 300


def find_compiler() -> list[str] | None:
    """Return the command of a C++ compiler, or None.

    ``$CXX`` may hold arguments; where it is set and not found, there is no compiler, rather
    than another one than was asked for.
    """
    chosen = shlex.split(os.environ.get("CXX", ""))
    if chosen:
        return chosen if shutil.which(chosen[0]) else None
    for name in _COMPILERS:
        if path := shutil.which(name):
            return [path]
    if find_spec("ziglang") is not None:
        return [sys.executable, "-m", "ziglang", "c++"]
    return None


def why_absent() -> str:
    """Say why the kernels cannot be built here, or "" if nothing is known against it."""
    if platform.system() not in ("Linux", "Darwin"):
        return f"it is built on Linux and macOS, not on {platform.system()}."
    if find_compiler() is not None:
        return ""
    if os.environ.get("CXX"):
        return f"$CXX names {os.environ['CXX']!r}, which is not found; unset or correct it."
    return (
        f"no C++ compiler is found ({', '.join(_COMPILERS)}); install one (apt install g++, "
        "conda install cxx-compiler), set $CXX, or pip install ziglang."
    )


def build_library() -> Path:
    """Return the compiled library, from the cache where it is there.

    Returns
    -------
    Path

    Raises
    ------
    BackendError
        If there is no compiler, or it fails; gives its first errors with file and line.
    """
    reason = why_absent()
    if reason:
        raise BackendError(f"the native kernels cannot be built: {reason}")
    compiler = find_compiler()
    sources = files("awqbench.kernels")
    levels = LEVELS.get(platform.machine(), {})
    folder = _cache_folder()
    library = folder / f"native-{_digest(sources, compiler, levels)}.so"
    if not library.exists():
        _compile(compiler, Path(str(sources)), levels, library)
    return library


def _cache_folder() -> Path:
    """Return a folder that can be written: the user's cache, else one of this process."""
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = root / "awqbench" / "native"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return Path(tempfile.mkdtemp(prefix="awqbench-native-"))
    if os.access(folder, os.W_OK):
        return folder
    return Path(tempfile.mkdtemp(prefix="awqbench-native-"))


def _digest(sources, compiler: list[str], levels: dict[str, tuple[str, ...]]) -> str:
    digest = hashlib.sha256()
    for part in (compiler, FLAGS, sorted(levels.items()), platform.machine(), platform.system()):
        digest.update(repr(part).encode())
    resolved = shutil.which(compiler[0])
    if resolved:  # a compiler that was updated
        digest.update(str(Path(resolved).resolve().stat().st_mtime_ns).encode())
    for source in sorted(sources.iterdir(), key=lambda entry: entry.name):
        if source.name.startswith("native_"):
            digest.update(source.name.encode() + source.read_bytes())
    return digest.hexdigest()[:20]


def _compile(compiler: list[str], sources: Path, levels: dict, library: Path) -> None:
    """Compile each source, two at a time, and link them to `library`."""
    levels, told = _known_levels(compiler, levels)
    commands = {name: () for name in SOURCES} | levels
    with tempfile.TemporaryDirectory(dir=library.parent, prefix="build-") as scratch:
        objects = [Path(scratch) / f"{name}.o" for name in commands]

        def compile_one(pair: tuple[tuple[str, tuple[str, ...]], Path]) -> None:
            (name, flags), target = pair
            _run([*compiler, *FLAGS, *told, *flags, "-c", str(sources / name), "-o", str(target)])

        # The longest first.
        work = sorted(zip(commands.items(), objects, strict=True), key=lambda pair: not pair[0][1])
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(compile_one, work))
        linked = Path(scratch) / "library.so"
        _run([*compiler, "-shared", "-pthread", *map(str, objects), "-o", str(linked)])
        os.replace(linked, library)


def _known_levels(compiler: list[str], levels: dict) -> tuple[dict, list[str]]:
    """Return the levels that this compiler has the flags for, and what to tell all sources."""
    known, told = {}, []
    for name, flags in levels.items():
        if name in OPTIONAL:
            try:
                _run([*compiler, *flags, "-fsyntax-only", "-x", "c++", os.devnull])
            except BackendError:
                told.append(OPTIONAL[name])
                continue
        known[name] = flags
    return known, told


def _run(command: list[str]) -> None:
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_TIME_LIMIT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BackendError(f"the native kernels cannot be built: {error}.") from error
    if done.returncode:
        lines = done.stderr.splitlines()
        telling = [line for line in lines if "error" in line] or lines
        raise BackendError(
            f"the native kernels do not compile: {shlex.join(command[:1])} ended with "
            f"{done.returncode}.\n" + "\n".join(telling[:5])
        )
