"""The controls that explorers of settings share."""

from __future__ import annotations

from typing import TYPE_CHECKING

from awqbench.widgets import controls

if TYPE_CHECKING:
    from awqbench.quantize.statistics.stats import Stats

GROUP_SIZES = (256, 128, 64, 32, 16)
_ROWS = ("rows", -1)


def group_choice(stats: Stats):
    """Make the choice of a group size; first the largest of 128 and below that fits all linears.

    Those that do not divide a linear's in_features can be chosen too: the explorer then says
    which linear, and what to do.
    """
    widths = set(stats.manifest["in_features"].values())
    fitting = [g for g in GROUP_SIZES if g <= 128 and not any(width % g for width in widths)]
    options = [*((str(size), size) for size in GROUP_SIZES), _ROWS]
    return controls.choice("group size", options, fitting[0] if fitting else -1)


def rounding_choice():
    """Make the choice of a rounding."""
    return controls.choice("rounding", [("nearest", "nearest"), ("GPTQ", "gptq")], "nearest")
