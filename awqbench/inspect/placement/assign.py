"""Which device gets which piece, with room for what runs there from cpu or disk."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from awqbench.errors import ParameterError
from awqbench.inspect.placement.budgets import Device
from awqbench.inspect.placement.fill import fill_evenly, fill_in_order, overfill

STRATEGIES: dict[str, Callable] = {"even": fill_evenly, "in_order": fill_in_order}


class Load(NamedTuple):
    """Bytes of one piece; `kv_bytes` are for the planned context and batch."""

    module: str
    weight_bytes: int
    kv_bytes: int

    @property
    def total(self) -> int:
        """Weights and KV cache."""
        return self.weight_bytes + self.kv_bytes


class Assignment(NamedTuple):
    """The device of each load, by its number, and what the first device runs for others.

    Parameters
    ----------
    places : list of int
    fits : bool
    guest_bytes : int
        On the first accelerator: room to run the largest offloaded piece.
    """

    places: list[int]
    fits: bool
    guest_bytes: int = 0


def require_strategy(strategy: str) -> None:
    """Raise ParameterError if there is no such way to fill devices."""
    if strategy not in STRATEGIES:
        raise ParameterError(f"strategy is {strategy!r}; choose one of {', '.join(STRATEGIES)}.")


def assign(loads: Sequence[Load], devices: Sequence[Device], strategy: str) -> Assignment:
    """Give each load a device.

    Accelerators come first, in their order; what they cannot hold goes to cpu and disk, as
    few of the last pieces as possible. Those run on the first accelerator, which holds
    their KV cache and has room for the largest of them.

    Parameters
    ----------
    loads : sequence of Load
        In the order in which they run.
    devices : sequence of Device
    strategy : {"even", "in_order"}

    Returns
    -------
    Assignment
        `fits` is False where no split of consecutive pieces fits; the places are then
        those that overfill all accelerators by the same share.
    """
    fill = STRATEGIES[strategy]
    runs = [i for i, device in enumerate(devices) if not device.is_offload]
    stores = [i for i, device in enumerate(devices) if device.is_offload]
    room = [devices[i].usable_bytes for i in runs]
    totals = [load.total for load in loads]
    found = fill(totals, room)
    if found is not None:
        return Assignment([runs[i] for i in found], True)
    space = [devices[i].usable_bytes for i in stores]
    for kept in range(len(loads) - 1, -1, -1) if stores else ():
        rest = loads[kept:]
        stored = fill_in_order([load.weight_bytes for load in rest], space)
        if stored is None:
            break  # with more offloaded it fits still less
        guest = max(load.weight_bytes for load in rest)
        left = room[0] - guest - sum(load.kv_bytes for load in rest)
        if left < 0:
            continue
        found = fill(totals[:kept], [left, *room[1:]])
        if found is not None:
            places = [runs[i] for i in found] + [stores[i] for i in stored]
            return Assignment(places, True, guest)
    return Assignment([runs[i] for i in overfill(totals, room)], False)
