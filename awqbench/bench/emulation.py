"""Is this processor emulated? Then correctness can be recorded and time cannot.

The traps, as seen under qemu-user: `platform.machine()` is that of the guest while files under
/proc and /sys are the host's (qemu 7) or made up (qemu 10).
"""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path

from awqbench.bench.cpuinfo import read_first_cpu

# The register that names an ARM core; the kernel shows it since Linux 4.7, qemu-user does not.
_MIDR = "sys/devices/system/cpu/cpu0/regs/identification/midr_el1"
# What qemu 10 writes for every ARM processor.
_MADE_UP_BOGOMIPS = "100.00"
_EMULATED_NAMES = ("TCG", "VirtualApple")


def why_emulated(
    *, machine: str | None = None, system: str | None = None, root: Path = Path("/")
) -> str:
    """Say by what this processor is seen to be emulated, or "" if by nothing.

    Parameters
    ----------
    machine, system : str, optional
        As `platform.machine()` and `platform.system()` give them.
    root : Path
        Folder that holds ``proc`` and ``sys``.

    Returns
    -------
    str

    Examples
    --------
    >>> why_emulated(machine="aarch64", system="Linux", root=Path("no such folder"))
    'an ARM processor without its identification register (midr_el1) in /sys'
    """
    machine, system = machine or platform.machine(), system or platform.system()
    if system == "Darwin":
        return "a process that Rosetta translates" if _is_translated() else ""
    if system != "Linux":
        return ""
    first = read_first_cpu(root / "proc/cpuinfo")
    if machine in ("aarch64", "arm64"):
        return _why_arm(first, has_midr=(root / _MIDR).exists())
    return _why_x86(first) if machine == "x86_64" else ""


def _why_arm(first: dict[str, str], *, has_midr: bool) -> str:
    if "vendor_id" in first:
        return f"an ARM processor whose /proc/cpuinfo is of {first['vendor_id']}"
    if not has_midr:
        return "an ARM processor without its identification register (midr_el1) in /sys"
    if first.get("BogoMIPS") == _MADE_UP_BOGOMIPS:
        return f"BogoMIPS of {_MADE_UP_BOGOMIPS}, which is what qemu writes"
    return ""


def _why_x86(first: dict[str, str]) -> str:
    if "CPU implementer" in first:
        return "an x86 processor whose /proc/cpuinfo is of an ARM one"
    seen = f"{first.get('vendor_id', '')} {first.get('model name', '')}"
    found = next((name for name in _EMULATED_NAMES if name in seen), "")
    return f"{found!r} in the processor's name" if found else ""


def _is_translated() -> bool:
    if sys.platform != "darwin":
        return False
    command = ["sysctl", "-n", "sysctl.proc_translated"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=False)
    return done.stdout.strip() == "1"
