"""Rules against a model's linears and against a layout, before any work is done."""

from __future__ import annotations

import re
from collections.abc import Iterable
from difflib import get_close_matches
from typing import TYPE_CHECKING

from awqbench.errors import FormatError, ParameterError
from awqbench.formats.config.limits import check_layout

if TYPE_CHECKING:
    from awqbench.quantize.rules import Rule
    from awqbench.quantize.settings import Settings

# Neighbours that engines load as one weight, and so ask for one setting (vLLM: "All shards of
# fused layers to have the same precision"). Of w1, w2 and w3 the first set that is whole counts:
# Mixtral's w2 is the down projection, the first Qwen has no w3.
_MERGED = (
    ("q_proj", "k_proj", "v_proj"),
    ("gate_proj", "up_proj"),
    ("w1", "w3"),
    ("w1", "w2"),
    ("q_a_proj", "kv_a_proj_with_mqa"),
)
# All experts of a layer are one kernel's operands.
_EXPERTS = re.compile(r"^(?P<layer>.*\.experts)\.\d+\.")


def check_rules(settings: Settings, names: Iterable[str]) -> None:
    """Check that every rule means some linear, and that merged linears stay alike.

    Parameters
    ----------
    settings : Settings
    names : iterable of str
        Module paths of all linears that could be quantized.

    Raises
    ------
    ParameterError
        If a rule matches no linear, or only linears that earlier rules take; if rules give
        linears that engines merge different settings; names them and the nearest fix.
    """
    names = [*names]
    if not settings.rules:
        return
    taken = {name: settings.rule_for(name) for name in names}
    for number, rule in enumerate(settings.rules, start=1):
        if not any(found is rule for found in taken.values()):
            raise ParameterError(_useless(rule, number, taken))
    for unit in merged_linears(names):
        _check_unit(settings, unit, taken)


def _useless(rule: Rule, number: int, taken: dict[str, Rule | None]) -> str:
    matched = [name for name in taken if rule.matches(name)]
    text = f"rule {number}, {str(rule)!r}, "
    if matched:
        first = taken[matched[0]]
        return (
            f"{text}matches {len(matched)} linears, and earlier rules take them all (the first "
            f"that matches counts): {matched[0]} goes by {str(first)!r}. Put the narrower rule "
            "first, or leave one out."
        )
    inside = sorted({re.sub(r"\d+", "0", name) for name in taken})
    near = get_close_matches(rule.pattern, inside, n=1, cutoff=0.0)
    return (
        f"{text}matches none of the {len(taken)} linears; their paths are such as "
        f"{near[0] if near else 'none'}."
    )


def merged_linears(names: Iterable[str]) -> list[tuple[str, ...]]:
    """Group linears as engines load them: q, k and v; gate and up; all experts of a layer.

    Parameters
    ----------
    names : iterable of str
        Module paths.

    Returns
    -------
    list of tuple of str
        Every name once, in the order of the first of each group.

    Examples
    --------
    >>> merged_linears(["l.0.k_proj", "l.0.o_proj", "l.0.q_proj", "l.0.v_proj"])
    [('l.0.k_proj', 'l.0.q_proj', 'l.0.v_proj'), ('l.0.o_proj',)]
    """
    names = list(names)
    known = set(names)
    units: dict[str, list[str]] = {}
    for name in names:
        units.setdefault(_unit_of(name, known), []).append(name)
    return [tuple(unit) for unit in units.values()]


def _unit_of(name: str, known: set[str]) -> str:
    experts = _EXPERTS.match(name)
    if experts:
        return experts["layer"]
    parent, _, last = name.rpartition(".")
    for together in _MERGED:
        paths = [f"{parent}.{part}" for part in together]
        if known.issuperset(paths):
            if last in together:
                return paths[0] + "+"
            if set(together) & {"w1"} and last in ("w1", "w2", "w3"):
                return name  # w2 beside w1 and w3
    return name


def _check_unit(settings: Settings, unit: tuple[str, ...], taken: dict[str, Rule | None]) -> None:
    """Raise if rules set the linears of a merged group apart."""
    found = {}
    for name in unit:
        own = settings.for_linear(name)
        kept = not settings.converts(name)
        found.setdefault("skip" if kept else (own.bits, own.group_size, own.zero_point), name)
    if len(found) == 1 or not any(taken[name] for name in unit):
        return  # modules_to_not_convert alone may part them: AutoAWQ's own way, where it works
    (one, first), (two, second) = list(found.items())[:2]
    last = sorted({re.escape(name.rpartition(".")[2]) for name in unit})
    raise ParameterError(
        f"the rules give {first} {_words(one)} and {second} {_words(two)}. Engines load these as "
        "one weight and refuse different settings (vLLM: all shards of fused layers must have the "
        f"same precision). Write one rule for all, such as '({'|'.join(last)})=...'."
    )


def _words(setting: tuple | str) -> str:
    if setting == "skip":
        return "full precision"
    bits, group_size, zero_point = setting
    group = "whole rows" if group_size == -1 else f"groups of {group_size}"
    return f"{bits} bits, {group}{'' if zero_point else ', symmetric'}"


def check_rules_held(settings: Settings, names: Iterable[str]) -> None:
    """Check that the layout holds the settings of every linear.

    Parameters
    ----------
    settings : Settings
    names : iterable of str
        Module paths of all linears that could be quantized.

    Raises
    ------
    FormatError
        If it does not; names the rule and the nearest layout that does.
    ParameterError
        If the layout is not one that is written, or every linear is left out.
    """
    converted = [name for name in names if settings.converts(name)]
    if not converted:
        raise ParameterError(
            "every linear is left in full precision; leave out a rule that skips, or a name of "
            "modules_to_not_convert."
        )
    groups = settings.by_settings(converted)
    for own, linears in groups.items():
        rule = settings.rule_for(linears[0])
        try:
            check_layout(settings.layout, own)
        except FormatError as error:
            if rule is None:
                raise
            raise FormatError(f"{linears[0]} (by the rule {str(rule)!r}): {error}") from error
    if settings.layout.startswith("awq-") and len(groups) > 1:
        (one, first), (two, second) = list(groups.items())[:2]
        raise FormatError(
            f"an AutoAWQ folder has one width and group size for all linears, and can only leave "
            f"some out: the rules give {first[0]} {one.bits} bits and group size "
            f"{one.group_size}, {second[0]} {two.bits} and {two.group_size}. Choose "
            "layout='compressed-tensors' or 'gptq-v2'."
        )
