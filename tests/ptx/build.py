"""CUDA C to interpreted programs, compiled as the package compiles it."""

import re
from functools import cache

import pytest

from awqbench.gemm import cuda_build, cuda_nvrtc
from ptx.launch import Program

needs_nvrtc = pytest.mark.skipif(
    bool(cuda_nvrtc.why_absent()), reason=cuda_nvrtc.why_absent() or "NVRTC is there"
)
_FLAGS = ("-std=c++17", "-lineinfo")


@cache
def source_program(source, arch="80", options=()):
    """Return the program of a CUDA C source of one kernel, which includes nothing."""
    flags = (f"-arch=compute_{arch}", *_FLAGS, *options)
    output = cuda_nvrtc.compile_source(source, "source.cu", flags)
    return Program(output.code.decode().rstrip("\0"))


@cache
def kernel_program(kernel, arch, **macros):
    """Return one of the package's kernels, as `cuda_build` compiles it."""
    program = cuda_build.Program.of(kernel, **macros)
    return Program(cuda_build.compile_ptx(program, arch), kernel)


class NotPlanted(Exception):
    """A bug that is to be planted has no place in the source any more."""


def planted_program(kernel, arch, change, **macros):
    """Return a kernel with ``change`` = (pattern, replacement) made in its source.

    Raises
    ------
    NotPlanted
        If the pattern does not occur exactly once, headers included.
    """
    pattern, replacement = change
    program = cuda_build.Program.of(kernel, **macros)
    source, count = re.subn(pattern, replacement, cuda_build.expand_source(f"{kernel}.cu"))
    if count != 1:
        raise NotPlanted(f"{pattern!r} occurs {count} times in {kernel}.cu and its headers")
    options = [option for option in cuda_build.options(program, arch) if "ptxas" not in option]
    virtual = tuple(option.replace("=sm_", "=compute_") for option in options)
    output = cuda_nvrtc.compile_source(source, f"{kernel}.cu", virtual)
    return Program(output.code.decode().rstrip("\0"), kernel)
