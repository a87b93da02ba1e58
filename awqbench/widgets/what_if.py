"""What if: bits, group size, zero point, clip and rounding against error, size and speed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from awqbench.bench.timing import ReadProbe
from awqbench.inspect.what_if import Outlook, WhatIf
from awqbench.plots.decode import speed_text
from awqbench.plots.explore import predicted_errors
from awqbench.quantize.settings import Settings
from awqbench.widgets import controls
from awqbench.widgets.controls import Explorer
from awqbench.widgets.drawing import View
from awqbench.widgets.settings_controls import group_choice, rounding_choice

if TYPE_CHECKING:
    from awqbench.formats.checkpoint import Checkpoint
    from awqbench.quantize.statistics.stats import Stats


def explore(
    ckpt: Checkpoint | str | Path,
    stats: Stats | str | Path,
    *,
    bandwidth_gb_s: float | None = None,
    context: int = 2048,
    engine: str = "vllm",
    live: bool | None = None,
) -> Explorer:
    """Move settings and see what each would cost, predicted from statistics.

    Parameters
    ----------
    ckpt : Checkpoint or str or Path
        A full-precision model.
    stats : Stats or str or Path
        Of this model.
    bandwidth_gb_s : float, optional
        For the bound of tokens a second; by default this machine's, measured now.
    context : int
        Tokens in the KV cache, for the same.
    engine : str
        Whose rules decide how far the model splits.
    live : bool, optional
        As in `Explorer`.

    Returns
    -------
    Explorer

    Raises
    ------
    StatisticsError, AlreadyQuantizedError
        As `WhatIf`.
    """
    prepared = WhatIf(ckpt, stats)
    speed = bandwidth_gb_s or ReadProbe().bandwidth_gb_s()
    made = {
        "bits": controls.whole("bits", 4, 2, 8),
        "group_size": group_choice(prepared.stats),
        "zero_point": controls.tick("zero point", True),
        "clip": controls.tick("clip", False),
        "rounding": rounding_choice(),
    }
    first = prepared.errors(_settings({name: control.value for name, control in made.items()}))

    def look(**state) -> View:
        outlook = prepared.outlook(
            _settings(state), bandwidth_gb_s=speed, context=context, engine=engine
        )
        conditions = f"{prepared.ckpt.path.name}, {_label(outlook.settings)}; grey: as at first"
        axes = predicted_errors(outlook.errors, first, conditions=conditions)
        text = f"{axes.get_title(loc='left')}. {_facts(outlook, speed, context, engine)}"
        return View(axes, text, {"errors": outlook.errors, "fits": outlook.fits})

    return Explorer(made, look, live=live)


def _settings(state: dict) -> Settings:
    return Settings(scales="none", **state)


def _label(settings: Settings) -> str:
    group = "whole rows" if settings.group_size == -1 else f"group {settings.group_size}"
    parts = [f"{settings.bits} bits", group, "asymmetric" if settings.zero_point else "symmetric"]
    return ", ".join([*parts, settings.label()])


def _facts(outlook: Outlook, speed: float, context: int, engine: str) -> str:
    fits = outlook.fits
    sizes = ", ".join(map(str, fits.loc[fits["fits"], "tp_size"])) or "none"
    broken = fits[~fits["fits"]]
    fix = f" (for {broken['tp_size'].iloc[0]}: {broken['fix'].iloc[0]})" if len(broken) else ""
    return (
        f"The model has {outlook.weight_bytes / 1e6:,.1f} MB, {outlook.share:.0%} of now. "
        f"Tensor parallel sizes that fit on {engine}: {sizes}{fix}. "
        f"At most {speed_text(outlook.bound.tok_per_s)} tokens/s at {speed:.3g} GB/s, "
        f"{context:,} tokens in the cache."
    )
