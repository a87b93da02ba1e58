"""The figure of predicted cycles: a band for each core, and what was measured beside it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from awqbench.bench.static_throughput import LEVELS
from awqbench.plots.style import BLUE, ORANGE, VERMILION, styled, title

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

_COLOURS = {"aarch64": ORANGE, "x86_64": BLUE}
_NAMES = {"x86_64": "x86", "aarch64": "ARM"}
# A band whose ends agree is still seen.
_LEAST_WIDTH = 0.012


def plot_static_cycles(
    table: pd.DataFrame,
    *,
    activations: str = "int16",
    processors: Sequence[str] = (),
    ax: Axes | None = None,
) -> Axes:
    """Draw the predicted cycles of one token's loop on each core, as a hatched band.

    From the bound of the busiest unit to the simulated cycles, of the level that is chosen on
    that core. A diamond is what was measured on the machine of the record; how far its own
    prediction was off is in the title's second line.

    Parameters
    ----------
    table : DataFrame
        Rows of a ``static_throughput`` record.
    activations : {"int16", "float32", "int8"}
    processors : sequence of str
        Of "x86_64" and "aarch64"; both by default. How far predictions were off is said of all.
    ax : Axes, optional
        To draw in; by default a new figure.

    Returns
    -------
    Axes
    """
    own = table[(table["activations"] == activations) & (table["tokens"] == 1)]
    own = own[own["processor"].isin(processors or list(_NAMES))]
    bands = chosen_bands(own)
    measured = own[own["provenance"] == "measured_here"]
    with styled() as plt:
        if ax is None:
            _, ax = plt.subplots(figsize=(7.6, 1.5 + 0.3 * len(bands)))
        widest = bands["simulated_cycles_per_1024"].max()
        for at, row in enumerate(bands.to_dict(orient="records")):
            low, high = row["bound_cycles_per_1024"], row["simulated_cycles_per_1024"]
            ax.barh(
                at, max(high - low, _LEAST_WIDTH * widest), 0.6, left=low, facecolor="white",
                edgecolor=_COLOURS[row["processor"]], hatch="////", linewidth=1.2,
            )  # fmt: skip
            same = (measured["core"] == row["core"]) & (measured["level"] == row["level"])
            for cycles in measured.loc[same, "measured_cycles_per_1024"]:
                ax.plot(cycles, at, "D", color=VERMILION, markersize=6)
        names = [f"{row.core}  ({row.level})" for row in bands.itertuples()]
        ax.set_yticks(range(len(bands)), names, fontsize=8.5)
        ax.tick_params(axis="y", length=0)
        ax.grid(axis="y", visible=False)
        ax.grid(axis="x", visible=True)
        ax.invert_yaxis()
        ax.set_xlim(0, None)
        ax.set_xlabel("cycles for 1024 4-bit weights in the first cache")
        _add_legend(ax, bands, has_measured=len(measured) > 0)
        title(ax, _spans(bands), f"one token, {activations}; {error_text(table)}")
    return ax


def _add_legend(ax: Axes, bands: pd.DataFrame, *, has_measured: bool) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    handles = [
        Patch(facecolor="white", edgecolor=_COLOURS[key], hatch="////", label=f"{name}, predicted")
        for key, name in _NAMES.items()
        if (bands["processor"] == key).any()
    ]
    if has_measured:
        mark = {"marker": "D", "linestyle": "", "color": VERMILION, "markersize": 6}
        handles.append(Line2D([], [], label="measured", **mark))
    ax.legend(handles=handles, loc="upper right", fontsize=8)


def _spans(bands: pd.DataFrame) -> str:
    """Say between how many cycles the cores of each architecture lie."""
    parts = []
    for processor, name in _NAMES.items():
        found = bands.loc[bands["processor"] == processor, "simulated_cycles_per_1024"]
        if len(found):
            parts.append(f"{name} {found.min():.0f} to {found.max():.0f} cycles")
    return "Predicted: " + ", ".join(parts)


def chosen_bands(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the predicted row of each core for the level it runs, least cycles first."""
    known = rows[(rows["provenance"] == "predicted") & rows["simulated_cycles_per_1024"].notna()]
    rank = [LEVELS[row.core].index(row.level) for row in known.itertuples()]
    first = known.assign(rank=rank).sort_values("rank", kind="stable").drop_duplicates("core")
    return first.sort_values("simulated_cycles_per_1024", kind="stable").reset_index(drop=True)


def prediction_errors(table: pd.DataFrame) -> pd.Series:
    """Return simulated over measured cycles, less one, of the loops that were measured."""
    rows = table[table["provenance"] == "measured_here"]
    return rows["simulated_cycles_per_1024"] / rows["measured_cycles_per_1024"] - 1


def error_text(table: pd.DataFrame) -> str:
    """Say how far predictions were off where they could be checked."""
    errors = prediction_errors(table).dropna()
    if errors.empty:
        return "by llvm-mca, checked on no machine"
    core = table.loc[errors.index[0], "core"]
    return f"by llvm-mca, off by {errors.min():+.0%} to {errors.max():+.0%} on {core}"
