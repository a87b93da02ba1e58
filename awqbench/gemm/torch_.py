"""y = x Wᵀ from packed codes in torch, where x is a tensor.

Three ways, chosen by what was measured at K = N = 4096 on one thread:

* bfloat16 on the CPU, 4 bits, few tokens: ATen's int4 operator (`int4pack`), 0.9 ms for one
  token against 4.0 for NumPy's tiles.
* otherwise on the CPU, few tokens, no gradient: NumPy's tiles on the same memory, 4.0 ms
  against 7.9 for the same steps as torch operations.
* else: blocks of columns decoded to the dtype of x, and a matrix product each.

Accuracy: float32 activations stay within 1e-6 of float64 (relative Frobenius). float16 and
bfloat16 are as accurate as the dtype of x allows, about 3e-4 and 3e-3.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from awqbench.gemm import numpy_
from awqbench.gemm.layout import TiledWeight, TileSpec, cached_form, tile_weight
from awqbench.packed import PackedWeight

if TYPE_CHECKING:
    import torch

# fill(out, columns first, stop, chunks): writes codes, less `TileSpec.offset`, as float32 into
# (chunks, unit, columns).
Fill = Callable[["torch.Tensor", int, int, slice], None]


def to_tensors(weight: TiledWeight, device: torch.device | str = "cpu") -> TiledWeight:
    """Return a weight of tensors; on the CPU its codes share memory with the arrays.

    Scales take the dtype they are stored in, if they are exact in it as they should be, and
    stay float32 if not.
    """
    import torch

    scales = torch.from_numpy(weight.scales)
    stored = scales.to(getattr(torch, weight.spec.scale_dtype))
    return replace(
        weight,
        codes=torch.from_numpy(weight.codes).to(device),
        scales=(stored if torch.equal(stored.float(), scales) else scales).to(device),
        zeros=torch.from_numpy(weight.zeros).to(device),
        sums=torch.from_numpy(weight.sums).to(device),
        groups=torch.from_numpy(weight.groups).to(device),
        order=None if weight.order is None else torch.from_numpy(weight.order).to(device),
    )


def to_arrays(weight: TiledWeight) -> TiledWeight:
    """Return a weight of ndarrays, `scales` float32; codes of a CPU tensor are shared."""
    return replace(
        weight,
        codes=weight.codes.cpu().numpy(),
        scales=weight.scales.float().cpu().numpy(),
        zeros=weight.zeros.cpu().numpy(),
        sums=weight.sums.cpu().numpy(),
        groups=weight.groups.cpu().numpy(),
        order=None if weight.order is None else weight.order.cpu().numpy(),
    )


def matmul_packed(x: torch.Tensor, packed: PackedWeight) -> torch.Tensor:
    """Multiply tokens by a `PackedWeight`; its forms for this device are kept beside it."""
    from awqbench.gemm import int4pack

    weight = cached_form(
        packed,
        ("torch", str(x.device)),
        lambda source: to_tensors(cached_form(source, "tiles", tile_weight), x.device),
    )
    if int4pack.is_worthwhile(x, weight):
        int4 = cached_form(packed, "int4pack", lambda _: int4pack.from_tiles(weight))
        if int4 is not None:
            return int4pack.matmul(x, weight, int4)
    return matmul(x, weight)


def matmul(x: torch.Tensor, weight: TiledWeight) -> torch.Tensor:
    """Multiply tokens by a packed weight.

    Parameters
    ----------
    x : (M, K) torch.Tensor, floating point
    weight : TiledWeight
        Of tensors on the device of x.

    Returns
    -------
    (M, N) torch.Tensor
        Dtype and device of x. Few tokens on the CPU are computed in float32, others in the
        dtype of x.
    """
    import torch

    needs_gradient = x.requires_grad and torch.is_grad_enabled()
    few = len(x) < numpy_.FOLD_FROM and x.dtype != torch.float64
    if x.device.type == "cpu" and few and not needs_gradient:
        y = numpy_.matmul(x.detach().float().numpy(), to_arrays(weight))
        return torch.from_numpy(y).to(x.dtype)

    def fill(out: torch.Tensor, first: int, stop: int, part: slice) -> None:
        _unpack(weight.block(first, stop)[part], weight.spec, out)

    return folded(arrange(x, weight), weight, fill)


def arrange(x: torch.Tensor, weight: TiledWeight) -> torch.Tensor:
    """Return x (M, K) with its columns in the weight's order, zeros for padding."""
    import torch

    if weight.order is None:
        return x
    return torch.cat([x, x.new_zeros(len(x), 1)], dim=1).index_select(1, weight.order)


def folded(x: torch.Tensor, weight: TiledWeight, fill: Fill) -> torch.Tensor:
    """Multiply by weights decoded in float32, a block of columns at a time.

    Decoded weights are rounded once, to the dtype of x: with float16 scales and x they are
    what AutoAWQ decodes, bit for bit.

    Parameters
    ----------
    x : (M, C * unit) torch.Tensor
        In the weight's order.
    weight : TiledWeight
    fill : callable
        Where the codes come from.

    Returns
    -------
    (M, N) torch.Tensor
    """
    import torch

    spec, n_chunks = weight.spec, len(weight.groups)
    blocks = []
    step = spec.chunks_per_tile()
    for first, stop in spec.blocks():
        slab = x.new_empty(n_chunks, spec.unit, stop - first)
        for at in range(0, n_chunks, step):
            part = slice(at, min(at + step, n_chunks))
            tile = torch.empty(slab[part].shape, dtype=torch.float32, device=x.device)
            group = weight.groups[part]
            fill(tile, first, stop, part)
            tile -= weight.zeros[group, None, first:stop].float() - spec.offset
            tile *= weight.scales[group, None, first:stop].float()
            slab[part] = tile
        blocks.append(x @ slab.view(-1, stop - first))
    return torch.cat(blocks, dim=1) if blocks else x.new_zeros(len(x), 0)


def _unpack(codes: torch.Tensor, spec: TileSpec, out: torch.Tensor) -> None:
    import torch

    if not spec.is_nibbles:
        out.copy_(codes.view(torch.int8))
        return
    half = spec.unit // 2
    out[:, :half] = codes & 15
    out[:, half:] = codes >> 4
    out -= spec.offset
