"""Known error texts: cause, fix, and the call that checks it.

The knowledge is data in `awqbench.inspect.known`; here it is matched and put into words.
"""

from __future__ import annotations

import textwrap
import traceback
from dataclasses import dataclass, field
from html import escape

from awqbench.errors import AwqbenchError, ParameterError
from awqbench.inspect.known.matching import Found, clean_lines, find_known, one_line, text_facts
from awqbench.inspect.known.own import OwnError, find_own, from_exception

_WIDTH = 96
_MOST_SHOWN = 300
# What a template says where the text does not tell.
_PLACEHOLDERS = {"model": "MODEL", "tp": "TP", "group": "128"}


@dataclass(frozen=True)
class Explanation:
    """What an error text means, or that it is not known.

    Parameters
    ----------
    known : bool
    title, cause, fix : str
    check : str
        A call of awqbench, in a shell or in Python.
    source : str
        Who prints the text, and where the facts come from; empty if it is not known.
    numbers : dict
        What the text says and what follows from it: int, float or str by name.
    matched : str
        The part of the text that was recognised, without line ends.
    also : tuple of Explanation
        Other known texts in it, the last one first.
    """

    known: bool
    title: str
    cause: str
    fix: str
    check: str
    source: str = ""
    numbers: dict[str, int | float | str] = field(default_factory=dict)
    matched: str = ""
    also: tuple[Explanation, ...] = ()

    def __str__(self) -> str:
        lines = [self.title]
        for label, text in self._rows():
            if label == "check":
                lines.append(f"  {label:<8}{text}")
            else:
                indent = " " * 10
                lines += textwrap.wrap(
                    f"  {label:<8}{text}",
                    _WIDTH,
                    subsequent_indent=indent,
                    break_long_words=False,
                    break_on_hyphens=False,
                )
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        rows = "".join(
            f'<tr><th style="text-align:left;vertical-align:top">{escape(label)}</th>'
            f'<td style="text-align:left">{_as_html(label, text)}</td></tr>'
            for label, text in self._rows()
        )
        return f"<b>{escape(self.title)}</b><table>{rows}</table>"

    def _rows(self) -> list[tuple[str, str]]:
        rows = [("cause", self.cause), ("fix", self.fix), ("check", self.check)]
        if self.matched:
            rows.append(("text", self.matched))
        if self.source:
            rows.append(("source", self.source))
        if self.also:
            rows.append(("also", "; ".join(other.title for other in self.also)))
        return rows


def explain(text_or_exception: str | BaseException) -> Explanation:
    """Say what an error text or traceback means, if it is a known one.

    The last known text counts, as the last exception of a chain does; others are in
    `also`. Of a text beyond a million characters only the end is read.

    Parameters
    ----------
    text_or_exception : str or BaseException
        Any text that holds the error, coloured or wrapped, or an exception with its chain.

    Returns
    -------
    Explanation
        Prints as text and shows as a table in a notebook.

    Raises
    ------
    ParameterError
        If it is neither a text nor an exception.

    Examples
    --------
    >>> found = explain("Weight input_size_per_partition = 7392 is not divisible by "
    ...                 "min_thread_k = 128. Consider reducing tensor_parallel_size")
    >>> found.numbers["remainder"], found.numbers["fits"]
    (96, 7424)
    >>> explain("KeyError: 'colour'").known
    False
    """
    if isinstance(text_or_exception, BaseException):
        text = "".join(traceback.format_exception(text_or_exception))
    elif isinstance(text_or_exception, str):
        text = text_or_exception
    else:
        raise ParameterError(
            f"explain takes a text or an exception, not {type(text_or_exception).__name__}; "
            "give str(...) of it, or the exception that was caught."
        )
    lines = clean_lines(text)
    facts = text_facts(lines)
    found = [_from_pain(hit, facts) for hit in find_known(lines)]
    is_own = isinstance(text_or_exception, AwqbenchError)
    own = from_exception(text_or_exception) if is_own else find_own(lines)
    if own is not None:
        found.insert(0, _from_own(own, facts))
    if not found:
        return _unknown(lines, facts)
    return _with_others(found[0], tuple(found[1:]))


def _from_pain(hit: Found, facts: dict[str, str]) -> Explanation:
    pain = hit.pain
    values = _PLACEHOLDERS | facts | hit.derived | hit.groups
    said = hit.groups | {k: v for k, v in hit.derived.items() if _number(v) is not None}
    return Explanation(
        known=True,
        title=pain.title,
        cause=pain.cause.format_map(values),
        fix=pain.fix.format_map(values),
        check=pain.check.format_map(values),
        source=pain.source,
        numbers={name: _typed(value) for name, value in (facts | said).items()},
        matched=_shortened(hit.matched),
    )


def _from_own(own: OwnError, facts: dict[str, str]) -> Explanation:
    return Explanation(
        known=True,
        title=f"{own.name}, an error of awqbench itself",
        cause=own.cause,
        fix=own.fix,
        check=own.check.format_map(_PLACEHOLDERS | facts),
        source=f"awqbench: {own.meaning}",
        numbers={name: _typed(value) for name, value in facts.items()},
        matched=_shortened(one_line(own.message)),
    )


def _with_others(first: Explanation, others: tuple[Explanation, ...]) -> Explanation:
    values = {name: getattr(first, name) for name in first.__dataclass_fields__}
    return Explanation(**(values | {"also": others}))


def _unknown(lines: str, facts: dict[str, str]) -> Explanation:
    count = len(lines.splitlines())
    return Explanation(
        known=False,
        title="Not known",
        cause=f"No error text that awqbench knows is in this ({count} "
        f"line{'' if count == 1 else 's'}); it makes no guess.",
        fix="Read the last line of the traceback, and above it the last frame in your own code. "
        "If only a part was given, try the whole of it, with the log before it.",
        check="awqbench doctor {model}".format_map(_PLACEHOLDERS | facts),
        numbers={name: _typed(value) for name, value in facts.items()},
    )


def _shortened(text: str) -> str:
    if len(text) <= _MOST_SHOWN:
        return text
    return f"{text[: _MOST_SHOWN // 2]} ... {text[-_MOST_SHOWN // 2 :]}"


def _as_html(label: str, text: str) -> str:
    return f"<code>{escape(text)}</code>" if label in ("check", "text") else escape(text)


def _number(value: str) -> int | float | None:
    for kind in (int, float):
        try:
            return kind(value)
        except ValueError:
            continue
    return None


def _typed(value: str) -> int | float | str:
    number = _number(value)
    return value if number is None else number
