"""Figures of the CUDA kernels: registers, what was counted, predicted limits."""

from __future__ import annotations

from typing import TYPE_CHECKING

from awqbench.plots.style import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    SKY,
    VERMILION,
    styled,
    title,
)

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

_MOST_REGISTERS = 255
KERNEL_COLOURS = {
    "w4a16_direct": SKY,
    "w4a16_skinny": BLUE,
    "w4a16_mma": ORANGE,
    "w4a16_wgmma": GREEN,
    "decode + cuBLAS": GREY,
}
_CLASS_COLOURS = {
    "mma": GREEN,
    "memory": BLUE,
    "logic": VERMILION,
    "integer": ORANGE,
    "float": PURPLE,
    "control": "0.7",
}
_BOUND_MARKS = {"memory": "m", "tensor cores": "t", "instructions": "i"}


def plot_registers(table: pd.DataFrame, *, conditions: str = "", ax: Axes | None = None) -> Axes:
    """Draw the most registers that a thread takes, kernels by architectures; spills are marked.

    Parameters
    ----------
    table : DataFrame
        Rows of the record `cuda_compile`.
    conditions : str
        Such as the compiler.
    ax : Axes, optional
        To draw in; by default a new figure.

    Returns
    -------
    Axes
    """
    cells = table.pivot(index="kernel", columns="arch", values="max_registers")
    kernels, architectures = dict.fromkeys(table["kernel"]), dict.fromkeys(table["arch"])
    cells = cells.reindex(index=list(kernels), columns=list(architectures))
    spills = table.pivot(index="kernel", columns="arch", values="spill_bytes")
    n_programs, spilled = int(table["programs"].sum()), int(table["spill_bytes"].sum())
    with styled() as plt:
        if ax is None:
            _, ax = plt.subplots(figsize=(7.2, 1.3 + 0.36 * len(cells)))
        ax.imshow(cells, aspect="auto", cmap="Blues", vmin=0, vmax=_MOST_REGISTERS * 1.2)
        for y, kernel in enumerate(cells.index):
            for x, arch in enumerate(cells.columns):
                value = cells.loc[kernel, arch]
                if value != value:
                    ax.text(x, y, "-", ha="center", va="center", color="0.6")
                    continue
                bad = spills.loc[kernel, arch] > 0
                text = f"{value:.0f}" + (f"\n{spills.loc[kernel, arch]:.0f} B" if bad else "")
                colour = VERMILION if bad else ("white" if value > 170 else "black")
                ax.text(x, y, text, ha="center", va="center", color=colour, fontsize=9)
        ax.set_xticks(range(len(cells.columns)), [f"sm_{arch}" for arch in cells.columns])
        ax.set_yticks(range(len(cells)), cells.index)
        ax.tick_params(length=0)
        ax.grid(visible=False)
        for spine in ax.spines.values():
            spine.set_visible(False)
        ending = "none spills" if not spilled else f"{spilled} bytes spilled"
        most = f"most registers of a thread, of {_MOST_REGISTERS} (-: no kernel for it)"
        title(
            ax,
            f"{n_programs} programs compiled for {len(cells.columns)} architectures: {ending}",
            ", ".join(filter(None, [conditions, most])),
        )
    return ax


def plot_counted(
    table: pd.DataFrame, *, floor: float, budget: float, conditions: str = ""
) -> list[Axes]:
    """Draw bytes a weight and instructions a word, as bars, beside what they may be.

    Parameters
    ----------
    table : DataFrame
        Of `counted`.
    floor : float
        Bytes a weight that codes, scales and zero points take in a checkpoint.
    budget : float
        Instructions a word that a GPU issues while it reads the word from memory.
    conditions : str

    Returns
    -------
    list of Axes
        Bytes, and instructions.
    """
    names = [f"{row.kernel.removeprefix('w4a16_')}  M = {row.m}" for row in table.itertuples()]
    places = range(len(table))
    with styled() as plt:
        figure, axes = plt.subplots(
            1, 2, figsize=(8.6, 1.5 + 0.28 * len(table)), sharey=True, width_ratios=[2, 3]
        )
        bytes_ax, issue_ax = axes
        bytes_ax.barh(places, table["bytes_per_weight"], 0.66, color="0.78")
        for y, value in zip(places, table["bytes_per_weight"], strict=True):
            bytes_ax.text(value, y, f" {value:.3f}", va="center", fontsize=8)
        bytes_ax.set_xlim(0, 1.3 * max(table["bytes_per_weight"].max(), floor))
        bytes_ax.set_xlabel("bytes read for a weight")
        start = table["instructions_per_word"] * 0
        for name, colour in _CLASS_COLOURS.items():
            values = table[f"{name}_per_word"]
            issue_ax.barh(places, values, 0.66, left=start, color=colour, label=name)
            start = start + values
        issue_ax.set_xlabel("instructions of a warp for a word in each lane")
        issue_ax.set_xlim(0, 1.3 * max(float(start.max()), budget))
        issue_ax.legend(fontsize=8, loc="upper right", handlelength=1)
        for ax, limit, text in (
            (bytes_ax, floor, f"floor {floor:.4g}"),
            (issue_ax, budget, f"budget {budget:.0f}"),
        ):
            ax.axvline(limit, color="0.35", linestyle="--", linewidth=1.2)
            ax.annotate(
                text, xy=(limit, 1), xycoords=("data", "axes fraction"), xytext=(0, 2),
                textcoords="offset points", ha="center", fontsize=8, color="0.35",
            )  # fmt: skip
            ax.grid(axis="x", visible=True)
            ax.grid(axis="y", visible=False)
        bytes_ax.set_yticks(places, names)
        bytes_ax.tick_params(axis="y", length=0)
        bytes_ax.invert_yaxis()
        figure.suptitle(_counted_finding(table, floor, budget), x=0.01, ha="left", fontsize=11,
                        fontweight="bold")  # fmt: skip
        figure.supxlabel(conditions, fontsize=8.5, color="0.4")
    return list(axes)


