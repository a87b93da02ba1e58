"""Fingerprint of this machine and its software: what a number's reader needs to know.

No user name, host name or absolute path is recorded, so that a record can be shared.
"""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from awqbench.bench.cpuinfo import read_first_cpu
from awqbench.bench.isa import isa_flags

PACKAGES = (
    "awqbench",
    "numpy",
    "numexpr",
    "torch",
    "transformers",
    "safetensors",
    "pandas",
    "matplotlib",
    "ipywidgets",
    "ipykernel",
    "papermill",
    "nbconvert",
    "cupy-cuda12x",
    "cupy-cuda13x",
)
THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "OMP_PROC_BIND",
    "OMP_PLACES",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "NUMEXPR_MAX_THREADS",
    "KMP_AFFINITY",
)
# Part numbers of the CPUs seen in ARM servers; their /proc/cpuinfo has no model name.
_ARM_PARTS = {
    ("0x41", "0xd08"): "Arm Cortex-A72",
    ("0x41", "0xd0b"): "Arm Cortex-A76",
    ("0x41", "0xd0c"): "Arm Neoverse-N1",
    ("0x41", "0xd40"): "Arm Neoverse-V1",
    ("0x41", "0xd49"): "Arm Neoverse-N2",
    ("0x41", "0xd4f"): "Arm Neoverse-V2",
    ("0x41", "0xd84"): "Arm Neoverse-V3",
    ("0x41", "0xd8e"): "Arm Neoverse-N3",
    ("0xc0", "0xac3"): "Ampere-1",
}


