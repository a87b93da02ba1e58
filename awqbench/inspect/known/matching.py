"""Find known error texts in a traceback, a log, or what a user wrote.

Terminals wrap and colour what they print, notebooks and rich draw frames around it, and
PowerShell writes UTF-16. The text is brought to one line with single spaces; if nothing is
found, to one without spaces, as a hard wrap in the middle of a word needs it.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator
from functools import cache
from typing import NamedTuple

from awqbench.inspect.known import PAINS
from awqbench.inspect.known.pain import Pain

# The last error counts; of a longer text only the end is read.
MOST_CHARACTERS = 1 << 20
# A user's own words are short; in a log the same words mean little.
_MOST_IN_WORDS = 2000
_SUBJECT = re.compile(
    r"quanti[sz]|awq|gptq|\bint[48]\b|\b[48]-?bit|vllm|qwen|llama|calib|llm\b|exclamation"
    r"|intermediate_size|\bscales?\b",
    re.IGNORECASE,
)
_TRACEBACK = "Traceback (most recent call last)"
# How far around a match the frame that gives it a meaning may be.
_FRAMES_BEFORE, _FRAMES_AFTER = 20_000, 500
# Matches of one pattern that are looked at, from the last.
_TRIED = 8

_COLOUR = re.compile(
    r"\x1b\[[0-?]{0,50}[ -/]{0,5}[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)|[\0\ufeff]"
)
_POINTERS = re.compile(r"^[ \t│|]*[~^]+[ \t│|]*$", re.MULTILINE)
_BLANKS = re.compile(r"[\s─-╿]+")

_FACTS = {
    "model": re.compile(
        r"(?:--model[ =]|vllm serve |\bmodel ?= ?['\"]|from_(?:pretrained|quantized)\( ?['\"])"
        r"['\"]?(?P<value>[\w~./][\w~./-]{1,120})"
    ),
    "tp": re.compile(r"(?:tensor[-_]parallel[-_]size['\"]?|-tp) ?[ =:] ?(?P<value>\d{1,3})\b"),
    "group": re.compile(r"\b(?:q_)?group_?size['\"]? ?[ =:] ?(?P<value>\d{1,5})\b"),
}


class Found(NamedTuple):
    """A known error text at its place in the cleaned text."""

    pain: Pain
    start: int
    end: int
    matched: str
    groups: dict[str, str]
    derived: dict[str, str]


def clean_lines(text: str) -> str:
    """Take colours, carriage returns and pointers (``^^^^``) out of a text; keep its lines."""
    text = _COLOUR.sub("", text[-MOST_CHARACTERS:]).replace("\r\n", "\n").replace("\r", "\n")
    return _POINTERS.sub("", text)


def one_line(lines: str, blank: str = " ") -> str:
    """Join lines, box drawings and runs of white space into single blanks."""
    return _BLANKS.sub(blank, lines).strip()


def find_known(lines: str) -> list[Found]:
    """Find the known error texts in cleaned lines, the last one first.

    Of two that overlap the one that ends later stays; if they end together, the one that
    needs a frame, then the longer one.
    """
    text = one_line(lines)
    in_words = len(text) <= _MOST_IN_WORDS and _TRACEBACK not in lines
    in_words = in_words and _SUBJECT.search(text) is not None
    found = [hit for pain in PAINS if (hit := _last_match(pain, text, in_words, " ?"))]
    if not found:
        text = one_line(lines, "")
        found = [hit for pain in PAINS if (hit := _last_match(pain, text, False, ""))]
    found.sort(key=lambda hit: (hit.end, bool(hit.pain.frames), hit.end - hit.start), reverse=True)
    apart: list[Found] = []
    for hit in found:
        if all(hit.end <= other.start or hit.start >= other.end for other in apart):
            apart.append(hit)
    return apart


def text_facts(lines: str) -> dict[str, str]:
    """Read the model, the tensor parallel size and the group size that a text names."""
    text = one_line(lines)
    facts = {name: pattern.search(text) for name, pattern in _FACTS.items()}
    return {name: match["value"] for name, match in facts.items() if match}


def _last_match(pain: Pain, text: str, in_words: bool, blank: str) -> Found | None:
    return max(_matches(pain, text, in_words, blank), key=lambda hit: hit.end, default=None)


def _matches(pain: Pain, text: str, in_words: bool, blank: str) -> Iterator[Found]:
    """Yield the last fitting match of every pattern."""
    for pattern in _compiled(pain, in_words, blank):
        for match in reversed(deque(pattern.finditer(text), maxlen=_TRIED)):
            groups = {name: value for name, value in match.groupdict().items() if value}
            derived = pain.derive(groups) if pain.derive else {}
            if derived is not None and _has_frame(pain, text, match):
                yield Found(pain, match.start(), match.end(), match[0].strip(), groups, derived)
                break


def _has_frame(pain: Pain, text: str, match: re.Match) -> bool:
    if not pain.frames:
        return True
    around = text[max(0, match.start() - _FRAMES_BEFORE) : match.end() + _FRAMES_AFTER]
    return re.search(pain.frames, around) is not None


@cache
def _compiled(pain: Pain, in_words: bool, blank: str) -> tuple[re.Pattern, ...]:
    """Compile a pain's patterns; a space in them, optional or not, becomes `blank`."""
    words = pain.words if in_words else ()
    return (
        *(re.compile(_with_blanks(pattern, blank)) for pattern in pain.patterns),
        *(re.compile(_with_blanks(pattern, blank), re.IGNORECASE) for pattern in words),
    )


def _with_blanks(pattern: str, blank: str) -> str:
    return pattern.replace(" ?", " ").replace(" ", blank)
