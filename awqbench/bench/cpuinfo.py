"""Entries of the first processor in /proc/cpuinfo."""

from __future__ import annotations

from pathlib import Path

PROC = Path("/proc/cpuinfo")


def first_cpu(text: str) -> dict[str, str]:
    r"""Return the entries of a cpuinfo's text, each as it is found first.

    Examples
    --------
    >>> first_cpu("processor\t: 0\nCPU part\t: 0xd4f\n\nprocessor\t: 1\n")
    {'processor': '0', 'CPU part': '0xd4f'}
    """
    first: dict[str, str] = {}
    for line in text.splitlines():
        key, colon, value = line.partition(":")
        if colon:
            first.setdefault(key.strip(), value.strip())
    return first


def read_first_cpu(file: Path = PROC) -> dict[str, str]:
    """Return the entries of a cpuinfo file; none where there is no such file."""
    return first_cpu(file.read_text()) if file.exists() else {}
