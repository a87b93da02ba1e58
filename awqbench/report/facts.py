"""A run in a reader's words: status, time, parameters, versions, machine."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from awqbench.report.record import RunRecord


class Status(NamedTuple):
    """How a state is shown: never by colour alone."""

    symbol: str
    word: str
    tone: str


STATUS = {
    "ok": Status("✓", "ok", "good"),
    "stale": Status("↻", "out of date", "warn"),
    "failed": Status("✕", "failed", "bad"),
    "timeout": Status("◔", "timed out", "bad"),
    "kernel_died": Status("⊘", "kernel died", "bad"),
    "interrupted": Status("◼", "interrupted", "warn"),
    "running": Status("◌", "running", "warn"),
}
_SHORT_VERSIONS = ("numpy", "torch", "transformers")


def duration(seconds: float) -> str:
    """Write a time in the unit that reads best.

    Examples
    --------
    >>> duration(0.42), duration(12.34), duration(125)
    ('0.4 s', '12 s', '2 min 5 s')
    """
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def parameter_texts(parameters: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Write parameters as name and value; of a model folder only its name."""
    shown = []
    for name, value in parameters.items():
        if name == "out_dir":
            continue
        if name == "model" and isinstance(value, str) and "/" in value:
            value = Path(value).name if value.startswith(("/", "~")) else value
        shown.append((name, value if isinstance(value, str) and value else repr(value)))
    return shown


def commit_text(provenance: Mapping[str, Any]) -> str:
    """Write the commit short, and whether the tree differed from it."""
    commit = provenance.get("git_commit")
    if not commit:
        return "no commit"
    return f"{commit[:8]} with changes" if provenance.get("git_dirty") else commit[:8]


def versions_text(provenance: Mapping[str, Any]) -> str:
    """Write the versions that matter most on one line."""
    packages = provenance.get("packages", {})
    named = [f"{name} {packages[name]}" for name in _SHORT_VERSIONS if name in packages]
    return ", ".join([f"Python {provenance.get('python', '?')}", *named])


def machine_text(provenance: Mapping[str, Any]) -> str:
    """Write CPU, usable cores, memory and GPUs on one line."""
    cores = provenance.get("cores_usable", "?")
    ram = f"{provenance.get('ram_bytes', 0) / 2**30:.0f} GiB"
    gpus = provenance.get("gpus") or ["no GPU"]
    cpu = provenance.get("cpu", "unknown CPU").replace("(R)", "").replace("(TM)", "")
    return ", ".join([cpu, f"{cores} cores", ram, *gpus])


def provenance_rows(record: RunRecord) -> list[tuple[str, str]]:
    """List everything known about a run's origin, in the order a reader asks.

    Parameters
    ----------
    record : RunRecord

    Returns
    -------
    list of (str, str)
    """
    origin = record.provenance
    quota = origin.get("cpu_quota")
    rows = [
        ("Commit", commit_text(origin)),
        ("Started", record.started.replace("T", " ").replace("+00:00", " UTC")),
        ("Took", duration(record.elapsed_s)),
        ("Machine", machine_text(origin)),
        ("Architecture", origin.get("arch", "")),
        ("Instruction sets", ", ".join(origin.get("isa", ()))),
        ("CPU quota", f"{quota:g} CPUs" if quota else ""),
        ("GPU driver", origin.get("gpu_driver", "")),
        ("System", origin.get("os", "")),
        ("Python", origin.get("python", "")),
        ("Packages", ", ".join(f"{k} {v}" for k, v in origin.get("packages", {}).items())),
        ("Thread settings", ", ".join(f"{k}={v}" for k, v in origin.get("thread_env", {}).items())),
        ("Run key", record.key[:12]),
    ]
    return [(name, text) for name, text in rows if text]
