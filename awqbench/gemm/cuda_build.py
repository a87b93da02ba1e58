"""The CUDA programs: a source of kernels/ with its constants, compiled for an architecture.

A program is one kernel with its macros fixed. Headers are pasted in with ``#line`` before and
after them, so that NVRTC's messages name the file and line that a reader has open, and so that
the digest under which a cubin is kept covers every line that went into it.
"""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
import time
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

from awqbench.errors import BackendError
from awqbench.gemm import cuda_nvrtc

ARCHITECTURES = ("75", "80", "86", "89", "90", "90a", "100", "120")
# No -use_fast_math and no -ftz: subnormal scales are real scales.
FLAGS = ("-std=c++17", "--ptxas-options=-v", "-lineinfo")
_INCLUDE = re.compile(r'^#include "([\w.]+)"$')
# ptxas -v; `used N barriers` and more may stand between.
_USAGE = re.compile(
    r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads"
    r".*?Used (\d+) registers(?:[^\n]*?(\d+) bytes smem)?",
    re.DOTALL,
)


@dataclass(frozen=True)
class Program:
    """A kernel and its constants.

    Parameters
    ----------
    kernel : str
        Name of the function, and of the file in kernels/ without its end.
    macros : tuple of (str, int)
        Sorted by name.
    """

    kernel: str
    macros: tuple[tuple[str, int], ...]

    @classmethod
    def of(cls, kernel: str, **macros: int) -> Program:
        """Make a program from its macros."""
        return cls(kernel, tuple(sorted(macros.items())))

    def __getitem__(self, macro: str) -> int:
        return dict(self.macros)[macro]

    def __str__(self) -> str:
        return " ".join([self.kernel, *(f"{name}={value}" for name, value in self.macros)])


class Usage(NamedTuple):
    """What ptxas says that a kernel takes of a thread's and a block's resources."""

    registers: int
    stack_bytes: int
    spill_bytes: int
    shared_bytes: int


class Built(NamedTuple):
    """A compiled program: `code`, what it uses, NVRTC's log and the seconds it took."""

    code: bytes
    usage: Usage
    log: str
    time_s: float


def expand_source(name: str) -> str:
    """Return a file of kernels/ with its headers pasted in, each once.

    Parameters
    ----------
    name : str
        Such as "w4_dequant.cu".
    """
    return _expand(name, set())


def _expand(name: str, seen: set[str]) -> str:
    seen.add(name)
    lines = [f'#line 1 "kernels/{name}"']
    text = (files("awqbench.kernels") / name).read_text(encoding="utf-8")
    for number, line in enumerate(text.splitlines(), start=1):
        include = _INCLUDE.match(line)
        if include is None:
            # (The pasted text is one file: `once` is seen to here.)
            lines.append("" if line.strip() == "#pragma once" else line)
            continue
        if include[1] not in seen:
            lines.append(_expand(include[1], seen))
        lines.append(f'#line {number + 1} "kernels/{name}"')
    return "\n".join(lines) + "\n"


def options(program: Program, arch: str) -> tuple[str, ...]:
    """Return NVRTC's options for a program; `arch` as in `ARCHITECTURES`."""
    macros = tuple(f"-D{name}={value}" for name, value in program.macros)
    return (f"-arch=sm_{arch}", *FLAGS, *macros)


def compile_program(program: Program, arch: str) -> Built:
    """Compile a program to a cubin; needs no GPU and no driver.

    Raises
    ------
    BackendError
        If NVRTC is not found or refuses it.
    """
    source = expand_source(f"{program.kernel}.cu")
    started = time.perf_counter()
    output = cuda_nvrtc.compile_source(source, f"{program.kernel}.cu", options(program, arch))
    return Built(output.code, read_usage(output.log), output.log, time.perf_counter() - started)


def compile_ptx(program: Program, arch: str) -> str:
    """Return the PTX of a program, which is what the cubin is assembled from."""
    source = expand_source(f"{program.kernel}.cu")
    virtual = tuple(
        option.replace("sm_", "compute_")
        for option in options(program, arch)
        if not option.startswith("--ptxas")
    )
    output = cuda_nvrtc.compile_source(source, f"{program.kernel}.cu", virtual)
    return output.code.decode().rstrip("\0")


def read_usage(log: str) -> Usage:
    """Read the resources of the one kernel of a program from NVRTC's log.

    Raises
    ------
    BackendError
        If the log does not say: another version of ptxas writes otherwise.
    """
    found = _USAGE.search(log)
    if found is None:
        raise BackendError(f"the log of ptxas does not name registers and spills:\n{log}")
    stack, stores, loads, registers, shared = (int(part or 0) for part in found.groups())
    return Usage(registers, stack, stores + loads, shared)


def cubin_file(program: Program, arch: str) -> Path:
    """Return a program's cubin in the user's cache folder, compiled if it is not there.

    For a GPU that NVRTC does not know it is PTX of the newest architecture before it, which the
    driver compiles. Processes that build it at the same time do the same work, and the last one
    to rename its file wins: no locks.

    Raises
    ------
    BackendError
        As `compile_program`; or if the folder cannot be written.
    """
    older = _known_before(arch)
    source = expand_source(f"{program.kernel}.cu")
    key = "\n".join([source, *options(program, older or arch), cuda_nvrtc.version()])
    digest = hashlib.sha256(key.encode()).hexdigest()[:24]
    ending = f"compute_{older}-{digest}.ptx" if older else f"sm_{arch}-{digest}.cubin"
    file = cache_folder() / f"{program.kernel}-{ending}"
    if file.exists():
        return file
    if older:
        _write(file, compile_ptx(program, older).encode())
    else:
        _write(file, compile_program(program, arch).code)
    return file


def _known_before(arch: str) -> str:
    """Return the newest architecture before `arch` that NVRTC knows, "" if it knows `arch`."""
    wanted, known = int(arch.rstrip("a")), cuda_nvrtc.architectures()
    before = [one for one in known if one < wanted]
    return str(before[-1]) if before and wanted not in known else ""


def cache_folder() -> Path:
    """Return where cubins are kept: ``$AWQBENCH_CACHE``, else the user's cache folder."""
    chosen = os.environ.get("AWQBENCH_CACHE")
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(chosen) if chosen else Path(root) / "awqbench" / "cuda"


def _write(file: Path, code: bytes) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=file.parent, delete=False) as temporary:
            temporary.write(code)
        os.replace(temporary.name, file)
    except OSError as error:
        raise BackendError(
            f"the compiled kernel cannot be kept in {file.parent}: {error}; set AWQBENCH_CACHE "
            "to a folder that can be written."
        ) from error
