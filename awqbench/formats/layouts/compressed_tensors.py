"""The compressed-tensors pack-quantized layout of llm-compressor (W4A16, W8A16, ...).

A linear is stored as `weight_packed` int32 (N, words) along K in natural order,
`weight_scale` (N, G), `weight_shape` int64 [N, K] and, if asymmetric, `weight_zero_point`
int32 (words, G) packed along N. Codes are signed there and stored plus 2**(bits - 1),
which makes them the unsigned codes of `PackedWeight`.

Widths of 3, 5, 6 and 7 bits changed in compressed-tensors 0.18: a dense stream since, and
before that 32 // bits values a word with the high bits unused.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from awqbench.errors import AlignmentError, FormatError
from awqbench.formats.layouts.packing import pack_stream
from awqbench.formats.layouts.padded import unpacker
from awqbench.formats.layouts.parts import (
    SCALE_DTYPES,
    check_scales,
    dtype_of,
    group_size_of,
    require_parts,
    wrong_part,
)
from awqbench.packed import PackedWeight

if TYPE_CHECKING:
    import torch

TENSORS = ("weight_packed", "weight_scale", "weight_shape")
OPTIONAL = ("weight_zero_point", "weight_g_idx")
# Readers may choose between dense and padded words by it: ours are dense.
_VERSION = "0.19.0"


def read_linear(
    tensors: dict[str, torch.Tensor],
    *,
    bits: int,
    group_size: int | None = None,
    name: str = "",
) -> PackedWeight:
    """Read one linear of a pack-quantized checkpoint.

    Dense and padded words are told apart by the tensors' widths, and where those agree
    (K or N below 32) by bits that one of the two leaves unused.

    Parameters
    ----------
    tensors : dict
        `weight_packed` int32 (N, words), `weight_scale` (N, G) or (N,), `weight_shape`
        int [N, K]; optional `weight_zero_point` int32 (words, G), or int8 (N, G) not
        packed, and `weight_g_idx` int32 (K,), ignored where all -1.
    bits : int
        2 to 8.
    group_size : int, optional
        Checked against the tensors' shapes when given; -1 means whole rows. Needed where
        G does not divide K.
    name : str
        Module path, for error texts.

    Returns
    -------
    PackedWeight

    Raises
    ------
    FormatError
        If a tensor is missing, or has a shape, dtype or content that the layout cannot have.
    """
    if type(bits) is not int or not 2 <= bits <= 8:
        raise FormatError(f"{name}: bits is {bits!r}; pack-quantized weights have 2 to 8.")
    require_parts(tensors, TENSORS, name=name)
    scales, scale_dtype = _read_scales(tensors["weight_scale"], name=name)
    out_features, n_groups = scales.shape
    in_features = _read_shape(tensors["weight_shape"], out_features, name=name)
    size = group_size_of(in_features, n_groups, group_size, name=f"{name}.weight_scale")
    codes, zeros = _read_codes(tensors, (out_features, in_features, n_groups), bits, name=name)
    return PackedWeight(
        codes=codes,
        scales=scales,
        zeros=np.full(scales.shape, 1 << (bits - 1), np.uint8) if zeros is None else zeros,
        bits=bits,
        group_size=size,
        zero_point=zeros is not None,
        scale_dtype=scale_dtype,
        g_idx=_read_g_idx(tensors, np.arange(in_features) // size, n_groups, name=name),
        name=name,
    )


def write_linear(packed: PackedWeight) -> dict[str, torch.Tensor]:
    """Lay one linear out as compressed-tensors 0.18 and later read it.

    Parameters
    ----------
    packed : PackedWeight
        Groups in order, K a multiple of the group size.

    Returns
    -------
    dict of str to torch.Tensor
        `weight_packed`, `weight_scale` (N, G) in `packed.scale_dtype`, `weight_shape`,
        and `weight_zero_point` if `packed.zero_point`.

    Raises
    ------
    FormatError
        If the layout cannot hold the weight: act-order, or scales or zero points that are
        not what `packed` says of them.
    AlignmentError
        If K is not a multiple of the group size.
    NonFiniteError
        If scales hold NaN or inf.
    """
    import torch

    _check_writable(packed, name=packed.name or "weight")
    shape = (packed.out_features, packed.in_features)
    tensors = {
        "weight_packed": torch.from_numpy(pack_stream(packed.codes, packed.bits)),
        "weight_scale": torch.from_numpy(packed.scales.copy()).to(
            getattr(torch, packed.scale_dtype)
        ),
        "weight_shape": torch.tensor(shape, dtype=torch.int64),
    }
    if packed.zero_point:
        words = pack_stream(np.ascontiguousarray(packed.zeros.T), packed.bits)
        tensors["weight_zero_point"] = torch.from_numpy(np.ascontiguousarray(words.T))
    return tensors


def quantization_config(
    *,
    bits: int,
    group_size: int,
    zero_point: bool,
    modules_to_not_convert: list[str] | None,
) -> dict:
    """Return config.json's `quantization_config` as llm-compressor writes it.

    Parameters
    ----------
    bits : int
    group_size : int
        -1 means whole rows.
    zero_point : bool
    modules_to_not_convert : list of str, optional
        Full names of the linears left as they are, lm_head included: readers take every
        other linear for a quantized one.

    Returns
    -------
    dict
        Of compressed-tensors 0.19.
    """
    is_channel = group_size == -1
    weights = {
        "actorder": None,
        "block_structure": None,
        "dynamic": False,
        "group_size": None if is_channel else group_size,
        "num_bits": bits,
        "observer": "memoryless_minmax",
        "observer_kwargs": {},
        "scale_dtype": None,
        "strategy": "channel" if is_channel else "group",
        "symmetric": not zero_point,
        "type": "int",
        "zp_dtype": "torch.int8" if zero_point else None,
    }
    group = {
        "format": "pack-quantized",
        "input_activations": None,
        "output_activations": None,
        "targets": ["Linear"],
        "weights": weights,
    }
    return {
        "config_groups": {"group_0": group},
        "format": "pack-quantized",
        "global_compression_ratio": None,
        "ignore": list(modules_to_not_convert or ()),
        "kv_cache_scheme": None,
        "quant_method": "compressed-tensors",
        "quantization_status": "compressed",
        "sparsity_config": {},
        "transform_config": {},
        "version": _VERSION,
    }


def _read_scales(scales: torch.Tensor, *, name: str) -> tuple[np.ndarray, str]:
    dtype = dtype_of(scales)
    if dtype not in SCALE_DTYPES or scales.ndim not in (1, 2) or 0 in scales.shape:
        expected = f"one of {', '.join(SCALE_DTYPES)} of shape (N, G), (N, 1) or (N,)"
        raise wrong_part("weight_scale", scales, expected, name=name)
    array = scales.detach().float().numpy()
    return np.ascontiguousarray(array.reshape(len(array), -1)), dtype


def _read_shape(shape: torch.Tensor, out_features: int, *, name: str) -> int:
    """Return K, having compared N with the rows of the scales."""
    if dtype_of(shape) not in ("int64", "int32") or tuple(shape.shape) != (2,):
        raise wrong_part("weight_shape", shape, "int64 of shape (2,), holding N and K", name=name)
    rows, in_features = shape.tolist()
    if rows != out_features or in_features < 1:
        raise FormatError(
            f"{name}.weight_shape says N = {rows}, K = {in_features}; expected "
            f"N = {out_features}, the rows of weight_scale, and a positive K."
        )
    return in_features


def _read_codes(
    tensors: dict[str, torch.Tensor], sizes: tuple[int, int, int], bits: int, *, name: str
) -> tuple[np.ndarray, np.ndarray | None]:
    """Return codes (N, K) and zeros (N, G), None if symmetric."""
    out_features, in_features, n_groups = sizes
    stored = tensors["weight_packed"]
    streams = {"weight_packed": (_words(stored, "weight_packed", name), in_features)}
    zeros = tensors.get("weight_zero_point")
    if stored.shape[0] != out_features:
        expected = f"int32 of N = {out_features} rows, as weight_scale has"
        raise wrong_part("weight_packed", stored, expected, name=name)
    if zeros is not None and dtype_of(zeros) == "int8":
        zeros = _plain_zeros(zeros, (out_features, n_groups), bits, name=name)
    elif zeros is not None:
        words = _words(zeros[:, None] if zeros.ndim == 1 else zeros, "weight_zero_point", name)
        if words.shape[1] != n_groups:
            expected = f"int32 of G = {n_groups} columns, as weight_scale has"
            raise wrong_part("weight_zero_point", zeros, expected, name=name)
        streams["weight_zero_point"] = (np.ascontiguousarray(words.T), out_features)
    unpack = unpacker(streams, bits, name=name)
    values = {part: unpack(words, count=count) for part, (words, count) in streams.items()}
    if "weight_zero_point" in values:
        zeros = np.ascontiguousarray(values["weight_zero_point"].T)
    return np.ascontiguousarray(values["weight_packed"]), zeros


def _words(tensor: torch.Tensor, part: str, name: str) -> np.ndarray:
    if dtype_of(tensor) != "int32" or tensor.ndim != 2:
        raise wrong_part(part, tensor, "int32 with 2 dimensions", name=name)
    return tensor.numpy()


def _plain_zeros(
    zeros: torch.Tensor, shape: tuple[int, int], bits: int, *, name: str
) -> np.ndarray:
    if tuple(zeros.shape) != shape and (shape[1] > 1 or tuple(zeros.shape) != shape[:1]):
        raise wrong_part("weight_zero_point", zeros, f"int8 of shape {shape}", name=name)
    half = 1 << (bits - 1)
    signed = zeros.numpy().astype(np.int16).reshape(shape)
    if signed.min() < -half or signed.max() >= half:
        raise FormatError(
            f"{name}.weight_zero_point reaches from {signed.min()} to {signed.max()}; expected "
            f"{-half} to {half - 1} at {bits} bits."
        )
    return (signed + half).astype(np.uint8)


def _read_g_idx(
    tensors: dict[str, torch.Tensor], sequential: np.ndarray, n_groups: int, *, name: str
) -> np.ndarray | None:
    """Return the group of each input channel, None if they are `sequential` (K,)."""
    g_idx = tensors.get("weight_g_idx")
    if g_idx is None:
        return None
    if dtype_of(g_idx) not in ("int32", "int64") or tuple(g_idx.shape) != sequential.shape:
        raise wrong_part("weight_g_idx", g_idx, f"int32 of shape {sequential.shape}", name=name)
    index = g_idx.numpy()
    # -1 is what the tensor is made with; writers without activation order leave it so.
    if (index == -1).all() or np.array_equal(index, sequential):
        return None
    if index.min() < 0 or index.max() >= n_groups:
        raise FormatError(
            f"{name}.weight_g_idx reaches from {index.min()} to {index.max()}; expected 0 to "
            f"{n_groups - 1}, the groups of weight_scale."
        )
    return np.ascontiguousarray(index, dtype=np.int32)


def _check_writable(packed: PackedWeight, *, name: str) -> None:
    if packed.g_idx is not None:
        raise FormatError(
            f"{name} is in activation order (g_idx), which compressed-tensors removed in 0.19; "
            "quantize without act-order, or write a GPTQ layout."
        )
    if packed.in_features != packed.group_size * packed.n_groups:
        remainder = packed.in_features % packed.group_size
        raise AlignmentError(
            f"{name}: in_features {packed.in_features} is not a multiple of group_size "
            f"{packed.group_size} (remainder {remainder}), and pack-quantized weights have no "
            "short last group; choose a group_size that divides it, or -1 for whole rows."
        )
    check_scales(packed, name=name)
    half = 1 << (packed.bits - 1)
    if not packed.zero_point and (packed.zeros != half).any():
        raise FormatError(
            f"{name} is symmetric and has zero points from {packed.zeros.min()} to "
            f"{packed.zeros.max()}; expected {half} throughout, or zero_point=True."
        )
