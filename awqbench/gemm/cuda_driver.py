"""Whether an NVIDIA driver is there, and for which CUDA. Wakes no device."""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path

# What a loaded driver leaves on Linux, under WSL and on Windows: looked for first, since most
# machines have none. (ctypes.util.find_library would start a compiler to look: 20 ms.)
_TRACES = (
    "/proc/driver/nvidia/version",
    "/dev/dxg",
    "C:/Windows/System32/nvcuda.dll",
)


def why_absent() -> str:
    """Say why there is no driver to launch kernels with, or ""."""
    if not any(Path(trace).exists() for trace in _TRACES):
        return "no driver: no NVIDIA driver is loaded on this machine."
    try:
        _library()
    except OSError as error:
        # A container sees the host's /proc, also where it was given no GPU.
        return f"no driver: {error}; a container must be given the GPU (docker run --gpus all)."
    return ""


def why_too_old(nvrtc: str) -> str:
    """Say why the driver cannot load what a version of NVRTC such as "13.0" makes, or "".

    A driver takes the cubins of every CUDA of its own major version, and of older ones.
    """
    version = ctypes.c_int()
    _library().cuDriverGetVersion(ctypes.byref(version))
    major, minor = version.value // 1000, version.value % 1000 // 10
    if major >= int(nvrtc.split(".")[0]):
        return ""
    return (
        f"the NVIDIA driver is for CUDA {major}.{minor}, and NVRTC {nvrtc} compiles the kernels; "
        "update the driver (CUDA 13 needs 580 or later), or choose backend='torch'."
    )


def _library() -> ctypes.CDLL:
    return ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
