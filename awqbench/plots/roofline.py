"""Figures of timed products: what each path reaches, against what the machine gave then."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from awqbench.plots.style import BACKEND_COLOURS, VERMILION, styled, title

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

_PEER, _WRONG = "0.78", VERMILION
_BAR = 0.68
# Errors differ by a little with the order of sums.
_AS_ACCURATE = 1.2


class _Ceiling(NamedTuple):
    rate: str
    limit: str
    axis: str
    label: str


_READ = _Ceiling("gb_s", "read_gb_s", "weights read (GB/s); line: best call", "read probe")
_COMPUTE = _Ceiling(
    "gflop_per_s", "peak_gflop_per_s", "computed (GFLOP/s); line: best call", "fastest matmul"
)


def plot_rates(case: pd.DataFrame, *, conditions: str = "", ax: Axes | None = None) -> Axes:
    """Draw what each path reached in one case as bars, with the ceiling as a dashed line.

    Bytes a second where the probes say that reading the weight takes longer than computing,
    operations a second elsewhere. The fastest path is on top and each bar tells its time, for
    a dense weight has more bytes to read, and its relative error. A thin line runs to the best
    call. Own paths are in the colours of their backends, peers grey, wrong results red; ``*``
    marks noisy ones.

    Parameters
    ----------
    case : DataFrame
        Rows of `bench_gemm` of one shape and one number of tokens.
    conditions : str
        Such as the machine and its threads.
    ax : Axes, optional
        To draw in; by default a new figure.

    Returns
    -------
    Axes
    """
    rows = case.sort_values("median_s", ascending=False).to_dict(orient="records")
    kind = _READ if is_read_bound(case) else _COMPUTE
    with styled() as plt:
        if ax is None:
            _, ax = plt.subplots(figsize=(6.4, 1.2 + 0.3 * len(rows)))
        limit = rows[0][kind.limit]
        for at, row in enumerate(rows):
            rate, best = row[kind.rate], row[kind.rate] * row["median_s"] / row["min_s"]
            ax.barh(at, rate, _BAR, color=colour_of(row), linewidth=0)
            ax.hlines(at, rate, best, color="0.25", linewidth=1)
            _note(ax, max(rate, best), at, _time_text(row))
        _draw_limit(ax, limit, len(rows), kind)
        names = [row["path"] + (" *" if row["is_noisy"] else "") for row in rows]
        ax.set_yticks(range(len(rows)), names, fontsize=8.5)
        ax.tick_params(axis="y", length=0)
        ax.grid(axis="y", visible=False)
        ax.grid(axis="x", visible=True)
        ax.set_ylim(-0.6, len(rows) + 0.3)
        # Room for the notes on the right.
        tips = [row[kind.rate] * row["median_s"] / row["min_s"] for row in rows]
        ax.set_xlim(0, max(1.15 * limit, 1.4 * max(tips)))
        ax.set_xlabel(kind.axis)
        noisy = "* noisy" if any(row["is_noisy"] for row in rows) else ""
        about = filter(None, [_case_text(rows[0]), conditions, noisy])
        title(ax, finding(case), ", ".join(about))
    return ax


def plot_roofline(table: pd.DataFrame, *, conditions: str = "") -> list[Axes]:
    """Draw `plot_rates` for the fewest and the most tokens of the first shape.

    Parameters
    ----------
    table : DataFrame
        Of `bench_gemm`.
    conditions : str

    Returns
    -------
    list of Axes
        One, where there is one number of tokens; one below the other else.
    """
    first = table[table["shape"] == table["shape"].iloc[0]]
    tokens = sorted({int(first["tokens"].min()), int(first["tokens"].max())})
    cases = [first[first["tokens"] == m] for m in tokens]
    with styled() as plt:
        height = sum(1.4 + 0.28 * len(case) for case in cases)
        _, axes = plt.subplots(len(cases), 1, figsize=(6.8, height), squeeze=False)
    return [
        plot_rates(case, conditions=conditions, ax=ax)
        for case, ax in zip(cases, axes[:, 0], strict=True)
    ]


def is_read_bound(case: pd.DataFrame) -> bool:
    """Tell whether, by the probes, the packed weight takes longer to read than to multiply."""
    own = case[~case["is_peer"]]
    row = (own if len(own) else case).iloc[0]
    return bool(row["fraction_of_read"] >= row["fraction_of_peak"])


def finding(case: pd.DataFrame) -> str:
    """Say which own path is fastest, at what share of the ceiling, and how far from a peer.

    The fastest one that is as accurate as the fastest peer, if there is one: speed that was
    bought with accuracy is no finding.

    Parameters
    ----------
    case : DataFrame
        As in `plot_rates`.

    Returns
    -------
    str
    """
    right = case[~case["is_wrong"]]
    own, peers = right[~right["is_peer"]], right[right["is_peer"]]
    if own.empty:
        return "No path of this package gave a right result"
    peer = peers.loc[peers["median_s"].idxmin()] if len(peers) else None
    fair = own if peer is None else own[own["rel_error"] <= _AS_ACCURATE * peer["rel_error"]]
    own = fair if len(fair) else own
    best = own.loc[own["median_s"].idxmin()]
    kind = _READ if is_read_bound(case) else _COMPUTE
    text = f"{best['path']}: {best[kind.rate] / best[kind.limit]:.0%} of the probe"
    if peer is None:
        return text
    return f"{text}, {peer['median_s'] / best['median_s']:.2g}x {peer['path']}"


def colour_of(row: dict) -> str:
    """Return the colour of a row: its backend's, grey for a peer, red where it is wrong."""
    if row["is_wrong"]:
        return _WRONG
    backend = row["path"].partition(" ")[0]
    return _PEER if row["is_peer"] else BACKEND_COLOURS.get(backend, "0.5")


def _time_text(row: dict) -> str:
    wrong = "WRONG, " if row["is_wrong"] else ""
    return f"{row['median_s'] * 1e3:.3g} ms, {wrong}error {row['rel_error']:.0e}"


def _case_text(row: dict) -> str:
    return (
        f"{row['shape']} (K x N), {row['bits']} bits, group {row['group_size']}, M = "
        f"{row['tokens']}"
    )


def _note(ax: Axes, x: float, y: float, text: str) -> None:
    ax.annotate(
        text,
        xy=(x, y),
        xytext=(4, 0),
        textcoords="offset points",
        va="center",
        fontsize=8,
        color="0.25",
        bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.6, "alpha": 0.8},
    )


def _draw_limit(ax: Axes, limit: float, n_rows: int, kind: _Ceiling) -> None:
    ax.vlines(limit, -0.6, n_rows - 0.45, color="0.4", linestyle="--", linewidth=1.2)
    ax.annotate(
        f"{kind.label}, same run: {limit:.3g}",
        xy=(limit, n_rows - 0.4),
        ha="center",
        va="bottom",
        fontsize=8,
        color="0.4",
    )
