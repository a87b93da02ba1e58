"""Which linears deserve more bits? The best assignment under a size limit, from statistics.

Every choice of bits and group size is rounded with searched ranges for every linear, which
gives its output error; the choices are then allocated so that the sum of output errors times
impacts is least. The impact of a linear is how much of the residual stream its module writes:
the geometric mean of that share where it is written and at the end.

That weighting was chosen on the embedded model. Alone at 3 bits, each of its 32 groups of linears
changes the next token's distribution by a divergence (KL) that follows output error times impact,
and divergences of groups add up: their sum for all at 3 or 4 bits is within 12 % of what is
measured. By that sum, allocations at six sizes from 3.3 to 4.4 bits lose against the best one

=========================================  ==========
output error weighted by                   loses more
=========================================  ==========
impact                                     4 to 25 %
output energy (absolute error)             8 to 30 %
nothing (relative error)                   16 to 55 %
number of weights                          24 to 108 %
=========================================  ==========

and searching channel scales for each choice changes nothing that matters. On 40 windows of 256
held-out tokens (the weighting was chosen on half of them) a suggestion of 3.5 bits a weight has
perplexity 15.30, three random mixes of that size 15.65 to 15.74; all linears at 3 bits in groups
of 64 (3.30 bits a weight) have 15.80, at 4 bits in groups of 128 (4.16 bits) 15.14. At the very
size of the latter the suggestion is as good as that one setting, and no better.

A model whose modules norm their outputs before they add them (Gemma 2, OLMo 2) writes less than
its linears say, and experts write less than their outputs by their routing weights: impacts are
then rough. Engines limit the choices further: vLLM runs 4 and 8 bits.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from awqbench.errors import ParameterError
from awqbench.formats.checkpoint import open_checkpoint
from awqbench.inspect.bits.allocate import Allocation, allocate
from awqbench.inspect.bits.choice_errors import SKIP, Choice, choice_errors, make_choices
from awqbench.inspect.bits.suggestion import Suggestion
from awqbench.inspect.placement.budgets import parse_bytes
from awqbench.quantize.choices.rule_checks import merged_linears
from awqbench.quantize.rules import Rule, patterns_of
from awqbench.quantize.search import make_settings
from awqbench.quantize.statistics.stats import load_stats

if TYPE_CHECKING:
    import pandas as pd

    from awqbench.formats.checkpoint import Checkpoint
    from awqbench.quantize.settings import Settings
    from awqbench.quantize.statistics.stats import Stats

CHOICES = ((3, 128), (3, 64), (4, 128), (4, 64), (4, 32), (8, 128))
# Points of the curve of the least error against size.
_FRONTIER_POINTS = 40


def suggest_bits(
    ckpt: Checkpoint | str | Path,
    stats: Stats | str | Path,
    target_bytes: int | str | None = None,
    *,
    bits_per_weight: float | None = None,
    choices: Iterable = CHOICES,
    layout: str = "compressed-tensors",
    settings: Settings | None = None,
    with_scales: bool = False,
    **changes,
) -> Suggestion:
    """Suggest bits and group size of every linear under a size limit; the model is not run.

    Linears that engines merge into one weight (q, k and v; gate and up) get the same.

    Parameters
    ----------
    ckpt : Checkpoint or str or Path
        The full-precision model.
    stats : Stats or str or Path
        Of this model, by `calibrate`.
    target_bytes : int or str, optional
        The most that all tensors of the written folder may take, such as ``"3.5GiB"``.
    bits_per_weight : float, optional
        In its place: the most bits for a weight of the quantized linears, with scales and zero
        points. One of the two is needed.
    choices : iterable of (int, int) or "skip"
        Bits and group sizes to choose from; ``"skip"`` is full precision.
    layout : str
        Of the folder; sizes are counted as it stores them.
    settings : Settings, optional
        How the model will be quantized. Its rules may only skip.
    with_scales : bool
        Search channel scales for every choice too, for twice the time.
    **changes
        Fields of `Settings`.

    Returns
    -------
    Suggestion

    Raises
    ------
    ParameterError
        If the limit is missing, given twice, or below the smallest choices; if a choice is
        none.
    FormatError
        If the layout does not hold the choices.
    AlignmentError, StatisticsError, NonFiniteError
        As `search`.
    """
    settings = make_settings(settings, layout=layout, **changes)
    predictor = Predictor(
        open_checkpoint(ckpt), load_stats(stats), choices, settings, with_scales=with_scales
    )
    return predictor.suggest(target_bytes, bits_per_weight=bits_per_weight)


class Predictor:
    """Errors and sizes of all choices, worked out once for many limits.

    Parameters
    ----------
    ckpt : Checkpoint
    stats : Stats
    choices, settings, with_scales
        As `suggest_bits`.
    """

    def __init__(
        self,
        ckpt: Checkpoint,
        stats: Stats,
        choices: Iterable,
        settings: Settings,
        *,
        with_scales: bool = False,
    ):
        ckpt.require_full_precision()
        stats.check(ckpt)
        changing = [rule for rule in settings.rules if not rule.skip]
        if changing:
            raise ParameterError(
                f"the rule {str(changing[0])!r} sets what is to be suggested; give rules that "
                "skip, or choices."
            )
        self.settings = settings
        self.choices = make_choices(choices, settings)
        self.errors = choice_errors(ckpt, stats, self.choices, settings, with_scales=with_scales)
        if not len(self.errors):
            raise ParameterError("every linear is left out; there is nothing to suggest.")
        each = self.errors.drop_duplicates("linear")
        self.units = merged_linears(each["linear"])
        self.kept_bytes = ckpt.nbytes - int(each["dense_bytes"].sum())
        self.n_weights = int(each["n_weights"].sum())

    @cached_property
    def _unit_choices(self) -> list[pd.DataFrame]:
        """Size and loss of each unit's choices, of those that all its linears allow."""
        unit_of = {name: i for i, unit in enumerate(self.units) for name in unit}
        rows = self.errors.assign(
            unit=self.errors["linear"].map(unit_of),
            loss=_loss(self.errors),
        )
        sums = rows.groupby(["unit", "choice"]).agg(
            size=("weight_bytes", "sum"), loss=("loss", "sum"), linears=("linear", "size")
        )
        found = []
        for i, unit in enumerate(self.units):
            whole = sums.loc[i].query("linears == @n", local_dict={"n": len(unit)})
            found.append(whole.reset_index())
        return found

    def allocate(self, limit_bytes: int) -> Allocation:
        """Return the best choice of each unit when all tensors may take so many bytes."""
        try:
            return allocate(
                [unit["size"].to_numpy() for unit in self._unit_choices],
                [unit["loss"].to_numpy() for unit in self._unit_choices],
                limit_bytes - self.kept_bytes,
            )
        except ParameterError as error:
            least = self.kept_bytes + sum(int(unit["size"].min()) for unit in self._unit_choices)
            bits = 8 * (least - self.kept_bytes) / self.n_weights
            if least <= limit_bytes:
                raise
            raise ParameterError(
                f"the limit is {limit_bytes:,} bytes, and the smallest choices take {least:,} "
                f"({bits:.3f} bits a weight; {self.kept_bytes:,} bytes are not quantized). Raise "
                "the limit, or add a choice of fewer bits."
            ) from error

    def suggest(
        self, target_bytes: int | str | None = None, *, bits_per_weight: float | None = None
    ) -> Suggestion:
        """Suggest for one limit; parameters and errors are those of `suggest_bits`."""
        limit = self._limit(target_bytes, bits_per_weight)
        found = self.allocate(limit)
        chosen = {
            name: int(self._unit_choices[i]["choice"].iloc[at])
            for i, at in enumerate(found.choices)
            for name in self.units[i]
        }
        return Suggestion(
            table=self._table(chosen),
            settings=self._with_rules(chosen),
            weight_bytes=self.kept_bytes + found.size,
            limit_bytes=limit,
            bits_per_weight=8 * found.size / self.n_weights,
            error=found.loss,
            bound=found.bound,
            uniform=self.uniform(),
            frontier=self.frontier(),
        )

    def _limit(self, target_bytes: int | str | None, bits_per_weight: float | None) -> int:
        if (target_bytes is None) == (bits_per_weight is None):
            raise ParameterError("give one limit: target_bytes, or bits_per_weight.")
        if target_bytes is not None:
            return parse_bytes(target_bytes, what="target_bytes")
        if not 0 < bits_per_weight < float("inf"):
            raise ParameterError(f"bits_per_weight is {bits_per_weight}; it must be positive.")
        return self.kept_bytes + int(bits_per_weight * self.n_weights / 8)

    def _table(self, chosen: dict[str, int]) -> pd.DataFrame:
        key = self.errors.set_index(["linear", "choice"])
        table = key.loc[list(chosen.items())].reset_index().drop(columns=["choice", "dense_bytes"])
        loss = _loss(table)
        return table.assign(share=loss / (loss.sum() or 1.0))

    def _with_rules(self, chosen: dict[str, int]) -> Settings:
        """Return settings with a rule for each choice; the commonest is the base besides."""
        rules = list(self.settings.rules)
        packed = [c for c in chosen.values() if self.choices[c] != SKIP]
        base = self.choices[max(set(packed), key=packed.count)] if packed else Choice(4, 128)
        for index in sorted(set(chosen.values())):
            names = [name for name, at in chosen.items() if at == index]
            bits, group_size = self.choices[index]
            changes = {"skip": True} if bits is None else {"bits": bits, "group_size": group_size}
            rules += [Rule(pattern, **changes) for pattern in patterns_of(names)]
        return make_settings(
            self.settings, bits=base.bits, group_size=base.group_size, rules=tuple(rules)
        )

    def uniform(self) -> pd.DataFrame:
        """Return size and error of each choice given to all linears that allow it."""
        import pandas as pd

        rows = []
        n_linears = sum(len(unit) for unit in self.units)
        for index, choice in enumerate(self.choices):
            mine = self.errors[self.errors["choice"] == index]
            if len(mine) < n_linears:
                continue
            size = int(mine["weight_bytes"].sum())
            loss = float(_loss(mine).sum())
            rows.append(
                {"choice": str(choice), "bits": choice.bits, "group_size": choice.group_size}
                | self._point(size, loss)
            )
        columns = ["choice", "bits", "group_size", *self._point(0, 0.0)]
        return pd.DataFrame(rows, columns=columns)

    def frontier(self) -> pd.DataFrame:
        """Return the least error at sizes from the smallest to the largest choices."""
        import pandas as pd

        least = sum(int(unit["size"].min()) for unit in self._unit_choices)
        most = sum(int(unit["size"].max()) for unit in self._unit_choices)
        limits = np.unique(np.geomspace(least, most, _FRONTIER_POINTS).round().astype(int))
        found = [self.allocate(self.kept_bytes + int(x)) for x in limits.clip(least, most)]
        return pd.DataFrame([self._point(a.size, a.loss) for a in found]).drop_duplicates()

    def _point(self, size: int, loss: float) -> dict:
        return {
            "weight_bytes": self.kept_bytes + size,
            "bits_per_weight": 8 * size / self.n_weights,
            "error": loss,
        }


def _loss(errors: pd.DataFrame) -> pd.Series:
    return errors["output_error"] * errors["impact"]
