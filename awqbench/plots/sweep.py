"""Figures of a sweep: loss against size, against group size, and the search's own curve."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from awqbench.inspect.sweep import Z95, percent_worse
from awqbench.plots.style import BLACK, GREY, METHOD_COLOURS, label_ends, styled, title

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

# Losses range from noise around 0 to tens of per cent: the axis is linear below this many
# per cent and logarithmic above.
_LINEAR_BELOW = 1.0
_TICKS = (0, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 10_000, 100_000)


def pareto(table: pd.DataFrame, *, conditions: str = "") -> Axes:
    """Draw what each setting loses against the size of its weights.

    Fewer bits are on the right, where methods part, so that their labels stand apart.

    Parameters
    ----------
    table : DataFrame
        Of a sweep: `bits`, `method`, `bits_per_weight`, `delta_nll`, `delta_se`.
    conditions : str
        What it holds under, such as model and windows.

    Returns
    -------
    Axes
        A line for each method; bars are 95 % intervals of the difference from full
        precision.
    """
    table = table.sort_values("bits_per_weight", ascending=False)
    with styled() as plt:
        _, ax = plt.subplots(figsize=(7.2, 4.4))
        ax.axhline(0, color=GREY, linestyle="--", linewidth=1)
        for method, rows in table.groupby("method", sort=False):
            _draw_line(ax, rows["bits_per_weight"], rows, method)
        _percent_axis(ax, table)
        ax.set_xlabel("bits per weight of the quantized linears, with scales and zero points")
        ax.set_ylabel("perplexity above full precision, %")
        first, last = table["bits_per_weight"].iloc[[0, -1]]
        pad = 0.04 * (first - last) or 0.1
        ax.set_xlim(first + pad, last - pad)
        for bits, rows in table.groupby("bits"):
            x = rows["bits_per_weight"].mean()
            place = {"xy": (x, 1), "xycoords": ax.get_xaxis_transform(), "va": "top"}
            ax.annotate(f"{bits} bits", ha="center", color="0.4", fontsize=9, **place)
        label_ends(ax, _line_ends(table, "bits_per_weight"), gap=12)
        title(ax, _pareto_finding(table), conditions)
    return ax


def by_group_size(table: pd.DataFrame, *, conditions: str = "") -> list[Axes]:
    """Draw what each method loses against the group size, a panel for each bits.

    Parameters
    ----------
    table : DataFrame
        Of a sweep: `bits`, `group_size`, `method`, `delta_nll`, `delta_se`.
    conditions : str

    Returns
    -------
    list of Axes
        In the order of falling bits; each panel has its own linear axis.
    """
    table = table.sort_values("group_size")
    all_bits = sorted(table["bits"].unique(), reverse=True)
    with styled() as plt:
        width = 2.2 + 2.1 * len(all_bits)
        figure, grid = plt.subplots(1, len(all_bits), figsize=(width, 3.4), squeeze=False)
        panels = list(grid[0])
        for ax, bits in zip(panels, all_bits, strict=True):
            panel = table[table["bits"] == bits]
            ax.axhline(0, color=GREY, linestyle="--", linewidth=1)
            for method, rows in panel.groupby("method", sort=False):
                _draw_line(ax, rows["group_size"], rows, method)
            sizes = sorted(panel["group_size"].unique())
            ax.set_xscale("log", base=2)
            ax.set_xticks(sizes, [str(size) for size in sizes])
            ax.set_xlabel("group size")
            title(ax, f"{bits} bits")
        panels[0].set_ylabel("perplexity above\nfull precision, %")
        label_ends(panels[-1], _line_ends(panel, "group_size"), gap=12)
        figure.suptitle(_group_finding(table), x=0.01, ha="left", fontsize=11, weight="bold")
        if conditions:
            figure.supxlabel(conditions, x=0.01, ha="left", fontsize=8.5, color="0.4")
    return panels


def alpha_curves(curves: pd.DataFrame, *, conditions: str = "") -> Axes:
    """Draw the output error of one site against alpha, as a share of no scaling's.

    Parameters
    ----------
    curves : DataFrame
        `alpha` (NaN for no scaling) and `loss` as a search gives them for one site, and
        `case`, a name for each curve.
    conditions : str

    Returns
    -------
    Axes
    """
    colours = ["#0072B2", "#D55E00", "#009E73", "#CC79A7"]
    best, ends = {}, {}
    with styled() as plt:
        _, ax = plt.subplots()
        ax.axhline(1, color=GREY, linestyle="--", linewidth=1)
        for (case, rows), colour in zip(curves.groupby("case", sort=False), colours, strict=False):
            plain = rows.loc[rows["alpha"].isna(), "loss"].iloc[0]
            curve = rows.dropna(subset="alpha").sort_values("alpha")
            share = (curve["loss"] / plain).to_numpy()
            ax.plot(curve["alpha"], share, color=colour, marker=".", label=case)
            low = int(np.argmin(share))
            best[case] = float(share[low])
            ax.plot(curve["alpha"].iloc[low], share[low], "o", color=colour, markersize=8)
            ends[case] = (float(curve["alpha"].iloc[-1]), float(share[-1]), colour)
        ax.set_yscale("log")
        ticks = [t for t in (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100) if _is_inside(t, ax)]
        ax.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
        ax.minorticks_off()
        ax.set_xlabel("alpha, the exponent of activation magnitude in the channel scales")
        ax.set_ylabel("output error / error unscaled")
        label_ends(ax, ends)
        title(ax, _alpha_finding(best), conditions)
    return ax


def _draw_line(ax: Axes, x, rows: pd.DataFrame, method: str) -> None:
    delta, half = rows["delta_nll"].to_numpy(), Z95 * rows["delta_se"].to_numpy()
    middle = percent_worse(delta)
    spread = np.nan_to_num(
        [middle - percent_worse(delta - half), percent_worse(delta + half) - middle]
    )
    look = {"marker": "o", "markersize": 3.5, "linewidth": 1.5, "elinewidth": 1, "label": method}
    ax.errorbar(x, middle, yerr=spread, color=METHOD_COLOURS.get(method, BLACK), **look)


def _percent_axis(ax: Axes, table: pd.DataFrame) -> None:
    ax.set_yscale("symlog", linthresh=_LINEAR_BELOW, linscale=0.6)
    low = percent_worse(table["delta_nll"] - Z95 * table["delta_se"].fillna(0)).min()
    high = percent_worse(table["delta_nll"] + Z95 * table["delta_se"].fillna(0)).max()
    ax.set_ylim(min(1.1 * low, -0.2), max(1.6 * high, 1.0))
    ticks = [tick for tick in _TICKS if _is_inside(tick, ax)]
    ax.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    ax.minorticks_off()


def _is_inside(tick: float, ax: Axes) -> bool:
    low, high = ax.get_ylim()
    return low <= tick <= high


def _line_ends(table: pd.DataFrame, x: str) -> dict[str, tuple[float, float, str]]:
    """Return each method's last point of a sorted table."""
    return {
        method: (
            float(rows[x].iloc[-1]),
            float(percent_worse(rows["delta_nll"].iloc[-1])),
            METHOD_COLOURS.get(method, BLACK),
        )
        for method, rows in table.groupby("method", sort=False)
    }


