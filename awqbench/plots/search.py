"""Figures of one search: the output error of every linear, with and without the search."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from awqbench.plots.style import GREY, METHOD_COLOURS, VERMILION, styled, title

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes


def plot_output_errors(table: pd.DataFrame, *, method: str = "AWQ + clip") -> Axes:
    """Draw each linear's output error beside plain rounding's, block by block.

    Parameters
    ----------
    table : DataFrame
        `SearchResult.table`: `block`, `linear`, `output_error`, `rounding_error`, `alarm`.
    method : str
        Name of what was searched, a key of `METHOD_COLOURS` or another.

    Returns
    -------
    Axes
        A line from rounding's error to the method's for every linear, in percent of the
        output's energy, on a logarithmic axis.
    """
    colour = METHOD_COLOURS.get(method, VERMILION)
    kinds = [path.rsplit(".", 1)[-1] for path in table.linear]
    names = list(dict.fromkeys(kinds))
    blocks = list(dict.fromkeys(table.block))
    n_blocks = len(blocks)
    x = np.array(
        [
            names.index(kind) + 0.8 * (blocks.index(block) / max(n_blocks - 1, 1) - 0.5)
            for kind, block in zip(kinds, table.block, strict=True)
        ]
    )
    before, after = 100 * table.rounding_error, 100 * table.output_error
    with styled() as plt:
        _, ax = plt.subplots()
        ax.vlines(x, np.minimum(before, after), np.maximum(before, after), color="0.85", lw=1)
        ax.scatter(x, before, s=12, color=GREY, label="rounding", zorder=3)
        ax.scatter(x, after, s=14, color=colour, label=method, zorder=4)
        ax.set_yscale("log")
        ax.set_xticks(range(len(names)), names, rotation=20, ha="right")
        ax.set_ylabel("output error, % of energy")
        ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.22), ncols=2)
        saved = 1 - float(after.sum() / before.sum())
        title(
            ax,
            f"{method} takes away {saved:.0%} of the output error of rounding",
            f"{len(table)} linears; first to last of {n_blocks} blocks from left to right",
        )
    return ax
