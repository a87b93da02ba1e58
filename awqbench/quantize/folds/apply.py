"""Folding: scale what a site's linears multiply with, and undo it in the module before."""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from awqbench.errors import ParameterError

if TYPE_CHECKING:
    import torch

# Scales that must agree may differ by a few roundings of float32.
_SAME = 1e-6


class Site(NamedTuple):
    """Linears of a block that share one input, and the module that can absorb its scales.

    Parameters
    ----------
    name : str
        Path of the first linear, relative to the block like all paths here.
    linears : tuple of str
    in_features : int
        K, the channels of the shared input.
    prev_op : str or None
        The norm or linear that absorbs 1 / scale; None if there is none.
    kind : {"norm", "norm_plus_one", "linear"} or None
        How it absorbs: weight and bias of a norm, a norm that multiplies with 1 + weight,
        or rows of a linear.
    source : (K,) ndarray of int64 or None
        Element of the norm, or row of the linear, that feeds each channel. Repeated under
        grouped-query attention; -1 where a channel cannot be folded and keeps scale 1.
    reason : str
        Why the site, or some of its channels, cannot be folded; "" if all can.
    shares : str
        Name of the first of several sites that must have the same scales, as a norm before
        a mixture of experts feeds them all; "" where the scales are the site's own.
    readers : tuple of str
        Parameters beside the linears' weights that read the input too (a router's weight),
        whose columns are scaled with theirs.
    """

    name: str
    linears: tuple[str, ...]
    in_features: int
    prev_op: str | None = None
    kind: str | None = None
    source: np.ndarray | None = None
    reason: str = ""
    shares: str = ""
    readers: tuple[str, ...] = ()


def joined(sites: Sequence[Site]) -> list[Site]:
    """Return what is folded at one time: sites that share scales become one site.

    Parameters
    ----------
    sites : sequence of Site
        Of one block.

    Returns
    -------
    list of Site
        The joint site is in the place of the first of its sites, and has its name.
    """
    units: dict[str, Site] = {}
    for site in sites:
        key = site.shares or site.name
        if key in units:
            linears = units[key].linears + site.linears
            readers = tuple(dict.fromkeys(units[key].readers + site.readers))
            units[key] = units[key]._replace(linears=linears, readers=readers)
        else:
            units[key] = site
    return list(units.values())


def share_scales(site: Site, channel_scales: np.ndarray) -> np.ndarray:
    """Make scales foldable: the geometric mean over channels with one source, 1 without.

    Parameters
    ----------
    site : Site
    channel_scales : (K,) ndarray
        Positive.

    Returns
    -------
    (K,) ndarray of float64

    Raises
    ------
    ParameterError
        If `channel_scales` has the wrong length or holds zero, negative or NaN.

    Examples
    --------
    >>> site = Site("o", ("o",), 4, "v", "linear", np.array([0, 1, 0, 1]))
    >>> share_scales(site, np.array([1.0, 2.0, 4.0, 2.0])).tolist()
    [2.0, 2.0, 2.0, 2.0]
    """
    scales = _checked(site, channel_scales)
    if site.source is None:
        return np.ones(site.in_features)
    foldable = site.source >= 0
    source = site.source[foldable]
    count = np.bincount(source)
    total = np.bincount(source, weights=np.log2(scales[foldable]))
    shared = np.ones(site.in_features)
    shared[foldable] = np.exp2(total[source] / count[source])
    return shared


def fold_scales(
    tensors: MutableMapping[str, torch.Tensor], site: Site, channel_scales: np.ndarray
) -> None:
    """Multiply the columns of a site's linears by scales and divide its prev_op by them.

    The function that the block computes stays the same. Results are float32 (float64
    where the tensor was), for the caller to cast.

    Parameters
    ----------
    tensors : mapping of str to torch.Tensor
        A block's parameters by their path in it, such as ``mlp.up_proj.weight``; those of
        the site are replaced, none is changed in place.
    site : Site
    channel_scales : (K,) ndarray
        As `share_scales` makes them: equal where the source is, 1 where it is -1.

    Raises
    ------
    ParameterError
        If the site has no prev_op, the scales are not foldable, or a tensor is missing or
        has another shape.
    """
    if site.prev_op is None or site.source is None:
        raise ParameterError(f"{site.name} cannot be folded: {site.reason}")
    scales = _checked(site, channel_scales)
    shared = share_scales(site, scales)
    wrong = np.abs(scales / shared - 1.0) > _SAME
    if wrong.any():
        k = int(np.argmax(wrong))
        raise ParameterError(
            f"{site.name}: channel {k} has scale {scales[k]:.7g} where {shared[k]:.7g} can be "
            f"folded into {site.prev_op} (source {site.source[k]}; {int(wrong.sum())} of "
            f"{site.in_features} channels differ); pass the scales through share_scales first."
        )
    changed = _scaled_columns(tensors, site, scales)
    changed.update(_divided_rows(tensors, site, scales))
    tensors.update(changed)