def _pareto_finding(table: pd.DataFrame) -> str:
    """Say what the fewest bits cost with the best and the worst method."""
    bits = table["bits"].min()
    group_size = table.loc[table["bits"] == bits, "group_size"].max()
    rows = table[(table["bits"] == bits) & (table["group_size"] == group_size)]
    rows = rows.sort_values("delta_nll")
    best, worst = rows.iloc[0], rows.iloc[-1]
    finding = f"At {bits} bits (group {group_size}), {best['method']} loses {_percent(best)} %"
    if len(rows) == 1:
        return finding
    return f"{finding}, {worst['method']} {_percent(worst)} %"


def _group_finding(table: pd.DataFrame) -> str:
    """Say at the fewest bits which methods lose most and least by larger groups."""
    bits = table["bits"].min()
    rows = table[table["bits"] == bits]
    small, large = rows["group_size"].min(), rows["group_size"].max()
    if small == large:
        return f"One group size, {large}"
    loss = rows.assign(loss=percent_worse(rows["delta_nll"])).set_index("method")
    extra = (
        loss.loc[loss["group_size"] == large, "loss"]
        - loss.loc[loss["group_size"] == small, "loss"]
    ).sort_values()
    finding = f"Groups of {large} in place of {small} at {bits} bits cost"
    least = f"{extra.index[0]} {_number(extra.iloc[0])} points"
    if len(extra) == 1:
        return f"{finding} {least}"
    return f"{finding} {extra.index[-1]} {_number(extra.iloc[-1])} points, {least}"


def _alpha_finding(best: dict[str, float]) -> str:
    gains = [f"{1 - share:.0%} ({case})" for case, share in best.items()]
    return f"Scaling takes off {', '.join(gains)} of the error"


def _percent(row: pd.Series) -> str:
    return _number(percent_worse(row["delta_nll"]))


def _number(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 10 else f"{value:.2g}"
