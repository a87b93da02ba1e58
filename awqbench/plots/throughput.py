"""Figures of tokens a second whose marks tell measured, recorded, published and predicted."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from awqbench.bench.roofline import fit_threads
from awqbench.bench.throughput import PROVENANCES, evidence_title
from awqbench.errors import EmulatedTimingError, ParameterError
from awqbench.plots.style import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    VERMILION,
    label_ends,
    styled,
    title,
)

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis

_COLOURS = {"x86_64": BLUE, "aarch64": ORANGE}
_NAMES = {"x86_64": "x86", "aarch64": "ARM"}
_BAR = 0.62
_BRACKETS = re.compile(r" \([^)]*\)")
# Points from the axis down to the legend and, past it, to the list of sources.
_LEGEND_BELOW, _SOURCES_BELOW = -36, -76
_MEANINGS = {
    "measured": "measured here",
    "recorded": "recorded on another machine (id)",
    "published": "published [source]",
    "predicted": "predicted, with interval",
}


def plot_throughput(
    table: pd.DataFrame,
    *,
    value: str = "tok_per_s",
    label: str = "tokens/s",
    conditions: str = "",
    ax: Axes | None = None,
) -> Axes:
    """Draw throughputs with one mark for each provenance, on a logarithmic axis.

    Measured rows are solid points, recorded ones solid squares with the machine's id,
    published ones hollow points with a key into the list of sources below, and
    predicted ones hatched bars over their interval. The title says what is known of each
    architecture.

    Parameters
    ----------
    table : DataFrame
        Of `throughput.ROW`; at least `provenance`, `arch`, `chip`, `model`, `quant`,
        `threads`, `machine_id`, `source`, and `value`.
    value : str
        A column. `low` and `high` are scaled with it.
    label : str
        Of the axis.
    conditions : str
    ax : Axes, optional

    Returns
    -------
    Axes

    Raises
    ------
    ParameterError
        If there is no column `provenance`, no row, or a provenance that is none.
    EmulatedTimingError
        If a row is emulated.
    """
    check_provenance(table)
    rows = table.sort_values(["arch", value]).to_dict(orient="records")
    keys = _source_keys(rows)
    with styled() as plt:
        if ax is None:
            _, ax = plt.subplots(figsize=(8.2, 2.0 + 0.36 * len(rows) + 0.13 * len(keys)))
        for at, row in enumerate(rows):
            _draw_row(ax, at, row, value, keys)
        ax.set_yticks(range(len(rows)), [_row_text(row) for row in rows], fontsize=7.5)
        ax.set_xscale("log")
        _plain_ticks(ax.xaxis)
        ax.set_ylim(-0.7, len(rows) - 0.3)
        ax.tick_params(axis="y", length=0)
        ax.grid(axis="y", visible=False)
        ax.grid(axis="x", visible=True)
        ax.set_xlabel(label)
        _add_legend(ax, rows)
        listed = "\n".join(f"[{key}] {source}" for source, key in keys.items())
        if listed:
            ax.annotate(
                listed,
                xy=(0, 0),
                xytext=(0, _SOURCES_BELOW),
                xycoords="axes fraction",
                textcoords="offset points",
                fontsize=7,
                color="0.35",
                va="top",
                annotation_clip=False,
            )
        title(ax, evidence_title(table), conditions)
    return ax


def check_provenance(table: pd.DataFrame) -> None:
    """Check that every row says what kind of evidence it is, and that none is emulated.

    Raises
    ------
    ParameterError, EmulatedTimingError
        As `plot_throughput`.
    """
    if "provenance" not in table or table.empty:
        raise ParameterError(
            "a table of throughput needs rows and a column provenance: "
            f"{', '.join(PROVENANCES[:4])}."
        )
    unknown = set(table["provenance"]) - set(PROVENANCES)
    if unknown:
        raise ParameterError(
            f"provenance {', '.join(map(repr, sorted(unknown, key=str)))} is none of "
            f"{', '.join(PROVENANCES)}."
        )
    emulated = int((table["provenance"] == "emulated").sum())
    if emulated:
        raise EmulatedTimingError(
            f"{emulated} of {len(table)} rows are emulated: they belong into tables of "
            "correctness, never beside times."
        )


def _source_keys(rows: list[dict]) -> dict[str, str]:
    sources = dict.fromkeys(row["source"] for row in rows if row["provenance"] == "published")
    return {source: str(number) for number, source in enumerate(sources, start=1)}


def _draw_row(ax: Axes, at: int, row: dict, value: str, keys: Mapping[str, str]) -> None:
    colour, x = _COLOURS.get(row["arch"], GREY), row[value]
    scale = x / row["tok_per_s"]
    low, high = row["low"] * scale, row["high"] * scale
    kind, note = row["provenance"], ""
    if kind == "predicted":
        ax.barh(
            at, high - low, _BAR, left=low, facecolor="none", edgecolor=colour, hatch="////",
            linewidth=0.8,
        )  # fmt: skip
        ax.plot([x, x], [at - _BAR / 2, at + _BAR / 2], color=colour, linewidth=1.6)
    elif kind == "published":
        ax.plot(x, at, "o", markerfacecolor="white", markeredgecolor=colour, markersize=6)
        note, high = f"[{keys[row['source']]}]", x
    else:
        ax.hlines(at, low, high, color=colour, linewidth=1.2)
        ax.plot(x, at, "o" if kind == "measured" else "s", color=colour, markersize=6)
        note = row["machine_id"] if kind == "recorded" else ""
    ax.annotate(
        note,
        xy=(high, at),
        xytext=(6, 0),
        textcoords="offset points",
        va="center",
        fontsize=7,
        color="0.35",
    )


def _row_text(row: dict) -> str:
    threads = "" if row["threads"] != row["threads"] else f", {int(row['threads'])} thr."
    # On two lines and without what stands in brackets, for the axis needs the room.
    chip, model = (_BRACKETS.sub("", row[name]) for name in ("chip", "model"))
    return f"{chip}\n{model} {row['quant']}{threads}"


def _add_legend(ax: Axes, rows: list[dict]) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch
    from matplotlib.transforms import ScaledTranslation

    kinds = [kind for kind in _MEANINGS if any(row["provenance"] == kind for row in rows)]
    marks = {
        "measured": Line2D([], [], marker="o", linestyle="", color="0.3"),
        "recorded": Line2D([], [], marker="s", linestyle="", color="0.3"),
        "published": Line2D(
            [], [], marker="o", linestyle="", markerfacecolor="white", markeredgecolor="0.3"
        ),
        "predicted": Patch(facecolor="none", edgecolor="0.3", hatch="////"),
    }
    arches = [arch for arch in _COLOURS if any(row["arch"] == arch for row in rows)]
    handles = [marks[kind] for kind in kinds] + [Patch(color=_COLOURS[arch]) for arch in arches]
    texts = [_MEANINGS[kind] for kind in kinds] + [_NAMES[arch] for arch in arches]
    ax.legend(
        handles,
        texts,
        fontsize=7.5,
        ncols=3,
        loc="upper left",
        bbox_to_anchor=(0, 0),
        bbox_transform=ax.transAxes
        + ScaledTranslation(0, _LEGEND_BELOW / 72, ax.figure.dpi_scale_trans),
        columnspacing=1.2,
        handletextpad=0.4,
    )


def _plain_ticks(axis: Axis) -> None:
    """Label 1, 2 and 5 of each decade of a logarithmic axis as plain numbers."""
    from matplotlib.ticker import LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(NullFormatter())


def plot_sweeps(
    sweeps: Mapping[str, pd.DataFrame], *, fitted_up_to: int = 4, ax: Axes | None = None
) -> Axes:
    """Draw published sweeps of threads as hollow points, with fits on few threads as lines.

    Parameters
    ----------
    sweeps : mapping of str to DataFrame
        Of `literature.published_sweeps`.
    fitted_up_to : int
        Threads that the fits see (a sweep with fewer than two such counts is fitted on all
        but its last); what lies beyond is held out, and there the line is dashed.
    ax : Axes, optional

    Returns
    -------
    Axes
    """
    colours = dict(zip(sweeps, (ORANGE, BLUE, GREEN, PURPLE, GREY, VERMILION), strict=False))
    with styled() as plt:
        if ax is None:
            _, ax = plt.subplots(figsize=(8.2, 4.2))
        ends, worst = {}, 0.0
        for name, sweep in sweeps.items():
            colour = colours.get(name, GREY)
            threads, speed = sweep["threads"].to_numpy(), sweep["tok_per_s"].to_numpy()
            kept = threads <= fitted_up_to
            if kept.sum() < 2:
                kept = threads < threads[-1]
            model = fit_threads(threads[kept], 1 / speed[kept])
            grid = np.unique(np.geomspace(threads[0], threads[-1], 60))
            line = [1 / model.seconds(t) for t in grid]
            seen = grid <= threads[kept].max()
            ax.plot(grid[seen], np.array(line)[seen], color=colour, linewidth=1.5)
            ax.plot(grid[~seen], np.array(line)[~seen], "--", color=colour, linewidth=1.2)
            ax.plot(threads, speed, "o", markerfacecolor="white", markeredgecolor=colour)
            ends[name] = (threads[-1], speed[-1], colour)
            worst = max(worst, abs(line[-1] / speed[-1] - 1))
        ax.set_xscale("log", base=2)
        ax.set_yscale("log")
        ax.xaxis.set_major_formatter("{x:g}")
        _plain_ticks(ax.yaxis)
        ax.set_xlabel("threads")
        ax.set_ylabel("tokens/s (published)")
        fits = (
            f"fits on up to {fitted_up_to} threads, or on all but the most where fewer than two "
            "were timed (dashed: held out)"
        )
        title(ax, f"Two figures of a machine tell what more threads give, within {worst:.0%}", fits)
        label_ends(ax, ends)
    return ax
