"""The look of every figure, applied inside each figure function and never globally."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's colours, which colour-blind readers tell apart.
BLUE, ORANGE, GREEN, VERMILION = "#0072B2", "#E69F00", "#009E73", "#D55E00"
PURPLE, SKY, YELLOW, BLACK = "#CC79A7", "#56B4E9", "#F0E442", "#000000"
GREY = "#8A8A8A"

# A method has one colour in every figure.
METHOD_COLOURS = {
    "rounding": GREY,
    "AWQ": SKY,
    "AWQ + clip": BLUE,
    "AWQ + GPTQ": GREEN,
    "AWQ + clip + GPTQ": VERMILION,
    "GPTQ": ORANGE,
    "clip": PURPLE,
}
BACKEND_COLOURS = {
    "numpy": ORANGE,
    "numexpr": PURPLE,
    "torch": GREY,
    "native": BLUE,
    "cuda": GREEN,
}

STYLE = {
    "figure.figsize": (6.4, 3.6),
    "figure.constrained_layout.use": True,
    "figure.dpi": 110,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": "0.9",
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.titlesize": 11,
    "legend.frameon": False,
    "svg.hashsalt": "awqbench",
    "svg.fonttype": "none",
}


@contextmanager
def styled():
    """Apply `STYLE` to the figures made inside this block."""
    import matplotlib.pyplot as plt

    with plt.rc_context(STYLE):
        yield plt


def title(ax: Axes, finding: str, conditions: str = "") -> None:
    """Write the finding in bold and, below it in grey, the conditions it holds under."""
    if not conditions:
        ax.set_title(finding)
        return
    ax.set_title(finding, pad=20)
    ax.annotate(
        conditions,
        xy=(0, 1),
        xytext=(0, 5),
        xycoords="axes fraction",
        textcoords="offset points",
        fontsize=8.5,
        color="0.4",
    )


def label_ends(ax: Axes, ends: dict[str, tuple[float, float, str]], *, gap: float = 11.0) -> None:
    """Label lines at their right end in their colour, kept apart vertically.

    Parameters
    ----------
    ax : Axes
        With its limits and scales set.
    ends : dict of str to (x, y, colour)
        Where each line ends, in data units.
    gap : float
        Least distance of two labels, in points.
    """
    figure = ax.figure
    figure.canvas.draw()
    to_points = 72 / figure.dpi
    pixels = {
        name: ax.transData.transform((x, y))[1] * to_points for name, (x, y, _) in ends.items()
    }
    last = None
    for name in sorted(ends, key=pixels.get):
        at = pixels[name] if last is None else max(pixels[name], last + gap)
        last = at
        x, y, colour = ends[name]
        ax.annotate(
            name,
            xy=(x, y),
            xytext=(6, at - pixels[name]),
            textcoords="offset points",
            color=colour,
            fontsize=9,
            va="center",
            annotation_clip=False,
        )
