"""Figures of overflow and underflow: weights, activations and scales against the limits."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from awqbench.numerics import LIMITS, limits_of
from awqbench.plots.style import BLUE, GREY, ORANGE, VERMILION, label_ends, styled, title

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

# More linears than this are drawn as one bar for each layer.
_MAX_BARS = 200
# Room between the linears of one layer and those of the next, in bars.
_LAYER_GAP = 1.5
_SITE_WORDS = (
    ("o_proj", "o_proj"),
    ("down_proj", "down_proj"),
    ("attn", "attention"),
    ("mlp", "MLP"),
)


def weight_ranges(
    table: pd.DataFrame, *, cast_dtype: str = "float16", model: str = "", note: str = ""
) -> Axes:
    """Draw every linear's magnitudes, layer by layer, against the limits of a dtype.

    A thin line spans single weights, from the smallest that is not zero to the largest; a
    thick bar spans groups, by the largest weight of each. A single weight below the limit
    becomes 0 and does no harm; a group whose largest weight is below it vanishes.

    Parameters
    ----------
    table : DataFrame
        As `awqbench.health` gives it; rows without group figures are left out.
    cast_dtype : {"float16", "bfloat16", "float32"}
        Whose limits are drawn; the one that `table` was made for.
    model : str
        For the line of conditions.
    note : str
        What is planted, for the same line.

    Returns
    -------
    Axes
    """
    limits = limits_of(cast_dtype)
    bars = _bars(table[table["smallest_group"].notna()])
    vanished = int(bars["vanished"].sum())
    bottom = min(limits.smallest_subnormal / 16, bars["low"].min() / 4)
    top = max(limits.largest * 128, bars["high"].max() * 4)
    with styled() as plt:
        _, ax = plt.subplots(figsize=(7.2, 4.2))
        ax.set_yscale("log", base=2)
        _shade(ax, limits, bottom, top)
        width = 260 / max(bars["x"].max(), 40)  # points, so that bars stay apart
        hit = bars["smallest_group"] <= limits.smallest_subnormal / 2
        brink = bars["smallest_group"].clip(lower=limits.smallest_subnormal)
        ax.vlines(bars["x"], bars["low"], bars["high"], colors="0.62", linewidth=min(0.8, width))
        ax.vlines(bars["x"], brink, bars["high"], colors=BLUE, linewidth=width)
        ax.vlines(bars["x"][hit], bars["smallest_group"][hit], brink[hit], VERMILION, lw=width)
        _label_hits(ax, bars[hit], bars["x"].max())
        ax.annotate(
            "thick: largest weight of each group    thin: down to the smallest single weight",
            (0.012, limits.largest),
            xytext=(0, -5),
            xycoords=ax.get_yaxis_transform(),
            textcoords="offset points",
            va="top",
            fontsize=8.5,
            color="0.4",
        )
        ax.set_ylim(bottom, top)
        ax.set_xlim(-1.5, bars["x"].max() + 1.5)
        centres = bars.groupby("layer")["x"].mean()
        step = -(-len(centres) // 16)
        ax.set_xticks(centres.iloc[::step], centres.index[::step])
        ax.tick_params(axis="x", length=0)
        ax.set_xlabel("layer" if not bars["is_layer"].any() else "layer, all its linears together")
        ax.set_ylabel("magnitude of weights")
        _power_ticks(ax, bottom, top)
        title(ax, _weights_finding(table, vanished, cast_dtype), _conditions(model, table, note))
    return ax


def _label_hits(ax: Axes, hits: pd.DataFrame, x_max: float) -> None:
    """Say at its foot which linear loses groups; the first one stands for many."""
    for bar in hits.head(3 if len(hits) <= 3 else 1).itertuples():
        on_right = bar.x < x_max * 0.6
        ax.annotate(
            f"{bar.label}\n{bar.vanished} of {bar.groups} groups become 0",
            (bar.x, bar.smallest_group),
            xytext=(8 if on_right else -8, 0),
            textcoords="offset points",
            ha="left" if on_right else "right",
            va="bottom",
            color=VERMILION,
            fontsize=9,
        )


def _bars(table: pd.DataFrame) -> pd.DataFrame:
    """Place a bar for each linear, or for each layer of a model with very many."""
    import numpy as np
    import pandas as pd

    layers = table["name"].str.extract(r"\.(\d+)\.", expand=False)
    bars = pd.DataFrame(
        {
            "label": [_short_label(name) for name in table["name"]],
            "layer": layers.fillna("head"),
            "order": layers.astype(float).fillna(float("inf")),
            "low": table["smallest_nonzero"],
            "high": table["absmax"],
            "smallest_group": table["smallest_group"],
            "vanished": table["zero_groups_created"].astype(int),
            "groups": table["groups"].astype(int),
        }
    ).sort_values("order", kind="stable")
    bars["is_layer"] = len(bars) > _MAX_BARS
    if len(bars) > _MAX_BARS:
        ends = {"low": "min", "high": "max", "smallest_group": "min"}
        sums = {"vanished": "sum", "groups": "sum", "is_layer": "first", "label": "first"}
        bars = bars.groupby("layer", sort=False, as_index=False).agg(ends | sums)
        bars["label"] = "layer " + bars["layer"]
        bars["x"] = range(len(bars))
        return bars
    layer_number = (bars["layer"] != bars["layer"].shift()).cumsum() - 1
    bars["x"] = layer_number * _LAYER_GAP + np.arange(len(bars))
    return bars


def _short_label(name: str) -> str:
    layer = re.search(r"\.(\d+)\.", name)
    linear = name.removesuffix(".weight").rsplit(".", 1)[-1]
    return f"layer {layer[1]} {linear}" if layer else linear


def _shade(ax: Axes, limits, bottom: float, top: float) -> None:
    """Draw the limits of a dtype and say what happens beyond them."""
    tiny, normal = limits.smallest_subnormal, limits.smallest_normal
    ax.axhspan(limits.largest, top, color=VERMILION, alpha=0.10, linewidth=0, zorder=0)
    ax.axhspan(bottom, tiny, color=VERMILION, alpha=0.10, linewidth=0, zorder=0)
    ax.axhspan(tiny, normal, color=ORANGE, alpha=0.10, linewidth=0, zorder=0)
    for value, words, below in (
        (limits.largest, f"inf above\n{limits.largest:.6g}", False),
        (normal, f"fewer bits\nbelow {_power(normal)}", True),
        (tiny, f"0 below\n{_power(tiny)}", True),
    ):
        ax.axhline(value, color="0.35", linewidth=0.9, linestyle=(0, (4, 3)), zorder=1)
        ax.annotate(
            words,
            (1.0, value),
            xytext=(5, 0),
            xycoords=ax.get_yaxis_transform(),
            textcoords="offset points",
            va="top" if below else "bottom",
            fontsize=8.5,
            color="0.25",
            annotation_clip=False,
        )


def _power(value: float) -> str:
    """Write a power of two with a real minus and superscript digits."""
    import math

    digits = str(round(math.log2(value))).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return f"2{digits}"


def _power_ticks(ax: Axes, bottom: float, top: float) -> None:
    """Put a tick at every fifth (or larger) power of two, 1 among them."""
    import math

    low, high = math.ceil(math.log2(bottom)), math.floor(math.log2(top))
    step = 8 if high - low <= 80 else 32
    powers = [p for p in range(-step * 40, step * 40, step) if low <= p <= high]
    ax.set_yticks([2.0**p for p in powers], ["1" if p == 0 else _power(2.0**p) for p in powers])
    ax.set_yticks([], minor=True)


def _weights_finding(table: pd.DataFrame, vanished: int, dtype: str) -> str:
    column = next(c for c in table if c.startswith("overflow_"))
    over = int((table[column].fillna(0) > 0).sum())
    words = {
        0: f"No group of weights becomes 0 in {dtype}",
        1: f"A whole group becomes 0 in {dtype}",
    }
    first = words.get(vanished, f"{vanished:,} whole groups of weights become 0 in {dtype}")
    second = {0: "none overflows", 1: "one tensor overflows"}.get(over, f"{over} tensors overflow")
    return f"{first}; {second}"


def _conditions(model: str, table: pd.DataFrame, note: str) -> str:
    stored = sorted(set(table["dtype"]))
    reach = " (2⁻¹²⁶ to 2¹²⁸)" if stored == ["bfloat16"] else ""
    where = f"{model + ' ' if model else ''}in {', '.join(stored)}{reach}"
    return f"{where}; {note}" if note else where


def activation_headroom(
    tables: Mapping[str, pd.DataFrame], *, cast_dtype: str = "float16", model: str = ""
) -> Axes:
    """Draw the largest activation of each site, layer by layer, against a dtype's limit.

    Parameters
    ----------
    tables : mapping of str to DataFrame
        As `awqbench.activation_health` gives them; the first is the model as it is, others
        are drawn where they differ from it.
    cast_dtype : {"float16", "bfloat16", "float32"}
    model : str
        For the line of conditions.

    Returns
    -------
    Axes
    """
    limit = LIMITS[cast_dtype].largest
    (first, natural), *others = tables.items()
    colours = [BLUE, *[ORANGE] * (len(others) - 1), VERMILION]
    ends = {}
    with styled() as plt:
        _, ax = plt.subplots(figsize=(7.2, 3.9))
        ax.set_yscale("log", base=2)
        base = natural.set_index(["site", "block"])["absmax"]
        for number, (name, table) in enumerate(tables.items()):
            for site, rows in table.groupby("site", sort=False):
                same = base.loc[site].reindex(rows["block"]).to_numpy()
                if number and (rows["absmax"].to_numpy() < 1.2 * same).all():
                    continue
                colour = colours[number]
                ax.plot(rows["block"], rows["absmax"], color=colour, marker="o", markersize=3)
                label = site_words(site) + (f", {name}" if number else "")
                last = rows.iloc[-1]
                ends[label] = (last["block"], last["absmax"], colour)
        ax.axhline(limit, color="0.25", linewidth=1.0, linestyle=(0, (4, 3)))
        ax.axhspan(limit, limit * 64, color=VERMILION, alpha=0.10, linewidth=0, zorder=0)
        everything = [value for table in tables.values() for value in table["absmax"].dropna()]
        low = min(everything) / 2
        ax.set_ylim(low, max(limit * 24, max(everything) * 8))
        ax.annotate(
            f"{cast_dtype} overflows above {limit:.6g}",
            (0.012, 1),
            xytext=(0, -4),
            va="top",
            xycoords="axes fraction",
            textcoords="offset points",
            fontsize=8.5,
            color="0.25",
        )
        _tick_every(ax, low, ax.get_ylim()[1])
        ax.margins(x=0.015)
        ax.set_xlabel("layer")
        ax.set_ylabel("largest input of the linears")
        ax.xaxis.get_major_locator().set_params(integer=True)
        peak = {name: table["absmax"].max() for name, table in tables.items()}
        finding = f"Activations peak {_distance(peak[first], limit)} {cast_dtype}'s limit"
        planted = [f"{name}: {_distance(peak[name], limit)} it" for name, _ in others]
        title(ax, finding, "; ".join([*([model] if model else []), *planted]))
        label_ends(ax, ends)
    return ax


def _distance(value: float, limit: float) -> str:
    """Say how far a value is from a limit, as a factor."""
    if value <= limit:
        return f"{limit / value:,.3g} times below"
    return f"{value / limit:,.3g} times above"


def site_words(site: str) -> str:
    """Say in words which input a site is, where its linears have the usual names."""
    return next((words for part, words in _SITE_WORDS if part in site), site)


def normaliser_losses(table: pd.DataFrame) -> Axes:
    """Draw the share of channel scales that become useless as activations grow.

    Parameters
    ----------
    table : DataFrame
        As `awqbench.inspect.peers.compare_normalisers` gives it with `levels`.

    Returns
    -------
    Axes
        The x axis is the level, the y axis the percentage of the scales of all candidate
        alphas that became 0, infinite or NaN.
    """
    sums = table.groupby(["formula", "dtype", "level"], sort=False)[["channels", "usable"]].sum()
    lost = (100 * (1 - sums["usable"] / sums["channels"])).reset_index(name="lost")
    colours = {("AutoAWQ", "float16"): VERMILION, ("awqbench", "float32"): BLUE}
    ends = {}
    with styled() as plt:
        _, ax = plt.subplots(figsize=(7.2, 3.6))
        ax.set_xscale("log", base=10)
        for (formula, dtype), rows in lost.groupby(["formula", "dtype"], sort=False):
            colour = colours.get((formula, dtype), GREY)
            name = f"{formula}, {dtype}"
            ax.plot(rows["level"], rows["lost"], color=colour, marker="o", markersize=3.5)
            ends[name] = (rows["level"].iloc[-1], rows["lost"].iloc[-1], colour)
        ax.axvline(LIMITS["float16"].largest, color="0.25", linewidth=1.0, linestyle=(0, (4, 3)))
        ax.annotate(
            "65504",
            (LIMITS["float16"].largest, 1.0),
            xytext=(-4, -2),
            xycoords=ax.get_xaxis_transform(),
            textcoords="offset points",
            ha="right",
            va="top",
            fontsize=8.5,
            color="0.25",
        )
        ax.set_ylim(-2, 104)
        ax.margins(x=0.015)
        ax.set_xlabel("mean magnitude of the median input channel")
        ax.set_ylabel("channel scales lost (%)")
        ax.set_xticks([], minor=True)
        ticks = [10.0**p for p in range(0, 6) if 10.0**p >= lost["level"].min() * 0.99]
        ax.set_xticks(ticks, [f"{int(tick):,}" for tick in ticks])
        peers = lost[(lost["formula"] == "AutoAWQ") & (lost["dtype"] == "float16")]
        worse = peers[peers["lost"] > 0]
        finding, most = "No formula loses a channel scale at these levels", 0.0
        if len(worse):
            level, most = worse["level"].iloc[0], worse["lost"].max()
            finding = f"In float16 AutoAWQ's formula loses scales from level {level:,.0f} on"
        n_alphas = table["alpha"].nunique()
        title(
            ax,
            finding,
            f"up to {most:.0f} % of the scales of {n_alphas} alphas become 0, inf or NaN",
        )
        label_ends(ax, ends)
    return ax


def _tick_every(ax: Axes, low: float, high: float) -> None:
    import math

    powers = range(math.ceil(math.log2(low) / 4) * 4, math.floor(math.log2(high)) + 1, 4)
    ticks = [2.0**p for p in powers]
    ax.set_yticks(ticks, [f"{t:,.0f}" if t >= 1 else _power(t) for t in ticks])
    ax.set_yticks([], minor=True)


def finding_of(ax: Axes) -> str:
    """Return the finding that a figure of this module has for its title."""
    return ax.get_title(loc="left")
