"""Devices that torch can compute on, asked before work is done there."""

from __future__ import annotations

from typing import TYPE_CHECKING

from awqbench.errors import DeviceError

if TYPE_CHECKING:
    import torch


def usable_device(device: str | torch.device) -> torch.device:
    """Return a device after one addition on it.

    Raises
    ------
    DeviceError
        If torch has no such device or cannot compute there; names what it sees.
    """
    import torch

    try:
        target = torch.device(device)
        torch.zeros(1, device=target).cpu()
    # A torch built without CUDA raises AssertionError for it.
    except (RuntimeError, AssertionError, ImportError, TypeError) as error:
        has_cuda = torch.cuda.is_available()
        found = f"{torch.cuda.device_count()} CUDA devices" if has_cuda else "no CUDA device"
        raise DeviceError(
            f"device {str(device)!r} is asked for, and torch {torch.__version__} cannot compute "
            f"there: it sees {found}. Leave device out or pass device='cpu', which gives the same "
            "numbers, or install torch for that device."
        ) from error
    return target
