"""The tensors of one linear: checks that the layouts share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import numpy as np

from awqbench.errors import FormatError, NonFiniteError
from awqbench.numerics import round_to
from awqbench.packed import PackedWeight

if TYPE_CHECKING:
    import torch

SCALE_DTYPES = ("float16", "bfloat16", "float32")


def dtype_of(tensor: torch.Tensor) -> str:
    """Return a tensor's dtype by its short name, such as ``bfloat16``."""
    return str(tensor.dtype).removeprefix("torch.")


def require_parts(tensors: Mapping[str, torch.Tensor], parts: Iterable[str], *, name: str) -> None:
    """Raise if a tensor of the linear is missing.

    Raises
    ------
    FormatError
        Names the tensor and those that are there.
    """
    for part in parts:
        if part not in tensors:
            found = ", ".join(sorted(tensors)) or "none"
            raise FormatError(f"{name}: tensor {name}.{part} is missing; found {found}.")


def wrong_part(part: str, tensor: torch.Tensor, expected: str, *, name: str) -> FormatError:
    """Return the error of a tensor whose dtype or shape the layout cannot have."""
    return FormatError(
        f"{name}.{part} is {dtype_of(tensor)} of shape {tuple(tensor.shape)}; expected {expected}."
    )


def take_part(
    tensors: Mapping[str, torch.Tensor],
    part: str,
    *,
    dtypes: tuple[str, ...],
    ndim: int = 2,
    name: str,
) -> torch.Tensor:
    """Return a tensor of a linear after a look at its dtype and number of dimensions.

    Raises
    ------
    FormatError
        If it is missing, has another dtype or number of dimensions, or is empty.
    """
    require_parts(tensors, [part], name=name)
    tensor = tensors[part].detach()
    if dtype_of(tensor) not in dtypes or tensor.ndim != ndim or 0 in tensor.shape:
        expected = f"{' or '.join(dtypes)} with {ndim} dimension{'s' * (ndim > 1)}, none empty"
        raise wrong_part(part, tensor, expected, name=name)
    return tensor


def take_parts(
    tensors: Mapping[str, torch.Tensor], dtypes: Mapping[str, tuple[str, ...]], *, name: str
) -> list[torch.Tensor]:
    """Return the named parts, each a matrix of a dtype that it may have; see `take_part`."""
    require_parts(tensors, dtypes, name=name)
    return [take_part(tensors, p, dtypes=allowed, name=name) for p, allowed in dtypes.items()]


def group_size_of(in_features: int, n_groups: int, group_size: int | None, *, name: str) -> int:
    """Return the group size that K and G have, compared with the configuration's.

    Parameters
    ----------
    in_features, n_groups : int
        Both positive.
    group_size : int, optional
        As configured; -1 means whole rows. With it the last group may be short.
    name : str
        The scales' tensor, for error texts.

    Raises
    ------
    FormatError
        If K and `group_size` need another number of groups, or, without `group_size`, G
        does not divide K.
    """
    if group_size is None:
        if in_features % n_groups == 0:
            return in_features // n_groups
        raise FormatError(
            f"{name} has {n_groups} groups, which do not divide K = {in_features}; expected a "
            "divisor, or give group_size where the last group is short."
        )
    if type(group_size) is not int or (group_size < 1 and group_size != -1):
        raise FormatError(
            f"{name}: config says group_size {group_size!r}; expected a positive int, or -1."
        )
    size = in_features if group_size == -1 else min(group_size, in_features)
    expected = -(-in_features // size)
    if n_groups != expected:
        raise FormatError(
            f"{name} has {n_groups} groups; expected {expected}, for config says group_size "
            f"{group_size} and K is {in_features}."
        )
    return size


def check_scales(packed: PackedWeight, *, name: str) -> None:
    """Raise if the scales cannot be stored as they are in `packed.scale_dtype`.

    Raises
    ------
    NonFiniteError
        If they hold NaN or inf.
    FormatError
        If they are not numbers of that dtype.
    """
    bad = int((~np.isfinite(packed.scales)).sum())
    if bad:
        raise NonFiniteError(
            f"{name}: scales hold NaN or inf ({bad} of {packed.scales.size}); "
            "quantize the original weight again."
        )
    moved = int((round_to(packed.scales, packed.scale_dtype) != packed.scales).sum())
    if moved:
        raise FormatError(
            f"{name}: {moved} of {packed.scales.size} scales are not numbers of "
            f"{packed.scale_dtype}, which they would be stored in; quantize with "
            f"scale_dtype={packed.scale_dtype!r}, or keep them in float32."
        )