@contextmanager
def folded(
    block: torch.nn.Module, site: Site, channel_scales: np.ndarray, *, compensate: bool = True
) -> Iterator[None]:
    """Hold a site of a block folded for a while.

    Parameters
    ----------
    block : torch.nn.Module
    site : Site
    channel_scales : (K,) ndarray
    compensate : bool
        False leaves prev_op as it is: the negative control, whose output must differ.
    """
    before = _tensors_of(block, site)
    tensors = dict(before)
    if compensate:
        fold_scales(tensors, site, channel_scales)
    else:
        tensors.update(_scaled_columns(tensors, site, _checked(site, channel_scales)))
    touched = [name for name in tensors if tensors[name] is not before[name]]
    try:
        for name in touched:
            block.get_parameter(name).data = tensors[name].to(before[name].dtype)
        yield
    finally:
        for name in touched:
            block.get_parameter(name).data = before[name]


def _tensors_of(block: torch.nn.Module, site: Site) -> dict[str, torch.Tensor]:
    """Return the parameters of a block that a fold of the site changes, by path."""
    names = [*(f"{linear}.weight" for linear in site.linears), *site.readers]
    if site.prev_op is not None:
        names += [f"{site.prev_op}.weight", f"{site.prev_op}.bias"]
    found = {}
    for name in names:
        owner, _, leaf = name.rpartition(".")
        param = block.get_submodule(owner)._parameters.get(leaf)
        if param is not None:
            found[name] = param.data
    return found


def _checked(site: Site, channel_scales: np.ndarray) -> np.ndarray:
    scales = np.asarray(channel_scales, dtype=np.float64)
    if scales.shape != (site.in_features,):
        raise ParameterError(
            f"{site.name} has {site.in_features} input channels, and {scales.shape} scales came."
        )
    bad = ~(np.isfinite(scales) & (scales > 0))
    if bad.any():
        k = int(np.argmax(bad))
        raise ParameterError(
            f"{site.name}: the scale of channel {k} is {scales[k]}; scales must be finite and "
            f"positive ({int(bad.sum())} of {scales.size} are not)."
        )
    return scales


def _scaled_columns(
    tensors: MutableMapping[str, torch.Tensor], site: Site, scales: np.ndarray
) -> dict[str, torch.Tensor]:
    changed = {}
    for name in (*(f"{linear}.weight" for linear in site.linears), *site.readers):
        weight = _wide(tensors, name)
        if weight.ndim != 2 or weight.shape[1] != site.in_features:
            raise ParameterError(
                f"{name} has shape {list(weight.shape)}; {site.name} needs "
                f"{site.in_features} columns."
            )
        changed[name] = weight * weight.new_tensor(scales)
    return changed


def _divided_rows(
    tensors: MutableMapping[str, torch.Tensor], site: Site, scales: np.ndarray
) -> dict[str, torch.Tensor]:
    weight = _wide(tensors, f"{site.prev_op}.weight")
    if site.source.max() >= weight.shape[0]:
        raise ParameterError(
            f"{site.prev_op}.weight has {weight.shape[0]} rows; {site.name} is fed by row "
            f"{int(site.source.max())}: the site belongs to another model."
        )
    rows = np.ones(weight.shape[0])
    foldable = site.source >= 0
    rows[site.source[foldable]] = scales[foldable]
    divisor = weight.new_tensor(rows)
    if site.kind == "norm_plus_one":
        changed = {f"{site.prev_op}.weight": (1 + weight) / divisor - 1}
    else:
        column = divisor.reshape((-1,) + (1,) * (weight.ndim - 1))
        changed = {f"{site.prev_op}.weight": weight / column}
    bias = f"{site.prev_op}.bias"
    if bias in tensors:
        changed[bias] = _wide(tensors, bias) / divisor
    return changed


def _wide(tensors: MutableMapping[str, torch.Tensor], name: str) -> torch.Tensor:
    if name not in tensors:
        raise ParameterError(f"the block's tensors hold no {name}, which the fold changes.")
    tensor = tensors[name]
    return tensor if tensor.element_size() == 8 else tensor.float()
