"""The GPTQ layouts: `gptq` (v1, what AutoGPTQ began) and `gptq_v2`.

A linear of K in_features and N out_features is stored as `qweight` int32 (rows, N), a dense
stream of codes down each column in the order of the input channels, `qzeros` int32
(G, words), a dense stream of zero points along each row, `scales` (G, N), and `g_idx`
int32 (K,), the group of each input channel. The two differ in `qzeros` alone:
`gptq_zeros` says how, and looks at all that a layout holds for each group.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import numpy as np

from awqbench.errors import AlignmentError, FormatError
from awqbench.formats.layouts.gptq_groups import (
    check_g_idx,
    check_scales,
    check_version,
    group_size_from,
    pack_zeros,
    unpack_zeros,
)
from awqbench.formats.layouts.packing import pack_stream, unpack_stream, words_for
from awqbench.formats.layouts.parts import SCALE_DTYPES, dtype_of, take_part
from awqbench.packed import PackedWeight, as_array

if TYPE_CHECKING:
    import torch

TENSORS = ("qweight", "qzeros", "scales")
OPTIONAL = ("g_idx",)
BITS = (2, 3, 4, 8)


def read_linear(
    tensors: dict[str, torch.Tensor],
    *,
    bits: int,
    group_size: int | None = None,
    name: str = "",
    version: int = 1,
) -> PackedWeight:
    """Read one linear of a GPTQ checkpoint.

    The stored `g_idx` decides which group an input channel belongs to, whatever the
    configuration says. Without one K is what `qweight` has room for, and channels are
    grouped in order.

    Parameters
    ----------
    tensors : dict
        `qweight` int32 (ceil(K * bits / 32), N), `qzeros` int32 (G, ceil(N * bits / 32)),
        `scales` (G, N), and perhaps `g_idx` int32 (K,); G is ceil(K / group_size).
    bits : int
        2, 3, 4 or 8.
    group_size : int, optional
        As the configuration says; -1 means whole rows, None to find it from the tensors.
    name : str
        Module path, for error texts.
    version : {1, 2}
        1 for `checkpoint_format` "gptq" or none, 2 for "gptq_v2".

    Returns
    -------
    PackedWeight
        `g_idx` is None where the stored one is ``k // group_size``.

    Raises
    ------
    FormatError
        If a tensor is missing, or has a shape, dtype or group number that the layout
        cannot have, or if the group size is not given and the shapes leave a choice.
    ParameterError
        If `version` is neither 1 nor 2.
    """
    label = name or "linear"
    _check_bits(bits, name=label)
    check_version(version)
    qweight = take_part(tensors, "qweight", dtypes=("int32",), name=label)
    qzeros = take_part(tensors, "qzeros", dtypes=("int32",), name=label)
    scales = take_part(tensors, "scales", dtypes=SCALE_DTYPES, name=label)
    g_idx = None
    if tensors.get("g_idx") is not None:
        g_idx = as_array(take_part(tensors, "g_idx", dtypes=("int32",), ndim=1, name=label))
    n_groups, out_features = scales.shape
    _check_widths(qweight, qzeros, scales, bits=bits, name=label)
    in_features = _in_features(qweight.shape[0], g_idx, bits=bits, name=label)
    group_size = group_size_from(group_size, in_features, n_groups, g_idx=g_idx, name=label)
    if g_idx is not None:
        check_g_idx(g_idx, n_groups, name=label)
        if np.array_equal(g_idx, np.arange(in_features) // group_size):
            g_idx = None
    zeros = unpack_zeros(as_array(qzeros), bits, out_features, version=version)
    return PackedWeight(
        codes=np.ascontiguousarray(unpack_stream(as_array(qweight).T, bits, in_features)),
        scales=np.array(as_array(scales).T, dtype=np.float32, order="C"),
        zeros=np.ascontiguousarray(zeros.T),
        bits=bits,
        group_size=group_size,
        zero_point=bool((zeros != 1 << (bits - 1)).any()),
        scale_dtype=dtype_of(scales),
        g_idx=None if g_idx is None else g_idx.copy(),
        name=name,
    )


def write_linear(packed: PackedWeight, *, version: int = 2) -> dict[str, torch.Tensor]:
    """Lay one linear out as GPTQModel writes it.

    Parameters
    ----------
    packed : PackedWeight
        2, 3, 4 or 8 bits, K and N multiples of 32, scales representable in float16.
    version : {1, 2}
        2 stores zero points as they are, 1 less one.

    Returns
    -------
    dict of str to torch.Tensor
        `qweight` int32 (K * bits / 32, N), `qzeros` int32 (G, N * bits / 32), `scales`
        float16 (G, N), `g_idx` int32 (K,).

    Raises
    ------
    FormatError
        If the layout cannot hold the weight: another width, scales that float16 cannot
        represent, a zero point of 0 in version 1, groups that are not ceil(K / group_size).
    AlignmentError
        If K or N is not a multiple of 32.
    ParameterError
        If `version` is neither 1 nor 2.
    """
    import torch

    name = packed.name or "weight"
    check_version(version)
    _check_bits(packed.bits, name=name)
    for side, size in (("in", packed.in_features), ("out", packed.out_features)):
        _check_multiple_of_32(size, side=side, name=name)
    group_size_from(packed.group_size, packed.in_features, packed.n_groups, g_idx=None, name=name)
    g_idx = packed.group_index().astype(np.int32)
    check_g_idx(g_idx, packed.n_groups, name=name)
    check_scales(packed.scales, name=name)
    qzeros = pack_zeros(packed.zeros, packed.bits, version=version, name=name)
    qweight = pack_stream(packed.codes, packed.bits).T
    return {
        "qweight": torch.from_numpy(np.ascontiguousarray(qweight)),
        "qzeros": torch.from_numpy(qzeros),
        "scales": torch.from_numpy(np.ascontiguousarray(packed.scales.T.astype(np.float16))),
        "g_idx": torch.from_numpy(g_idx),
    }


def quantization_config(
    *,
    bits: int,
    group_size: int,
    zero_point: bool,
    desc_act: bool,
    version: int,
    modules_to_not_convert: list[str] | None,
) -> dict:
    """Return config.json's `quantization_config` as GPTQModel 7 writes it.

    Excluded modules become negative rules of `dynamic`: the module of that name and all
    below it, and no other whose name begins alike. GPTQModel loads an asymmetric model of
    version 1 only if `meta` names GPTQModel as its maker, which this does not: version 2
    is the one to use there.

    Raises
    ------
    ParameterError
        If `version` is neither 1 nor 2.
    """
    check_version(version)
    layout = "gptq" if version == 1 else "gptq_v2"
    rules = {rf"-:{re.escape(module)}(\.|$)": {} for module in modules_to_not_convert or []}
    return {
        "bits": bits,
        "checkpoint_format": layout,
        "desc_act": desc_act,
        **({"dynamic": rules} if rules else {}),
        "format": layout,
        "group_size": group_size,
        "lm_head": False,
        "meta": {"quantizer": ["awqbench"]},
        "method": "gptq",
        "pack_dtype": "int32",
        "quant_method": "gptq",
        "sym": not zero_point,
    }


def _check_bits(bits: int, *, name: str) -> None:
    if bits not in BITS:
        raise FormatError(
            f"{name} has {bits!r} bits; the GPTQ layout holds 2, 3, 4 or 8 (GPTQModel's planar "
            "layout gptq_p, which holds 5, 6 and 7, is not known here). Choose one of these, or "
            "a compressed-tensors layout."
        )


def _check_widths(qweight, qzeros, scales, *, bits: int, name: str) -> None:
    n_groups, out_features = scales.shape
    if qweight.shape[1] != out_features:
        raise FormatError(
            f"{name}.qweight has shape {tuple(qweight.shape)}; {name}.scales {tuple(scales.shape)} "
            f"need {out_features} columns."
        )
    expected = (n_groups, words_for(out_features, bits))
    if tuple(qzeros.shape) != expected:
        fits = [b for b in BITS if tuple(qzeros.shape) == (n_groups, words_for(out_features, b))]
        hint = f"; the shape found is that of {fits[0]} bits" if fits else ""
        raise FormatError(
            f"{name}.qzeros has shape {tuple(qzeros.shape)}; {name}.scales {tuple(scales.shape)} "
            f"at {bits} bits need {expected}{hint}."
        )


def _in_features(rows: int, g_idx: np.ndarray | None, *, bits: int, name: str) -> int:
    """Return K, from `g_idx` or from the rows of `qweight`."""
    room = rows * 32 // bits
    if bits == 3 and rows % 3:
        raise FormatError(
            f"{name}.qweight has {rows} rows; at 3 bits 32 input channels fill 3 rows, so that "
            "their number is a multiple of 3."
        )
    if g_idx is None:
        return room
    in_features = len(g_idx)
    if words_for(in_features, bits) != rows or (bits == 3 and in_features != room):
        raise FormatError(
            f"{name}.g_idx has {in_features} entries; the {rows} rows of {name}.qweight hold "
            f"{room} input channels at {bits} bits."
        )
    return in_features


def _check_multiple_of_32(size: int, *, side: str, name: str) -> None:
    remainder = size % 32
    if remainder:
        raise AlignmentError(
            f"{name}: {side}_features is {size}, not a multiple of 32 (remainder {remainder}), "
            f"which GPTQModel needs; pad by {32 - remainder} to {size + 32 - remainder} or list "
            "the module in modules_to_not_convert."
        )
