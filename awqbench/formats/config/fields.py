"""Fields of a quantization section: read, checked, refused with their names."""

from __future__ import annotations

import json
from pathlib import Path

from awqbench.errors import FormatError
from awqbench.formats.config.quantization import Quantization, Scheme, matches

# Bits that a layout can have.
LAYOUT_BITS = {
    "awq-gemm": range(2, 9),
    "awq-gemv": (4,),
    "awq-gemv-fast": (4,),
    "awq-marlin": (4,),
    "gptq": (2, 3, 4, 8),
    "gptq-v2": (2, 3, 4, 8),
    "compressed-tensors": range(2, 9),
    "chatglm": (4, 8),
}


def checked(found: Quantization) -> Quantization:
    """Raise if the layout cannot have the bits or groups that the configuration says."""
    if found.layout is None:
        return found._replace(advice=found.advice)
    if found.bits is None and not found.rules:
        raise FormatError(f"config.json: {found.layout} without the number of bits.")
    schemes = [Scheme(found.bits, found.group_size, None)] if found.bits is not None else []
    for scheme in [*schemes, *(rule.scheme for rule in found.rules if rule.scheme)]:
        if scheme.bits not in LAYOUT_BITS[found.layout]:
            allowed = ", ".join(map(str, LAYOUT_BITS[found.layout]))
            raise FormatError(
                f"config.json: {found.layout} with bits {scheme.bits!r}; it has {allowed}."
            )
        if scheme.group_size is not None and (scheme.group_size < -1 or scheme.group_size == 0):
            raise FormatError(
                f"config.json: group_size {scheme.group_size} is neither positive nor -1."
            )
    for rule in found.rules:
        matches(rule.pattern, "")  # a pattern that is none is refused now, not at some layer
    return found._replace(advice="", variant="")


def bits_and_groups(
    section: dict, bits: str, old_bits: str | None, groups: str, old_groups: str | None
) -> tuple[int | None, int | None]:
    """Return bits and group size, by their keys of today or of old files."""
    found = [count(section, bits), count(section, groups)]
    for i, old in enumerate((old_bits, old_groups)):
        if found[i] is None and old is not None:
            found[i] = count(section, old)
    return found[0], found[1]


def count(section: dict, key: str, *, where: str = "quantization_config.") -> int | None:
    """Return a whole number of a section, None where it is absent; raises FormatError."""
    value = section.get(key)
    if value is None or (type(value) is int and abs(value) < 2**31):
        return value
    reason = "out of range" if type(value) is int else "not a number"
    raise FormatError(f"config.json: {where}{key} is {repr(value)[:80]}, {reason}.")


def skipped(section: dict, key: str = "modules_to_not_convert") -> tuple[str, ...]:
    """Return the names of modules that were left dense; raises FormatError."""
    skipped = section.get(key) or ()
    if not isinstance(skipped, (list, tuple)):
        raise FormatError(
            f"config.json: quantization_config.{key} is {repr(skipped)[:80]}, not a list."
        )
    return tuple(str(name) for name in skipped)


def read_json(path: Path) -> dict:
    """Read a JSON object.

    Raises
    ------
    FormatError
        If the file is missing, is not JSON, or holds something else than an object.
    """
    if path.exists() and not path.is_file():  # a pipe would be waited for
        raise FormatError(f"{path.name} cannot be read: it is no file.")
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise FormatError(f"{path.parent.name} has no {path.name}: not a model folder.") from error
    except (OSError, ValueError, RecursionError) as error:
        raise FormatError(f"{path.name} cannot be read as JSON: {error}") from error
    if not isinstance(value, dict):
        raise FormatError(f"{path.name} is not a JSON object.")
    return value
