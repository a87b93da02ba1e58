"""Reasons of a verdict: sentences with numbers, and what to do."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

# What a finding makes of the verdict; a note leaves it as it is.
NO, CARE, NOTE = "no", "care", "note"
_RANK = {NO: 0, CARE: 1, NOTE: 2}


class Finding(NamedTuple):
    """One reason: how much it matters, what it is about, what is the case, what to do.

    Parameters
    ----------
    severity : {"no", "care", "note"}
    subject : str
        Such as ``"numbers"``.
    sentence : str
        With its numbers, without a stop at the end.
    fix : str
        Empty where there is nothing to do.
    """

    severity: str
    subject: str
    sentence: str
    fix: str = ""


def worst_first(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """Sort findings by severity; equal ones stay in their order."""
    return tuple(sorted(findings, key=lambda finding: _RANK[finding.severity]))


def roles(names: Iterable[str]) -> dict[str, int]:
    """Count names that differ in the numbers of layers only.

    Examples
    --------
    >>> roles(["model.layers.0.mlp.up_proj", "model.layers.1.mlp.up_proj"])
    {'model.layers.*.mlp.up_proj': 2}
    """
    counts: dict[str, int] = {}
    for name in names:
        role = re.sub(r"(?<=\.)\d+(?=\.|$)", "*", name)
        counts[role] = counts.get(role, 0) + 1
    return counts


def listed(names: Iterable[str], *, most: int = 3) -> str:
    """Write a few names, and how many more there are.

    Examples
    --------
    >>> listed(["a", "b", "c"], most=2)
    'a, b and 1 more'
    """
    names = list(names)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def gigabytes(nbytes: float) -> str:
    """Write a size, GB = 1e9 bytes.

    Examples
    --------
    >>> gigabytes(145_412_000_000), gigabytes(2_300_000), gigabytes(12)
    ('145.4 GB', '2.3 MB', '12 bytes')
    """
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if nbytes >= size:
            return f"{nbytes / size:,.1f} {unit}"
    return f"{nbytes:.0f} bytes"


def share(part: float) -> str:
    """Write a share with two digits, however small.

    Examples
    --------
    >>> share(0.0), share(0.0000123), share(0.25)
    ('none', '0.0012%', '25%')
    """
    if part <= 0:
        return "none"
    digits = f"{100 * part:.2g}"
    return (f"{100 * part:.7f}".rstrip("0") if "e" in digits else digits) + "%"


def duration(seconds: float) -> str:
    """Write a time in the unit that fits it.

    Examples
    --------
    >>> duration(8), duration(600), duration(9000)
    ('8 s', '10 min', '2.5 h')
    """
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
