"""Figure of the tokens a second that memory allows, by quantization and context."""

from __future__ import annotations

from typing import TYPE_CHECKING

from awqbench.plots.explore import fast_style, plain_log
from awqbench.plots.style import BLUE

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes


def decode_bars(bounds: pd.DataFrame, *, chosen: str, conditions: str = "") -> list[Axes]:
    """Draw the bound of tokens a second by weights, and how it falls with the context.

    Parameters
    ----------
    bounds : DataFrame
        `case`, `context`, `tok_per_s`; every case at the same contexts.
    chosen : str
        The case that is asked about.
    conditions : str

    Returns
    -------
    list of Axes
        Bars at the shortest context, and lines over contexts.
    """
    cases = list(dict.fromkeys(bounds["case"]))
    colours = {case: BLUE if case == chosen else "0.75" for case in cases}
    first = bounds[bounds["context"] == bounds["context"].min()].set_index("case")["tok_per_s"]
    with fast_style() as plt:
        figure, (bars, lines) = plt.subplots(1, 2, figsize=(8.4, 3.5))
        figure.subplots_adjust(left=0.13, right=0.9, top=0.8, bottom=0.16, wspace=0.35)
        drawn = bars.barh(cases, first[cases], color=[colours[case] for case in cases])
        bars.bar_label(drawn, [speed_text(first[case]) for case in cases], padding=3, fontsize=8.5)
        bars.invert_yaxis()
        bars.grid(visible=False)
        bars.set_xlim(0, 1.25 * first.max())
        bars.set_xlabel(f"tokens/s at most, context {bounds['context'].min():,}")
        for case, rows in bounds.groupby("case", sort=False):
            width = 2 if case == chosen else 1
            lines.plot(rows["context"], rows["tok_per_s"], color=colours[case], linewidth=width)
        _label_case(lines, bounds, chosen)
        _power_axes(lines, bounds)
        finding = f"{chosen[0].upper()}{chosen[1:]}: at most {speed_text(first[chosen])} tokens/s"
        figure.suptitle(finding, x=0.01, ha="left", fontsize=11, weight="bold")
        figure.text(0.01, 0.87, conditions, fontsize=8.5, color="0.4")
    return [bars, lines]


def speed_text(rate: float) -> str:
    """Write a rate in three digits, or whole."""
    return f"{rate:,.0f}" if rate >= 100 else f"{rate:.3g}"


def _label_case(ax: Axes, bounds: pd.DataFrame, chosen: str) -> None:
    last = bounds[bounds["case"] == chosen].iloc[-1]
    place = (last["context"], last["tok_per_s"])
    offset = {"xytext": (5, 0), "textcoords": "offset points", "annotation_clip": False}
    ax.annotate(chosen, place, color=BLUE, va="center", fontsize=9, **offset)


def _power_axes(ax: Axes, bounds: pd.DataFrame) -> None:
    ax.set_xscale("log", base=2)
    ax.set_yscale("log")
    contexts = sorted(bounds["context"].unique())[::2]
    ax.set_xticks(contexts, [f"{c // 1024}K" if c >= 1024 else str(c) for c in contexts])
    ax.minorticks_off()
    plain_log(ax.yaxis)
    ax.set_xlabel("tokens in the context")
    ax.set_ylabel("tokens/s at most")
