"""The figure of suggested bits: predicted error against size, beside uniform settings."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from awqbench.plots.style import BLUE, GREY, VERMILION, styled, title

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes


def plot_suggestion(
    frontier: pd.DataFrame,
    uniform: pd.DataFrame,
    *,
    chosen: tuple[float, float] | None = None,
    conditions: str = "",
) -> Axes:
    """Draw the least predicted error at every size, and one setting for all linears.

    Parameters
    ----------
    frontier : DataFrame
        `bits_per_weight`, `error` of the best assignments, of a `Suggestion`.
    uniform : DataFrame
        `choice`, `bits_per_weight`, `error` of each choice given to all linears.
    chosen : (float, float), optional
        Bits per weight and error of the suggestion.
    conditions : str
        What it holds under, such as the model.

    Returns
    -------
    Axes
        Sizes that leave nothing to choose, with error 0, are not drawn.
    """
    line = frontier[frontier["error"] > 0].sort_values("bits_per_weight")
    points = uniform[uniform["error"] > 0].sort_values("bits_per_weight")
    with styled() as plt:
        _, ax = plt.subplots()
        ax.plot(line["bits_per_weight"], 100 * line["error"], color=BLUE, linewidth=2)
        ax.plot(points["bits_per_weight"], 100 * points["error"], "o", color=GREY)
        for number, row in enumerate(points.itertuples()):
            is_below = number % 2 == 0  # neighbours at both sides of the line keep apart
            ax.annotate(
                row.choice,
                (row.bits_per_weight, 100 * row.error),
                xytext=(-6, -11) if is_below else (6, 5),
                textcoords="offset points",
                ha="right" if is_below else "left",
                color="0.4",
                fontsize=8,
            )
        if chosen is not None:
            ax.plot(chosen[0], 100 * chosen[1], "D", color=VERMILION, markersize=7, zorder=3)
        ax.set_yscale("log")
        ax.margins(x=0.16, y=0.12)
        ax.yaxis.set_major_formatter("{x:g}")
        ax.yaxis.set_minor_formatter("")
        ax.set_xlabel("bits per weight of the quantized linears, with scales and zero points")
        ax.set_ylabel("predicted error, %")
        title(ax, _finding(line, points), conditions)
    return ax


def _finding(line: pd.DataFrame, points: pd.DataFrame) -> str:
    """Say how much error the best mix takes off the uniform setting where it takes off most."""
    if not len(line) or not len(points):
        return "Predicted error against size"
    mixed = np.exp(
        np.interp(points["bits_per_weight"], line["bits_per_weight"], np.log(line["error"]))
    )
    saved = 1 - mixed / points["error"].to_numpy()
    best = int(np.argmax(saved))
    row = points.iloc[best]
    if saved[best] < 0.01:
        return "No mix is predicted to beat one setting for all"
    return f"Mixed bits take {saved[best]:.0%} off the predicted error of {row['choice']} for all"
