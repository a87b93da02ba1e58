"""Figures of the explorers: drawn anew at every move of a slider, so with fixed margins."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np

from awqbench.plots.style import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    SKY,
    VERMILION,
    YELLOW,
    styled,
    title,
)

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis

_KIND_COLOURS = (BLUE, SKY, GREEN, ORANGE, VERMILION, PURPLE, YELLOW)
_KIND_MARKERS = "osD^vP*X"
_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
# Blue and vermilion, light enough for black text.
_BLUE_TINT, _RED_TINT = "#B3D5E8", "#EEAF80"
# Constrained layout doubles the time of a figure, and so do titles that look for room.
_FAST = {"figure.constrained_layout.use": False, "axes.titley": 1.0}


@contextmanager
def fast_style():
    """Apply the look of every figure, without what makes drawing slow."""
    with styled() as plt, plt.rc_context(_FAST):
        yield plt


def plain_log(axis: Axis, *, base: int = 10) -> None:
    """Label a logarithmic axis in plain text: mathematical text takes 10 ms a label."""
    from matplotlib.ticker import NullLocator

    low, high = axis.get_view_interval()
    if base == 2:
        powers = np.arange(np.ceil(np.log2(low)), np.floor(np.log2(high)) + 1, dtype=int)
        powers = powers[:: max(1, -(-len(powers) // 5))]
        axis.set_ticks(2.0**powers, [f"2{str(p).translate(_RAISED)}" for p in powers])
    else:
        first, last = int(np.floor(np.log10(low))), int(np.ceil(np.log10(high)))
        steps = (1, 2, 5) if last - first < 4 else (1,)
        every = np.outer(10.0 ** np.arange(first, last + 1), steps).ravel()
        inside = every[(low <= every) & (every <= high)]
        if len(inside) < 2:  # less than a factor of two or so is shown
            inside = np.array([float(f"{low * (high / low) ** at:.2g}") for at in (0.1, 0.5, 0.9)])
        axis.set_ticks(inside, [f"{tick:g}" for tick in inside])
    axis.set_minor_locator(NullLocator())
    axis.set_view_interval(low, high, ignore=True)


def predicted_errors(errors: pd.DataFrame, before: pd.DataFrame, *, conditions: str = "") -> Axes:
    """Draw the predicted output error of every linear, block by block.

    Parameters
    ----------
    errors : DataFrame
        `block`, `linear`, `output_error`, as `WhatIf.errors` gives them.
    before : DataFrame
        The same linears at other settings, drawn in grey to compare with.
    conditions : str

    Returns
    -------
    Axes
        A line for each kind of linear over the blocks, in per cent on a logarithmic axis.
    """
    blocks = list(dict.fromkeys(errors["block"]))
    mean, was = (100 * float(table["output_error"].mean()) for table in (errors, before))
    with fast_style() as plt:
        figure, ax = plt.subplots(figsize=(7.2, 3.7))
        figure.subplots_adjust(left=0.11, right=0.79, top=0.83, bottom=0.14)
        for _, rows in before.groupby("linear", sort=False):
            ax.plot(100 * rows["output_error"].to_numpy(), color="0.85", linewidth=1)
        for i, (kind, rows) in enumerate(errors.groupby("linear", sort=False)):
            look = {"color": _KIND_COLOURS[i % 7], "marker": _KIND_MARKERS[i % 8]}
            label = str(kind).rsplit(".", 1)[-1]
            error = 100 * rows["output_error"].to_numpy()
            ax.plot(error, markersize=4, linewidth=1.2, label=label, **look)
        ax.set_yscale("log")
        plain_log(ax.yaxis)
        every = max(1, len(blocks) // 12)
        ax.set_xticks(range(0, len(blocks), every), [b.rsplit(".", 1)[-1] for b in blocks[::every]])
        ax.set_xlabel("block")
        ax.set_ylabel("output error, % of energy")
        ax.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=9)
        finding = f"A linear loses {mean:.2g} % of its output's energy on average"
        if not np.isclose(mean, was):
            finding += f", {mean / was:.2g} times as much"
        title(ax, finding, conditions)
    return ax


def fit_grid(plan: pd.DataFrame, *, chosen: str = "", conditions: str = "") -> Axes:
    """Draw which models split over how many ranks, at which group size.

    Parameters
    ----------
    plan : DataFrame
        `model`, `tp_size`, `group_size`, `fits`, `number`: plans of several models, one
        engine.
    chosen : str
        A model whose row is marked.
    conditions : str

    Returns
    -------
    Axes
        A cell for each case: blue where it fits, else red with the number that breaks.
    """
    from matplotlib.colors import ListedColormap

    models = list(dict.fromkeys(plan["model"]))
    cases = list(dict.fromkeys(zip(plan["group_size"], plan["tp_size"], strict=True)))
    wide = plan.pivot(index="model", columns=["group_size", "tp_size"], values=["fits", "number"])
    wide = {name: wide[name].loc[models, cases] for name in ("fits", "number")}
    with fast_style() as plt:
        height = 1.1 + 0.3 * len(models)
        figure, ax = plt.subplots(figsize=(8.4, height))
        figure.subplots_adjust(left=0.17, right=0.99, top=1 - 0.6 / height, bottom=0.45 / height)
        fits = wide["fits"].to_numpy(dtype=bool)
        tints = ListedColormap([_RED_TINT, _BLUE_TINT])
        ax.pcolormesh(fits, cmap=tints, vmin=0, vmax=1, edgecolors="white", linewidth=2)
        for y, x in np.argwhere(~fits):
            number = wide["number"].iloc[y, x]
            ax.text(x + 0.5, y + 0.5, f"✗ {number}", ha="center", va="center", fontsize=7.5)
        names = [f"{tp} GPU{'s' if tp > 1 else ''}\n{_group(g)}" for g, tp in cases]
        ax.set_xticks(np.arange(len(cases)) + 0.5, names, fontsize=7.5)
        ax.set_yticks(np.arange(len(models)) + 0.5, models, fontsize=8.5)
        for label in ax.get_yticklabels():
            label.set_weight("bold" if label.get_text() == chosen else "normal")
        ax.invert_yaxis()
        ax.tick_params(length=0)
        ax.grid(visible=False)
        ax.spines[:].set_visible(False)
        whole = int(fits.all(axis=1).sum())
        finding = f"{whole} of {len(models)} models split every way; ✗: what a rank would hold"
        title(ax, finding, conditions)
    return ax


def _group(size: int) -> str:
    return "rows" if size == -1 else f"g{size}"


def block_losses(table: pd.DataFrame, n_blocks: int, *, conditions: str = "") -> Axes:
    """Draw the output errors of the blocks that a run has finished.

    Parameters
    ----------
    table : DataFrame
        `block` (its index), `linear`, `output_error`, `rounding_error`, `alarm`; may be
        empty.
    n_blocks : int
        Blocks of the model: the width of the axis.
    conditions : str

    Returns
    -------
    Axes
        Grey dots for plain rounding, blue ones for the run, rings around alarms.
    """
    done = table["block"].nunique() if len(table) else 0
    with fast_style() as plt:
        figure, ax = plt.subplots(figsize=(7.2, 3.2))
        figure.subplots_adjust(left=0.11, right=0.97, top=0.82, bottom=0.15)
        ax.set_xlim(-0.6, n_blocks - 0.4)
        ax.set_xlabel("block")
        ax.set_ylabel("output error, % of energy")
        alarms = 0
        if done:
            look = {"zorder": 3, "linewidth": 0}
            for column, colour, name, shift in (
                ("rounding_error", GREY, "plain rounding", -0.12),
                ("output_error", BLUE, "this run", 0.12),
            ):
                ax.scatter(
                    table["block"] + shift, 100 * table[column], 16, colour, label=name, **look
                )
            marked = table[table["alarm"] != ""]
            alarms = len(marked)
            ring = {"facecolors": "none", "edgecolors": VERMILION, "linewidth": 1.2, "zorder": 4}
            if alarms:
                ax.scatter(
                    marked["block"] + 0.12, 100 * marked["output_error"], 70, label="alarm", **ring
                )
            ax.set_yscale("log")
            plain_log(ax.yaxis)
            ax.legend(loc="upper right", bbox_to_anchor=(1, 1.2), ncols=3, fontsize=8.5)
        finding = f"{done} of {n_blocks} blocks done, {alarms} alarm{'' if alarms == 1 else 's'}"
        title(ax, finding, conditions)
    return ax
