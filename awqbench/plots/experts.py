"""Figure of a mixture of experts: which experts a calibration text reaches."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from awqbench.plots.style import VERMILION, styled, title

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

# Shares are shown from a quarter of an even one to four times it; beyond, colours end.
_LOG2_RANGE = 2


def expert_heatmap(coverage: pd.DataFrame, *, conditions: str = "") -> Axes:
    """Draw how many tokens each expert of each block was given, against an even share.

    Parameters
    ----------
    coverage : DataFrame
        By `expert_coverage`: block, expert, tokens, share, expected_share, starved.
    conditions : str
        Model and text, for the second line of the title.

    Returns
    -------
    Axes
        A row for each block, a column for each expert; starved experts are crossed.
    """
    blocks = list(dict.fromkeys(coverage.block))
    row = coverage.block.map(blocks.index).to_numpy(dtype=int)
    column = coverage.expert.to_numpy(dtype=int)
    ratio = np.full((max(len(blocks), 1), column.max(initial=0) + 1), np.nan)
    with np.errstate(divide="ignore"):
        ratio[row, column] = np.log2(coverage.share / coverage.expected_share)
    starved = coverage.starved.to_numpy(dtype=bool)
    with styled() as plt:
        height = min(9.0, 1.9 + 0.22 * len(blocks))
        _, ax = plt.subplots(figsize=(6.4, height))
        ax.grid(visible=False)
        limits = {"vmin": -_LOG2_RANGE, "vmax": _LOG2_RANGE}
        image = ax.imshow(
            np.clip(ratio, -_LOG2_RANGE, _LOG2_RANGE), cmap="PuOr_r", aspect="auto", **limits
        )
        ax.scatter(column[starved], row[starved], marker="x", s=22, color=VERMILION, lw=1.4)
        step = max(1, len(blocks) // 12)
        ax.set_yticks(range(0, len(blocks), step), [_short(name) for name in blocks[::step]])
        ax.set_ylabel("block")
        ax.set_xlabel("expert")
        ax.xaxis.get_major_locator().set_params(integer=True)
        bar = ax.figure.colorbar(image, ax=ax, extend="both", pad=0.02)
        bar.set_ticks(range(-_LOG2_RANGE, _LOG2_RANGE + 1), labels=["1/4", "1/2", "1", "2", "4"])
        bar.set_label("tokens, of an even share")
        title(ax, coverage_finding(coverage), conditions)
    return ax


def coverage_finding(coverage: pd.DataFrame) -> str:
    """Say what the figure shows: how many experts are starved, or the least share.

    Examples
    --------
    >>> import pandas as pd
    >>> row = {"share": 0.1, "expected_share": 0.5, "starved": True}
    >>> coverage_finding(pd.DataFrame([row, row | {"share": 0.9, "starved": False}]))
    '1 of 2 experts sees too few tokens (crosses)'
    """
    if coverage.empty:
        return "The model has no experts"
    count = int(coverage.starved.sum())
    if count:
        verb = "sees" if count == 1 else "see"
        return f"{count} of {len(coverage)} experts {verb} too few tokens (crosses)"
    least = float((coverage.share / coverage.expected_share).min())
    return f"Every expert is calibrated; the least visited has {least:.2g} of an even share"


def _short(block: str) -> str:
    return block.rpartition(".")[2]
