"""ATen's int4 operator: the fastest way in torch, in the one place where it wins.

`torch.ops.aten._weight_int4pack_mm_for_cpu` has a fast path for bfloat16 only (float32
takes 13.9 ms where bfloat16 takes 0.8), and falls behind decoding from about 32 tokens on
(6.5 ms at 16 tokens against 20, but 26 at 64 against 22). It rounds scales and zero points
to bfloat16, hence its accuracy: about 3e-3, the class of bfloat16 activations.

The operator wants codes in an order of its own, which depends on the CPU. That form is
taken only if it can be read back, so that it may stand in place of the tiles: a model then
holds its weights once.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from awqbench.gemm import torch_
from awqbench.gemm.layout import TiledWeight, pack_blocks, unpack_blocks

if TYPE_CHECKING:
    import torch

MAX_TOKENS = 32
_GROUP_SIZES = (32, 64, 128, 256)
# Columns interleaved by the AVX-512 and the AVX2 kernel.
_WIDTHS = (64, 32)


class Int4Weight(NamedTuple):
    """Codes in ATen's order.

    `codes` (N, K / 2) uint8; `scales_and_zeros` (G, N, 2) bfloat16 with
    w = (code - 8) * scale + zero; `width` columns are interleaved: byte (k, j) of a block
    holds column j in its low nibble and column j + width / 2 in its high one.
    """

    codes: torch.Tensor
    scales_and_zeros: torch.Tensor
    width: int


def is_worthwhile(x: torch.Tensor, weight: TiledWeight) -> bool:
    """Return whether the operator wins for these tokens and takes this weight."""
    import torch

    return (
        x.dtype == torch.bfloat16
        and x.device.type == "cpu"
        and 0 < len(x) <= MAX_TOKENS
        and not (x.requires_grad and torch.is_grad_enabled())
        and _fits(weight)
    )


def _fits(weight: TiledWeight) -> bool:
    spec, n_places = weight.spec, len(weight.groups) * weight.spec.unit
    return (
        spec.bits == 4
        and spec.group_size in _GROUP_SIZES
        and spec.out_features % min(_WIDTHS) == 0
        # Full groups only. (With act-order, groups of unequal size leave padding.)
        and n_places == spec.in_features == len(weight.scales) * spec.group_size
    )


def from_tiles(weight: TiledWeight) -> Int4Weight | None:
    """Convert a weight of CPU tensors.

    Returns
    -------
    Int4Weight or None
        None if this torch has no such operator, or its order on this CPU is not known.
    """
    import torch

    source = torch.from_numpy(unpack_blocks(torch_.to_arrays(weight)))
    try:
        codes = torch.ops.aten._convert_weight_to_int4pack_for_cpu(source.T.int().contiguous(), 1)
    except (AttributeError, RuntimeError):
        return None
    scales = weight.scales.float()
    zeros = (8.0 - weight.zeros.float()) * scales
    both = torch.stack([scales, zeros], dim=-1).bfloat16().contiguous()
    for width in _WIDTHS:
        if weight.spec.out_features % width == 0:
            int4 = Int4Weight(codes, both, width)
            if torch.equal(_codes(int4), source):
                return int4
    return None


def to_tiles(weight: TiledWeight, int4: Int4Weight) -> TiledWeight:
    """Return `weight` with its codes restored from ATen's order."""
    import torch

    spec = weight.spec
    codes = _codes(int4).view(-1, spec.unit, spec.out_features).numpy()
    return replace(weight, codes=torch.from_numpy(pack_blocks(codes, spec)))


def matmul(x: torch.Tensor, weight: TiledWeight, int4: Int4Weight) -> torch.Tensor:
    """Multiply bfloat16 tokens; more than `MAX_TOKENS` by decoding.

    Parameters
    ----------
    x : (M, K) torch.Tensor of bfloat16
    weight : TiledWeight
        Of tensors; its codes are not read.
    int4 : Int4Weight

    Returns
    -------
    (M, N) torch.Tensor of bfloat16
    """
    import torch

    arranged = torch_.arrange(x, weight)
    if is_worthwhile(x, weight):
        y = torch.ops.aten._weight_int4pack_mm_for_cpu(
            arranged.contiguous(), int4.codes, weight.spec.group_size, int4.scales_and_zeros
        )
        # Rounded zero points turn some exact zeros into tiny weights, and inf * 0 into inf.
        if bool(y.isfinite().all()):
            return y

    def fill(out: torch.Tensor, first: int, stop: int, part: slice) -> None:
        rows = slice(part.start * weight.spec.unit, part.stop * weight.spec.unit)
        _fill(out.view(-1, stop - first), int4, slice(first, stop), rows)
        out -= weight.spec.offset

    return torch_.folded(arranged, weight, fill)


def _codes(int4: Int4Weight) -> torch.Tensor:
    n_columns, half_rows = int4.codes.shape
    codes = int4.codes.new_empty(2 * half_rows, n_columns)
    _fill(codes, int4, slice(0, n_columns), slice(0, 2 * half_rows))
    return codes


def _fill(out: torch.Tensor, int4: Int4Weight, columns: slice, rows: slice) -> None:
    """Write codes of some columns (whole interleaved blocks) and rows into (rows, columns)."""
    width, half = int4.width, int4.width // 2
    blocks = int4.codes.view(-1, 2 * int4.codes.shape[1], half)
    blocks = blocks[columns.start // width : columns.stop // width, rows].transpose(0, 1)
    target = out.view(len(out), -1, 2, half)
    target[:, :, 0] = blocks & 15
    target[:, :, 1] = blocks >> 4
