"""A suggestion of bits for every linear: what it holds, and how it shows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from awqbench.formats.config.section import inside
from awqbench.inspect.bits.choice_errors import SKIP, Choice
from awqbench.inspect.placement.budgets import unit_for

if TYPE_CHECKING:
    import pandas as pd

    from awqbench.quantize.rules import Rule
    from awqbench.quantize.settings import Settings


@dataclass(frozen=True)
class Suggestion:
    """Bits and group sizes for every linear, and what they are predicted to lose.

    Parameters
    ----------
    table : DataFrame
        A row for each linear: `linear`, `bits` (None: full precision), `group_size`,
        `n_weights`, `weight_bytes`, `output_error` (squared, as a share of the output's
        energy, by rounding with searched ranges), `impact`, `share` of the predicted error.
    settings : Settings
        With the rules, ready for ``quantize(settings=...)``.
    weight_bytes : int
        Of all tensors of the folder that `quantize` will write.
    limit_bytes : int
    bits_per_weight : float
        Of the quantized linears, scales and zero points counted.
    error : float
        Sum over the linears of `output_error` times `impact`.
    bound : float
        No assignment of these choices within the limit has less; equal to `error` where that
        is proven, which is the rule.
    uniform : DataFrame
        One row for each choice given to all linears: `choice` (in words), `bits`,
        `group_size`, `weight_bytes`, `bits_per_weight`, `error`.
    frontier : DataFrame
        `weight_bytes`, `bits_per_weight`, `error` of the best assignments at other sizes.
    """

    table: pd.DataFrame
    settings: Settings
    weight_bytes: int
    limit_bytes: int
    bits_per_weight: float
    error: float
    bound: float
    uniform: pd.DataFrame
    frontier: pd.DataFrame

    @property
    def rules(self) -> tuple[Rule, ...]:
        """Rules that give every linear its bits and group size, in any order."""
        return self.settings.rules

    def counts(self) -> pd.DataFrame:
        """Return how many layers have which choice, a row for each linear of a layer."""
        import pandas as pd

        paths = self.table["linear"].map(inside)
        words = [
            str(SKIP if np.isnan(b) else Choice(int(b), int(g)))
            for b, g in zip(self.table["bits"].astype(float), self.table["group_size"], strict=True)
        ]
        found = pd.crosstab(paths, pd.Series(words, name="choice", index=paths.index))
        return found.reindex(list(dict.fromkeys(paths))).rename_axis(index="linear")

    def as_dict(self) -> dict:
        """Return everything but the curves as JSON-ready values."""
        rows = self.table.astype(object).where(self.table.notna(), None)
        return {
            "weight_bytes": self.weight_bytes,
            "limit_bytes": self.limit_bytes,
            "bits_per_weight": self.bits_per_weight,
            "error": self.error,
            "bound": self.bound,
            "rules": [rule.as_dict() for rule in self.rules],
            "settings": self.settings.as_dict(),
            "uniform": self.uniform.to_dict("records"),
            "linears": rows.to_dict("records"),
        }

    def summary(self) -> str:
        """Return size and predicted error in one line, beside the nearest uniform choices."""
        name, unit = unit_for(self.weight_bytes)
        text = (
            f"{self.bits_per_weight:.3f} bits a weight, {self.weight_bytes / unit:.2f} {name} of "
            f"{self.limit_bytes / unit:.2f}; predicted error {self.error:.3%}"
        )
        smaller = self.uniform[self.uniform["weight_bytes"] <= self.weight_bytes]
        larger = self.uniform[self.uniform["weight_bytes"] > self.weight_bytes]
        beside = [*smaller.nsmallest(1, "error").itertuples()]
        beside += [*larger.nsmallest(1, "weight_bytes").itertuples()]
        parts = [f"{row.choice}: {row.error:.3%} at {row.bits_per_weight:.3f}" for row in beside]
        return text + (f" (all {'; all '.join(parts)})" if parts else "")

    def __str__(self) -> str:
        """Return the summary and how many layers have which choice."""
        return f"{self.summary()}\n\n{self.counts().to_string()}"

    def _repr_html_(self) -> str:
        return f"<p>{self.summary()}</p>{self.counts().to_html()}"
