"""Two folders of reports side by side: what differed going in, and what came out."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from awqbench.errors import FormatError, OutputError, ParameterError
from awqbench.report.differences import Row, compare_values, parameter_rows, text_rows
from awqbench.report.gallery import Card, card_facts, read_card, render_page
from awqbench.report.record import read_record, write_atomic
from awqbench.report.results import read_results

PAGE = "compare.html"


@dataclass(frozen=True)
class Pair:
    """One notebook in both folders.

    Attributes
    ----------
    notebook : str
    first, second : Card
        Links are relative to the folder that holds the page.
    parameters, facts, values : list of Row
        All of them, those that are equal too.
    """

    notebook: str
    first: Card
    second: Card
    parameters: list[Row]
    facts: list[Row]
    values: list[Row]


class Comparison(NamedTuple):
    """What two folders have in common.

    Attributes
    ----------
    first, second : str
        Names of the folders, different from each other.
    pairs : list of Pair
        By notebook.
    only_first, only_second : list of str
        Notebooks without a partner.
    """

    first: str
    second: str
    pairs: list[Pair]
    only_first: list[str]
    only_second: list[str]

    @property
    def other_machine(self) -> list[str]:
        """Notebooks that ran on two machines, so that their times say nothing."""
        return [
            pair.notebook
            for pair in self.pairs
            if any(row.name == "Machine" and not row.is_equal for row in pair.facts)
        ]


def write_comparison(first: Path, second: Path, out: Path, names: Sequence[str] = ()) -> Path:
    """Write compare.html for two folders of reports; nothing is run.

    Parameters
    ----------
    first, second : Path
        Folders that `awqbench report` wrote.
    out : Path
        Folder for the page; made where it is missing.
    names : sequence of str
        Notebooks to compare; none means all that are in both.

    Returns
    -------
    Path
        Of the page.

    Raises
    ------
    ParameterError
        If both folders are the same one, or a name is not in both.
    FormatError
        If a folder holds no report, or they have no notebook in common.
    OutputError
        If `out` cannot be written.
    """
    found = compare_reports(first, second, names)
    page = out / PAGE
    text = comparison_page(found, _relative(first, out), _relative(second, out))
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_atomic(page, text)
    except OSError as error:
        raise OutputError(
            f"cannot write into {out}: {error.strerror}; choose another folder with --out."
        ) from error
    return page


def compare_reports(first: Path, second: Path, names: Sequence[str] = ()) -> Comparison:
    """Pair the notebooks of two folders of reports by name.

    Parameters
    ----------
    first, second : Path
    names : sequence of str
        Notebooks to compare; none means all that are in both.

    Returns
    -------
    Comparison

    Raises
    ------
    ParameterError
        If both folders are the same one, or a name is not in both.
    FormatError
        If a folder holds no report, or they have no notebook in common.
    """
    if first.resolve() == second.resolve():
        raise ParameterError(f"{first} and {second} are the same folder; give two.")
    left, right = _runs(first), _runs(second)
    both = sorted(left.keys() & right.keys())
    if not both:
        raise FormatError(
            f"{first} and {second} have no notebook in common: {', '.join(sorted(left))} against "
            f"{', '.join(sorted(right))}; run the same notebook into both."
        )
    for name in names:
        if name not in both:
            raise ParameterError(f"{name!r} is not in both folders; in both: {', '.join(both)}.")
    wanted = [name for name in both if not names or name in names]
    return Comparison(
        *_labels(first, second),
        pairs=[_pair(left[name], right[name]) for name in wanted],
        only_first=sorted(left.keys() - right.keys()),
        only_second=sorted(right.keys() - left.keys()),
    )


def comparison_page(found: Comparison, first: str, second: str) -> str:
    """Lay a comparison out as a self-contained page.

    Parameters
    ----------
    found : Comparison
    first, second : str
        Addresses of the two folders, relative to the page.

    Returns
    -------
    str
        HTML, without scripts and requests.
    """
    return render_page("compare.html.j2", found=found, roots=(first, second))


def _runs(folder: Path) -> dict[str, Path]:
    if not folder.is_dir():
        raise FormatError(f"{folder} is not a folder; give one that `awqbench report` wrote.")
    records = {path: read_record(path) for path in sorted(folder.iterdir()) if path.is_dir()}
    runs = {record.notebook: path for path, record in records.items() if record is not None}
    if not runs:
        raise FormatError(
            f"{folder} holds no report (no folder in it has a run.json of ours); make one with "
            f"`awqbench report --out {folder}`."
        )
    return runs


def _pair(first: Path, second: Path) -> Pair:
    records = read_record(first), read_record(second)
    left, right = (read_card(f, r) for f, r in zip((first, second), records, strict=True))
    facts = (card_facts(record) for record in records)
    values = (read_results(folder).get("values", {}) for folder in (first, second))
    return Pair(
        notebook=records[0].notebook,
        first=left,
        second=right,
        parameters=parameter_rows(records[0].parameters, records[1].parameters),
        facts=text_rows(*facts),
        values=compare_values(*values),
    )


def _labels(first: Path, second: Path) -> tuple[str, str]:
    """Name two folders as short as tells them apart, from their ends."""
    left, right = first.resolve().parts, second.resolve().parts
    for count in range(1, max(len(left), len(right))):
        if left[-count:] != right[-count:]:
            return "/".join(left[-count:]), "/".join(right[-count:])
    return str(first), str(second)


def _relative(folder: Path, out: Path) -> str:
    return quote(Path(os.path.relpath(folder.resolve(), out.resolve())).as_posix())
