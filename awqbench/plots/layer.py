"""Figure of one linear: its weights, its channels, the search of its scales, its error."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from awqbench.numerics import limits_of
from awqbench.plots.explore import fast_style, plain_log
from awqbench.plots.style import BLUE, GREY, ORANGE, SKY, VERMILION, title

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

# Errors that differ by a smaller share are called equal.
_SAME = 0.005


def layer_panels(
    histogram: pd.DataFrame,
    channels: pd.DataFrame,
    curve: pd.DataFrame,
    row: Mapping,
    *,
    dtype: str = "float16",
    conditions: str = "",
) -> list[Axes]:
    """Draw one linear in four panels: weights, channels, scale search, error.

    Parameters
    ----------
    histogram, channels, curve, row
        Of a `LayerLook`.
    dtype : str
        Whose limits are drawn beside the weights.
    conditions : str

    Returns
    -------
    list of Axes
    """
    with fast_style() as plt:
        figure, grid = plt.subplots(2, 2, figsize=(8.4, 5.4))
        figure.subplots_adjust(
            left=0.08, right=0.97, top=0.84, bottom=0.09, wspace=0.24, hspace=0.5
        )
        panels = list(grid.ravel())
        _draw_weights(panels[0], histogram, dtype)
        _draw_channels(panels[1], channels)
        _draw_curve(panels[2], curve, row["alpha"])
        _draw_errors(panels[3], row)
        figure.suptitle(layer_finding(row), x=0.01, ha="left", fontsize=11, weight="bold")
        figure.text(0.01, 0.915, conditions, fontsize=8.5, color="0.4")
    return panels


def _draw_weights(ax: Axes, histogram: pd.DataFrame, dtype: str) -> None:
    limits = limits_of(dtype)
    title(ax, f"Weights and {dtype}'s limits" if len(histogram) else "Every weight is 0")
    if histogram.empty:
        return
    counts = histogram["weights"].to_numpy()
    edges = [*histogram["low"], histogram["high"].iloc[-1]]
    ax.stairs(100 * counts / counts.sum(), edges, fill=True, color=BLUE)
    ax.set_xscale("log", base=2)
    low, high = histogram["low"].iloc[0], histogram["high"].iloc[-1]
    if dtype == "float16":  # the others' limits are too far away to be drawn
        low, high = min(low, limits.smallest_subnormal), max(high, limits.largest)
        marks = ((limits.smallest_subnormal, "least"), (limits.smallest_normal, "least normal"))
        for at, name in (*marks, (limits.largest, f"{limits.largest:.0f}")):
            ax.axvline(at, color=VERMILION, linestyle="--", linewidth=1)
            place = {"xy": (at, 1), "xycoords": ax.get_xaxis_transform(), "va": "top"}
            right = at == limits.largest
            offset = {"xytext": (-3 if right else 3, -1), "textcoords": "offset points"}
            look = {"ha": "right" if right else "left", "rotation": 90, "fontsize": 7.5}
            ax.annotate(name, color="0.35", **place, **offset, **look)
    ax.set_xlim(low / 2, high * 2)
    plain_log(ax.xaxis, base=2)
    ax.set_xlabel("magnitude of a weight")
    ax.locator_params(axis="y", nbins=4)
    ax.set_ylabel("weights, %")


def _draw_channels(ax: Axes, channels: pd.DataFrame) -> None:
    order = np.argsort(-channels["input_absmax"].to_numpy(), kind="stable")
    last = len(order) - 1
    for column, name, colour, at in (
        ("input_absmax", "largest input", ORANGE, 0.25),
        ("input_mean", "mean input", SKY, 0.5),
        ("weight_absmax", "largest weight", BLUE, 0.75),
    ):
        values = channels[column].to_numpy()[order]
        ax.plot(np.where(values > 0, values, np.nan), color=colour, linewidth=1.2)
        place = {"xy": (at, 1), "xycoords": "axes fraction", "ha": "center", "va": "top"}
        ax.annotate(name, color=colour, fontsize=8, **place)
    ax.set_yscale("log")
    low, high = ax.get_ylim()
    ax.set_ylim(low, high * (high / low) ** 0.18)
    plain_log(ax.yaxis)
    ax.set_xticks([0, last])
    ax.set_xlabel("input channels, largest input first")
    title(ax, "Magnitudes by channel")


def _draw_curve(ax: Axes, curve: pd.DataFrame, alpha: float) -> None:
    ax.set_xlabel("alpha")
    ax.set_xticks([0, 0.5, 1])
    if curve.empty:
        ax.text(0.5, 0.5, "no scales were searched here", ha="center", transform=ax.transAxes)
        title(ax, "Search of channel scales")
        return
    plain = float(curve.loc[curve["alpha"].isna(), "loss"].iloc[0])
    points = curve.dropna(subset="alpha")
    share = points["loss"].to_numpy() / plain
    ax.plot(points["alpha"], share, color=BLUE, marker=".", linewidth=1.2)
    ax.axhline(1, color=GREY, linestyle="--", linewidth=1)
    if np.isnan(alpha):
        title(ax, "No scaling is best")
    else:
        best = float(share[np.isclose(points["alpha"], alpha)][0])
        ax.plot([alpha], [best], "o", color=VERMILION, markersize=8)
        title(ax, f"alpha {alpha:.2f} leaves {best:.0%} of the error")
    ax.set_yscale("log")
    plain_log(ax.yaxis)
    ax.set_ylabel("error / error unscaled")


def _draw_errors(ax: Axes, row: Mapping) -> None:
    values = [100 * row["rounding_error"], 100 * row["output_error"]]
    bars = ax.barh(["plain\nrounding", "as\nchosen"], values, color=[GREY, BLUE], height=0.6)
    ax.bar_label(bars, [f"{value:.2g} % of energy" for value in values], padding=3, fontsize=9)
    ax.set_xlim(0, 1.6 * max(values) or 1)
    ax.set_xticks([])
    ax.invert_yaxis()
    ax.spines["bottom"].set_visible(False)
    ax.grid(visible=False)
    title(ax, f"Output error; clip's share {row['clip_gain']:.0%}")


def layer_finding(row: Mapping) -> str:
    """Say what the search gained on plain rounding."""
    before, after = row["rounding_error"], row["output_error"]
    if not before:
        return "Rounding loses nothing here"
    ratio = after / before
    change = f"{1 - ratio:.0%} less than" if ratio <= 1 else f"{ratio - 1:.0%} more than"
    change = "as much as" if abs(ratio - 1) < _SAME else change
    return f"The search loses {100 * after:.2g} % of the output, {change} rounding"
