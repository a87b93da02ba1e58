"""Roofline: the most tokens a second that a machine's memory allows a quantized model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from awqbench.bench.timing import ReadProbe
from awqbench.formats.checkpoint import Checkpoint
from awqbench.inspect.decode_bound import KNOWN_MODELS, NOMINAL_GB_S, bounds_by_setting
from awqbench.inspect.parallel.plan import read_config
from awqbench.plots.decode import decode_bars, speed_text
from awqbench.quantize.settings import Settings
from awqbench.widgets import controls
from awqbench.widgets.controls import Explorer
from awqbench.widgets.drawing import View
from awqbench.widgets.settings_controls import GROUP_SIZES

if TYPE_CHECKING:
    from pandas import DataFrame

THIS_MACHINE = "this machine, measured"
_CONTEXTS = tuple(2**i for i in range(8, 18))
_BITS = (8, 6, 4, 3, 2)
_AS_IT_IS = "as it is"


def explore(
    model: Checkpoint | Mapping | str | Path = "tiny",
    *,
    machines: Mapping[str, float] | None = None,
    bandwidth_gb_s: float | None = None,
    group_size: int = 128,
    live: bool | None = None,
) -> Explorer:
    """Choose a machine, a model and a quantization, and see the bound of its speed.

    Parameters
    ----------
    model : Checkpoint, mapping, str or Path
        A full-precision folder or a config; well-known models stand below it.
    machines : mapping of str to float, optional
        Read bandwidth in GB/s by name, beside this machine; default `NOMINAL_GB_S`.
    bandwidth_gb_s : float, optional
        Of this machine; by default measured now.
    group_size : int
        To begin with; one of `GROUP_SIZES` that divides the model's in_features.
    live : bool, optional
        As in `Explorer`.

    Returns
    -------
    Explorer

    Raises
    ------
    FormatError, AlreadyQuantizedError, AlignmentError
        As `predicted_model`.
    """
    own = read_config(model) if isinstance(model, str | Path) else model
    name = own.path.name if isinstance(own, Checkpoint) else "your model"
    models = {name: own} | {n: c for n, c in KNOWN_MODELS.items() if n != name}
    speeds = {THIS_MACHINE: bandwidth_gb_s or ReadProbe().bandwidth_gb_s()}
    speeds |= NOMINAL_GB_S if machines is None else machines
    made = {
        "machine": controls.listed("machine", list(speeds)),
        "model": controls.listed("model", list(models)),
        "bits": controls.choice("bits", [(_AS_IT_IS, 0), *((str(b), b) for b in _BITS)], 4),
        "group_size": controls.choice("group size", GROUP_SIZES, group_size),
        "batch": controls.powers("batch", 1, 1, 64),
    }

    def look(machine: str, model: str, bits: int, group_size: int, batch: int) -> View:
        table = bounds_by_setting(
            models[model], _cases(group_size), speeds[machine], contexts=_CONTEXTS, batch=batch
        )
        conditions = f"{model} on {machine}: {speed_text(speeds[machine])} GB/s; batch {batch}"
        axes = decode_bars(table, chosen=_case(bits, group_size), conditions=conditions)
        return View(axes, _text(table, _case(bits, group_size), conditions), {"bounds": table})

    return Explorer(made, look, live=live)


def _case(bits: int, group_size: int) -> str:
    return f"{bits} bits, g{group_size}" if bits else _AS_IT_IS


def _cases(group_size: int) -> dict[str, Settings | None]:
    settings = {
        _case(bits, group_size): Settings(bits=bits, group_size=group_size) for bits in _BITS
    }
    return {_AS_IT_IS: None} | settings


def _text(table: DataFrame, chosen: str, conditions: str) -> str:
    rows = table[table["case"] == chosen]
    first, last = rows.iloc[0], rows.iloc[-1]
    fast, slow = (speed_text(row["tok_per_s"]) for row in (first, last))
    return (
        f"{conditions}. {chosen}: at most {fast} tokens/s at a context of {first['context']:,}, "
        f"{slow} at {last['context']:,}; a step reads {first['weight_bytes'] / 1e9:.3g} GB of "
        "weights."
    )
