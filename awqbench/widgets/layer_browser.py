"""Layer browser: one linear's weights, channels, scale search and error."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from awqbench.inspect.layer_look import LayerLook, Layers
from awqbench.plots.layer import layer_panels
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
    linear: str | None = None,
    dtype: str = "float16",
    live: bool | None = None,
) -> Explorer:
    """Choose a linear and see what the search makes of it.

    Parameters
    ----------
    ckpt : Checkpoint or str or Path
        A full-precision model.
    stats : Stats or str or Path
        Of this model.
    linear : str, optional
        Module path to begin with; default the first.
    dtype : {"float16", "bfloat16", "float32"}
        Whose limits are drawn beside the weights.
    live : bool, optional
        As in `Explorer`.

    Returns
    -------
    Explorer

    Raises
    ------
    ParameterError
        If there is no such linear.
    StatisticsError, AlreadyQuantizedError
        As `Layers`.
    """
    layers = Layers(ckpt, stats)
    start = layers.checked(linear or layers.names[0])
    made = {
        "linear": controls.listed("linear", layers.names, start),
        "bits": controls.whole("bits", 4, 2, 8),
        "group_size": group_choice(layers.stats),
        "clip": controls.tick("clip", True),
        "rounding": rounding_choice(),
    }

    def look(linear: str, **state) -> View:
        settings = Settings(**state)
        seen = layers.look(linear, settings)
        conditions = f"{linear}, {settings.bits} bits, {settings.label()}"
        axes = layer_panels(
            seen.histogram, seen.channels, seen.curve, seen.row, dtype=dtype, conditions=conditions
        )
        return View(axes, _text(seen, axes), _data(seen), _alarm(seen))

    return Explorer(made, look, live=live)


def _text(seen: LayerLook, axes: list) -> str:
    largest = seen.histogram["high"].max() if len(seen.histogram) else 0.0
    return (
        f"{seen.name}: {axes[0].figure.get_suptitle()}. {axes[2].get_title(loc='left')}. "
        f"{axes[3].get_title(loc='left')}. Weights are below {largest:.3g}, "
        f"{seen.zeros} of them are 0."
    )


def _data(seen: LayerLook) -> dict[str, pd.DataFrame]:
    tables = {"histogram": seen.histogram, "channels": seen.channels, "curve": seen.curve}
    return tables | {"errors": pd.DataFrame([seen.row])}


def _alarm(seen: LayerLook) -> str:
    return controls.paragraph(f"Alarm: {seen.row['alarm']}.") if seen.row["alarm"] else ""
