"""The grid of `awqbench.grid` in torch, for searches over many candidates.

Every function here is the fast twin of one there and is tested against it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from awqbench.numerics import limits_of

if TYPE_CHECKING:
    import torch

    from awqbench.quantize.settings import Settings


# Rows taken at a time through the element-wise steps of a candidate on a CPU, so that they stay
# in the second-level cache: 128 x 3072 float32 numbers are 1.5 MB.
ROWS_IN_CACHE = 128
# Numbers taken at a time on a GPU (64 MiB in float32): enough for all of its cores, and some
# ten temporaries of that size fit beside H.
_NUMBERS_ON_GPU = 1 << 24


class Grid(NamedTuple):
    """Steps and zero points of groups, (N, G, 1) float32 each."""

    steps: torch.Tensor
    zeros: torch.Tensor


def row_parts(weight: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Return a weight (N, K) in runs of rows, as many as its device takes best at a time."""
    if weight.device.type == "cpu":
        return weight.split(ROWS_IN_CACHE)
    return weight.split(_rows_on_gpu(weight.shape[1]))


def _rows_on_gpu(in_features: int) -> int:
    return max(ROWS_IN_CACHE, _NUMBERS_ON_GPU // in_features)


def row_numbers(in_features: int, out_features: int) -> int:
    """Return how many numbers of a weight `row_parts` gives at a time on a GPU."""
    return in_features * min(out_features, _rows_on_gpu(in_features))


def group_ranges(weight: torch.Tensor, group_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return least and greatest value of each group, widened to hold 0.

    Parameters
    ----------
    weight : (N, K) torch.Tensor of float32
    group_size : int

    Returns
    -------
    (low, high) : (N, G, 1) torch.Tensor each
    """
    grouped = weight.unflatten(1, (-1, group_size))
    low = grouped.amin(dim=2, keepdim=True).clamp_(max=0)
    high = grouped.amax(dim=2, keepdim=True).clamp_(min=0)
    return low, high


def grid_of(low: torch.Tensor, high: torch.Tensor, settings: Settings) -> Grid:
    """Return the grid of groups with given ranges; twin of `grid.scale_and_zero`.

    Steps are as stored in ``settings.scale_dtype``; an overflow gives infinity, which the
    search rejects as a candidate and the final quantization refuses by name.
    """
    import torch

    bits = settings.bits
    top = (1 << bits) - 1
    if settings.zero_point:
        exact = (high - low) / top
    else:
        exact = torch.maximum(-low, high) / ((1 << (bits - 1)) - 1)
    exact = torch.where(exact == 0, torch.ones_like(exact), exact)
    if settings.scale_dtype == "float32":
        steps = exact
    else:
        dtype = getattr(torch, settings.scale_dtype)
        steps = exact.to(dtype).float()
        short = steps < exact * (1 - 2.0**-7)
        steps = torch.where(
            short, steps + limits_of(settings.scale_dtype).smallest_subnormal, steps
        )
    if not settings.zero_point:
        return Grid(steps, torch.full_like(steps, 1 << (bits - 1)))
    return Grid(steps, (-low / steps).round_().clamp_(0, top))


def quantization_error(weight: torch.Tensor, grid: Grid, bits: int) -> torch.Tensor:
    """Return the decoded weight less the weight, group by group.

    Parameters
    ----------
    weight : (N, K) torch.Tensor of float32
    grid : Grid
    bits : int

    Returns
    -------
    (N, K) torch.Tensor of float32
    """
    grouped = weight.unflatten(1, (grid.steps.shape[1], -1))
    steps = (grouped / grid.steps).round_()
    # clamp(round(w / s) + z, 0, top) - z, with one addition less.
    steps = steps.clamp_(-grid.zeros, (1 << bits) - 1 - grid.zeros)
    return steps.mul_(grid.steps).sub_(grouped).flatten(1)


def output_error(error: torch.Tensor, gram: torch.Tensor) -> torch.Tensor:
    """Return d H d' for every row d of a weight error.

    Parameters
    ----------
    error : (N, K) torch.Tensor of float32
    gram : (K, K) torch.Tensor of float32 or bfloat16
        In bfloat16 the products with it are too: half the time, and 4e-4 of a loss.

    Returns
    -------
    (N,) torch.Tensor of float32
        Squared output error of each output channel, summed over the calibration tokens.
    """
    return (error.to(gram.dtype) @ gram).to(error.dtype).mul_(error).sum(dim=1)
