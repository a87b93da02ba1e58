"""Quantize the linears of one site: choose scales and ranges, round, and measure.

Everything is decided from the weights and the statistics of the site's input. Dividing
rows of a weight by a factor commutes with quantizing them, so the errors here are of the
effective weight Q(W s) / s, whether the scales are folded into the model or not.

Everything with N x K or K x K numbers is computed on the device of the moments, to which weights
are moved from wherever they are; what was chosen comes back to the CPU, where it is folded,
rounded by the NumPy grid, and packed. On a GPU last bits differ from those of a CPU, and with
them now and then a choice between two grid points that are equally good; this has been tested
on a stand-in for a GPU, not on a real one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from awqbench.errors import NonFiniteError, OverflowCastError
from awqbench.grid import quantize_groups
from awqbench.packed import PackedWeight
from awqbench.quantize.choices.clip import ClipChoice, search_clip
from awqbench.quantize.choices.gptq import inverse_factor, round_gptq
from awqbench.quantize.choices.rounding import (
    grid_of,
    group_ranges,
    output_error,
    quantization_error,
)
from awqbench.quantize.choices.scales import ScaleChoice, in_search_dtype, search_scales
from awqbench.quantize.statistics.experts import is_starved

if TYPE_CHECKING:
    import torch

    from awqbench.quantize.folds.find import Site
    from awqbench.quantize.settings import Settings
    from awqbench.quantize.statistics.moments import SiteMoments


class SiteChoice(NamedTuple):
    """What the search decided for a site.

    Parameters
    ----------
    channel_scales : (K,) torch.Tensor of float32
        On the CPU, as all tensors here.
    scales : ScaleChoice or None
        The search's curve; None where scales could not or should not be searched.
    clips : dict of str to ClipChoice
        For each linear; empty without a clip search.
    masked_channels : int
        Channels with non-finite statistics, which keep scale 1.
    is_plain : bool
        Whether the site is rounded plainly because its statistics are not finite, or because
        an expert saw too few tokens for any.
    """

    channel_scales: torch.Tensor
    scales: ScaleChoice | None
    clips: dict[str, ClipChoice]
    masked_channels: int = 0
    is_plain: bool = False


class RoundedLinear(NamedTuple):
    """A rounded linear and what the rounding lost.

    `flushed_groups` counts groups too small for the scales' dtype, stored as zeros.
    """

    packed: PackedWeight
    flushed_groups: int


def choose_site(
    site: Site,
    moments: SiteMoments,
    weights: dict[str, torch.Tensor],
    settings: Settings,
    *,
    name: str,
    scales: ScaleChoice | None = None,
) -> SiteChoice:
    """Choose channel scales and ranges for the linears of a site.

    Parameters
    ----------
    site : Site
    moments : SiteMoments
        On the device to search on.
    weights : dict of str to (N, K) torch.Tensor of float32
        The linears that will be quantized.
    settings : Settings
    name : str
        Of the site, for error texts.
    scales : ScaleChoice, optional
        Scales chosen elsewhere (by another objective), taken as they are.

    Returns
    -------
    SiteChoice

    Raises
    ------
    NonFiniteError
        If the statistics hold NaN or infinity and ``settings.on_nonfinite`` is "raise".
    """
    import torch

    identity = torch.ones(site.in_features)
    starved = is_starved(site, moments)
    bad = moments.nonfinite > 0
    n_bad = int(bad.sum())
    if n_bad and settings.on_nonfinite == "raise":
        raise NonFiniteError(
            f"{name}: the calibration text gave NaN or inf in {n_bad} of {site.in_features} "
            f"input channels ({moments.masked_tokens} tokens). Calibrate in float32 or "
            "bfloat16, or pass on_nonfinite='mask' (leave those channels unscaled) or 'round'."
        )
    if n_bad and settings.on_nonfinite == "round" or moments.n_tokens == 0 or starved:
        # What other sites share with this one is folded into their norm all the same.
        channel_scales = identity if scales is None else scales.channel_scales
        return SiteChoice(channel_scales, None, {}, n_bad, is_plain=True)
    weights = {path: weight.to(moments.device) for path, weight in weights.items()}
    own_scales = settings.scales == "awq" and site.prev_op is not None and not site.shares
    if scales is None and own_scales:
        mean_abs = torch.where(bad, torch.nan, moments.mean_abs())
        stacked = torch.cat(list(weights.values()))
        scales = search_scales(stacked, moments.gram(), mean_abs, settings, source=site.source)
    channel_scales = identity if scales is None else scales.channel_scales
    clips = {}
    if settings.clip:
        group_size = settings.group_size_for(site.in_features, name=name)
        s = channel_scales.to(moments.device)
        split = s.reshape(-1, group_size)
        blocks = moments.diagonal_blocks(group_size) / (split[:, :, None] * split[:, None, :])
        for path, weight in weights.items():
            clip = search_clip(weight * s, blocks, settings, group_size=group_size)
            clips[path] = clip._replace(shrink=clip.shrink.cpu())
    return SiteChoice(channel_scales, scales, clips, n_bad)


def round_site(
    choice: SiteChoice,
    moments: SiteMoments,
    weights: dict[str, torch.Tensor],
    settings: Settings,
    *,
    name: str,
) -> dict[str, RoundedLinear]:
    """Round the linears of a site as chosen.

    Parameters
    ----------
    choice : SiteChoice
    moments : SiteMoments
        On the device where GPTQ computes; plain rounding is NumPy's.
    weights : dict of str to (N, K) torch.Tensor of float32
        On the CPU. With channel scales applied, and row factors where another site's scales are
        folded into these rows.
    settings : Settings
    name : str
        Path of the block, for names and error texts.

    Returns
    -------
    dict of str to RoundedLinear

    Raises
    ------
    OverflowCastError
        If a group needs a scale that ``settings.scale_dtype`` cannot hold.
    """
    rounded = {}
    factor = None
    for path, weight in weights.items():
        full = f"{name}.{path}"
        clip = choice.clips.get(path)
        if settings.rounding == "gptq" and not choice.is_plain:
            if factor is None:
                s = choice.channel_scales.to(moments.device)
                factor = inverse_factor(moments.gram() / (s[:, None] * s))
            rounded[path] = _round_by_errors(weight, factor, clip, settings, name=full)
        else:
            rounded[path] = _round_nearest(weight, clip, settings, name=full)
    return rounded


def _round_nearest(weight, clip, settings: Settings, *, name: str) -> RoundedLinear:
    group_size = settings.group_size_for(weight.shape[1], name=name)
    quant = quantize_groups(
        weight.numpy(),
        settings.bits,
        group_size,
        zero_point=settings.zero_point,
        scale_dtype=settings.scale_dtype,
        underflow="flush",
        shrink=None if clip is None else clip.shrink.numpy(),
        name=name,
    )
    packed = _pack(quant.codes, quant.scales, quant.zeros, group_size, settings, name)
    return RoundedLinear(packed, quant.flushed_groups)


def _round_by_errors(weight, factor, clip, settings: Settings, *, name: str) -> RoundedLinear:
    group_size = settings.group_size_for(weight.shape[1], name=name)
    device = factor.device
    shrink = None if clip is None else clip.shrink.to(device)
    result = round_gptq(weight.to(device), factor, settings, group_size=group_size, shrink=shrink)
    codes, steps, zeros = (tensor.cpu().numpy() for tensor in result)
    if not np.isfinite(steps).all():
        raise OverflowCastError(
            f"{name} needs scales above {settings.scale_dtype}'s largest "
            f"({int((~np.isfinite(steps)).sum())} groups); store scales in bfloat16 or float32."
        )
    packed = _pack(codes, steps, zeros, group_size, settings, name)
    grouped = packed.codes.reshape(*zeros.shape, group_size)
    dead = (grouped == zeros[..., None]).all(axis=-1)
    alive = weight.unflatten(1, (-1, group_size)).abs().amax(dim=2).numpy() > 0
    return RoundedLinear(packed, int((dead & alive).sum()))


def _pack(codes, scales, zeros, group_size, settings: Settings, name: str) -> PackedWeight:
    return PackedWeight(
        codes=codes,
        scales=scales,
        zeros=zeros,
        bits=settings.bits,
        group_size=group_size,
        zero_point=settings.zero_point,
        scale_dtype=settings.scale_dtype,
        name=name,
    )


class LinearError(NamedTuple):
    """Squared output errors on the calibration text, as shares of the output's energy."""

    output_error: float
    rounding_error: float


def measure(
    weight: torch.Tensor,
    effective: torch.Tensor,
    moments: SiteMoments,
    settings: Settings,
) -> LinearError:
    """Compare an effective weight, and plain rounding, with the original.

    Parameters
    ----------
    weight : (N, K) torch.Tensor of float32
    effective : (N, K) torch.Tensor of float32
        The weight that the quantized linear applies, scales taken out.
    moments : SiteMoments
        On the device to compute on.
    settings : Settings

    Returns
    -------
    LinearError
    """
    gram = in_search_dtype(moments.gram())
    weight, effective = weight.to(gram.device), effective.to(gram.device)
    energy = max(float(output_error(weight, gram).double().sum()), 1e-30)
    loss = float(output_error(effective - weight, gram).double().sum())
    group_size = settings.group_size_for(weight.shape[1], name="weight")
    plain = quantization_error(
        weight, grid_of(*group_ranges(weight, group_size), settings), settings.bits
    )
    rounding = float(output_error(plain, gram).double().sum())
    return LinearError(loss / energy, rounding / energy)
