"""The AutoAWQ GEMV layout: words along K in natural order, groups padded with zeros.

A linear of K in_features and N out_features is stored as `qweight` int32 (N, K / 8),
`qzeros` int32 (N, Zw) and `scales` (N, 8 * Zw). Zw is wider than the groups need, so that
the kernel reads whole vectors; `padded_groups` has the rule.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from awqbench.errors import AlignmentError, FormatError
from awqbench.formats.layouts.packing import pack_stream, unpack_stream
from awqbench.formats.layouts.parts import SCALE_DTYPES, dtype_of, take_parts, wrong_part
from awqbench.numerics import round_to
from awqbench.packed import PackedWeight

if TYPE_CHECKING:
    import torch

TENSORS = ("qweight", "qzeros", "scales")
_GROUP_SIZES = "group sizes 32, 64, and 128 or more"


def read_linear(
    tensors: dict[str, torch.Tensor],
    *,
    bits: int = 4,
    group_size: int | None = None,
    name: str = "",
) -> PackedWeight:
    """Read one linear of an AWQ GEMV checkpoint.

    Parameters
    ----------
    tensors : dict
        `qweight` int32 (N, K / 8), `qzeros` int32 (N, Zw), `scales` (N, 8 * Zw).
    bits : int
        4; the layout has no other width.
    group_size : int, optional
        -1 means whole rows. Derived from the shapes if None, where they leave one answer.
    name : str
        Module path, for error texts.

    Returns
    -------
    PackedWeight

    Raises
    ------
    FormatError
        If a tensor is missing, or has a shape or dtype that the layout cannot have; if
        `group_size` does not agree with the tensors, or must be given.
    """
    label = name or "linear"
    require_four_bits(bits, layout="gemv", name=label)
    dtypes = dict(zip(TENSORS, (("int32",), ("int32",), SCALE_DTYPES), strict=True))
    qweight, qzeros, scales = take_parts(tensors, dtypes, name=label)
    out_features, in_features = qweight.shape[0], 8 * qweight.shape[1]
    if not in_features or in_features % 32 or not out_features or out_features % 8:
        expected = "(N, K / 8) with N a multiple of 8 and K one of 32"
        raise wrong_part("qweight", qweight, expected, name=label)
    if scales.shape[0] != out_features:
        raise wrong_part("scales", scales, f"({out_features}, padded groups)", name=label)
    stored = scales.float().numpy()
    group_size = find_group_size(stored, in_features, group_size, name=label)
    if tuple(qzeros.shape) != (out_features, scales.shape[1] // 8):
        expected = f"({out_features}, {scales.shape[1] // 8})"
        raise wrong_part("qzeros", qzeros, expected, name=label)
    n_groups = in_features // group_size
    return PackedWeight(
        codes=unpack_stream(qweight.numpy(), 4, in_features),
        scales=np.ascontiguousarray(stored[:, :n_groups]),
        zeros=unpack_stream(qzeros.numpy(), 4, n_groups),
        bits=4,
        group_size=group_size,
        zero_point=True,
        scale_dtype=dtype_of(scales),
        name=name,
    )


def write_linear(packed: PackedWeight) -> dict[str, torch.Tensor]:
    """Lay one linear out as AutoAWQ's GEMV kernel reads it.

    Parameters
    ----------
    packed : PackedWeight
        4 bits, K a multiple of 32, N of 8, groups in order, scales representable in float16.

    Returns
    -------
    dict of str to torch.Tensor
        `qweight` int32 (N, K / 8), `qzeros` int32 (N, Zw), `scales` float16 (N, 8 * Zw).

    Raises
    ------
    FormatError
        If the layout cannot hold the weight: not 4 bits, act-order, a group size without
        a padding rule, or scales that float16 cannot represent.
    AlignmentError
        If K is not a multiple of 32 or of the group size, or N not one of 8.
    """
    import torch

    name = packed.name or "weight"
    require_four_bits(packed.bits, layout="gemv", name=name)
    if packed.g_idx is not None:
        raise FormatError(f"{name} is in activation order (g_idx); the gemv layout has no g_idx.")
    _check_aligned("in_features", packed.in_features, 32, name=name)
    _check_aligned("out_features", packed.out_features, 8, name=name)
    if not _holds(packed.group_size):
        raise FormatError(
            f"{name} has group_size {packed.group_size}; the gemv layout holds {_GROUP_SIZES}."
        )
    _check_aligned("in_features", packed.in_features, packed.group_size, name=name)
    if not np.array_equal(round_to(packed.scales, "float16"), packed.scales):
        raise FormatError(
            f"{name}: scales are {packed.scale_dtype} numbers that float16, which the gemv layout "
            "stores, cannot hold; quantize with scale_dtype='float16'."
        )
    width = padded_groups(packed.in_features, packed.group_size)
    padding = ((0, 0), (0, width - packed.n_groups))
    scales = np.pad(packed.scales.astype(np.float16), padding)
    return {
        "qweight": torch.from_numpy(pack_stream(packed.codes, 4)),
        "qzeros": torch.from_numpy(pack_stream(np.pad(packed.zeros, padding), 4)),
        "scales": torch.from_numpy(np.ascontiguousarray(scales)),
    }


def padded_groups(in_features: int, group_size: int) -> int:
    """Return 8 * Zw, how many groups are stored where K / group_size are used.

    Zw, the words of zero points in a row, is a multiple of 1, 2 or 4 at group sizes of
    128 or more, 64 and 32 (AutoAWQ's `calculate_zeros_width`).
    """
    multiple = {32: 4, 64: 2}.get(group_size, 1)
    words = -(-(in_features // group_size) // 8)
    return 8 * multiple * -(-words // multiple)


def find_group_size(
    scales: np.ndarray, in_features: int, group_size: int | None, *, name: str
) -> int:
    """Return the group size that the padded scales and the caller agree on.

    Parameters
    ----------
    scales : (N, 8 * Zw) ndarray of float32
        As stored, with the padding.
    in_features : int
    group_size : int or None
        From config.json; None to derive it, -1 for whole rows.
    name : str

    Returns
    -------
    int
        32, 64, or 128 and more; divides K.

    Raises
    ------
    FormatError
        If none fits, several do, or the scales go on where padding should be.
    """
    width, where = scales.shape[1], f"{name}.scales"
    columns = np.flatnonzero((scales != 0).any(axis=0))  # NaN is not 0, and warns of nothing
    used = int(columns[-1]) + 1 if columns.size else 0
    if group_size is None:
        return _only_fit(width, used, in_features, where)
    size = in_features if group_size == -1 else group_size
    if not _holds(size) or in_features % size:
        raise FormatError(
            f"{where}: config says group_size {size}; the layout holds {_GROUP_SIZES} "
            f"that divide in_features, here {in_features}."
        )
    expected = padded_groups(in_features, size)
    if width != expected:
        raise FormatError(
            f"{where} holds {width} padded groups a row; expected {expected} for in_features "
            f"{in_features} at group_size {size}."
        )
    if used > in_features // size:
        raise FormatError(
            f"{where}: group {used - 1} is not 0, but at group_size {size} in_features "
            f"{in_features} has {in_features // size} groups and the rest is padding; "
            "the group_size in config.json is too large."
        )
    return size


def _only_fit(width: int, used: int, in_features: int, where: str) -> int:
    # Trailing groups of scale 0 may be padding or may be groups of a dead layer, so
    # every size with at least `used` groups stays in play.
    fits = [
        in_features // n_groups
        for n_groups in range(max(used, 1), width + 1)
        if in_features % n_groups == 0
        and _holds(in_features // n_groups)
        and padded_groups(in_features, in_features // n_groups) == width
    ]
    if len(fits) == 1:
        return fits[0]
    raise FormatError(
        f"{where}: {width} padded groups a row of in_features {in_features} fit "
        + (f"group sizes {fits}; give group_size." if fits else f"none of {_GROUP_SIZES}.")
    )


def require_four_bits(bits: int, *, layout: str, name: str) -> None:
    """Raise FormatError unless `bits` is 4."""
    if bits != 4:
        raise FormatError(f"{name} has {bits} bits; the AWQ {layout} layout holds 4 bits only.")


def _holds(group_size: int) -> bool:
    return group_size in (32, 64) or group_size >= 128


def _check_aligned(what: str, size: int, multiple: int, *, name: str) -> None:
    remainder = size % multiple
    if remainder:
        raise AlignmentError(
            f"{name}: {what} is {size}, not a multiple of {multiple} (remainder {remainder}), "
            f"which the gemv layout needs; pad by {multiple - remainder} to "
            f"{size + multiple - remainder}, or list the module in modules_to_not_convert."
        )
