"""The AutoAWQ GEMM layout, the format of almost all AWQ checkpoints.

A linear of K in_features and N out_features is stored as `qweight` int32 (K, N / 8) and
`qzeros` int32 (G, N / 8), eight columns of N in a word in the order of
`packing.AWQ_ORDER`, and `scales` (G, N). Zero points are stored as they are. GPTQModel
writes other widths than 4 bits under the same names as dense streams in natural order.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from awqbench.errors import AlignmentError, FormatError
from awqbench.formats.layouts.packing import (
    pack_awq,
    unpack_awq_columns,
    unpack_stream,
    words_for,
)
from awqbench.formats.layouts.parts import SCALE_DTYPES, dtype_of, take_parts
from awqbench.numerics import round_to
from awqbench.packed import PackedWeight

if TYPE_CHECKING:
    import torch

TENSORS = ("qweight", "qzeros", "scales")


def read_linear(
    tensors: dict[str, torch.Tensor],
    *,
    bits: int = 4,
    group_size: int | None = None,
    name: str = "",
) -> PackedWeight:
    """Read one linear of an AWQ GEMM checkpoint.

    Parameters
    ----------
    tensors : dict
        `qweight` int32 (K, ceil(N * bits / 32)), `qzeros` int32 (G, same),
        `scales` (G, N).
    bits : int
        2 to 8; only 4 is interleaved.
    group_size : int, optional
        Checked against the tensors' shapes when given; -1 means whole rows.
    name : str
        Module path, for error texts.

    Returns
    -------
    PackedWeight

    Raises
    ------
    FormatError
        If a tensor is missing, or has a shape or dtype that the layout cannot have.
    """
    label = name or "linear"
    dtypes = {"qweight": ("int32",), "qzeros": ("int32",), "scales": SCALE_DTYPES}
    qweight, qzeros, scales = take_parts(tensors, dtypes, name=label)
    in_features, (n_groups, out_features) = qweight.shape[0], scales.shape
    if bits == 4 and out_features % 8:
        raise FormatError(
            f"{name}: scales {tuple(scales.shape)} have N = {out_features}, not a multiple of 8, "
            "which 4-bit words in AWQ's order need."
        )
    width = words_for(out_features, bits)
    if n_groups == 0 or in_features == 0 or in_features % n_groups:
        raise FormatError(
            f"{name}: {in_features} rows of qweight do not divide into {n_groups} groups of scales."
        )
    if qweight.shape[1] != width or tuple(qzeros.shape) != (n_groups, width):
        raise FormatError(
            f"{name}: scales {tuple(scales.shape)} at {bits} bits need qweight "
            f"({in_features}, {width}) and qzeros ({n_groups}, {width}), found "
            f"{tuple(qweight.shape)} and {tuple(qzeros.shape)}."
        )
    found = in_features // n_groups
    whole_rows = group_size == -1 or (group_size is not None and group_size >= in_features)
    if group_size is not None and found != (in_features if whole_rows else group_size):
        raise FormatError(f"{name}: config says group_size {group_size}, tensors say {found}.")
    return PackedWeight(
        codes=_unpack(qweight.numpy(), bits, out_features),
        scales=np.ascontiguousarray(scales.float().numpy().T),
        zeros=_unpack(qzeros.numpy(), bits, out_features),
        bits=bits,
        group_size=found,
        zero_point=True,
        scale_dtype=dtype_of(scales),
        name=name,
    )


def write_linear(packed: PackedWeight) -> dict[str, torch.Tensor]:
    """Lay one linear out as AutoAWQ's GEMM kernel reads it.

    Parameters
    ----------
    packed : PackedWeight
        4 bits, N a multiple of 8, groups in order, scales representable in float16.

    Returns
    -------
    dict of str to torch.Tensor
        `qweight` int32 (K, N / 8), `qzeros` int32 (G, N / 8), `scales` float16 (G, N).

    Raises
    ------
    FormatError
        If the layout cannot hold the weight: not 4 bits, act-order, or scales that
        float16 cannot represent.
    AlignmentError
        If N is not a multiple of 8 or K not one of the group size.
    """
    import torch

    name = packed.name or "weight"
    if packed.bits != 4:
        raise FormatError(
            f"{name} has {packed.bits} bits; the AutoAWQ layout holds 4 bits only. "
            "Choose bits=4, or a GPTQ or compressed-tensors layout."
        )
    if packed.g_idx is not None:
        raise FormatError(
            f"{name} is in activation order (g_idx), which the AWQ layout "
            "cannot hold; choose gptq-v2, or quantize without act-order."
        )
    check_out_features(packed.out_features, name=name)
    if packed.in_features % packed.group_size:
        raise AlignmentError(
            f"{name}: in_features {packed.in_features} is not a multiple of group_size "
            f"{packed.group_size}; the AWQ layout has no short last group."
        )
    if not np.array_equal(round_to(packed.scales, "float16"), packed.scales):
        raise FormatError(
            f"{name}: scales are {packed.scale_dtype} numbers that float16, which the AWQ layout "
            "stores, cannot hold; quantize with scale_dtype='float16'."
        )
    return {
        "qweight": torch.from_numpy(pack_awq(np.ascontiguousarray(packed.codes.T))),
        "qzeros": torch.from_numpy(pack_awq(np.ascontiguousarray(packed.zeros.T))),
        "scales": torch.from_numpy(np.ascontiguousarray(packed.scales.T.astype(np.float16))),
    }


def check_out_features(out_features: int, *, name: str) -> None:
    """Raise if N columns do not fill whole words of eight.

    Raises
    ------
    AlignmentError
        With the remainder and the nearest multiple of 8.
    """
    remainder = out_features % 8
    if remainder:
        raise AlignmentError(
            f"{name}: out_features is {out_features}, not a multiple of 8 (remainder {remainder}), "
            f"which the AWQ layout needs; pad by {8 - remainder} or list the module in "
            "modules_to_not_convert."
        )


def quantization_config(
    *, bits: int, group_size: int, modules_to_not_convert: list[str] | None
) -> dict:
    """Return config.json's `quantization_config` as AutoAWQ 0.2.9 writes it."""
    return {
        "bits": bits,
        "group_size": group_size,
        "modules_to_not_convert": modules_to_not_convert,
        "quant_method": "awq",
        "version": "gemm",
        "zero_point": True,
    }


def _unpack(words: np.ndarray, bits: int, count: int) -> np.ndarray:
    """Return (N, rows) codes."""
    if bits == 4:
        return unpack_awq_columns(words)
    return np.ascontiguousarray(unpack_stream(words, bits, count).T)
