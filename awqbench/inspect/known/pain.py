"""What one known error text is made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

Derive = Callable[[Mapping[str, str]], "dict[str, str] | None"]


@dataclass(frozen=True)
class Pain:
    """An error text that users meet, and what it means.

    Parameters
    ----------
    title : str
        Unique, one line.
    cause, fix, check : str
        Templates for `str.format`, filled with the named groups, with what `derive` adds,
        and with the facts of the whole text: `model`, `tp`, `group`. `check` is a call of
        awqbench, in Python or in a shell.
    source : str
        Which tool prints it, and where the facts come from.
    patterns : tuple of str
        Regular expressions; one is enough. A space stands for any white space or none, so
        that wrapped lines match. Named groups become numbers. Gaps are bounded and
        quantifiers are not nested: a match takes time linear in the text.
    words : tuple of str
        The same in a user's own words, of any case, for what prints no error; tried on
        short texts without a traceback.
    derive : callable, optional
        From the named groups, further values for the templates; None if the numbers show
        that the text means something else.
    frames : str
        A regular expression that must be found near the match, mostly before it: for texts
        that mean nothing without the place that raised them.
    """

    title: str
    cause: str
    fix: str
    check: str
    source: str
    patterns: tuple[str, ...] = ()
    words: tuple[str, ...] = ()
    derive: Derive | None = None
    frames: str = ""
