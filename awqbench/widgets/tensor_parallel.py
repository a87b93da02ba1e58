"""Tensor parallel planner: models by ranks by group size; click a red cell for rule and fix."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from awqbench.formats.checkpoint import Checkpoint
from awqbench.inspect.parallel.engine_rules import ENGINES
from awqbench.inspect.parallel.known_configs import KNOWN_CONFIGS
from awqbench.inspect.parallel.plan import (
    GROUP_SIZES,
    TP_SIZES,
    plan_tensor_parallel,
    read_config,
)
from awqbench.plots.explore import fit_grid
from awqbench.widgets import controls
from awqbench.widgets.controls import CellGrid, Explorer
from awqbench.widgets.drawing import View

if TYPE_CHECKING:
    from pandas import DataFrame

_HINT = "Click a cell for its rule and the fix."


class Planner(Explorer):
    """The explorer, with a button for every case of the chosen model.

    `cells` has a button by (group size, ranks); `answer` says what the one clicked means.

    Parameters
    ----------
    models : mapping of str to Checkpoint or mapping
    cases : (tp_sizes, group_sizes)
    engine : str
        To begin with.
    live : bool, optional
    """

    def __init__(
        self, models: Mapping, cases: tuple[Iterable[int], Iterable[int]], engine: str, live
    ):
        self.models, self.cases = models, tuple(map(tuple, cases))
        self.cells, self.answer = CellGrid(self.click), controls.note()
        self._plans: dict[str, DataFrame] = {}
        made = {
            "model": controls.listed("model", models),
            "engine": controls.choice("engine", ENGINES, engine),
        }
        super().__init__(made, self._look, below=[self.cells.box, self.answer], live=live)

    def plan(self, engine: str) -> DataFrame:
        """Return the plans of all models on an engine, made once."""
        if engine not in self._plans:
            parts = [
                plan_tensor_parallel(config, *self.cases, engine).assign(model=name)
                for name, config in self.models.items()
            ]
            self._plans[engine] = pd.concat(parts, ignore_index=True)
        return self._plans[engine]

    def click(self, case: tuple[int, int]) -> None:
        """Say what a cell of the chosen model means.

        Parameters
        ----------
        case : (int, int)
            Group size and ranks.
        """
        mine = self.view.data["chosen"].set_index(["group_size", "tp_size"])
        self.answer.value = controls.paragraph(_meaning(case, mine.loc[case]))

    def _look(self, model: str, engine: str) -> View:
        plan = self.plan(engine)
        mine = plan[plan["model"] == model]
        self.cells.fill(_rows(mine))
        self.answer.value = controls.paragraph(_HINT)
        axes = fit_grid(plan, chosen=model, conditions=f"engine {engine}")
        return View(axes, _summary(model, engine, mine), {"plan": plan, "chosen": mine})


def explore(
    model: Checkpoint | Mapping | str | Path = "tiny",
    *,
    tp_sizes: Iterable[int] = TP_SIZES,
    group_sizes: Iterable[int] = GROUP_SIZES,
    engine: str = "vllm",
    live: bool | None = None,
) -> Planner:
    """See over how many ranks models split, and why not.

    Parameters
    ----------
    model : Checkpoint, mapping, str or Path
        As in `plan_tensor_parallel`; well-known models stand below it.
    tp_sizes, group_sizes : iterable of int
    engine : str
        To begin with.
    live : bool, optional
        As in `Explorer`.

    Returns
    -------
    Planner

    Raises
    ------
    FormatError, ParameterError
        As `plan_tensor_parallel`.
    """
    own = read_config(model) if isinstance(model, str | Path) else model
    models = {_name(own, model): own}
    models |= {name: config for name, config in KNOWN_CONFIGS.items() if name not in models}
    return Planner(models, (tp_sizes, group_sizes), engine, live)


def _name(own: Checkpoint | Mapping, given: object) -> str:
    if isinstance(own, Checkpoint):
        return own.path.name
    known = own.get("_name_or_path") or own.get("model_type") or "model"
    return str(known if given is own else given)


def _rows(mine: DataFrame) -> dict[str, dict]:
    rows: dict[str, dict] = {}
    for case in mine.itertuples():
        size = "whole rows" if case.group_size == -1 else f"group {case.group_size}"
        text = f"{case.tp_size}: " + ("fits" if case.fits else f"✗ {case.number}")
        rows.setdefault(size, {})[(case.group_size, case.tp_size)] = (text, bool(case.fits))
    return rows


def _meaning(case: tuple[int, int], row: pd.Series) -> str:
    group_size, tp_size = case
    place = f"{tp_size} ranks at group size {group_size} on {row['engine']}"
    if row["fits"]:
        return f"{place}: fits."
    more = f" ({row['n_broken'] - 1} more rules are broken)" if row["n_broken"] > 1 else ""
    return f"{place}: {row['layer']}: {row['detail']}{more}. Fix: {row['fix']}."


def _summary(model: str, engine: str, mine: DataFrame) -> str:
    parts = []
    for group_size, rows in mine.groupby("group_size", sort=False):
        fits = ", ".join(map(str, rows.loc[rows["fits"], "tp_size"])) or "no size"
        parts.append(f"{fits} at group {group_size}")
    return f"{model} on {engine} splits over {'; '.join(parts)}."
