"""The smallest inner widths that split over ranks, and whether padding to them is enough.

Padding widens the inside of the MLPs only. Attention heads, the vocabulary and `hidden_size`
cannot be padded, so a plan checks every rule again and names what remains.
"""

from __future__ import annotations

from math import lcm
from typing import NamedTuple

from awqbench.inspect.parallel.engine_rules import broken_rules, require_engine
from awqbench.inspect.parallel.shape_types import ROW, ModelShapes, Width
from awqbench.inspect.parallel.split_checks import OUTPUTS_IN_WORD, Broken, Split, merged

# Every engine's rules repeat with this many inputs or outputs of a rank, beside the group.
_TILE_PERIOD = 128


class PaddingPlan(NamedTuple):
    """What to pad a model to.

    Parameters
    ----------
    tp_size, group_size : int
    engine : str
    widths : dict of str to (int, int)
        Config key to the width now and after padding, as the weights have it; equal where
        nothing is to be done.
    config_values : dict of str to int
        What the config has to hold, of the keys that change.
    remaining : tuple of Broken
        Rules that are broken after padding too.
    share_added : float
        Weights that padding adds to the listed linears, as a share of them.
    """

    tp_size: int
    group_size: int
    engine: str
    widths: dict[str, tuple[int, int]]
    config_values: dict[str, int]
    remaining: tuple[Broken, ...]
    share_added: float

    @property
    def fits(self) -> bool:
        """Whether the padded model splits."""
        return not self.remaining

    @property
    def is_needed(self) -> bool:
        """Whether any width changes."""
        return bool(self.config_values)

    def describe(self) -> str:
        """Say what to pad and what padding cannot help, in one line."""
        steps = [f"{key} {now} to {new}" for key, (now, new) in self.widths.items() if new > now]
        if not self.fits:
            return f"padding cannot help: {self.remaining[0].sentence}"
        return f"pad {', '.join(steps)}" if steps else "fits as it is"


def padding_plan(
    shapes: ModelShapes, tp_size: int, group_size: int, *, engine: str = "vllm"
) -> PaddingPlan:
    """Find the smallest inner widths with which a model splits.

    Parameters
    ----------
    shapes : ModelShapes
    tp_size, group_size : int
    engine : str
        A key of `ENGINES`.

    Returns
    -------
    PaddingPlan

    Raises
    ------
    ParameterError
        As `broken_rules`.

    Examples
    --------
    >>> from awqbench.inspect.parallel.model_shapes import model_shapes
    >>> sizes = dict(hidden_size=8192, intermediate_size=29568, num_attention_heads=64)
    >>> padding_plan(model_shapes(sizes), 8, 128).describe()
    'pad intermediate_size 29568 to 29696'
    """
    broken = broken_rules(shapes, tp_size, group_size, engine=engine)
    keys = {b.linear.width_key for b in broken if b.linear is not None and b.linear.width_key}
    values = {key: w.value for key, w in shapes.widths.items()}
    for key in keys:
        found = smallest_width(shapes, shapes.widths[key], tp_size, group_size, engine=engine)
        values[key] = found or values[key]
    padded = shapes.with_widths(values)
    left = broken_rules(padded, tp_size, group_size, engine=engine) if keys else broken
    widths = {key: (w.value, values[key]) for key, w in shapes.widths.items()}
    changed = {
        key: new * shapes.widths[key].config_factor
        for key, (now, new) in widths.items()
        if new != now
    }
    added = _n_weights(padded) / _n_weights(shapes) - 1
    return PaddingPlan(tp_size, group_size, engine, widths, changed, tuple(left), added)


def smallest_width(
    shapes: ModelShapes, width: Width, tp_size: int, group_size: int, *, engine: str = "vllm"
) -> int | None:
    """Return the smallest width, not below the present one, that breaks no rule of its linears.

    Returns
    -------
    int or None
        None if no width does, as for whole rows over several ranks.
    """
    linears = tuple(lin for lin in shapes.linears if lin.width_key == width.key)
    check, step = require_engine(engine).check, tp_size * OUTPUTS_IN_WORD
    period = tp_size * lcm(max(group_size, 1), _TILE_PERIOD)
    first = -(-width.value // step) * step
    for value in (width.value, *range(first, first + period + step, step)):
        widened = shapes._replace(linears=linears).with_widths({width.key: value})
        units = [Split(unit, tp_size, group_size) for unit in merged(widened.linears)]
        if not any(_of_width(broken) for unit in units for broken in check(unit)):
            return value
    return None


def _of_width(broken: Broken) -> bool:
    """Tell whether a rule is about the padded dimension, not the linear's other one."""
    is_row = broken.linear.split == ROW
    is_about_inputs = broken.rule == "groups" or "in_features" in broken.detail
    return is_row == is_about_inputs


def _n_weights(shapes: ModelShapes) -> int:
    return sum(lin.out_features * lin.in_features * lin.count for lin in shapes.linears)
