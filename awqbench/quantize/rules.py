"""Rules for single linears: other bits, groups or zero points than the rest, or none at all."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import NamedTuple

import regex

from awqbench.errors import ParameterError

# A pattern that backtracks for longer than this on one name is a mistake.
_PATTERN_SECONDS = 0.25
_WORDS = {"true": True, "false": False}
_CHANGES = {"bits": int, "group_size": int, "zero_point": bool}
_LAYER = regex.compile(r"^(?P<stack>.*?\.)(?P<number>\d+)\.(?P<inside>.+)$")


class Rule(NamedTuple):
    """What the linears whose path a pattern is found in have in place of the settings.

    Parameters
    ----------
    pattern : str
        A regular expression, looked for anywhere in the full path, such as
        ``model.layers.0.mlp.down_proj``.
    bits, group_size : int, optional
        None as the settings say.
    zero_point : bool, optional
    skip : bool
        Leave the linear in full precision.
    """

    pattern: str
    bits: int | None = None
    group_size: int | None = None
    zero_point: bool | None = None
    skip: bool = False

    def matches(self, name: str) -> bool:
        """Tell whether the rule is about the linear at a module path.

        Raises
        ------
        ParameterError
            If the pattern takes too long.
        """
        try:
            return _compiled(self.pattern).search(name, timeout=_PATTERN_SECONDS) is not None
        except TimeoutError as error:
            raise ParameterError(
                f"the rule {self.pattern!r} takes too long to match {name}; write it without "
                "nested repetitions."
            ) from error

    def changes(self) -> dict[str, int | bool]:
        """Return the fields of `Settings` that it sets."""
        return {key: value for key in _CHANGES if (value := getattr(self, key)) is not None}

    def as_dict(self) -> dict:
        """Return pattern and changes as JSON-ready values."""
        return {"pattern": self.pattern} | ({"skip": True} if self.skip else self.changes())

    def __str__(self) -> str:
        """Return the rule as the command line takes it."""
        if self.skip:
            return f"{self.pattern}=skip"
        words = [f"{key}:{str(value).lower()}" for key, value in self.changes().items()]
        return f"{self.pattern}={','.join(words)}"


@lru_cache(maxsize=1024)
def _compiled(pattern: str) -> regex.Pattern:
    try:
        return regex.compile(pattern)
    except (regex.error, RecursionError, OverflowError) as error:
        raise ParameterError(
            f"the rule {pattern!r} is no regular expression: {error}. A literal dot is written "
            r"\. and a bracket \(."
        ) from error


def parse_rule(text: str) -> Rule:
    r"""Read a rule as the command line writes it; the last ``=`` ends the pattern.

    Parameters
    ----------
    text : str
        ``PATTERN=skip``, or ``PATTERN=`` and changes of bits, group_size and zero_point.

    Returns
    -------
    Rule

    Raises
    ------
    ParameterError
        If it is neither, or the pattern is no regular expression.

    Examples
    --------
    >>> parse_rule(r"down_proj=bits:8,group_size:64")
    Rule(pattern='down_proj', bits=8, group_size=64, zero_point=None, skip=False)
    >>> str(parse_rule(r"layers\.0\.=skip"))
    'layers\\.0\\.=skip'
    """
    pattern, equals, changes = text.rpartition("=")
    if not equals or not pattern:
        raise ParameterError(
            f"the rule {text!r} is not PATTERN=CHANGES; write such as 'down_proj=bits:8' or "
            r"'layers\.0\.=skip'."
        )
    if changes.strip() == "skip":
        return _checked(Rule(pattern, skip=True))
    fields = {}
    for item in changes.split(","):
        key, _, value = (part.strip() for part in item.partition(":"))
        kind = _CHANGES.get(key)
        try:
            fields[key] = _WORDS[value.lower()] if kind is bool else kind(value)
        except (KeyError, ValueError, TypeError) as error:
            raise ParameterError(
                f"the rule {text!r} says {item.strip()!r}; it can say skip, or bits:N, "
                "group_size:N and zero_point:true or false, with commas between."
            ) from error
    return _checked(Rule(pattern, **fields))


def make_rules(rules: Iterable[Rule | Mapping | str | tuple]) -> tuple[Rule, ...]:
    """Return rules from rules, from JSON, from pairs of pattern and changes, or from text.

    Parameters
    ----------
    rules : iterable of Rule, mapping, str or (str, mapping or "skip")
        A mapping is as `Rule.as_dict` gives it, a text as `parse_rule` takes it.

    Returns
    -------
    tuple of Rule

    Raises
    ------
    ParameterError
        If one is none of these, or changes nothing or what a rule cannot change.
    """
    if isinstance(rules, str | Mapping | Rule):
        rules = [rules]
    return tuple(_make_rule(rule) for rule in rules)


def _make_rule(rule: Rule | Mapping | str | tuple) -> Rule:
    if isinstance(rule, str):
        return parse_rule(rule)
    if isinstance(rule, Rule):
        return _checked(rule)
    if isinstance(rule, Mapping):
        changes = dict(rule)
        pattern = changes.pop("pattern", None)
    elif isinstance(rule, tuple | list) and len(rule) == 2:
        pattern, changes = rule
        changes = {"skip": True} if changes == "skip" else changes
    else:
        raise ParameterError(f"{rule!r} is no rule; give (pattern, changes).")
    if not isinstance(changes, Mapping) or not set(changes) <= {*_CHANGES, "skip"}:
        raise ParameterError(
            f"the rule for {pattern!r} changes {changes!r}; it can change "
            f"{', '.join(_CHANGES)}, or be 'skip'."
        )
    return _checked(Rule(pattern, **changes))


def _checked(rule: Rule) -> Rule:
    if not isinstance(rule.pattern, str) or not rule.pattern:
        raise ParameterError(f"the pattern of a rule is {rule.pattern!r}; give a text.")
    _compiled(rule.pattern)
    if bool(rule.changes()) == bool(rule.skip):
        what = "both skips and changes settings" if rule.skip else "changes nothing"
        raise ParameterError(
            f"the rule for {rule.pattern!r} {what}; give bits, group_size or zero_point, or skip."
        )
    return rule


def patterns_of(names: Iterable[str]) -> list[str]:
    r"""Return few regular expressions that match these module paths and no others.

    Examples
    --------
    >>> patterns_of(["m.0.up", "m.2.up", "m.0.gate", "m.2.gate", "head"])
    ['^m\\.(?:0|2)\\.(?:up|gate)$', '^head$']
    """
    layers: dict[tuple[str, str], list[str]] = {}
    plain = []
    for name in names:
        found = _LAYER.match(name)
        if found is None:
            plain.append(f"^{regex.escape(name)}$")
        else:
            layers.setdefault((found["stack"], found["inside"]), []).append(found["number"])
    together: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for (stack, path), numbers in layers.items():
        together.setdefault((stack, tuple(numbers)), []).append(path)
    patterns = [
        rf"^{regex.escape(stack)}(?:{'|'.join(numbers)})\.(?:{'|'.join(map(regex.escape, paths))})$"
        for (stack, numbers), paths in together.items()
    ]
    return patterns + plain
