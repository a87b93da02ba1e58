"""The settings of a quantization, checked once."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace

from awqbench.errors import ParameterError
from awqbench.grid import check_settings
from awqbench.numerics import limits_of
from awqbench.quantize.rules import Rule, make_rules

ROUNDINGS = ("nearest", "gptq")
METHODS = ("awq", "none")
ON_NONFINITE = ("raise", "mask", "round")


@dataclass(frozen=True)
class Settings:
    """What decides a quantized weight, given weights and statistics.

    Parameters
    ----------
    bits : int
        2 to 8.
    group_size : int
        Input channels that share a scale; -1 means whole rows.
    zero_point : bool
        Asymmetric groups.
    scales : {"awq", "none"}
        Whether channel scales are searched.
    clip : bool
        Whether the range of each group is searched.
    rounding : {"nearest", "gptq"}
    n_grid : int
        Points of the alpha grid.
    max_rows : int
        Rows of a site's weights that the search of scales looks at, evenly spaced; the
        losses that are reported are of all rows.
    on_nonfinite : {"raise", "mask", "round"}
        What to do at a site whose statistics hold NaN or infinity: refuse, leave the bad
        channels unscaled, or round the whole site plainly.
    scale_dtype : {"float16", "bfloat16", "float32"}
        What group scales are stored in.
    modules_to_not_convert : tuple of str
        Linears whose path holds one of these stay in full precision.
    layout : str
        How the weights lie on disk; plays no part in the search.
    rules : tuple of Rule
        Bits, group size and zero points of single linears, or skip; the first rule that
        matches a linear's path counts. Given as `make_rules` takes them.
    """

    bits: int = 4
    group_size: int = 128
    zero_point: bool = True
    scales: str = "awq"
    clip: bool = True
    rounding: str = "nearest"
    n_grid: int = 20
    max_rows: int = 512
    on_nonfinite: str = "raise"
    scale_dtype: str = "float16"
    modules_to_not_convert: tuple[str, ...] = ()
    layout: str = "awq-gemm"
    rules: tuple[Rule, ...] = ()

    def __post_init__(self):
        object.__setattr__(self, "rules", make_rules(self.rules))
        object.__setattr__(self, "modules_to_not_convert", tuple(self.modules_to_not_convert))
        check_settings(self.bits, -1, 1)
        limits_of(self.scale_dtype)
        if self.group_size != -1:
            check_settings(self.bits, self.group_size, 0)
        for name, allowed in (
            ("scales", METHODS),
            ("rounding", ROUNDINGS),
            ("on_nonfinite", ON_NONFINITE),
        ):
            if getattr(self, name) not in allowed:
                raise ParameterError(
                    f"{name} is {getattr(self, name)!r}; choose one of {', '.join(allowed)}."
                )
        for name in ("n_grid", "max_rows"):
            if getattr(self, name) < 1:
                raise ParameterError(f"{name} is {getattr(self, name)}; it must be 1 or more.")
        for rule in self.rules:
            self._with(rule)

    def rule_for(self, name: str) -> Rule | None:
        """Return the first rule that matches the linear at a module path."""
        return next((rule for rule in self.rules if rule.matches(name)), None)

    def converts(self, name: str) -> bool:
        """Tell whether the linear at a module path is quantized."""
        if any(part in name for part in self.modules_to_not_convert):
            return False
        rule = self.rule_for(name)
        return rule is None or not rule.skip

    def for_linear(self, name: str) -> Settings:
        """Return the settings of one linear, without rules; ask `converts` first."""
        return self._with(self.rule_for(name)) if self.rules else self

    def _with(self, rule: Rule | None) -> Settings:
        try:
            return replace(self, rules=(), **(rule.changes() if rule else {}))
        except ParameterError as error:
            raise ParameterError(f"the rule {str(rule)!r}: {error}") from error

    def by_settings(self, names: Iterable[str]) -> dict[Settings, list[str]]:
        """Return linears by their own settings, those of fewest bits and widest groups first."""
        found: dict[Settings, list[str]] = {}
        for name in names:
            found.setdefault(self.for_linear(name), []).append(name)
        return dict(sorted(found.items(), key=lambda item: item[0]._coarseness()))

    def _coarseness(self) -> tuple:
        size = float("inf") if self.group_size == -1 else self.group_size
        return self.bits, -size, self.zero_point

    def group_size_for(self, in_features: int, *, name: str) -> int:
        """Return the group size for a linear, positive; by its rule, if there is one for it.

        Raises
        ------
        AlignmentError
            If it does not divide K.
        """
        own = self.for_linear(name)
        return check_settings(own.bits, own.group_size, in_features, name=name)

    def label(self) -> str:
        """Return the method's name for tables: ``rounding``, ``AWQ + clip + GPTQ``, ..."""
        parts = ["AWQ"] if self.scales == "awq" else []
        parts += ["clip"] if self.clip else []
        parts += ["GPTQ"] if self.rounding == "gptq" else []
        return " + ".join(parts) or "rounding"

    def as_dict(self) -> dict:
        """Return the settings as JSON-ready values."""
        fields = asdict(replace(self, rules=()))
        return fields | {"rules": [rule.as_dict() for rule in self.rules]}
