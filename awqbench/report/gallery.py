"""The index page of a folder of reports: one card for each run, failures included."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

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
    answer, more : str
        The answer's first sentence, and the others; empty where the run did not get that far.
    link : str
        Relative; of a failed run to the failing cell; empty without a page.
    image, alt : str
        Thumbnail as base64 PNG, and what it shows.
    parameters : list of (str, str)
    facts : list of (str, str)
        Time, commit, versions, machine.
    files : list of (str, str)
        What else the run left: a word for it, and its relative address.
    """

    record: RunRecord
    status: Status
    title: str
    answer: str
    more: str
    link: str
    image: str
    alt: str
    parameters: list[tuple[str, str]]
    facts: list[tuple[str, str]]
    files: list[tuple[str, str]]


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
            cards.append(read_card(folder, record, known.get(record.notebook)))
    return cards


def read_card(folder: Path, record: RunRecord, notebook: Path | None = None) -> Card:
    """Collect what the folder of one run holds.

    Parameters
    ----------
    folder : Path
    record : RunRecord
    notebook : Path, optional
        The run is marked out of date where it differs from this file.

    Returns
    -------
    Card
    """
    stale = record.state == "ok" and notebook is not None and is_stale(record, notebook)
    results = read_results(folder)
    figures = results.get("figures") or [{"name": "", "alt": ""}]
    image = folder / "figures" / f"{figures[0]['name']}.png"
    answer, more = split_answer(results.get("answer", "") if record.state == "ok" else "")
    return Card(
        record=record,
        status=STATUS["stale" if stale else record.state],
        title=record.title or record.notebook,
        answer=answer,
        more=more,
        link=_link(folder, record),
        image=base64.b64encode(image.read_bytes()).decode() if image.is_file() else "",
        alt=figures[0]["alt"],
        parameters=parameter_texts(record.parameters),
        facts=card_facts(record),
        files=_files(folder, results),
    )


def split_answer(answer: str) -> tuple[str, str]:
    """Part an answer after its first sentence.

    Examples
    --------
    >>> split_answer("4.2 bits do. Fewer lose 3 %. None gain.")
    ('4.2 bits do.', 'Fewer lose 3 %. None gain.')
    """
    first, *rest = re.split(r"(?<=[.!?])\s+(?=[A-Z])", answer, maxsplit=1)
    return first, "".join(rest)


def shared_facts(cards: list[Card]) -> list[tuple[str, str]]:
    """List what is true of all runs, so that the page says it once.

    Parameters
    ----------
    cards : list of Card

    Returns
    -------
    list of (str, str)
        Empty for a single card, which shows its own.
    """
    if len(cards) < 2:
        return []
    return [fact for fact in cards[0].facts if all(fact in card.facts for card in cards)]


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
    counts: dict[Status, int] = {}
    for card in cards:
        counts[card.status] = counts.get(card.status, 0) + 1
    made = max((card.record.finished for card in cards), default="")
    return render_page(
        "gallery.html.j2",
        cards=cards,
        counts=counts,
        made=made[:16].replace("T", " "),
        shared=shared_facts(cards),
    )


def render_page(template: str, **context: object) -> str:
    """Fill a template of templates/gallery with the house styles.

    Parameters
    ----------
    template : str
    **context : object
        The template's variables.

    Returns
    -------
    str
        HTML.
    """
    import jinja2

    loader = jinja2.FileSystemLoader(TEMPLATES / "gallery")
    # Everything shown comes from notebooks and records: escaped. The CSS is ours.
    environment = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True)
    styles = [(TEMPLATES / name).read_text() for name in _STYLES]
    return environment.get_template(template).render(styles=styles, **context)


_STYLES = ("awqbench/palette.css", "gallery/gallery.css", "gallery/compare.css")


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


def card_facts(record: RunRecord) -> list[tuple[str, str]]:
    """List the origin of a run that a reader asks for first.

    Parameters
    ----------
    record : RunRecord

    Returns
    -------
    list of (str, str)
        Time, commit, versions, machine.
    """
    origin = record.provenance
    started = record.started[:16].replace("T", " ")
    return [
        ("Time", f"{duration(record.elapsed_s)}, {started} UTC"),
        ("Commit", commit_text(origin)),
        ("Versions", versions_text(origin)),
        ("Machine", machine_text(origin)),
    ]


def _link(folder: Path, record: RunRecord) -> str:
    if not (folder / "report.html").is_file():
        return ""
    anchor = f"#{FAILED_ANCHOR}" if record.cell is not None else ""
    return f"{quote(folder.name)}/report.html{anchor}"


def _files(folder: Path, results: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Link what there is: the notebook, the numbers, the headline for print, each table."""
    figures = results.get("figures") or []
    wanted = [("notebook", "report.ipynb"), ("numbers", "results.json")]
    wanted += [("figure", f"figures/{item['name']}.svg") for item in figures[:1]]
    wanted += [
        (f"{item['name']}.csv", f"tables/{item['name']}.csv") for item in results.get("tables", [])
    ]
    found = [(word, name) for word, name in wanted if (folder / name).is_file()]
    return [(word, f"{quote(folder.name)}/{name}") for word, name in found]
