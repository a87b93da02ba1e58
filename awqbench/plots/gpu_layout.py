"""The picture of a weight's layout: from words of a checkpoint to tensor-core fragments."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from awqbench.plots.style import BLUE, SKY, VERMILION, styled, title

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

_OTHER = "0.93"


def plot_fragment(places: pd.DataFrame, *, lane: int = 5) -> list[Axes]:
    """Draw 16 x 16 codes twice, as words of a checkpoint and as lanes' words of a tile.

    One lane's eight codes are coloured in both; each says which nibble of its word it is.

    Parameters
    ----------
    places : DataFrame
        Of `fragment_places`.
    lane : int
        0 to 31.

    Returns
    -------
    list of Axes
        The checkpoint, the tile, and the lane's word below.
    """
    own = places[places["lane"] == lane]
    touched = own["awq_word"].nunique()
    with styled() as plt:
        figure, axes = plt.subplot_mosaic(
            [["awq", "tile"], ["word", "word"]], figsize=(8.2, 5.6), height_ratios=[5, 1]
        )
        _grid(axes["awq"], places, own, "awq_nibble", "awq_word")
        axes["awq"].set_ylabel("output channel n")
        title(axes["awq"], "In an AWQ checkpoint", "a word (outlined): 8 outputs of one input")
        _grid(axes["tile"], places, own, "nibble", "lane")
        title(axes["tile"], "In a tile", f"a word (outlined): a fragment of lane {lane}")
        _word(axes["word"], own, lane)
        figure.suptitle(
            f"One word of a lane holds codes of {touched} words of the checkpoint",
            x=0.01, ha="left", fontsize=12, fontweight="bold",
        )  # fmt: skip
    return [axes["awq"], axes["tile"], axes["word"]]


def _grid(ax: Axes, places: pd.DataFrame, own: pd.DataFrame, nibble: str, word: str) -> None:
    """Draw the patch: words that hold codes of `own` outlined, with the nibble of each code."""
    from matplotlib.colors import ListedColormap

    words, mine = set(own[word]), set(zip(own["n"], own["k"], strict=True))
    shades = np.zeros((16, 16))
    for row in places[places[word].isin(words)].to_dict(orient="records"):
        is_own = (row["n"], row["k"]) in mine
        shades[row["n"], row["k"]] = 2 if is_own else 1
        look = (
            {"fontsize": 8, "fontweight": "bold"} if is_own else {"fontsize": 6.5, "color": "0.6"}
        )
        ax.text(row["k"], row["n"], str(row[nibble]), ha="center", va="center", **look)
    edges = np.arange(17) - 0.5
    ax.pcolormesh(
        edges, edges, shades, cmap=ListedColormap(["white", _OTHER, SKY]), vmin=0, vmax=2,
        edgecolors="0.88", linewidth=0.5,
    )  # fmt: skip
    for name in words:
        _outline(ax, places[places[word] == name])
    ax.set(xlim=(-0.6, 15.6), ylim=(15.6, -0.6), aspect="equal", xlabel="input channel k")
    ax.set_xticks(range(0, 16, 2))
    ax.set_yticks(range(0, 16, 2))
    ax.tick_params(length=0, labelsize=8)
    ax.grid(visible=False)
    for spine in ax.spines.values():
        spine.set_visible(False)


def _outline(ax: Axes, word: pd.DataFrame) -> None:
    """Draw the border of each run of neighbouring cells of a word."""
    from matplotlib.collections import LineCollection

    cells = set(zip(word["k"], word["n"], strict=True))
    lines = []
    for k, n in cells:
        left, right, top, bottom = k - 0.5, k + 0.5, n - 0.5, n + 0.5
        sides = {
            (k - 1, n): [(left, top), (left, bottom)],
            (k + 1, n): [(right, top), (right, bottom)],
            (k, n - 1): [(left, top), (right, top)],
            (k, n + 1): [(left, bottom), (right, bottom)],
        }
        lines += [line for neighbour, line in sides.items() if neighbour not in cells]
    ax.add_collection(LineCollection(lines, colors=BLUE, linewidths=1.4, zorder=3))


def _word(ax: Axes, own: pd.DataFrame, lane: int) -> None:
    """Draw the lane's word, the highest bits on the left."""
    from matplotlib.patches import Rectangle

    for row in own.to_dict(orient="records"):
        at = 7 - row["nibble"]
        ax.add_patch(Rectangle((at, 0), 1, 1, facecolor=SKY, edgecolor=BLUE, linewidth=1.2))
        text = f"n {row['n']}\nk {row['k']}"
        ax.text(at + 0.5, 0.5, text, ha="center", va="center", fontsize=9)
        ax.text(at + 0.5, -0.12, f"bits {4 * row['nibble']}-{4 * row['nibble'] + 3}",
                ha="center", va="top", fontsize=7.5, color="0.4")  # fmt: skip
    line = {"arrowstyle": "-", "color": VERMILION, "linewidth": 1.4}
    for first, text in ((0, "high half: odd k"), (4, "low half: even k")):
        ax.annotate("", xy=(first + 0.05, 1.12), xytext=(first + 3.95, 1.12), arrowprops=line)
        ax.text(first + 2, 1.18, text, ha="center", va="bottom", fontsize=8, color=VERMILION)
    ax.set(xlim=(-0.05, 8.05), ylim=(-0.5, 1.6))
    ax.set_axis_off()
    ax.text(-0.1, 0.5, f"lane {lane}", ha="right", va="center", fontsize=9)
