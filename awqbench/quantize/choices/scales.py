"""Search AWQ's channel scales of one site from its statistics.

A site is a set of linears that share an input X. Multiplying input channel k of their
weights by s_k and dividing the input by it changes nothing in full precision and changes
which weights are rounded well. Candidates are s = x^alpha / w^(1 - alpha) with x the mean
activation magnitude and w the mean relative weight magnitude of a channel (Lin et al.,
arXiv:2306.00978, section 3.2, as AutoAWQ extends it by w); the judge is tr(D H D') on
all calibration tokens, so that the model is not run again.

Candidates are made on the CPU, a number for each channel; they are judged where H is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from awqbench.quantize.choices.rounding import grid_of, group_ranges, quantization_error, row_parts

if TYPE_CHECKING:
    import torch

    from awqbench.quantize.settings import Settings

# Magnitudes below this share of the largest count as this share: a dead channel would
# otherwise drive every other scale to nothing.
_RELATIVE_FLOOR = 1e-6
# Widest ratio of scales that is tried, either side of 1.
_LOG_LIMIT = float(np.log(1e4))


class ScaleChoice(NamedTuple):
    """Channel scales of a site and how they were found.

    `channel_scales` are on the CPU. `alpha` is NaN where no scaling (identity) won. `losses`
    has one entry for each of `alphas`, with NaN first for identity; both are of the sampled
    rows.
    """

    channel_scales: torch.Tensor
    alpha: float
    alphas: np.ndarray
    losses: np.ndarray


def weight_magnitude(weight: torch.Tensor, group_size: int) -> torch.Tensor:
    """Return each input channel's mean magnitude relative to its group's largest weight.

    Parameters
    ----------
    weight : (N, K) torch.Tensor of float32
    group_size : int

    Returns
    -------
    (K,) torch.Tensor of float32, between 0 and 1
    """
    grouped = weight.abs().unflatten(1, (-1, group_size))
    largest = grouped.amax(dim=2, keepdim=True)
    largest.masked_fill_(largest == 0, 1)
    return (grouped / largest).flatten(1).mean(dim=0)


def normalise(log_scales: torch.Tensor, source: np.ndarray | None) -> torch.Tensor:
    """Turn log scales into scales with sqrt(max * min) = 1, equal where they must be.

    Working in logarithms, nothing overflows whatever the activations' magnitude.

    Parameters
    ----------
    log_scales : (K,) torch.Tensor
        Finite, or NaN for a channel that must keep scale 1.
    source : (K,) ndarray of int or None
        Channels with the same source share a scale (their mean); -1 keeps scale 1.

    Returns
    -------
    (K,) torch.Tensor of float32
    """
    import torch

    free = torch.isfinite(log_scales)
    if source is not None:
        index = torch.as_tensor(np.asarray(source))
        free &= index >= 0
        n_sources = int(index.max()) + 1 if index.numel() else 0
        if n_sources and bool(free.any()):
            # A source is free only if all of its channels are.
            blocked = torch.zeros(n_sources, dtype=torch.bool)
            blocked[index[(index >= 0) & ~free]] = True
            free &= ~blocked[index.clamp(min=0)]
            sums, counts = torch.zeros(2, n_sources, dtype=torch.float64)
            sums.index_add_(0, index[free], log_scales[free].double())
            counts.index_add_(0, index[free], torch.ones(int(free.sum()), dtype=torch.float64))
            means = (sums / counts.clamp(min=1)).to(log_scales.dtype)
            log_scales = torch.where(free, means[index.clamp(min=0)], log_scales)
    if not free.any():
        return torch.ones_like(log_scales)
    middle = (log_scales[free].max() + log_scales[free].min()) / 2
    centred = (log_scales - middle).clamp(-_LOG_LIMIT, _LOG_LIMIT)
    return torch.where(free, centred.exp(), torch.ones_like(centred))


def candidate_scales(
    mean_abs: torch.Tensor, magnitude: torch.Tensor, alpha: float, source: np.ndarray | None
) -> torch.Tensor:
    """Return the channel scales of one alpha, x^alpha / w^(1 - alpha), normalised.

    Parameters
    ----------
    mean_abs : (K,) torch.Tensor
        Mean activation magnitudes; NaN marks a channel that must keep scale 1.
    magnitude : (K,) torch.Tensor
        Mean relative weight magnitudes. A channel of zeros (padding) keeps scale 1: any scale
        serves it, and the formula's huge one would shift the others when they are normalised.
    alpha : float
    source : (K,) ndarray of int or None
        See `normalise`.

    Returns
    -------
    (K,) torch.Tensor of float32
    """

    def log_of(values):
        finite = values[values.isfinite()]
        floor = _RELATIVE_FLOOR * float(finite.max()) if finite.numel() else 0.0
        return values.clamp(min=floor if floor > 0 else 1.0).log()

    mean_abs = mean_abs.where(magnitude > 0, float("nan"))
    return normalise(alpha * log_of(mean_abs) - (1 - alpha) * log_of(magnitude), source)


def search_scales(
    weight: torch.Tensor,
    gram: torch.Tensor,
    mean_abs: torch.Tensor,
    settings: Settings,
    *,
    source: np.ndarray | None = None,
) -> ScaleChoice:
    """Find the channel scales of a site with the least output error.

    Parameters
    ----------
    weight : (N, K) torch.Tensor of float32
        Weights of all linears of the site, one below the other.
    gram : (K, K) torch.Tensor of float32
        H of the site's input, on the weight's device.
    mean_abs : (K,) torch.Tensor
        On the CPU; see `candidate_scales`.
    settings : Settings
    source : (K,) ndarray of int, optional
        Which channels must share a scale.

    Returns
    -------
    ScaleChoice
        Identity if no candidate is better than no scaling.
    """
    import torch

    in_features = weight.shape[1]
    group_size = settings.group_size_for(in_features, name="site")
    magnitude = weight_magnitude(weight, group_size).cpu()
    rows = sample_rows(weight, settings.max_rows)
    gram = in_search_dtype(gram)
    alphas = np.arange(settings.n_grid) / settings.n_grid
    identity = torch.ones(in_features)
    candidates = [identity] + [candidate_scales(mean_abs, magnitude, a, source) for a in alphas]
    losses = losses_of(candidates, rows, gram, settings, group_size)
    losses[~np.isfinite(losses)] = np.inf
    best = int(np.argmin(losses))
    grid = np.concatenate([[np.nan], alphas])
    return ScaleChoice(candidates[best], float(grid[best]), grid, losses)


def in_search_dtype(gram: torch.Tensor) -> torch.Tensor:
    """Return H in bfloat16 where the processor multiplies that fast, else as it is."""
    return gram.bfloat16() if multiplies_bfloat16(gram.device) else gram


def multiplies_bfloat16(device: torch.device) -> bool:
    """Tell whether a device has units for products of bfloat16 numbers."""
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    supported = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)
    return supported is not None and supported()


def sample_rows(weight: torch.Tensor, max_rows: int) -> torch.Tensor:
    """Return at most `max_rows` evenly spaced rows."""
    if len(weight) <= max_rows:
        return weight
    index = np.linspace(0, len(weight) - 1, max_rows).round().astype(int)
    return weight[index]


def losses_of(
    candidates: list[torch.Tensor],
    rows: torch.Tensor,
    gram: torch.Tensor,
    settings: Settings,
    group_size: int,
) -> np.ndarray:
    """Return the `scaled_loss` of each candidate, (K,) on the CPU, for rows where H is."""
    return np.array(
        [scaled_loss(rows, gram, s.to(rows.device), settings, group_size) for s in candidates]
    )


def scaled_loss(
    weight: torch.Tensor,
    gram: torch.Tensor,
    channel_scales: torch.Tensor,
    settings: Settings,
    group_size: int,
) -> float:
    """Return tr(D H D') with D = Q(W s) / s - W.

    Parameters
    ----------
    weight : (N, K) torch.Tensor of float32
    gram : (K, K) torch.Tensor of float32 or bfloat16
        In bfloat16 the products with it are too (measured: relative error of a loss 4e-4,
        same choice of alpha).
    channel_scales : (K,) torch.Tensor of float32
    settings : Settings
    group_size : int

    Returns
    -------
    float
    """
    import torch

    errors = []
    for rows in row_parts(weight):
        scaled = rows * channel_scales
        grid = grid_of(*group_ranges(scaled, group_size), settings)
        errors.append(quantization_error(scaled, grid, settings.bits).div_(channel_scales))
    error = torch.cat(errors)
    return float(((error.to(gram.dtype) @ gram).float() * error).sum())
