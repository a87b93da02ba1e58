"""Which instruction sets the processor has, as the operating system tells a program.

On x86 the flags of /proc/cpuinfo; on ARM Linux the bits of the auxiliary vector, which an
emulator answers for the processor that it emulates while /proc/cpuinfo may be the host's; on
macOS sysctl.
"""

from __future__ import annotations

import ctypes
import platform
import subprocess
from typing import Any

from awqbench.bench.cpuinfo import read_first_cpu

X86_FLAGS = (
    "avx2",
    "f16c",
    "fma",
    "avx_vnni",
    "avx512f",
    "avx512_vnni",
    "avx512_bf16",
    "avx512_fp16",
    "amx_int8",
    "amx_bf16",
)
# Linux, arch/arm64/include/uapi/asm/hwcap.h: bits of AT_HWCAP and of AT_HWCAP2.
_HWCAP = {"asimd": 1, "asimdhp": 10, "asimddp": 20, "sve": 22}
_HWCAP2 = {"sve2": 1, "svei8mm": 9, "svebf16": 12, "i8mm": 13, "bf16": 14, "sme": 23, "sme2": 37}
ARM_FLAGS = (*_HWCAP, *_HWCAP2)
_AT_HWCAP, _AT_HWCAP2, _PR_SVE_GET_VL = 16, 26, 51
_SVE_VL_MASK = 0xFFFF  # the bits above hold flags
_SYSCTL = {
    "asimd": "AdvSIMD",
    "asimdhp": "FEAT_FP16",
    "asimddp": "FEAT_DotProd",
    "i8mm": "FEAT_I8MM",
    "bf16": "FEAT_BF16",
    "sme": "FEAT_SME",
    "sme2": "FEAT_SME2",
}


def isa_flags() -> dict[str, Any]:
    """Return the instruction sets that compute paths of this package or of peers can use.

    Returns
    -------
    dict
        By name, True or False; on ARM also `sve_vl`, bytes of an SVE register or None.

    Examples
    --------
    >>> set(map(type, isa_flags().values())) <= {bool, int, type(None)}
    True
    """
    machine = platform.machine()
    if machine in ("aarch64", "arm64"):
        return _darwin() if platform.system() == "Darwin" else _linux_arm()
    flags = set(read_first_cpu().get("flags", "").split()) or _asked_flags()
    return {flag: flag in flags for flag in X86_FLAGS}


def _asked_flags() -> set[str]:
    """Ask py-cpuinfo, which starts processes and takes up to a second: Windows, old macOS."""
    import cpuinfo

    return set(cpuinfo.get_cpu_info().get("flags", ()))


def arm_flags(hwcap: int, hwcap2: int) -> dict[str, bool]:
    """Read the bits of AT_HWCAP and AT_HWCAP2 of an ARM kernel.

    Examples
    --------
    >>> [name for name, has in arm_flags(1 << 1 | 1 << 20, 1 << 13).items() if has]
    ['asimd', 'asimddp', 'i8mm']
    """
    found = {name: bool(hwcap >> bit & 1) for name, bit in _HWCAP.items()}
    return found | {name: bool(hwcap2 >> bit & 1) for name, bit in _HWCAP2.items()}


def _linux_arm() -> dict[str, Any]:
    libc = ctypes.CDLL(None)
    libc.getauxval.restype = ctypes.c_ulong
    libc.getauxval.argtypes = [ctypes.c_ulong]
    found = arm_flags(libc.getauxval(_AT_HWCAP), libc.getauxval(_AT_HWCAP2))
    length = libc.prctl(_PR_SVE_GET_VL, 0, 0, 0, 0) if found["sve"] else -1
    return {**found, "sve_vl": length & _SVE_VL_MASK if length >= 0 else None}


def _darwin() -> dict[str, Any]:
    found = dict.fromkeys(ARM_FLAGS, False)
    for name, feature in _SYSCTL.items():
        command = ["sysctl", "-n", f"hw.optional.arm.{feature}"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=False)
        found[name] = done.stdout.strip() == "1"
    return {**found, "asimd": True, "sve_vl": None}  # every Apple processor has Advanced SIMD
