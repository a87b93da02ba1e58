"""Sizes in bytes, as people write them."""

from __future__ import annotations

import re

from awqbench.errors import ParameterError

GIB = 2**30
_UNITS = {"": 1} | {
    prefix + suffix: base**power
    for power, prefix in enumerate("KMGT", start=1)
    for suffix, base in (("B", 1000), ("iB", 1024))
}
_SIZE = re.compile(r"(?P<number>\d+(\.\d+)?|\.\d+)\s*(?P<unit>[KMGT]i?B|B?)", re.IGNORECASE)


def parse_bytes(size: int | str, *, what: str = "size") -> int:
    """Return a number of bytes.

    Parameters
    ----------
    size : int or str
        Bytes, or a number with a unit: B, KB, MB, GB, TB (powers of 1000) or KiB, MiB,
        GiB, TiB (powers of 1024).
    what : str
        For error texts.

    Raises
    ------
    ParameterError
        If it is neither.

    Examples
    --------
    >>> parse_bytes("40GiB"), parse_bytes("24GB"), parse_bytes(1024)
    (42949672960, 24000000000, 1024)
    """
    if isinstance(size, int) and not isinstance(size, bool) and size >= 0:
        return size
    found = _SIZE.fullmatch(size.strip()) if isinstance(size, str) else None
    if found is None:
        raise ParameterError(
            f"{what} is {size!r}; give bytes as an int, or a number with a unit such as '40GiB' "
            "(1024^3) or '24GB' (1000^3)."
        )
    unit = found["unit"].upper().replace("I", "i") if found["unit"] else ""
    return int(float(found["number"]) * _UNITS.get(unit, 1))
