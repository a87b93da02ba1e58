"""The card: verdict first, then reasons, worst first, then facts and the table of splits."""

from __future__ import annotations

import json
import textwrap
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

from awqbench.inspect.doctor.findings import CARE, NO, Finding

if TYPE_CHECKING:
    import pandas as pd

_WIDTH = 96
# What the text card shows of the table: the engine that most people serve with.
_SHOWN_ENGINE = "vllm"
# Readable on white and on black.
_COLOURS = {"yes": "#2e8b57", "with care": "#b8860b", "no": "#cd5c5c"}
_MARKS = {NO: "no", CARE: "care", "note": "note"}


@dataclass(frozen=True, eq=False, repr=False)
class DoctorReport:
    """What `doctor` found.

    Parameters
    ----------
    verdict : {"yes", "with care", "no"}
        Whether the model can be quantized on this machine.
    sentence : str
        The verdict's main reason.
    findings : tuple of Finding
        Worst first.
    table : DataFrame
        As `plan_tensor_parallel` gives it; empty if the architecture's linears cannot be
        told from its config.
    facts : dict
        What the card says in numbers: JSON-ready values by name.
    health : DataFrame, optional
        The scan of the weights, if it was asked for.
    """

    verdict: str
    sentence: str
    findings: tuple[Finding, ...]
    table: pd.DataFrame
    facts: dict[str, Any]
    health: pd.DataFrame | None = None

    @property
    def is_no(self) -> bool:
        """Whether the model cannot be quantized here."""
        return self.verdict == "no"

    def to_dict(self) -> dict[str, Any]:
        """Return everything but the scan's rows as JSON-ready values."""
        return {
            "verdict": self.verdict,
            "sentence": self.sentence,
            "findings": [finding._asdict() for finding in self.findings],
            "facts": self.facts,
            "tensor_parallel": json.loads(self.table.to_json(orient="records")),
        }

    def __str__(self) -> str:
        """Write the card for a terminal."""
        lines = _wrapped(f"{self.verdict}: {self.sentence}.", "")
        for finding in self.findings:
            lines += _wrapped(f"{_MARKS[finding.severity]:<5}{finding.subject}: ", finding.sentence)
            if finding.fix:
                lines += _wrapped("     fix: ", finding.fix, indent=10)
        lines.append("")
        width = max((len(label) for label, _ in self._fact_rows()), default=0) + 2
        for label, text in self._fact_rows():
            lines += _wrapped(f"{label:<{width}}", text, indent=width)
        split = self._split()
        if len(split):
            lines += ["", f"tensor parallel, {_SHOWN_ENGINE}:", *_text_table(split)]
        limits = self.facts.get("engines", {})
        if limits:
            width = max(map(len, limits)) + 2
            lines += ["", "what each engine's kernels take:"]
            for name, text in limits.items():
                lines += _wrapped(f"{name:<{width}}", text, indent=width)
        return "\n".join(lines)

    def __repr__(self) -> str:
        """Show what `print` shows."""
        return str(self)

    def _repr_html_(self) -> str:
        colour = _COLOURS[self.verdict]
        head = (
            f'<div style="border-left:6px solid {colour};padding:2px 12px;line-height:1.4">'
            f'<p style="font-size:1.1em"><b style="color:{colour}">{self.verdict}</b>: '
            f"{escape(self.sentence)}.</p>"
        )
        items = "".join(
            f"<li><b>{_MARKS[f.severity]}</b>, {escape(f.subject)}: {escape(f.sentence)}."
            + (f"<br><i>fix:</i> {escape(f.fix)}" if f.fix else "")
            + "</li>"
            for f in self.findings
        )
        rows = "".join(
            f'<tr><th style="text-align:left">{escape(label)}</th>'
            f'<td style="text-align:left">{escape(text)}</td></tr>'
            for label, text in self._fact_rows()
        )
        split = self._split()
        table = ""
        if len(split):
            table = f"<p>tensor parallel, {_SHOWN_ENGINE}:</p>{split.to_html(border=0)}"
        limits = "".join(
            f'<tr><th style="text-align:left">{escape(name)}</th>'
            f'<td style="text-align:left">{escape(text)}</td></tr>'
            for name, text in self.facts.get("engines", {}).items()
        )
        if limits:
            table += f"<p>what each engine's kernels take:</p><table>{limits}</table>"
        return f"{head}<ul>{items}</ul><table>{rows}</table>{table}</div>"

    def _fact_rows(self) -> list[tuple[str, str]]:
        return list(self.facts.get("card", {}).items())

    def _split(self) -> pd.DataFrame:
        """Return whether each group size fits each number of ranks, in words."""
        if len(self.table) == 0:
            return self.table
        chosen = self.table[self.table["engine"] == _SHOWN_ENGINE]
        words = chosen.assign(fits=["fits" if fits else "no" for fits in chosen["fits"]])
        wide = words.pivot(index="group_size", columns="tp_size", values="fits")
        return wide.sort_index(ascending=False).rename(columns="tp {}".format)


def _wrapped(head: str, text: str, *, indent: int = 5) -> list[str]:
    return textwrap.wrap(
        head + text,
        _WIDTH,
        subsequent_indent=" " * indent,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _text_table(split: pd.DataFrame) -> list[str]:
    head = "group_size" + "".join(f"{column:>8}" for column in split.columns)
    return [head] + [
        f"{size:>10}" + "".join(f"{word:>8}" for word in row)
        for size, row in zip(split.index, split.itertuples(index=False), strict=True)
    ]
