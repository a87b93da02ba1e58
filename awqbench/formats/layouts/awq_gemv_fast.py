"""The AutoAWQ GEMV-fast layout, which is MIT llm-awq's second one too.

A linear of K in_features and N out_features is stored as `qweight` int16 (N / 4, K), four
rows interleaved, and `scales` and `qzeros` (8 * Zw, N), padded with zeros as in the GEMV
layout. `qzeros` are not codes but ``-(scale * zero)`` in the scales' dtype; llm-awq names
them `scaled_zeros`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from awqbench.errors import FormatError
from awqbench.formats.layouts.awq_gemv import find_group_size, require_four_bits
from awqbench.formats.layouts.packing import AWQ_ORDER, unpack_stream
from awqbench.formats.layouts.parts import SCALE_DTYPES, dtype_of, take_parts, wrong_part
from awqbench.packed import PackedWeight

if TYPE_CHECKING:
    import torch

TENSORS = ("qweight", "qzeros", "scales")
# The zero points' name in llm-awq's checkpoints.
SCALED_ZEROS = "scaled_zeros"
# A scale below 2**-25 is stored as 0 while 15 times it is at most this in float16.
_FLUSHED = 2.0**-21


def read_linear(
    tensors: dict[str, torch.Tensor],
    *,
    bits: int = 4,
    group_size: int | None = None,
    name: str = "",
) -> PackedWeight:
    """Read one linear of an AWQ GEMV-fast or llm-awq checkpoint.

    Parameters
    ----------
    tensors : dict
        `qweight` int16 (N / 4, K), `scales` (8 * Zw, N), and `qzeros` or `scaled_zeros`
        of the scales' shape.
    bits : int
        4; the layout has no other width.
    group_size : int, optional
        -1 means whole rows. Derived from the shapes if None, where they leave one answer.
    name : str
        Module path, for error texts.

    Returns
    -------
    PackedWeight
        Zero points are ``round(-qzeros / scales)``, and 0 where the scale is 0.

    Raises
    ------
    FormatError
        If a tensor is missing, or has a shape or dtype that the layout cannot have; if
        `group_size` does not agree with the tensors, or must be given; if a zero point
        is not in 0 to 15.
    """
    label = name or "linear"
    require_four_bits(bits, layout="gemv_fast", name=label)
    zeros_part = SCALED_ZEROS if SCALED_ZEROS in tensors and "qzeros" not in tensors else "qzeros"
    dtypes = {"qweight": ("int16",), zeros_part: SCALE_DTYPES, "scales": SCALE_DTYPES}
    qweight, qzeros, scales = take_parts(tensors, dtypes, name=label)
    out_features, in_features = 4 * qweight.shape[0], qweight.shape[1]
    if not in_features or in_features % 64 or not out_features or out_features % 8:
        expected = "(N / 4, K) with N a multiple of 8 and K one of 64"
        raise wrong_part("qweight", qweight, expected, name=label)
    if scales.shape[1] != out_features:
        raise wrong_part("scales", scales, f"(padded groups, {out_features})", name=label)
    if qzeros.shape != scales.shape:
        raise wrong_part(zeros_part, qzeros, f"{tuple(scales.shape)}, as scales", name=label)
    stored = scales.float().numpy().T
    group_size = find_group_size(stored, in_features, group_size, name=label)
    used = np.ascontiguousarray(stored[:, : in_features // group_size])
    products = qzeros.float().numpy().T[:, : used.shape[1]]
    return PackedWeight(
        codes=_unpack(qweight.numpy()),
        scales=used,
        zeros=_zero_points(products, used, f"{label}.{zeros_part}"),
        bits=4,
        group_size=group_size,
        zero_point=True,
        scale_dtype=dtype_of(scales),
        name=name,
    )


def _unpack(words: np.ndarray) -> np.ndarray:
    """Return the codes (N, K) of int16 words (N / 4, K)."""
    n_blocks, in_features = words.shape
    pairs = np.ascontiguousarray(words, dtype="<i2").view("<i4")
    stored = unpack_stream(pairs, 4, 4 * in_features)
    # A block of 4 rows and 64 columns lies row after row in 64 consecutive words.
    rows = stored.reshape(n_blocks, in_features // 64, 4, 64).transpose(0, 2, 1, 3)
    runs = rows.reshape(4 * n_blocks, in_features // 32, 32)
    return runs[..., np.argsort(_column_order())].reshape(4 * n_blocks, in_features)


def _column_order() -> np.ndarray:
    """Return which of 32 columns stands at each place: pairs dealt out, then AWQ's order."""
    dealt = np.arange(32).reshape(4, 4, 2).transpose(1, 0, 2).reshape(4, 8)
    return dealt[:, AWQ_ORDER].ravel()


def _zero_points(products: np.ndarray, scales: np.ndarray, where: str) -> np.ndarray:
    """Return integer zero points from ``-(scale * zero)``, both (N, G) float32."""
    flushed = (scales == 0) & (np.abs(products) <= _FLUSHED)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        zeros = np.where(flushed, 0, np.rint(-products / scales))
    wrong = ~((zeros >= 0) & (zeros <= 15))  # NaN is wrong too
    if wrong.any():
        row, group = (int(i[0]) for i in np.nonzero(wrong))
        raise FormatError(
            f"{where}: row {row}, group {group} holds {products[row, group]:g} at scale "
            f"{scales[row, group]:g}; -qzeros / scale is no zero point of 0 to 15 "
            f"({int(wrong.sum())} of {wrong.size} are not)."
        )
    return zeros.astype(np.uint8)
