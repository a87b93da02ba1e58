"""Figures of runs: memory over time, seconds by stage, and what workers gain."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from awqbench.plots.style import BLUE, GREEN, GREY, ORANGE, VERMILION, label_ends, styled, title

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

_MIB = 2**20
_COLOURS = (BLUE, ORANGE, GREEN, VERMILION)


def memory_over_time(
    samples: pd.DataFrame, *, planned_bytes: int, budget_bytes: int, conditions: str = ""
) -> Axes:
    """Draw a run's resident memory over its time, with its plan and its budget.

    Parameters
    ----------
    samples : DataFrame
        `seconds`, `rss_bytes`, `finished` (blocks on disk), as `watch_run` gives them.
    planned_bytes, budget_bytes : int
        Planned peak, and the most that the run was given; a budget of more than twice the peak
        is told in words, for it would flatten the line.
    conditions : str

    Returns
    -------
    Axes
        A tick below the line where a block was finished.
    """
    peak = samples["rss_bytes"].max()
    at = samples["seconds"][samples["finished"].diff() > 0]
    is_drawn = budget_bytes <= 2 * max(peak, planned_bytes)
    with styled() as plt:
        _, ax = plt.subplots()
        ax.plot(samples["seconds"], samples["rss_bytes"] / _MIB, color=BLUE, linewidth=1.8)
        ax.vlines(at, 0, 0.05, color=GREY, transform=ax.get_xaxis_transform(), linewidth=1.5)
        lines = {"planned peak": (planned_bytes, ORANGE)}
        if is_drawn:
            lines["budget"] = (budget_bytes, VERMILION)
        for _, (nbytes, colour) in lines.items():
            ax.axhline(nbytes / _MIB, color=colour, linestyle="--", linewidth=1.3)
        ax.set_ylim(0, 1.12 * max([peak, *(nbytes for nbytes, _ in lines.values())]) / _MIB)
        ax.set_xlim(0, samples["seconds"].max())
        end = ax.get_xlim()[1]
        label_ends(ax, {name: (end, b / _MIB, colour) for name, (b, colour) in lines.items()})
        ax.set_xlabel("seconds since the process was started; ticks: a block is finished")
        ax.set_ylabel("resident memory, MiB")
        words = f"Peak {peak / _MIB:.0f} MiB of a budget of {budget_bytes / _MIB:.0f} MiB"
        title(ax, words, conditions)
    return ax


def stage_bars(table: pd.DataFrame, *, conditions: str = "") -> Axes:
    """Draw the seconds of a run by stage, predicted ones beside them.

    Parameters
    ----------
    table : DataFrame
        `stage`, `seconds`, `share`, `predicted_s`, as `stage_table` gives them.
    conditions : str
    """
    y = np.arange(len(table))
    most = table.loc[table["seconds"].idxmax()]
    with styled() as plt:
        _, ax = plt.subplots()
        ax.grid(visible=False)
        ax.grid(axis="x", color="0.9")
        ax.barh(y - 0.2, table["seconds"], 0.38, color=BLUE, label="real")
        if table["predicted_s"].notna().any():
            ax.barh(y + 0.2, table["predicted_s"].fillna(0), 0.38, color=ORANGE, label="predicted")
            ax.legend(loc="lower right")
        ax.set_yticks(y, table["stage"])
        ax.invert_yaxis()
        ax.set_xlabel("seconds")
        title(ax, f"{most['share']:.0%} of the time is {most['stage']}", conditions)
    return ax


def speedup_lines(table: pd.DataFrame, *, conditions: str = "") -> Axes:
    """Draw the speedup over workers of each model, and dashed the most there was to gain.

    Parameters
    ----------
    table : DataFrame
        `model`, `workers` (0 for one process), `speedup`, `ceiling`, as `speedups` gives them.
    conditions : str
    """
    best = table.loc[table["speedup"].idxmax()]
    with styled() as plt:
        _, ax = plt.subplots()
        ends = {}
        for colour, (model, mine) in zip(_COLOURS, table.groupby("model"), strict=False):
            x = np.arange(len(mine))
            ax.plot(x, mine["speedup"], "o-", color=colour, linewidth=2)
            ax.plot(x, mine["ceiling"], "--", color=colour, linewidth=1.2)
            ends[model] = (x[-1], mine["speedup"].iloc[-1], colour)
            ax.set_xticks(x, [str(n) if n else "none" for n in mine["workers"]])
        ax.axhline(1, color=GREY, linewidth=1)
        ax.set_ylim(0, None)
        label_ends(ax, ends)
        ax.set_xlabel("worker processes; dashed: the most there was to gain")
        ax.set_ylabel("times as fast as one process")
        words = f"At best {best['speedup']:.2f} x, with {best['workers']} workers"
        title(ax, words if best["workers"] else "Workers gain nothing here", conditions)
    return ax
