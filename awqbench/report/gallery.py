"""The index page of a folder of reports: one card for each run, failures included."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from awqbench.errors import AwqbenchError
from awqbench.report.facts import (
    STATUS,
    Status,
    commit_text,
    duration,
    machine_text,
    parameter_texts,
    versions_text,
)
from awqbench.report.html import FAILED_ANCHOR, TEMPLATES
from awqbench.report.keys import run_key
from awqbench.report.notebooks import list_notebooks, read_notebook
from awqbench.report.record import RunRecord, read_record, write_atomic
from awqbench.report.results import read_results


@dataclass(frozen=True)
class Card:
    """One run, as the index page shows it.

    Attributes
    ----------
    record : RunRecord
    status : Status
    title : str
    answer : str
        Empty where the run did not get that far.
    link : str
        Relative; of a failed run to the failing cell; empty without a page.
    image, alt : str
        Thumbnail as base64 PNG, and what it shows.
    parameters : list of (str, str)
    facts : list of (str, str)
        Time, commit, versions, machine.
    """

    record: RunRecord
    status: Status
    title: str
    answer: str
    link: str
    image: str
    alt: str
    parameters: list[tuple[str, str]]
    facts: list[tuple[str, str]]


def write_gallery(out: Path, notebooks: Mapping[str, Path] | None = None) -> Path:
    """Write index.html for all runs in a folder.

    Parameters
    ----------
    out : Path
        Holds one folder for each run.
    notebooks : mapping of str to Path, optional
        Files of notebooks that are not among the package's own, by name; a run is marked
        out of date when its notebook, parameters, model or this package changed since.

    Returns
    -------
    Path
        Of the page.
    """
    page = out / "index.html"
    write_atomic(page, gallery_page(read_cards(out, notebooks)))
    return page


def read_cards(out: Path, notebooks: Mapping[str, Path] | None = None) -> list[Card]:
    """Collect what the index page shows, sorted by notebook name.

    Parameters
    ----------
    out : Path
    notebooks : mapping of str to Path, optional

    Returns
    -------
    list of Card
    """
    known = {**_own_notebooks(), **(notebooks or {})}
    cards = []
    for folder in sorted(path for path in out.iterdir() if path.is_dir()):
        record = read_record(folder)
        if record is not None:
            cards.append(_card(folder, record, known.get(record.notebook)))
    return cards


def gallery_page(cards: list[Card]) -> str:
    """Lay cards out as a self-contained page.

    Parameters
    ----------
    cards : list of Card

    Returns
    -------
    str
        HTML, without scripts and requests.
    """
    import jinja2

    loader = jinja2.FileSystemLoader([TEMPLATES / "gallery", TEMPLATES / "awqbench"])
    # Everything shown comes from notebooks and records: escaped. The CSS is ours.
    environment = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True)
    counts: dict[Status, int] = {}
    for card in cards:
        counts[card.status] = counts.get(card.status, 0) + 1
    made = max((card.record.finished for card in cards), default="")
    return environment.get_template("gallery.html.j2").render(
        cards=cards,
        counts=counts,
        made=made[:16].replace("T", " "),
        styles=[(TEMPLATES / name).read_text() for name in _STYLES],
    )


_STYLES = ("awqbench/palette.css", "gallery/gallery.css")


def _own_notebooks() -> dict[str, Path]:
    try:
        return {path.stem: path for path in list_notebooks()}
    except AwqbenchError:
        return {}


def is_stale(record: RunRecord, notebook: Path) -> bool:
    """Tell whether a run's notebook, model or package changed since it ran.

    Parameters
    ----------
    record : RunRecord
    notebook : Path

    Returns
    -------
    bool
    """
    return run_key(read_notebook(notebook), record.parameters) != record.key


def _card(folder: Path, record: RunRecord, notebook: Path | None) -> Card:
    stale = record.state == "ok" and notebook is not None and is_stale(record, notebook)
    results = read_results(folder)
    figures = results.get("figures") or [{"name": "", "alt": ""}]
    image = folder / "figures" / f"{figures[0]['name']}.png"
    link = f"{folder.name}/report.html" if (folder / "report.html").is_file() else ""
    if link and record.cell is not None:
        link += f"#{FAILED_ANCHOR}"
    origin = record.provenance
    return Card(
        record=record,
        status=STATUS["stale" if stale else record.state],
        title=record.title or record.notebook,
        answer=results.get("answer", "") if record.state == "ok" else "",
        link=link,
        image=base64.b64encode(image.read_bytes()).decode() if image.is_file() else "",
        alt=figures[0]["alt"],
        parameters=parameter_texts(record.parameters),
        facts=[
            ("Time", f"{duration(record.elapsed_s)}, {record.started[:16].replace('T', ' ')} UTC"),
            ("Commit", commit_text(origin)),
            ("Versions", versions_text(origin)),
            ("Machine", machine_text(origin)),
        ],
    )
