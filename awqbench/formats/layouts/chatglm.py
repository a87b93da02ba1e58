"""The layout of ChatGLM's own QuantizedLinear: int8, or two 4-bit codes in a byte.

A linear is stored as `weight` int8, (N, K) at 8 bits or (N, K / 2) at 4, and
`weight_scale` (N,): one scale for a row, no zero points. At 4 bits the even column is in
the high nibble; nibbles are two's complement. The width is config.json's
`quantization_bit`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from awqbench.errors import FormatError
from awqbench.formats.layouts.parts import (
    SCALE_DTYPES,
    check_scales,
    dtype_of,
    require_parts,
    wrong_part,
)
from awqbench.packed import PackedWeight

if TYPE_CHECKING:
    import torch

TENSORS = ("weight", "weight_scale")
BITS = (4, 8)


def read_linear(
    tensors: dict[str, torch.Tensor],
    *,
    bits: int,
    group_size: int | None = None,
    name: str = "",
) -> PackedWeight:
    """Read one QuantizedLinear of ChatGLM.

    Scales are taken as they are: ChatGLM stores 0 for a row of zeros, and NaN for a
    damaged one.

    Parameters
    ----------
    tensors : dict
        `weight` int8 (N, K) or (N, K / 2), `weight_scale` (N,).
    bits : int
        4 or 8.
    group_size : int, optional
        Checked when given: rows have one scale, so that only -1 or K fit.
    name : str
        Module path, for error texts.

    Returns
    -------
    PackedWeight
        Symmetric; `group_size` is K.

    Raises
    ------
    FormatError
        If a tensor is missing, or has a shape or dtype that the layout cannot have.
    """
    _check_bits(bits, name=name)
    require_parts(tensors, TENSORS, name=name)
    weight, scales = (tensors[part] for part in TENSORS)
    if weight.ndim != 2 or dtype_of(weight) != "int8" or 0 in weight.shape:
        width = "K" if bits == 8 else "K / 2"
        raise wrong_part("weight", weight, f"int8 of shape (N, {width})", name=name)
    if dtype_of(scales) not in SCALE_DTYPES or tuple(scales.shape) != (len(weight),):
        expected = f"one of {', '.join(SCALE_DTYPES)} of shape ({len(weight)},)"
        raise wrong_part("weight_scale", scales, expected, name=name)
    stored = np.ascontiguousarray(weight.numpy()).view(np.uint8)
    codes = _unpack_nibbles(stored) if bits == 4 else stored ^ np.uint8(0x80)
    in_features = codes.shape[1]
    if group_size not in (None, -1) and group_size != in_features:
        raise FormatError(
            f"{name}: config says group_size {group_size!r}; expected -1 or K = {in_features}, "
            "for ChatGLM has one scale for a row."
        )
    scales = scales.detach().float().numpy()[:, None]
    return PackedWeight(
        codes=codes,
        scales=np.ascontiguousarray(scales),
        zeros=np.full(scales.shape, 1 << (bits - 1), np.uint8),
        bits=bits,
        group_size=in_features,
        zero_point=False,
        scale_dtype=dtype_of(tensors["weight_scale"]),
        name=name,
    )


def write_linear(packed: PackedWeight) -> dict[str, torch.Tensor]:
    """Lay one linear out as ChatGLM's QuantizedLinear.

    Parameters
    ----------
    packed : PackedWeight
        4 or 8 bits, symmetric, one group in a row; K even at 4 bits.

    Returns
    -------
    dict of str to torch.Tensor
        `weight` int8 (N, K) or (N, K / 2), `weight_scale` (N,) in `packed.scale_dtype`.

    Raises
    ------
    FormatError
        If the layout cannot hold the weight.
    NonFiniteError
        If scales hold NaN or inf.
    """
    import torch

    _check_writable(packed, name=packed.name or "weight")
    stored = _pack_nibbles(packed.codes) if packed.bits == 4 else packed.codes ^ np.uint8(0x80)
    scales = torch.from_numpy(packed.scales[:, 0].copy())
    return {
        "weight": torch.from_numpy(np.ascontiguousarray(stored).view(np.int8)),
        "weight_scale": scales.to(getattr(torch, packed.scale_dtype)),
    }


def check_in_features(in_features: int, bits: int, *, name: str) -> None:
    """Raise if K columns do not fill whole bytes.

    Raises
    ------
    FormatError
        If K is odd at 4 bits.
    """
    if bits == 4 and in_features % 2:
        raise FormatError(
            f"{name}: in_features is {in_features}, which is odd; at 4 bits ChatGLM stores two "
            "columns in a byte. Pad by 1, or choose bits=8."
        )


def _check_bits(bits: int, *, name: str) -> None:
    if type(bits) is not int or bits not in BITS:
        raise FormatError(
            f"{name}: bits is {bits!r}; ChatGLM's layout holds 4 or 8. Choose one of these, or a "
            "GPTQ or compressed-tensors layout."
        )


def _unpack_nibbles(stored: np.ndarray) -> np.ndarray:
    """Return codes (N, K) of bytes (N, K / 2); XOR by 8 adds 8 to a two's complement nibble."""
    codes = np.empty((len(stored), 2 * stored.shape[1]), np.uint8)
    codes[:, 0::2] = (stored >> 4) ^ 8
    codes[:, 1::2] = (stored & 15) ^ 8
    return codes


def _pack_nibbles(codes: np.ndarray) -> np.ndarray:
    return ((codes[:, 0::2] ^ 8) << 4) | (codes[:, 1::2] ^ 8)


def _check_writable(packed: PackedWeight, *, name: str) -> None:
    _check_bits(packed.bits, name=name)
    if packed.g_idx is not None:
        raise FormatError(
            f"{name} is in activation order (g_idx); ChatGLM's layout has no groups to order. "
            "Quantize whole rows (group_size=-1) without act-order."
        )
    if packed.n_groups != 1:
        raise FormatError(
            f"{name} has {packed.n_groups} groups of {packed.group_size} in a row; ChatGLM's "
            "layout holds one scale for a row. Quantize with group_size=-1."
        )
    half = 1 << (packed.bits - 1)
    if packed.zero_point or (packed.zeros != half).any():
        raise FormatError(
            f"{name} is asymmetric, with zero points from {packed.zeros.min()} to "
            f"{packed.zeros.max()}; ChatGLM's layout holds none. Quantize with zero_point=False."
        )
    check_in_features(packed.in_features, packed.bits, name=name)
    if packed.codes.max(initial=0) >= 2 * half:
        raise ValueError(f"value {packed.codes.max()} does not fit in {packed.bits} bits.")
    check_scales(packed, name=name)
