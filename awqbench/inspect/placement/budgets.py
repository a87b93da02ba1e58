"""Memory budgets of devices: ``"40GiB"``, ``"24GB"``, or a number of bytes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

from awqbench.errors import ParameterError

_UNITS = {"": 1} | {
    prefix + suffix: base**power
    for power, prefix in enumerate("KMGT", start=1)
    for suffix, base in (("B", 1000), ("iB", 1024))
}
_SIZE = re.compile(r"(?P<number>\d+(\.\d+)?|\.\d+)\s*(?P<unit>[KMGT]i?B|B?)", re.IGNORECASE)
# accelerate moves what lies here to the first accelerator, block by block, to run it.
OFFLOAD = ("cpu", "disk")
GIB = 2**30


class Device(NamedTuple):
    """A device: its key in a device_map, its memory, and what of it is kept free.

    `is_offload` where it only keeps weights that run elsewhere.
    """

    name: str | int
    budget_bytes: int
    reserve_bytes: int
    is_offload: bool = False

    @property
    def usable_bytes(self) -> int:
        """Bytes that are left for weights and KV cache."""
        return max(self.budget_bytes - self.reserve_bytes, 0)


def unit_for(nbytes: int) -> tuple[str, int]:
    """Return the unit to show sizes in, and its bytes: GiB, or MiB for small models."""
    return ("GiB", GIB) if nbytes > GIB / 8 else ("MiB", 2**20)


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


def parse_budgets(
    budgets: Mapping[str | int, int | str], reserve: int | str | Mapping[str | int, int | str]
) -> list[Device]:
    """Return devices in the order of their budgets.

    Parameters
    ----------
    budgets : mapping
        Device (``"cuda:0"``, ``0``, ``"cpu"``, ``"disk"``) to its size.
    reserve : int or str or mapping
        What is kept free on each accelerator, or by device; none on cpu and disk.

    Raises
    ------
    ParameterError
        If there is no device that runs anything, a size cannot be read, or the reserve names
        another device.
    """
    if not isinstance(budgets, Mapping) or not budgets:
        raise ParameterError(
            "budgets names no device; give each its memory: {'cuda:0': '40GiB', 'cuda:1': '40GiB'}."
        )
    given = reserve if isinstance(reserve, Mapping) else None
    unknown = sorted(map(str, set(given or ()) - set(budgets)))
    if unknown:
        raise ParameterError(f"reserve names {', '.join(unknown)}, which budgets does not.")
    # With no accelerator the processor runs the model, and then its memory is no store.
    only_cpu = all(name in OFFLOAD for name in budgets)
    devices = []
    for name, size in budgets.items():
        runs = name not in OFFLOAD or (only_cpu and name == "cpu")
        kept = given.get(name, 0) if given is not None else (reserve if runs else 0)
        devices.append(
            Device(
                name,
                parse_bytes(size, what=f"budget of {name}"),
                parse_bytes(kept, what=f"reserve of {name}"),
                not runs,
            )
        )
    if all(device.is_offload for device in devices):
        raise ParameterError("budgets names disk alone; nothing runs there: add cuda:0 or cpu.")
    return devices


def local_budgets() -> dict[str | int, int]:
    """Return this machine's budgets: free memory of each CUDA device, or of the processor."""
    import psutil
    import torch

    if torch.cuda.is_available():
        return {
            f"cuda:{i}": int(torch.cuda.mem_get_info(i)[0])
            for i in range(torch.cuda.device_count())
        }
    return {"cpu": int(psutil.virtual_memory().available)}
