"""The page that sets the runs of a sweep side by side, and their numbers as a table."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from awqbench.report.differences import ABSENT, flat, value_text
from awqbench.report.facts import duration
from awqbench.report.gallery import Card, read_card, render_page
from awqbench.report.record import read_record, write_atomic
from awqbench.report.results import read_results

if TYPE_CHECKING:
    from awqbench.report.sweep_grid import Point

PAGE, NUMBERS = "sweep.html", "sweep.csv"
# Columns of the page's table; sweep.csv has all numbers.
MOST_COLUMNS = 8


class Run(NamedTuple):
    """One run, as the page shows it: place in the grid, card (None before it ran), numbers."""

    place: dict[str, str]
    card: Card | None
    numbers: dict[str, Any]

    @property
    def took(self) -> str:
        """Its time."""
        return duration(self.card.record.elapsed_s) if self.card else ABSENT


def write_sweep_page(points: Sequence[Point]) -> Path:
    """Write sweep.html and sweep.csv beside the folders of the runs.

    Parameters
    ----------
    points : sequence of Point
        Of one sweep; those that did not run are shown as not run.

    Returns
    -------
    Path
        Of the page.
    """
    folder = points[0].job.folder.parent
    runs = [_run(point) for point in points]
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / NUMBERS, numbers_csv(runs))
    names = differing(runs)
    cards = [run.card for run in runs if run.card]
    text = render_page(
        "sweep.html.j2",
        notebook=points[0].job.path.stem,
        title=cards[0].title if cards else points[0].job.path.stem,
        question=cards[0].record.question if cards else "",
        runs=runs,
        places=list(points[0].values),
        names=names[:MOST_COLUMNS],
        n_more=max(0, len(names) - MOST_COLUMNS),
        cell=lambda run, name: value_text(run.numbers[name]) if name in run.numbers else ABSENT,
        best=lambda name: _extremes(runs, name),
        numbers_file=NUMBERS,
    )
    page = folder / PAGE
    write_atomic(page, text)
    return page


def _run(point: Point) -> Run:
    record = read_record(point.job.folder)
    if record is None:
        return Run(point.values, None, {})
    is_ok = record.state == "ok"
    numbers = dict(flat(read_results(point.job.folder).get("values", {}))) if is_ok else {}
    return Run(point.values, read_card(point.job.folder, record), numbers)


def differing(runs: Sequence[Run]) -> list[str]:
    """List the values that differ between runs, those that every finished run has first."""
    finished = [run for run in runs if run.numbers]
    names = dict.fromkeys(name for run in finished for name in run.numbers)

    def differs(name: str) -> bool:
        shown = {value_text(run.numbers[name]) for run in finished if name in run.numbers}
        return len(shown) > 1

    found = [name for name in names if differs(name)]
    return sorted(found, key=lambda name: any(name not in run.numbers for run in finished))


def _extremes(runs: Sequence[Run], name: str) -> tuple[str, str]:
    """Return the least and the greatest of a column as they are shown; equal if no numbers."""
    found = [run.numbers[name] for run in runs if name in run.numbers]
    plain = [v for v in found if type(v) in (int, float) and math.isfinite(v)]
    return (value_text(min(plain)), value_text(max(plain))) if plain else ("", "")


def numbers_csv(runs: Sequence[Run]) -> str:
    """Write all values of all runs, a row for each: the grid's parameters, name, value."""
    places = list(runs[0].place)
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([*places, "state", "name", "value"])
    for run in runs:
        state = run.card.record.state if run.card else "not run"
        rows = run.numbers.items() or [("", "")]
        writer.writerows([*run.place.values(), state, *row] for row in rows)
    return out.getvalue()
