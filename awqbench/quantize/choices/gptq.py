"""GPTQ rounding from the same statistics: each column's error is paid by those after it.

Columns are rounded one by one; the error of column k is spread over the columns not yet
rounded so that the output changes least, which the inverse of H tells (Frantar et al.,
"GPTQ", arXiv:2210.17323, algorithm 1).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from awqbench.errors import StatisticsError
from awqbench.quantize.choices.rounding import Grid, grid_of, group_ranges

if TYPE_CHECKING:
    import torch

    from awqbench.quantize.settings import Settings

# Columns whose errors are collected before the rest of the matrix is updated in one product.
_LAZY_COLUMNS = 128
# Added to the diagonal of H, as a share of its mean; raised until H can be inverted.
_DAMPING = (0.01, 0.1, 1.0)


class Rounded(NamedTuple):
    """Codes (N, K) uint8, steps (N, G) float32 and zero points (N, G) uint8."""

    codes: torch.Tensor
    steps: torch.Tensor
    zeros: torch.Tensor


def inverse_factor(gram: torch.Tensor) -> torch.Tensor:
    """Return the upper Cholesky factor of the damped inverse of H.

    Parameters
    ----------
    gram : (K, K) torch.Tensor of float32

    Returns
    -------
    (K, K) torch.Tensor of float32
        On the device of H.

    Raises
    ------
    StatisticsError
        If H cannot be inverted even when damped by its own mean diagonal.
    """
    import torch

    wide = gram.double()
    diagonal = wide.diagonal()
    mean = float(diagonal.mean())
    if mean <= 0:  # no activation at all: every rounding is as good as any other
        return torch.eye(len(gram), device=gram.device)
    for share in _DAMPING:
        damped = wide + torch.eye(len(wide), dtype=wide.dtype, device=wide.device) * (share * mean)
        lower, failed = torch.linalg.cholesky_ex(damped)
        if int(failed):
            continue
        upper, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
        if not int(failed):
            return upper.float()
    raise StatisticsError(
        f"H of {len(gram)} channels cannot be inverted with damping up to {_DAMPING[-1]:g} of its "
        "mean diagonal; calibrate again with more or other text, or use rounding='nearest'."
    )


def round_gptq(
    weight: torch.Tensor,
    factor: torch.Tensor,
    settings: Settings,
    *,
    group_size: int,
    shrink: torch.Tensor | None = None,
) -> Rounded:
    """Round a weight column by column, passing each error on.

    The grid of a group is set when its first column is reached, from the weights as they
    are then.

    Parameters
    ----------
    weight : (N, K) torch.Tensor of float32
        With channel scales applied.
    factor : (K, K) torch.Tensor of float32
        `inverse_factor` of the scaled input's H.
    settings : Settings
    group_size : int
    shrink : (N, G) torch.Tensor, optional
        Share of its range that each group keeps.

    Returns
    -------
    Rounded
        On the device of the arguments, which is one.
    """
    import torch

    weight = weight.clone()
    n_rows, in_features = weight.shape
    n_groups = in_features // group_size
    codes = torch.empty(n_rows, in_features, dtype=torch.uint8, device=weight.device)
    steps, zeros = torch.empty(2, n_rows, n_groups, device=weight.device)
    grid = None
    width = min(group_size, _LAZY_COLUMNS) if group_size % _LAZY_COLUMNS else _LAZY_COLUMNS
    for first in range(0, in_features, width):
        last = min(first + width, in_features)
        # Columns as rows: every step below reads and writes contiguous memory.
        block = weight[:, first:last].T.contiguous()
        errors = torch.empty_like(block)
        local = factor[first:last, first:last]
        for i in range(last - first):
            group, offset = divmod(first + i, group_size)
            if offset == 0:
                grid = _group_grid(weight, block[i:], first + i, group_size, settings, shrink)
                steps[:, group], zeros[:, group] = grid.steps[:, 0, 0], grid.zeros[:, 0, 0]
            column, step, zero = block[i], steps[:, group], zeros[:, group]
            code = (column / step).round_().add_(zero).clamp_(0, (1 << settings.bits) - 1)
            codes[:, first + i] = code
            errors[i] = code.sub_(zero).mul_(step).sub_(column).neg_().div_(local[i, i])
            if i + 1 < last - first:
                block[i + 1 :].addr_(local[i, i + 1 :], errors[i], alpha=-1)
        if last < in_features:
            weight[:, last:].addmm_(errors.T, factor[first:last, last:], alpha=-1)
    return Rounded(codes, steps, zeros.to(torch.uint8))


def _group_grid(weight, rest, first, group_size, settings, shrink) -> Grid:
    """Return the grid of the group that begins at column `first`."""
    import torch

    inside = rest[: min(group_size, len(rest))].T
    beyond = weight[:, first + inside.shape[1] : first + group_size]
    group = torch.cat([inside, beyond], dim=1) if beyond.shape[1] else inside
    low, high = group_ranges(group.contiguous(), group_size)
    if shrink is not None:
        share = shrink[:, first // group_size, None, None]
        low, high = low * share, high * share
    return grid_of(low, high, settings)
