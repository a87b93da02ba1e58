"""NVRTC, NVIDIA's compiler library, through ctypes: CUDA C++ to a cubin, without a driver.

Called directly, and not through CuPy, for three reasons: the very path that a GPU machine
takes is tested where there is none; the architecture is exactly the one asked for (CuPy adds
the device's own, without the "a" of sm_90a); and registers and spills come from the same log.
"""

from __future__ import annotations

import ctypes
import sys
from contextlib import suppress
from functools import cache
from importlib import metadata
from typing import NamedTuple

from awqbench.errors import BackendError

PACKAGE = "nvidia-cuda-nvrtc"
# Where no wheel is installed: the loader's own search, as for a system CUDA or a conda one.
_NAMES = {
    "linux": ("libnvrtc.so.13", "libnvrtc.so"),
    "win32": ("nvrtc64_130_0.dll",),
}


class Output(NamedTuple):
    """What NVRTC made of a program: `code` (cubin, or PTX for a virtual architecture), `log`."""

    code: bytes
    log: str


def why_absent() -> str:
    """Say why nothing can be compiled here, or ""."""
    found = _load()
    return found if isinstance(found, str) else ""


def version() -> str:
    """Return NVRTC's version, such as "13.0".

    Raises
    ------
    BackendError
        If it is not found.
    """
    major, minor = ctypes.c_int(), ctypes.c_int()
    _library().nvrtcVersion(ctypes.byref(major), ctypes.byref(minor))
    return f"{major.value}.{minor.value}"


def architectures() -> tuple[int, ...]:
    """Return the architectures that NVRTC knows, such as 75 to 121, in order.

    Raises
    ------
    BackendError
        If it is not found.
    """
    library, count = _library(), ctypes.c_int()
    _check(library.nvrtcGetNumSupportedArchs(ctypes.byref(count)), library)
    found = (ctypes.c_int * count.value)()
    _check(library.nvrtcGetSupportedArchs(found), library)
    return tuple(sorted(found))


def compile_source(source: str, name: str, options: tuple[str, ...]) -> Output:
    """Compile a program that includes nothing.

    Parameters
    ----------
    source : str
    name : str
        For messages, where no ``#line`` says otherwise.
    options : tuple of str
        ``-arch=sm_90a`` gives a cubin, ``-arch=compute_90a`` PTX.

    Returns
    -------
    Output

    Raises
    ------
    BackendError
        If NVRTC is not found, or refuses the program: the text is its log.
    """
    library = _library()
    program = ctypes.c_void_p()
    encoded = [option.encode() for option in options]
    _check(
        library.nvrtcCreateProgram(
            ctypes.byref(program), source.encode(), name.encode(), 0, None, None
        ),
        library,
    )
    try:
        flags = (ctypes.c_char_p * len(encoded))(*encoded)
        status = library.nvrtcCompileProgram(program, len(encoded), flags)
        log = _fetch(library, program, "ProgramLog").decode(errors="replace").strip("\0\n")
        if status:
            raise BackendError(f"NVRTC cannot compile {name} with {' '.join(options)}:\n{log}")
        kind = "PTX" if any("=compute_" in option for option in options) else "CUBIN"
        return Output(_fetch(library, program, kind), log)
    finally:
        library.nvrtcDestroyProgram(ctypes.byref(program))


def _fetch(library: ctypes.CDLL, program: ctypes.c_void_p, kind: str) -> bytes:
    size = ctypes.c_size_t()
    _check(getattr(library, f"nvrtcGet{kind}Size")(program, ctypes.byref(size)), library)
    buffer = ctypes.create_string_buffer(size.value)
    _check(getattr(library, f"nvrtcGet{kind}")(program, buffer), library)
    return buffer.raw


def _check(status: int, library: ctypes.CDLL) -> None:
    if status:
        library.nvrtcGetErrorString.restype = ctypes.c_char_p
        raise BackendError(f"NVRTC: {library.nvrtcGetErrorString(status).decode()}.")


def _library() -> ctypes.CDLL:
    found = _load()
    if isinstance(found, str):
        raise BackendError(f"the kernels cannot be compiled: {found}")
    return found


@cache
def _load() -> ctypes.CDLL | str:
    """Return the library, or why there is none."""
    for name in _in_wheel("libnvrtc-builtins.so"):
        # NVRTC 13.0 looks for these by name at its first compilation, and not beside itself:
        # they are found where they are loaded already.
        with suppress(OSError):
            ctypes.CDLL(name, mode=ctypes.RTLD_GLOBAL)
    for name in (*_in_wheel("libnvrtc.so", "nvrtc64_"), *_NAMES.get(sys.platform, ())):
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    return f"NVRTC is not found; pip install {PACKAGE}, or 'awqbench[cuda]'."


def _in_wheel(*beginnings: str) -> list[str]:
    """Return the installed wheel's files whose names begin so."""
    try:
        files = metadata.files(PACKAGE) or []
    except metadata.PackageNotFoundError:
        return []
    # (The wheel also has "alt" builds of each, for other hosts.)
    return [
        str(file.locate())
        for file in files
        if file.name.startswith(beginnings) and ".alt." not in file.name
    ]
