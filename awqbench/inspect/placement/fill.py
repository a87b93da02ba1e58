"""Lay a sequence of modules on a sequence of devices; none is cut, none changes places.

Devices hold runs of consecutive modules, so that hidden states move from one device to the
next once each.
"""

from __future__ import annotations

from collections.abc import Sequence

# Halvings of the interval in which the least fullness lies: to one part in 10^9.
_STEPS = 30


def fill_in_order(loads: Sequence[int], capacities: Sequence[int]) -> list[int] | None:
    """Fill each device before the next.

    If any split into consecutive runs fits, this one does: each device takes as much as it
    can, so that the least is left for those after it.

    Parameters
    ----------
    loads : sequence of int
        Bytes of each module.
    capacities : sequence of int
        Bytes of each device.

    Returns
    -------
    list of int or None
        The device of each module; None if they do not fit.

    Examples
    --------
    >>> fill_in_order([4, 4, 4], [9, 5]), fill_in_order([4, 4, 4], [7, 7])
    ([0, 0, 1], None)
    """
    places: list[int] = []
    device, left = 0, capacities[0] if capacities else 0
    for load in loads:
        while device < len(capacities) and load > left:
            device += 1
            left = capacities[device] if device < len(capacities) else 0
        if device >= len(capacities):
            return None
        places.append(device)
        left -= load
    return places


def fill_evenly(loads: Sequence[int], capacities: Sequence[int]) -> list[int] | None:
    """Keep the fullest device, as a share of its capacity, as empty as can be.

    Parameters
    ----------
    loads, capacities : sequence of int

    Returns
    -------
    list of int or None
        None exactly where `fill_in_order` finds nothing either.

    Examples
    --------
    >>> fill_evenly([4, 4, 4, 4], [100, 100]), fill_evenly([4, 4, 4, 4], [300, 100])
    ([0, 0, 1, 1], [0, 0, 0, 1])
    """
    best = fill_in_order(loads, capacities)
    if best is None:
        return None
    low, high = 0.0, 1.0
    for _ in range(_STEPS):
        middle = (low + high) / 2
        found = fill_in_order(loads, [int(middle * size) for size in capacities])
        if found is None:
            low = middle
        else:
            best, high = found, middle
    return best


def overfill(loads: Sequence[int], capacities: Sequence[int]) -> list[int]:
    """Spread what does not fit: each device is overfull by the same share, as far as can be.

    Parameters
    ----------
    loads, capacities : sequence of int
        All capacities may be 0, and then count as equal.

    Returns
    -------
    list of int
    """
    if not any(capacities):
        capacities = [1] * len(capacities)
    total = sum(loads) + 1
    factor = -(-total // max(capacities))
    return fill_evenly(loads, [factor * size for size in capacities])
