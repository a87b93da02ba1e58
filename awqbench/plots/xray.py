"""Figures of an X-ray: bytes by kind, zero points, levels used by each linear."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from awqbench.plots.style import BLUE, GREY, ORANGE, SKY, VERMILION, styled, title

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

# What quantization adds or packs is in colour, what it leaves as it was in grey.
_KIND_COLOURS = {
    "codes": BLUE,
    "scales": SKY,
    "zero points": ORANGE,
    "g_idx": VERMILION,
    "dense linears": "#808080",
    "embeddings": "#A8A8A8",
    "lm_head": "#C4C4C4",
}
# Norms, biases and the like are too thin to be told apart.
_REST, _REST_COLOUR = "norms, biases, other", "#E0E0E0"
# Rows of a figure that can still be read.
_MAX_NAMED = 28
_UNITS = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1, "bytes"))


def bytes_by_kind(table: pd.DataFrame, *, conditions: str = "") -> Axes:
    """Draw where the bytes of folders lie, a bar for each folder.

    Parameters
    ----------
    table : DataFrame
        `folder`, `kind` and `weight_bytes`, as X-rays give them; without `folder` it is one.
    conditions : str

    Returns
    -------
    Axes
        Bars from above in the order of the folders; what is small everywhere is one part.
    """
    if "folder" not in table:
        table = table.assign(folder="")
    kinds = table["kind"].where(table["kind"].isin(list(_KIND_COLOURS)), _REST)
    wide = table.assign(kind=kinds).pivot_table(
        "weight_bytes", "folder", "kind", aggfunc="sum", sort=False, fill_value=0
    )
    wide = wide[[kind for kind in (*_KIND_COLOURS, _REST) if kind in wide]]
    unit, unit_name = _unit(wide.sum(axis=1).max())
    places = np.arange(len(wide))
    with styled() as plt:
        _, ax = plt.subplots(figsize=(7.2, 1.5 + 0.42 * len(wide)))
        left = np.zeros(len(wide))
        for kind in wide:
            widths = wide[kind].to_numpy() / unit
            colour = _KIND_COLOURS.get(kind, _REST_COLOUR)
            look = {"label": kind, "color": colour, "edgecolor": "white", "linewidth": 0.6}
            ax.barh(places, widths, left=left, height=0.72, **look)
            left += widths
        ax.set_yticks(places, wide.index)
        ax.invert_yaxis()
        ax.grid(axis="x")
        ax.grid(visible=False, axis="y")
        ax.set_xlim(0, 1.02 * left.max())
        ax.set_xlabel(f"{unit_name} on disk")
        if not any(wide.index):
            ax.tick_params(left=False)
        handles, labels = ax.get_legend_handles_labels()
        ax.figure.legend(handles, labels, loc="outside lower left", ncols=4, fontsize=9)
        title(ax, _bytes_finding(wide), conditions)
    return ax


def zero_point_histogram(table: pd.DataFrame, *, conditions: str = "") -> Axes:
    """Draw how many groups have each zero point.

    Parameters
    ----------
    table : DataFrame
        `bits`, `value`, `groups` of an X-ray; the width that most groups have is drawn.
    conditions : str

    Returns
    -------
    Axes
        A bar for each value that the bits allow; those at the limits of the range, which
        groups of one sign have, in another colour.
    """
    bits = int(table.groupby("bits")["groups"].sum().idxmax())
    rows = table[table["bits"] == bits].sort_values("value")
    groups = rows["groups"].to_numpy()
    shares = 100 * groups / max(groups.sum(), 1)
    limits = rows["value"].isin([0, (1 << bits) - 1]).to_numpy()
    with styled() as plt:
        _, ax = plt.subplots()
        colours = np.where(limits, VERMILION, BLUE)
        ax.bar(rows["value"], shares, color=colours, width=0.85)
        middle = 1 << (bits - 1)
        ax.axvline(middle, color=GREY, linestyle="--", linewidth=1)
        ax.annotate(
            f"{middle}, the constant of symmetric weights",
            xy=(middle, 1),
            xycoords=ax.get_xaxis_transform(),
            xytext=(4, -2),
            textcoords="offset points",
            va="top",
            fontsize=8.5,
            color="0.4",
        )
        ax.set_ylim(0, 1.12 * max(shares.max(), 1e-9))
        if bits <= 5:
            ax.set_xticks(rows["value"])
        ax.set_xlabel(f"zero point of a group, {bits} bits")
        ax.set_ylabel("groups, %")
        title(ax, _zeros_finding(rows, bits), conditions)
    return ax


def levels_used(table: pd.DataFrame, *, conditions: str = "") -> Axes:
    """Draw how many levels of their grid linears use, and their groups, a row for each kind.

    Parameters
    ----------
    table : DataFrame
        The linears of an X-ray: `name`, `bits`, `levels_used`, `levels_per_group`. Linears
        that were not scanned are left out; where there are many kinds, those whose groups
        use the smallest share are drawn.
    conditions : str

    Returns
    -------
    Axes
        In per cent. Linears that differ only in a layer's number are one kind: a bar spans
        their groups' means, with a dot at its middle, and another dot shows the linear that
        uses fewest levels.
    """
    rows = table[table["levels_used"].notna()].copy()
    grid = 2.0 ** rows["bits"].astype(float)
    rows["linear"] = 100 * rows["levels_used"].astype(float) / grid
    rows["group"] = 100 * rows["levels_per_group"].astype(float) / grid
    kinds = rows.groupby(rows["name"].str.replace(r"(^|\.)\d+(?=\.|$)", r"\1*", regex=True)).agg(
        low=("group", "min"),
        mean=("group", "mean"),
        high=("group", "max"),
        linear=("linear", "min"),
    )
    kinds = kinds.sort_values("mean", kind="stable")
    drawn = kinds.head(_MAX_NAMED)
    places = np.arange(len(drawn))
    with styled() as plt:
        _, ax = plt.subplots(figsize=(7.2, 1.5 + 0.22 * max(len(drawn), 4)))
        ax.hlines(places, drawn["low"], drawn["high"], color=SKY, linewidth=5)
        ax.plot(drawn["mean"], places, "o", color=BLUE, markersize=5, label="in a group, mean")
        ax.plot(drawn["linear"], places, "D", color=GREY, markersize=5, label="in a linear, least")
        ax.set_yticks(places, drawn.index, fontsize=8)
        ax.invert_yaxis()
        ax.grid(axis="x")
        ax.grid(visible=False, axis="y")
        ax.set_xlim(0, 103)
        ax.set_xlabel("levels of the grid that are used, %")
        ax.figure.legend(loc="outside lower left", ncols=2, fontsize=9)
        more = f"the lowest {len(drawn)} of {len(kinds)} kinds" if len(drawn) < len(kinds) else ""
        title(ax, _levels_finding(rows), "; ".join(filter(None, (conditions, more))))
    return ax


def _unit(largest: float) -> tuple[float, str]:
    return next(((size, name) for size, name in _UNITS if largest >= size), (1, "bytes"))


def _bytes_finding(wide: pd.DataFrame) -> str:
    total = wide.sum(axis=1)
    if len(wide) == 1:
        shares = wide.iloc[0] / max(total.iloc[0], 1)
        largest = shares.idxmax()
        return f"{_capital(largest)} take {shares[largest]:.0%} of {_size(total.iloc[0])}"
    low, high = total.idxmin(), total.idxmax()
    if total[low] == total[high]:
        return f"All {len(wide)} folders take {_size(total[low])}"
    more = total[high] / total[low] - 1
    return f"{low} takes {_size(total[low])}, {high} {more:.1%} more"


def _zeros_finding(rows: pd.DataFrame, bits: int) -> str:
    groups = int(rows["groups"].sum())
    used = rows[rows["groups"] > 0]
    if len(used) == 1:
        return f"Every group has zero point {used['value'].iloc[0]}: symmetric weights"
    at_limits = rows.loc[rows["value"].isin([0, (1 << bits) - 1]), "groups"].sum() / groups
    half = 1 << (bits - 1)
    near = rows.loc[(rows["value"] - half).abs() <= half // 4, "groups"].sum() / groups
    middle = f"{near:.0%} of the zero points are {half - half // 4} to {half + half // 4}"
    return f"{middle}, {at_limits:.1%} at a limit"


def _levels_finding(rows: pd.DataFrame) -> str:
    if not len(rows):
        return "No linear was scanned"
    full = int((rows["linear"] >= 100).sum())
    mean = rows["group"].mean()
    which = f"All {full}" if full == len(rows) else f"{full} of {len(rows)}"
    return f"{which} linears use every level, a group {mean:.0f}% of them"


def _size(count: float) -> str:
    unit, name = _unit(count)
    return f"{count / unit:,.0f} bytes" if unit == 1 else f"{count / unit:.3g} {name}"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
