"""Placement: budgets, context and batch against what every device would hold."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from awqbench.formats.checkpoint import Checkpoint
from awqbench.inspect.placement import plan_placement
from awqbench.inspect.placement.assign import STRATEGIES
from awqbench.inspect.placement.budgets import unit_for
from awqbench.inspect.placement.kv_cache import kv_cache_bytes
from awqbench.inspect.placement.module_bytes import ModelBytes, as_model
from awqbench.plots.placement import occupancy, plot_placement
from awqbench.widgets import controls
from awqbench.widgets.controls import Explorer
from awqbench.widgets.drawing import View

_MOST_CONTEXT = 2**17
# First budgets, as a multiple of an even share of weights and cache.
_ROOM = 1.5


def explore(
    model: Checkpoint | ModelBytes | Mapping | str | Path = "tiny",
    *,
    devices: int = 2,
    context: int = 4096,
    reserve: int | str | None = None,
    live: bool | None = None,
) -> Explorer:
    """Move memory budgets, context and batch, and see whether the model fits.

    Parameters
    ----------
    model : Checkpoint, ModelBytes, mapping, str or Path
        As in `plan_placement`.
    devices : int
        Accelerators.
    context : int
        Tokens to begin with, a power of two.
    reserve : int or str, optional
        As in `plan_placement`; by default a twentieth of a device's first budget.
    live : bool, optional
        As in `Explorer`.

    Returns
    -------
    Explorer

    Raises
    ------
    FormatError, ParameterError
        As `plan_placement`.
    """
    sizes = as_model(model)
    unit_name, unit = unit_for(sizes.nbytes)
    cache = kv_cache_bytes(sizes.config, context=context, dtype=sizes.kv_dtype)
    each = (sizes.nbytes + sum(cache)) / devices / unit
    step = 10.0 ** len(str(int(each))) / 100
    start = round(_ROOM * each / step) * step
    kept = round(start * unit / 20) if reserve is None else reserve
    made = {
        f"cuda_{i}": controls.number(f"cuda:{i}, {unit_name}", start, 0, 4 * start, step=step)
        for i in range(devices)
    }
    made["context"] = controls.powers("context", context, 1, _MOST_CONTEXT)
    made["batch"] = controls.powers("batch", 1, 1, 64)
    made["strategy"] = controls.choice("strategy", STRATEGIES)

    def look(context: int, batch: int, strategy: str, **budgets: float) -> View:
        plan = plan_placement(
            sizes,
            {name.replace("_", ":"): round(size * unit) for name, size in budgets.items()},
            context=context,
            batch=batch,
            strategy=strategy,
            reserve=kept,
        )
        axes = plot_placement(occupancy({f"{context:,} tokens": plan.table}), conditions=plan.title)
        table = plan.table_gib().to_html(index=False, border=0)
        return View(axes, plan.verdict, {"devices": plan.table, "modules": plan.modules}, table)

    return Explorer(made, look, live=live)