def _counted_finding(table: pd.DataFrame, floor: float, budget: float) -> str:
    one = table[table["m"] == table["m"].min()]
    excess = one["bytes_per_weight"].max() / floor - 1
    leanest = table.groupby("m")["instructions_per_word"].min()
    fits = (leanest <= budget).cummin()
    within = leanest.index[fits]
    upto = f"instructions fit up to M = {within[-1]}" if len(within) else "instructions do not fit"
    return f"Counted: at most {excess:.1%} above the fewest bytes at M = {one['m'].iloc[0]}; {upto}"


def plot_predicted(table: pd.DataFrame, *, conditions: str = "") -> list[Axes]:
    """Draw the ratio of least times, fp16 over packed, as hatched bars; one panel a shape.

    The letter above a bar is the limit that holds: m memory, t tensor cores, i instructions.

    Parameters
    ----------
    table : DataFrame
        Of `predict`.
    conditions : str
        Such as the GPU's limits.

    Returns
    -------
    list of Axes
    """
    from matplotlib.patches import Patch

    shapes = list(dict.fromkeys(table["shape"]))
    kernels = list(dict.fromkeys(table["kernel"]))
    with styled() as plt:
        figure, axes = plt.subplots(
            len(shapes), 1, figsize=(7.4, 1.2 + 1.75 * len(shapes)), sharex=True, squeeze=False,
            sharey=True,
        )  # fmt: skip
        for ax, shape in zip(axes[:, 0], shapes, strict=True):
            rows = table[table["shape"] == shape].reset_index(drop=True)
            for x, row in rows.iterrows():
                ax.bar(x, row["ratio"], 0.7, facecolor="white", hatch="////", linewidth=1.2,
                       edgecolor=KERNEL_COLOURS[row["kernel"]])  # fmt: skip
                ax.annotate(
                    f"{row['ratio']:.2f} {_BOUND_MARKS[row['bound']]}", xy=(x, row["ratio"]),
                    xytext=(0, 3.5), textcoords="offset points", ha="center", fontsize=7.5,
                    bbox={"facecolor": "white", "edgecolor": "none", "pad": 0},
                )  # fmt: skip
            ax.axhline(1, color="0.35", linestyle="--", linewidth=1, zorder=0.9)
            ax.set_xticks(range(len(rows)), [str(m) for m in rows["tokens"]])
            ax.set_ylim(0, 1.22 * table["ratio"].max())
            ax.set_ylabel("times fp16")
            ax.set_title(f"{shape} (K x N)", fontsize=9, fontweight="normal")
        axes[-1, 0].set_xlabel(
            "tokens M; limited by memory (m), tensor cores (t), instructions (i)"
        )
        figure.supxlabel(conditions, fontsize=8.5, color="0.4")
        handles = [
            Patch(facecolor="white", edgecolor=KERNEL_COLOURS[name], hatch="////", label=name)
            for name in kernels
        ]
        axes[0, 0].legend(handles=handles, fontsize=8, loc="upper right")
        figure.suptitle(_predicted_finding(table), x=0.01, ha="left", fontsize=11,
                        fontweight="bold")  # fmt: skip
    return list(axes[:, 0])


def _predicted_finding(table: pd.DataFrame) -> str:
    largest = table[table["shape"] == table["shape"].iloc[-1]]
    first = largest.iloc[0]
    return (
        f"Predicted, not measured: at most {first['ratio']:.1f} times fp16 at M = "
        f"{first['tokens']}, limited by {first['bound']}"
    )
