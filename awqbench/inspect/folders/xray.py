"""An X-ray of a model folder: what lies in it, and what is wrong with its packed numbers."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from awqbench.errors import FormatError
from awqbench.formats.checkpoint import Checkpoint, open_checkpoint
from awqbench.formats.config.foreign import foreign_by_files
from awqbench.formats.config.quantization import Quantization
from awqbench.formats.layouts.table import LAYOUTS
from awqbench.inspect.folders.findings import BAD, NOTE, Finding, findings_of
from awqbench.inspect.folders.packed_figures import COLUMNS, header_figures, linear_figures
from awqbench.inspect.folders.tensor_kinds import bytes_by_kind, skipped_linears
from awqbench.progress import progress_bar

if TYPE_CHECKING:
    import pandas as pd


class Summary(NamedTuple):
    """What a folder is, in a few facts.

    Parameters
    ----------
    name : str
        Of the folder.
    what : str
        One phrase, such as ``awq-gemm, 4 bits, group size 128``.
    method, layout : str or None
        None for full precision; `layout` also where the method is only recognised.
    bits, group_size : int or None
        What most modules have, as the configuration says.
    linears : int
        Packed ones.
    total_bytes, linear_bytes : int
        Of all tensors, and of the packed linears'.
    bits_per_weight : float or None
        Of the packed linears, with scales and zero points.
    """

    name: str
    what: str
    method: str | None
    layout: str | None
    bits: int | None
    group_size: int | None
    linears: int
    total_bytes: int
    linear_bytes: int
    bits_per_weight: float | None


@dataclass(frozen=True, eq=False, repr=False)
class XRay:
    """What `xray` found.

    Parameters
    ----------
    summary : Summary
    verdict : tuple of Finding
        Worst first.
    linears : DataFrame
        A row for each packed linear, with the columns of `packed_figures.COLUMNS`; what
        was not looked at is missing.
    bytes_by_kind : DataFrame
        `kind`, `tensors`, `weight_bytes`, `share`.
    zero_points : DataFrame
        `bits`, `value`, `groups`: how many groups have a zero point; every value that the
        bits allow has a row.
    skipped : tuple of str
        Linears of a quantized folder that are in full precision.
    """

    summary: Summary
    verdict: tuple[Finding, ...]
    linears: pd.DataFrame
    bytes_by_kind: pd.DataFrame
    zero_points: pd.DataFrame
    skipped: tuple[str, ...]

    @property
    def is_bad(self) -> bool:
        """Whether a finding says that the model computes nonsense or cannot be read."""
        return any(finding.level == BAD for finding in self.verdict)

    def as_dict(self) -> dict[str, Any]:
        """Return everything as JSON-ready values."""
        tables = {"linears": self.linears, "bytes_by_kind": self.bytes_by_kind}
        tables["zero_points"] = self.zero_points
        return {
            "summary": self.summary._asdict(),
            "verdict": [finding._asdict() for finding in self.verdict],
            "skipped": list(self.skipped),
        } | {name: json.loads(t.to_json(orient="records")) for name, t in tables.items()}

    def _facts(self) -> str:
        summary = self.summary
        parts = [f"{summary.total_bytes:,} bytes"]
        if summary.linears:
            parts.append(f"{summary.linears} packed linears")
        if summary.bits_per_weight is not None:
            parts.append(f"{summary.bits_per_weight:.2f} bits per weight in them")
        return ", ".join(parts)

    def __str__(self) -> str:
        """Write facts, bytes and verdict in a few lines."""
        sizes = [
            f"  {row.kind:<14}{row.weight_bytes:>16,} bytes {row.share:>6.1%}"
            for row in self.bytes_by_kind.itertuples()
        ]
        head = [f"{self.summary.name}: {self.summary.what}", self._facts()]
        return "\n".join([*head, *sizes, *map(str, self.verdict)])

    def __repr__(self) -> str:
        """Show what `print` shows: tables of thousands of rows have no place in a prompt."""
        return str(self)

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><td>{row.kind}</td><td>{row.tensors:,}</td><td>{row.weight_bytes:,}</td>"
            f"<td>{row.share:.1%}</td></tr>"
            for row in self.bytes_by_kind.itertuples()
        )
        items = "".join(
            f"<li><b>{finding.level}</b> {escape(finding.sentence)}</li>"
            for finding in self.verdict
        )
        return (
            f"<p><b>{escape(self.summary.name)}</b>: {escape(self.summary.what)}<br>"
            f"{self._facts()}</p><ul>{items}</ul>"
            "<table><thead><tr><th>kind</th><th>tensors</th><th>bytes</th><th>share</th></tr>"
            f"</thead><tbody>{rows}</tbody></table>"
        )


def xray(ckpt: Checkpoint | str | Path, *, scan: bool = True) -> XRay:
    """Look through a folder: layout, bytes, zero points, dead groups, unused levels, bad scales.

    Full-precision folders and methods that are only recognised have their bytes counted.
    Packed linears are read one at a time; only one is in memory.

    Parameters
    ----------
    ckpt : Checkpoint or str or Path
        A model folder, or a GGUF file.
    scan : bool
        Read the packed numbers; False looks at headers and configuration only.

    Returns
    -------
    XRay

    Raises
    ------
    FormatError
        If the folder or its configuration cannot be read. A packed linear that cannot be
        read is a finding.
    """
    found = None if isinstance(ckpt, Checkpoint) else foreign_by_files(Path(ckpt).expanduser())
    if found is not None:
        return _foreign_files(Path(ckpt).expanduser(), found)
    ckpt = open_checkpoint(ckpt)
    quantization = ckpt.quantization
    rows, unread, zeros = [], {}, {}
    for name in progress_bar(ckpt.quantized_linears(), "x-ray", unit="linear"):
        row = {"name": name}
        try:
            row |= header_figures(ckpt, name)
            if scan:
                packed = ckpt.linear(name)
                row |= linear_figures(packed)
                counts = np.bincount(packed.zeros.ravel(), minlength=1 << packed.bits)
                zeros.setdefault(packed.bits, Counter()).update(dict(enumerate(counts.tolist())))
        except FormatError as error:
            unread[name] = str(error).rstrip(".")
        rows.append(row)
    linears = _linear_table(rows)
    skipped = skipped_linears(ckpt)
    verdict = (
        *_nature_findings(quantization, scan),
        *findings_of(linears, unread, skipped),
    )
    return XRay(
        summary=_summary(ckpt, linears),
        verdict=tuple(sorted(verdict, key=lambda finding: finding.level == NOTE)),
        linears=linears,
        bytes_by_kind=bytes_by_kind(ckpt),
        zero_points=_zero_table(zeros),
        skipped=skipped,
    )


def _linear_table(rows: list[dict[str, Any]]) -> pd.DataFrame:
    import pandas as pd

    table = pd.DataFrame(rows, columns=list(COLUMNS)).astype(COLUMNS)
    weights = (table["out_features"] * table["in_features"]).astype("float64")
    return table.assign(bits_per_weight=8 * table["weight_bytes"].astype("float64") / weights)


def _zero_table(zeros: dict[int, Counter]) -> pd.DataFrame:
    import pandas as pd

    rows = [
        (bits, value, zeros[bits][value]) for bits in sorted(zeros) for value in sorted(zeros[bits])
    ]
    return pd.DataFrame(rows, columns=["bits", "value", "groups"])


def _summary(ckpt: Checkpoint, linears: pd.DataFrame) -> Summary:
    found = ckpt.quantization
    known = linears[linears["bits_per_weight"].notna()]
    weights = int((known["out_features"] * known["in_features"]).sum())
    known_bytes = int(known["weight_bytes"].sum())
    return Summary(
        name=ckpt.path.name,
        what=_full_precision(ckpt) if found is None else _what(found),
        method=found and found.method,
        layout=found and found.layout,
        bits=found and found.bits,
        group_size=found and found.group_size,
        linears=len(linears),
        total_bytes=ckpt.nbytes,
        linear_bytes=int(linears["weight_bytes"].sum()),
        bits_per_weight=8 * known_bytes / weights if weights else None,
    )


def _what(found: Quantization) -> str:
    if found.layout is None:
        name = found.summary()
        # A stranger's config.json named the method: no terminal codes from there.
        return f"{name if name.isprintable() else ascii(name)}, recognised only"
    return f"{found.summary()} ({LAYOUTS[found.layout].what})"


def _full_precision(ckpt: Checkpoint) -> str:
    sizes = Counter()
    for info in ckpt.tensors.values():
        sizes[info.dtype] += info.nbytes
    return f"full precision, {' and '.join(dtype for dtype, _ in sizes.most_common(2))}"


def _nature_findings(found: Quantization | None, scan: bool) -> list[Finding]:
    if found is None:
        return [Finding(NOTE, "not quantized: there are no packed linears to look through")]
    if found.layout is None:
        return [Finding(NOTE, found.advice.rstrip("."))]
    return [] if scan else [Finding(NOTE, "headers only: no packed number was looked at")]


def _foreign_files(path: Path, found: Quantization) -> XRay:
    """Return what can be said of files that hold no safetensors."""
    import pandas as pd

    files = [path] if path.is_file() else [file for file in path.iterdir() if file.is_file()]
    total = sum(file.stat().st_size for file in files)
    summary = Summary(
        path.name, _what(found), found.method, None, found.bits, None, 0, total, 0, None
    )
    sizes = pd.DataFrame(
        [("other", len(files), total, 1.0)], columns=["kind", "tensors", "weight_bytes", "share"]
    )
    verdict = tuple(_nature_findings(found, False))
    return XRay(summary, verdict, _linear_table([]), sizes, _zero_table({}), ())
