"""Search how far the range of each group is worth shrinking.

A narrower range costs the outermost weights and serves all others with a finer step. For
one group of one output channel the output error is d Hg d', with Hg the group's diagonal
block of H: all groups and all calibration tokens are judged at once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from awqbench.quantize.choices.rounding import grid_of, group_ranges, quantization_error, row_parts
from awqbench.quantize.statistics.moments import bfloat16_products

if TYPE_CHECKING:
    import torch

    from awqbench.quantize.settings import Settings

# Shares of the full range that are tried, as AutoAWQ's grid: 1.0, 0.95, ... 0.55.
SHRINKS = tuple(1 - step / 20 for step in range(10))


class ClipChoice(NamedTuple):
    """Share of its full range that each group keeps, and what that gains.

    `loss_before` and `loss_after` count the diagonal blocks of H only.
    """

    shrink: torch.Tensor
    loss_before: float
    loss_after: float


def search_clip(
    weight: torch.Tensor, blocks: torch.Tensor, settings: Settings, *, group_size: int
) -> ClipChoice:
    """Find the share of its range that each group should keep.

    Parameters
    ----------
    weight : (N, K) torch.Tensor of float32
        As it will be rounded, that is, with channel scales applied.
    blocks : (G, group_size, group_size) torch.Tensor of float32
        Diagonal blocks of the scaled input's H, on the weight's device.
    settings : Settings
    group_size : int

    Returns
    -------
    ClipChoice
        `shrink` is (N, G) float32, on the weight's device; 1.0 is always a candidate.
    """
    import torch

    parts = [
        _search_rows(rows, blocks, settings, group_size=group_size) for rows in row_parts(weight)
    ]
    shrink = torch.cat([part.shrink for part in parts])
    return ClipChoice(
        shrink, sum(part.loss_before for part in parts), sum(part.loss_after for part in parts)
    )


def _search_rows(weight, blocks, settings: Settings, *, group_size: int) -> ClipChoice:
    import torch

    low, high = group_ranges(weight, group_size)
    best_loss = best_shrink = first_loss = None
    for shrink in SHRINKS:
        grid = grid_of(low * shrink, high * shrink, settings)
        error = quantization_error(weight, grid, settings.bits)
        by_group = error.unflatten(1, (-1, group_size)).transpose(0, 1)  # (G, N, g)
        with bfloat16_products():
            product = torch.bmm(by_group, blocks)
        loss = product.mul_(by_group).sum(dim=2).T  # (N, G)
        loss = torch.where(loss.isfinite(), loss, torch.inf)
        if best_loss is None:
            best_loss, first_loss = loss, loss
            best_shrink = torch.ones_like(loss)
            continue
        better = loss < best_loss
        best_shrink = torch.where(better, torch.full_like(best_shrink, shrink), best_shrink)
        best_loss = torch.where(better, loss, best_loss)
    return ClipChoice(best_shrink, float(first_loss.sum()), float(best_loss.sum()))
