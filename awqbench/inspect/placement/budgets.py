"""Memory budgets of devices: ``"40GiB"``, ``"24GB"``, or a number of bytes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from awqbench.errors import ParameterError
from awqbench.sizes import GIB, parse_bytes

# accelerate moves what lies here to the first accelerator, block by block, to run it.
OFFLOAD = ("cpu", "disk")


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
