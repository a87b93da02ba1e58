"""The figure of products timed on a GPU: times cuBLAS over tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from awqbench.plots.style import BLUE, GREEN, GREY, PURPLE, SKY, VERMILION, styled

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

_OWN_COLOURS = (GREEN, BLUE, SKY, PURPLE)
_PEER_MARKERS = ("s", "^", "D", "v")


def plot_measured(table: pd.DataFrame, *, conditions: str = "") -> list[Axes]:
    """Draw times cuBLAS over tokens, a line for each other path; one panel a shape.

    Own paths are coloured, peers grey, wrong results marked by a red cross.

    Parameters
    ----------
    table : DataFrame
        Of `bench_gemm`.
    conditions : str
        Device, date and commit.

    Returns
    -------
    list of Axes
    """
    shapes = list(dict.fromkeys(table["shape"]))
    lines = table[~table["path"].str.startswith("cuBLAS")]  # 1 by definition
    looks = _looks(lines)
    ticks = sorted(table["tokens"].unique())
    with styled() as plt:
        figure, axes = plt.subplots(
            len(shapes), 1, figsize=(8.2, 1.2 + 2.2 * len(shapes)), squeeze=False, sharex=True
        )
        for ax, shape in zip(axes[:, 0], shapes, strict=True):
            _measured_panel(ax, lines[lines["shape"] == shape], looks)
            ax.set_xscale("log", base=2)
            ax.set_xlim(ticks[0] / 1.3, ticks[-1] * 1.3)
            ax.set_xticks(ticks, [str(m) for m in ticks])
            ax.set_xticks([], minor=True)
            ax.set_title(f"{shape} (K x N)", fontsize=9, fontweight="normal")
        axes[-1, 0].set_xlabel("tokens M")
        figure.supxlabel(conditions, fontsize=8.5, color="0.4")
        figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside right center",
                      fontsize=8)  # fmt: skip
        figure.suptitle(measured_finding(table), x=0.01, ha="left", fontsize=11,
                        fontweight="bold")  # fmt: skip
    return list(axes[:, 0])


def _looks(lines: pd.DataFrame) -> dict[str, dict]:
    """Return the colour, width and marker of each path."""
    looks: dict[str, dict] = {}
    for is_peer, rows in lines.groupby("is_peer"):
        for at, path in enumerate(dict.fromkeys(rows["path"])):
            own = _OWN_COLOURS[at % len(_OWN_COLOURS)]
            colour, width = (GREY, 1) if is_peer else (own, 2)
            marker = _PEER_MARKERS[at % len(_PEER_MARKERS)] if is_peer else "o"
            looks[path] = {"color": colour, "linewidth": width, "marker": marker}
    return looks


def _measured_panel(ax: Axes, rows: pd.DataFrame, looks: Mapping[str, dict]) -> None:
    for path, line in rows.sort_values("tokens").groupby("path", sort=False):
        ax.plot(line["tokens"], line["vs_cublas"], markersize=4.5, label=path, **looks[path])
    wrong = rows[rows["is_wrong"]]
    ax.plot(wrong["tokens"], wrong["vs_cublas"], "x", color=VERMILION, markersize=11)
    ax.axhline(1, color="0.35", linestyle="--", linewidth=1, label="cuBLAS, same type")
    ax.set_ylim(0, 1.15 * max(rows["vs_cublas"].max(), 1))
    ax.set_ylabel("times cuBLAS")


def measured_finding(table: pd.DataFrame) -> str:
    """Say what the fastest right path of this package reaches for the fewest tokens.

    Parameters
    ----------
    table : DataFrame
        Of `bench_gemm`.

    Returns
    -------
    str
        Of the last shape.
    """
    if table["is_wrong"].any():
        wrong = table.loc[table["is_wrong"], "path"].unique()
        return f"WRONG results: {', '.join(wrong)}"
    rows = table[(table["shape"] == table["shape"].iloc[-1]) & ~table["is_peer"]]
    rows = rows[rows["tokens"] == rows["tokens"].min()]
    best = rows.loc[rows["median_s"].idxmin()]
    return (
        f"Measured: {best['vs_cublas']:.2f} times cuBLAS and {best['fraction_of_copy']:.0%} of the "
        f"copy rate at M = {best['tokens']}, {best['shape']}"
    )
