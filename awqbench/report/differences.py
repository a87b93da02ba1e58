"""What differs between two runs: parameters, texts, named values."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from awqbench.report.facts import parameter_texts

ABSENT = "–"
_EQUAL = "="


class Row(NamedTuple):
    """One thing that both runs have, or one of them.

    Attributes
    ----------
    name : str
    first, second : str
        `ABSENT` where a run does not have it.
    difference : str
        Second minus first, and in per cent of the first; of text, that it differs; ``=``
        where both are equal.
    """

    name: str
    first: str
    second: str
    difference: str

    @property
    def is_equal(self) -> bool:
        """Whether both runs have the same."""
        return self.difference == _EQUAL


def compare_values(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[Row]:
    """Set named values side by side; lists and mappings give a row for each number.

    Parameters
    ----------
    first, second : mapping of str to object
        JSON data, as the `values` of results.json.

    Returns
    -------
    list of Row
        In the order of the first, then what only the second has.

    Examples
    --------
    >>> for row in compare_values({"ppl": 8.0, "sizes": [3, 4]}, {"ppl": 9.0, "sizes": [3]}):
    ...     print(*row)
    ppl 8 9 +1 (+12.5 %)
    sizes.0 3 3 =
    sizes.1 4 – only in one
    """
    left, right = dict(flat(first)), dict(flat(second))
    missing = object()
    return [
        _row(name, left.get(name, missing), right.get(name, missing), missing)
        for name in dict.fromkeys([*left, *right])
    ]


def _row(name: str, first: Any, second: Any, missing: object) -> Row:
    shown = [ABSENT if item is missing else value_text(item) for item in (first, second)]
    if missing in (first, second):
        return Row(name, *shown, "only in one")
    return Row(name, *shown, difference(first, second))


def difference(first: Any, second: Any) -> str:
    """Say how far the second value is from the first.

    Parameters
    ----------
    first, second : object
        JSON scalars.

    Returns
    -------
    str

    Examples
    --------
    >>> difference(4, 3), difference(0, 2), difference("gptq", "awq"), difference(1, 1.0)
    ('-1 (-25 %)', '+2', 'differs', '=')
    """
    if first == second:
        return _EQUAL
    if not _is_number(first) or not _is_number(second):
        return "differs"
    change = second - first
    share = f" ({100 * change / abs(first):+.3g} %)" if first else ""
    return f"{change:+,.4g}{share}"


def _is_number(value: Any) -> bool:
    is_real = isinstance(value, (int, float)) and not isinstance(value, bool)
    return is_real and math.isfinite(value)


def value_text(value: Any) -> str:
    """Write a JSON scalar as it is read: five digits, thousands apart."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    return f"{value:,.5g}" if isinstance(value, float) else f"{value:,}"


def flat(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Walk mappings and lists down to scalars, with dotted names.

    Examples
    --------
    >>> dict(flat({"ppl": 8.0, "sizes": [3, 4]}))
    {'ppl': 8.0, 'sizes.0': 3, 'sizes.1': 4}
    """
    if isinstance(value, list):
        value = {str(index): item for index, item in enumerate(value)}
    if not isinstance(value, Mapping):
        yield prefix, value
        return
    for name, item in value.items():
        yield from flat(item, f"{prefix}.{name}" if prefix else name)


def text_rows(first: list[tuple[str, str]], second: list[tuple[str, str]]) -> list[Row]:
    """Set named texts side by side, in the order of the first."""
    left, right = dict(first), dict(second)
    names = dict.fromkeys([*left, *right])
    pairs = [(name, left.get(name, ABSENT), right.get(name, ABSENT)) for name in names]
    return [Row(name, a, b, _EQUAL if a == b else "differs") for name, a, b in pairs]


def parameter_rows(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[Row]:
    """Show parameters short, but in full where two that differ would look the same."""
    short = dict(parameter_texts(first)), dict(parameter_texts(second))
    for name in first.keys() & second.keys():
        if first[name] != second[name] and short[0].get(name) == short[1].get(name):
            short[0][name], short[1][name] = str(first[name]), str(second[name])
    return text_rows(list(short[0].items()), list(short[1].items()))