@dataclass(frozen=True)
class MachineRecord:
    """A machine and its software.

    Attributes
    ----------
    cpu : str
        Model name.
    arch : str
        Such as ``x86_64`` or ``aarch64``.
    isa : tuple of str
        Names of `awqbench.bench.isa` that the CPU has.
    cores_logical, cores_usable : int
        In the machine, and open to this process by its affinity.
    cpu_quota : float or None
        CPUs that the control group grants; None without a limit.
    ram_bytes : int
    gpus : tuple of str
        Names of NVIDIA GPUs whose driver is loaded.
    gpu_driver : str
    os : str
    python : str
    packages : dict of str to str
        Versions of those of `PACKAGES` that are installed.
    thread_env : dict of str to str
        Those of `THREAD_VARIABLES` that are set.
    git_commit : str or None
        Of the checkout that the package lies in.
    git_dirty : bool or None
        Whether tracked files differ from that commit.
    """

    cpu: str
    arch: str
    isa: tuple[str, ...]
    cores_logical: int
    cores_usable: int
    cpu_quota: float | None
    ram_bytes: int
    gpus: tuple[str, ...]
    gpu_driver: str
    os: str
    python: str
    packages: dict[str, str]
    thread_env: dict[str, str]
    git_commit: str | None
    git_dirty: bool | None

    def to_dict(self) -> dict[str, Any]:
        """Give the record as plain JSON data."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}


def machine_record() -> MachineRecord:
    """Describe this machine and its software, without importing any heavy package.

    Returns
    -------
    MachineRecord
        Of now: only the CPU's own facts are kept between calls.

    Examples
    --------
    >>> machine_record().cores_usable >= 1
    True
    """
    logical = os.cpu_count() or 1
    has_affinity = hasattr(os, "sched_getaffinity")
    commit, dirty = git_state(Path(__file__).resolve().parents[2])
    gpus, driver = _nvidia(Path("/proc/driver/nvidia"))
    name, isa = _cpu()
    return MachineRecord(
        cpu=name,
        arch=platform.machine(),
        isa=isa,
        cores_logical=logical,
        cores_usable=len(os.sched_getaffinity(0)) if has_affinity else logical,
        cpu_quota=cpu_quota(Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")),
        ram_bytes=_memory_bytes(),
        gpus=gpus,
        gpu_driver=driver,
        os=_operating_system(),
        python=platform.python_version(),
        packages=_package_versions(),
        thread_env={k: os.environ[k] for k in THREAD_VARIABLES if k in os.environ},
        git_commit=commit,
        git_dirty=dirty,
    )


def _memory_bytes() -> int:
    if hasattr(os, "sysconf"):  # psutil has no build for every emulated machine
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    import psutil

    return psutil.virtual_memory().total


@cache
def _cpu() -> tuple[str, tuple[str, ...]]:
    name = cpu_name(read_first_cpu())
    if not name:
        # py-cpuinfo starts processes and takes up to a second, hence only where needed.
        import cpuinfo

        name = cpuinfo.get_cpu_info().get("brand_raw", "unknown")
    return name, tuple(flag for flag, has in isa_flags().items() if has is True)


def cpu_name(first: Mapping[str, str]) -> str:
    """Return the model name that entries of /proc/cpuinfo tell, "" where they do not.

    Parameters
    ----------
    first : mapping
        Of `awqbench.bench.cpuinfo.first_cpu`.

    Examples
    --------
    >>> cpu_name({"CPU implementer": "0x41", "CPU part": "0xd4f"})
    'Arm Neoverse-V2'
    """
    part = _ARM_PARTS.get((first.get("CPU implementer", ""), first.get("CPU part", "")), "")
    return first.get("model name") or part


def cpu_quota(cgroup_root: Path, own_cgroup: Path) -> float | None:
    """Read how many CPUs the control group grants, version 2 or 1.

    Parameters
    ----------
    cgroup_root : Path
        ``/sys/fs/cgroup``.
    own_cgroup : Path
        ``/proc/self/cgroup``.

    Returns
    -------
    float or None
        The smallest limit on the way up; None without one.
    """
    limits = []
    for own in _own_groups(own_cgroup):
        for folder in (own, *own.parents):
            below = folder.relative_to("/")
            limits.append(_read_quota(cgroup_root / below / "cpu.max"))
            limits.append(_read_quota(cgroup_root / "cpu" / below / "cpu.cfs_quota_us"))
    found = [limit for limit in limits if limit is not None]
    return min(found) if found else None


def _own_groups(own_cgroup: Path) -> list[Path]:
    if not own_cgroup.exists():
        return []
    lines = own_cgroup.read_text().splitlines()
    return [Path(line.split(":", 2)[2]) for line in lines if line.count(":") >= 2]


def _read_quota(file: Path) -> float | None:
    """Read ``cpu.max`` ("200000 100000" or "max 100000"), or the file pair of version 1."""
    if not file.is_file():
        return None
    words = file.read_text().split()
    if file.name == "cpu.cfs_quota_us":
        words.append(file.with_name("cpu.cfs_period_us").read_text().strip())
    if len(words) != 2 or not all(word.isdigit() for word in words):
        return None
    return int(words[0]) / int(words[1])


def _nvidia(root: Path) -> tuple[tuple[str, ...], str]:
    """Read GPU names from the driver's own files: nvidia-smi takes seconds to start."""
    names = []
    for file in sorted(root.glob("gpus/*/information")):
        lines = (line.partition(":") for line in file.read_text().splitlines())
        names += [value.strip() for key, _, value in lines if key.strip() == "Model"]
    version = root / "version"
    words = version.read_text().split() if version.exists() else []
    return tuple(names), next((w for w in words if w.count(".") >= 1 and w[0].isdigit()), "")


def _operating_system() -> str:
    try:
        name = platform.freedesktop_os_release().get("PRETTY_NAME", "")
    except OSError:
        name = ""
    # The part of the release after a dash may name a site or a host.
    release = platform.release().split("-")[0]
    return ", ".join(filter(None, [name, f"{platform.system()} {release}"]))


def _package_versions() -> dict[str, str]:
    from importlib import metadata

    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def git_state(root: Path) -> tuple[str | None, bool | None]:
    """Read the commit of a checkout, and whether tracked files differ from it.

    Parameters
    ----------
    root : Path
        A folder; only one that itself holds ``.git`` counts, so that a package installed
        inside some other repository does not report that repository's commit.

    Returns
    -------
    tuple of (str or None, bool or None)
        Nones outside a checkout, without git, or before the first commit.
    """
    if not (root / ".git").exists():
        return None, None
    commit = _git(root, "rev-parse", "--verify", "HEAD")
    if commit is None:
        return None, None
    changed = _git(root, "status", "--porcelain", "--untracked-files=no")
    return commit.strip(), None if changed is None else bool(changed.strip())


def _git(root: Path, *words: str) -> str | None:
    command = ["git", "--no-optional-locks", "-C", str(root), *words]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout
