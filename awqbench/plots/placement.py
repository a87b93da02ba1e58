"""Figure of placements: what each device holds, against its budget."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from awqbench.plots.style import BLACK, BLUE, GREY, ORANGE, VERMILION, styled, title

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

# From the bottom of a bar: what is sure, what grows with the context, what is kept free.
PARTS = {"weight": ("weights", BLUE), "kv": ("KV cache", ORANGE), "reserve": ("reserve", GREY)}
_UNITS = (("GiB", 2**30), ("MiB", 2**20))
_BAR = 0.8


def occupancy(tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Lay the tables of placements below one another.

    Parameters
    ----------
    tables : mapping of str to DataFrame
        `Placement.table` by what to call the case, such as ``"2,048 tokens"``.

    Returns
    -------
    DataFrame
        With `case` before the columns of a placement's table.
    """
    import pandas as pd

    return pd.concat([table.assign(case=case) for case, table in tables.items()])


def plot_placement(devices: pd.DataFrame, *, conditions: str = "") -> Axes:
    """Draw a stacked bar for each device, in groups by case, with its budget as a line.

    Above each bar stands what is free, or how much it is over.

    Parameters
    ----------
    devices : DataFrame
        Of `occupancy`: `case`, `device`, `budget_bytes`, `weight_bytes`, `kv_bytes`,
        `reserve_bytes`.
    conditions : str
        What it holds for, such as the model and the strategy.

    Returns
    -------
    Axes
    """
    cases = list(dict.fromkeys(devices["case"]))
    unit, size = next((u for u in _UNITS if devices["budget_bytes"].max() >= u[1]), _UNITS[-1])
    with styled() as plt:
        _, ax = plt.subplots(figsize=(6.4, 3.9))
        centres = []
        for number, case in enumerate(cases):
            rows = devices[devices["case"] == case]
            width = _BAR / len(rows)
            for i, row in enumerate(rows.to_dict(orient="records")):
                x = number + (i - (len(rows) - 1) / 2) * width
                _draw_bar(ax, x, 0.88 * width, row, size)
                centres.append((x, row["device"]))
        _label_parts(ax, devices, size)
        ax.set_xticks([x for x, _ in centres], [str(name) for _, name in centres], fontsize=8.5)
        ax.tick_params(axis="x", length=0)
        for number, case in enumerate(cases):
            ax.annotate(
                case,
                xy=(number, 0),
                xycoords=ax.get_xaxis_transform(),
                xytext=(0, -22),
                textcoords="offset points",
                ha="center",
                va="top",
            )
        ax.set_ylabel(f"memory of a device ({unit})")
        ax.set_ylim(0, 1.1 * max(_totals(devices).max(), devices["budget_bytes"].max()) / size)
        ax.set_xlim(-0.55, len(cases) - 0.05)
        title(ax, finding(devices), conditions)
    return ax


def _totals(devices: pd.DataFrame) -> pd.Series:
    return devices[[f"{part}_bytes" for part in PARTS]].sum(axis=1)


def _draw_bar(ax: Axes, x: float, width: float, row: Mapping, size: int) -> None:
    bottom = 0.0
    for part, (_, colour) in PARTS.items():
        height = row[f"{part}_bytes"] / size
        ax.bar(x, height, width, bottom=bottom, color=colour, linewidth=0)
        bottom += height
    budget = row["budget_bytes"] / size
    ax.hlines(budget, x - 0.54 * width, x + 0.54 * width, color=BLACK, linewidth=1.6)
    free = budget - bottom
    text = f"{free:.1f} free" if free >= 0 else f"{-free:.1f} over"
    colour = "0.25" if free >= 0 else VERMILION
    ax.annotate(
        text,
        xy=(x, max(bottom, budget)),
        xytext=(0, 3),
        textcoords="offset points",
        ha="center",
        fontsize=8,
        color=colour,
    )


def _label_parts(ax: Axes, devices: pd.DataFrame, size: int) -> None:
    """Name each part beside the last bar, in its colour, and the line of its budget."""
    used = devices[devices["weight_bytes"] > 0]
    last, bottom, least = (used if len(used) else devices).iloc[-1], 0.0, 0.0
    step = 0.055 * max(_totals(devices).max(), devices["budget_bytes"].max()) / size
    heights = []
    for part, (name, colour) in PARTS.items():
        height = last[f"{part}_bytes"] / size
        if height:
            heights.append((bottom + height / 2, name, colour))
        bottom += height
    heights.append((last["budget_bytes"] / size, "budget", BLACK))
    for at, name, colour in sorted(heights):
        at = max(at, least)
        least = at + step
        x = len(set(devices["case"])) - 1 + _BAR / 2
        ax.annotate(name, (x, at), (6, 0), textcoords="offset points", color=colour, va="center")


def finding(devices: pd.DataFrame) -> str:
    """Say which cases fit.

    Parameters
    ----------
    devices : DataFrame
        As in `plot_placement`.

    Returns
    -------
    str
    """
    over = _totals(devices) > devices["budget_bytes"]
    fits = ~over.groupby(devices["case"], sort=False).any()
    yes, no = ", ".join(fits[fits].index), ", ".join(fits[~fits].index)
    if not no:
        return f"Fits: {yes}"
    return f"Fits: {yes}; does not: {no}" if yes else f"Does not fit: {no}"
