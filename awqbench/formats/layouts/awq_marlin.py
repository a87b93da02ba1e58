"""The AutoAWQ "marlin" layout: symmetric, in the order of the Marlin kernel's registers.

A linear of K in_features and N out_features is stored as `qweight` int32 (K / 16, 2 * N)
and `scales` (G, N). Codes are offset by 8 and there are no zero points on disk.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from awqbench.errors import FormatError
from awqbench.formats.layouts.awq_gemv import require_four_bits
from awqbench.formats.layouts.packing import AWQ_ORDER, unpack_stream
from awqbench.formats.layouts.parts import SCALE_DTYPES, dtype_of, take_parts, wrong_part
from awqbench.packed import PackedWeight

if TYPE_CHECKING:
    import torch

TENSORS = ("qweight", "scales")


def read_linear(
    tensors: dict[str, torch.Tensor],
    *,
    bits: int = 4,
    group_size: int | None = None,
    name: str = "",
) -> PackedWeight:
    """Read one linear of an AWQ Marlin checkpoint.

    Parameters
    ----------
    tensors : dict
        `qweight` int32 (K / 16, 2 * N), `scales` (G, N).
    bits : int
        4; the layout has no other width.
    group_size : int, optional
        Checked against the tensors' shapes when given; -1 means whole rows.
    name : str
        Module path, for error texts.

    Returns
    -------
    PackedWeight
        Symmetric, with the constant zero point 8.

    Raises
    ------
    FormatError
        If a tensor is missing, or has a shape or dtype that the layout cannot have.
    """
    label = name or "linear"
    require_four_bits(bits, layout="marlin", name=label)
    qweight, scales = take_parts(
        tensors, {"qweight": ("int32",), "scales": SCALE_DTYPES}, name=label
    )
    in_features, out_features = 16 * qweight.shape[0], qweight.shape[1] // 2
    if not in_features or not out_features or qweight.shape[1] % 128:
        expected = "(K / 16, 2 * N) with N a multiple of 64"
        raise wrong_part("qweight", qweight, expected, name=label)
    n_groups = scales.shape[0]
    if scales.shape[1] != out_features or not n_groups or in_features % n_groups:
        expected = f"(G, {out_features}) with G a divisor of in_features, {in_features}"
        raise wrong_part("scales", scales, expected, name=label)
    found = in_features // n_groups
    _check_group_size(group_size, found, in_features, name=label)
    in_order = _unpermute(scales.float().numpy(), _scale_order(n_groups)).T
    return PackedWeight(
        codes=np.ascontiguousarray(_unpack(qweight.numpy()).T),
        scales=np.ascontiguousarray(in_order),
        zeros=np.full(in_order.shape, 8, np.uint8),
        bits=4,
        group_size=found,
        zero_point=False,
        scale_dtype=dtype_of(scales),
        name=name,
    )


def _check_group_size(group_size: int | None, found: int, in_features: int, *, name: str) -> None:
    if group_size is None:
        return
    whole_rows = group_size == -1 or group_size >= in_features
    if found != (in_features if whole_rows else group_size):
        raise FormatError(
            f"{name}.scales: config says group_size {group_size}, tensors say {found}."
        )


def _unpack(words: np.ndarray) -> np.ndarray:
    """Return the codes (K, N) of int32 words (K / 16, 2 * N)."""
    n_tiles, out_features = words.shape[0], words.shape[1] // 2
    stored = unpack_stream(words, 4, 16 * out_features)
    tiles = _unpermute(stored, _code_order())
    tiles = tiles.reshape(n_tiles, out_features // 16, 16, 16).transpose(0, 2, 1, 3)
    return tiles.reshape(16 * n_tiles, out_features)


def _unpermute(values: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Put runs of ``len(order)`` values, whose place p holds value order[p], in order."""
    runs = values.reshape(-1, order.size)
    return np.ascontiguousarray(runs[:, np.argsort(order)]).reshape(values.shape)


def _code_order() -> np.ndarray:
    """Return which of 1024 codes, four tiles of 16 x 16, stands at each place.

    Thread t of a warp holds, of each tile, the rows and columns that the operand of an
    m16n8k16 tensor-core instruction asks of it.
    """
    order = [
        16 * row + thread // 4 + 8 * half + 256 * tile
        for thread in range(32)
        for tile in range(4)
        for half in (0, 1)
        for row in (2 * (thread % 4) + offset for offset in (0, 1, 8, 9))
    ]
    return np.array(order).reshape(-1, 8)[:, AWQ_ORDER].ravel()


def _scale_order(n_groups: int) -> np.ndarray:
    """Return the order of scales in a run: of 64 with groups, of 32 with whole rows."""
    if n_groups > 1:
        return np.arange(64).reshape(8, 8).T.ravel()
    return np.array([2 * i + j for i in range(4) for j in (0, 1, 8, 9, 16, 17, 24, 25)])
