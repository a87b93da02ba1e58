"""Figure of a tensor parallel plan: what fits, by ranks, group size and engine."""

from __future__ import annotations

from typing import TYPE_CHECKING

from awqbench.plots.style import BLUE, VERMILION, styled, title

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

FITS, BREAKS = BLUE, VERMILION
_MARKS = {True: "fits", False: "✗"}


def plot_fits(plan: pd.DataFrame, *, conditions: str = "") -> list[Axes]:
    """Draw a grid of ranks and group sizes for each engine, with the number that breaks.

    Colour never stands alone: what fits says so, what does not names the number of inputs
    or outputs on a rank, or of heads.

    Parameters
    ----------
    plan : DataFrame
        Of `plan_tensor_parallel`: `tp_size`, `group_size`, `engine`, `fits`, `number`.
    conditions : str
        What it holds for, such as the model's name.

    Returns
    -------
    list of Axes
        A panel for each engine, in the plan's order.
    """
    engines = list(dict.fromkeys(plan["engine"]))
    with styled() as plt:
        width = 1.1 + 2.0 * len(engines)
        figure, grid = plt.subplots(
            1, len(engines), figsize=(max(width, 6.4), 3.0), squeeze=False, sharey=True
        )
        panels = list(grid[0])
        for ax, engine in zip(panels, engines, strict=True):
            _draw_engine(ax, plan[plan["engine"] == engine])
            title(ax, engine)
            ax.set_xlabel("group size")
        panels[0].set_ylabel("ranks (tensor parallel size)")
        figure.suptitle(finding(plan), x=0.01, ha="left", fontsize=11, weight="bold")
        if conditions:
            figure.supxlabel(conditions, x=0.01, ha="left", fontsize=8.5, color="0.4")
    return panels


def _draw_engine(ax: Axes, rows: pd.DataFrame) -> None:
    tp_sizes = sorted(rows["tp_size"].unique())
    group_sizes = sorted(rows["group_size"].unique(), key=lambda size: (size == -1, size))
    for row in rows.itertuples():
        x, y = group_sizes.index(row.group_size), tp_sizes.index(row.tp_size)
        _draw_cell(ax, x, y, row)
    ax.set_xlim(-0.5, len(group_sizes) - 0.5)
    ax.set_ylim(-0.5, len(tp_sizes) - 0.5)
    names = ["row" if size == -1 else str(size) for size in group_sizes]
    ax.set_xticks(range(len(group_sizes)), names)
    ax.set_yticks(range(len(tp_sizes)), [str(size) for size in tp_sizes])
    ax.tick_params(length=0)
    ax.grid(False)
    ax.spines[:].set_visible(False)


def _draw_cell(ax: Axes, x: int, y: int, row) -> None:
    from matplotlib.patches import Rectangle

    place = (x - 0.47, y - 0.47)
    # Tints, so that black text is readable on both.
    look = {"facecolor": FITS if row.fits else BREAKS, "alpha": 0.3 if row.fits else 0.45}
    ax.add_patch(Rectangle(place, 0.94, 0.94, linewidth=0, **look))
    text = _MARKS[True] if row.fits else f"{_MARKS[False]} {row.number}"
    ax.text(x, y, text, ha="center", va="center", fontsize=8.5)


def finding(plan: pd.DataFrame) -> str:
    """Say how many ranks fit at each group size, on the first engine.

    Parameters
    ----------
    plan : DataFrame
        As in `plot_fits`.

    Returns
    -------
    str
    """
    engine = plan["engine"].iloc[0]
    rows = plan[plan["engine"] == engine]
    most = rows[rows["fits"]].groupby("group_size")["tp_size"].max()
    sizes = sorted(rows["group_size"].unique(), key=lambda size: (size != -1, -size))
    if most.empty:
        return f"Nothing fits on {engine}"
    if most.nunique() == 1 and len(most) == len(sizes):
        return f"Up to {_ranks(most.iloc[0])} fit on {engine}, whatever the group size"
    counts = [f"{most.get(size, 'none')} at {_group(size)}" for size in sizes]
    return f"Most ranks on {engine}: {', '.join(counts)}"


def _ranks(count: int) -> str:
    return f"{count} rank{'s' if count > 1 else ''}"


def _group(size: int) -> str:
    return "whole rows" if size == -1 else f"group {size}"
