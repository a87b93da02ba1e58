"""What a folder's configuration says about its quantization, module by module."""

from __future__ import annotations

import time
from typing import NamedTuple

import regex

from awqbench.errors import FormatError
from awqbench.formats.headers import shown

# Patterns come from a stranger's config.json; some that backtrack for ever are an attack.
_PATTERN_SECONDS = 0.25
_MAX_PATTERN_CHARACTERS = 2000


class Scheme(NamedTuple):
    """Bits and groups of a module's weight; `group_size` None or -1 means whole rows."""

    bits: int
    group_size: int | None
    zero_point: bool | None


class Rule(NamedTuple):
    """Modules whose name a pattern matches from its start, and their scheme (None: dense)."""

    pattern: str
    scheme: Scheme | None


class Quantization(NamedTuple):
    """How a checkpoint is quantized.

    `layout` is None where awqbench recognises the method and cannot read its weights;
    `advice` then says what it is and what can be done. `variant` tells kinds of one method
    apart, such as ``nf4``. Modules that a rule of `rules` matches have their own scheme.
    `act_order` says that input channels are in activation order, with their groups in g_idx.
    """

    method: str
    bits: int | None
    group_size: int | None
    zero_point: bool | None
    layout: str | None
    modules_to_not_convert: tuple[str, ...] = ()
    rules: tuple[Rule, ...] = ()
    variant: str = ""
    advice: str = ""
    act_order: bool = False

    def summary(self) -> str:
        """Return one phrase for messages, such as ``awq-gemm, 4 bits, group size 128``."""
        name = self.layout or " ".join(filter(None, (self.method, self.variant)))
        if not name.startswith(self.method):
            name = f"{self.method} ({name})"
        parts = [name]
        if self.bits:
            parts.append(f"{self.bits} bits")
        if self.group_size:
            parts.append("whole rows" if self.group_size == -1 else f"group size {self.group_size}")
        return ", ".join(parts)

    def require_readable(self) -> None:
        """Raise if the weights are in a layout that awqbench cannot read.

        Raises
        ------
        FormatError
            Names the method and says what can be done.
        """
        if self.layout is None:
            advice = self.advice or "load it with the tool that made it."
            raise FormatError(
                f"the folder is quantized by {self.method!r}, whose weights awqbench cannot read: "
                f"{advice}"
            )

    def scheme(self, module: str) -> Scheme:
        """Return bits and groups of one quantized module.

        Raises
        ------
        FormatError
            If the configuration does not say how many bits the module has, or holds a
            pattern that is no regular expression or takes too long.
        """
        deadline = time.monotonic() + _PATTERN_SECONDS
        for rule in self.rules:
            if matches(rule.pattern, module, timeout_s=deadline - time.monotonic()):
                if rule.scheme is None:
                    raise FormatError(
                        f"{module} has packed weights, and config.json says by "
                        f"{shown(rule.pattern)} that it is not quantized."
                    )
                return rule.scheme
        if self.bits is None:
            raise FormatError(f"config.json does not say how many bits {module} has.")
        return Scheme(self.bits, self.group_size, self.zero_point)


def matches(pattern: str, module: str, *, timeout_s: float = _PATTERN_SECONDS) -> bool:
    """Tell whether a pattern of a configuration matches a module's name from its start.

    Raises
    ------
    FormatError
        If it is no regular expression, or takes too long.
    """
    text = shown(pattern)
    if len(pattern) > _MAX_PATTERN_CHARACTERS:
        raise FormatError(f"config.json: the pattern {text} is {len(pattern)} long.")
    try:
        return regex.match(pattern, module, timeout=max(timeout_s, 0.001)) is not None
    except (regex.error, RecursionError, OverflowError, MemoryError) as error:
        raise FormatError(f"config.json: {text} is no regular expression: {error}") from error
    except TimeoutError as error:
        raise FormatError(f"config.json: the pattern {text} takes too long to match.") from error
