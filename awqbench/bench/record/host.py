"""What a record says of the machine and its software: no user, host or path."""

from __future__ import annotations

import hashlib
import json
import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

from awqbench.bench.cpuinfo import read_first_cpu
from awqbench.bench.emulation import why_emulated
from awqbench.bench.machine import git_state, machine_record

# What a machine is known by; memory in whole GiB, for some of it belongs to the firmware.
_STABLE = ("arch", "cpu", "family", "model", "stepping", "cores", "caches", "memory_gib")
_CPU = Path("/sys/devices/system/cpu")
_PACKAGES = ("numpy", "numexpr", "torch", "pandas")


def describe_machine() -> dict[str, Any]:
    """Return the facts of this machine, with the `id` that two records of it share.

    Two machines that differ in none of the facts of `_STABLE`, such as cloud instances of one
    type, have the same id.

    Returns
    -------
    dict
    """
    facts, first = machine_record(), read_first_cpu()
    emulated = why_emulated()
    found = {
        "arch": "aarch64" if facts.arch == "arm64" else facts.arch,
        "cpu": f"emulated on {facts.cpu}" if emulated else facts.cpu,
        "family": first.get("cpu family") or first.get("CPU implementer"),
        "model": first.get("model") or first.get("CPU part"),
        "stepping": first.get("stepping") or first.get("CPU revision"),
        "cores": facts.cores_logical,
        "cores_usable": facts.cores_usable,
        "cpu_quota": facts.cpu_quota,
        "caches": _caches(_CPU / "cpu0/cache"),
        "memory_gib": round(facts.ram_bytes / 2**30),
        "virt": "emulated" if emulated else _hypervisor(first),
        "os": facts.os,
        "governor": _text(_CPU / "cpu0/cpufreq/scaling_governor"),
        "thp": _text(Path("/sys/kernel/mm/transparent_hugepage/enabled")),
    }
    return {"id": machine_id(found)} | found


def machine_id(facts: dict[str, Any]) -> str:
    """Return the digest of what stays the same about a machine."""
    stable = json.dumps({key: facts[key] for key in _STABLE}, sort_keys=True)
    return hashlib.sha256(stable.encode()).hexdigest()


def describe_software() -> dict[str, Any]:
    """Return versions of what computes, the BLAS and numexpr's limit among them."""
    import numexpr
    from threadpoolctl import threadpool_info

    found: dict[str, Any] = {"python": platform.python_version()}
    found |= {name: _version(name) for name in _PACKAGES}
    blas = [pool for pool in threadpool_info() if pool["user_api"] == "blas"]
    found["blas"] = [
        {key: pool.get(key) for key in ("internal_api", "version", "architecture")} for pool in blas
    ]
    found["numexpr_max_threads"] = numexpr.MAX_THREADS
    return found


def describe_tool() -> dict[str, Any]:
    """Return this package's version and the commit that it was run from."""
    commit, dirty = git_state(Path(__file__).resolve().parents[3])
    return {"name": "awqbench", "version": _version("awqbench"), "git": commit, "dirty": dirty}


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def load_average() -> float | None:
    """Return the processes that ran or waited, averaged over a minute."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


def _caches(root: Path) -> dict[str, str]:
    """Return the sizes of the first processor's caches, such as ``{"L1d": "32K"}``."""
    found = {}
    for folder in sorted(root.glob("index*")):
        kind, level = _text(folder / "type"), _text(folder / "level")
        if kind in ("Data", "Unified"):
            found[f"L{level}{'d' if kind == 'Data' else ''}"] = _text(folder / "size")
    return found


def _hypervisor(first: dict[str, str]) -> str | None:
    """Return whether the processor says that a hypervisor runs it; None where it cannot."""
    if "flags" not in first:
        return None
    return "hypervisor" if "hypervisor" in first["flags"].split() else "none"


def _text(file: Path) -> str | None:
    try:
        return file.read_text().strip()
    except OSError:
        return None
