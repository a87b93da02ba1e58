"""Figures of one packed linear: what its codes, scales and zero points hold."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from awqbench.formats.layouts.table import LAYOUTS, packed_parts
from awqbench.numerics import limits_of
from awqbench.packed import PackedWeight

if TYPE_CHECKING:
    from awqbench.formats.checkpoint import Checkpoint

# Codes looked at together: the int64 index of a million is 8 MB, near the caches.
_CODES_AT_ONCE = 1 << 20

# Dtype of each column of an x-ray's table of linears; pandas' own types hold "not known".
COLUMNS = {
    "name": "object",
    "bits": "Int64",
    "group_size": "Int64",
    "out_features": "Int64",
    "in_features": "Int64",
    "groups": "Int64",
    "weight_bytes": "Int64",
    "bits_per_weight": "float64",
    "scale_dtype": "object",
    "zero_point": "boolean",
    "act_order": "boolean",
    "zero_min": "Int64",
    "zero_max": "Int64",
    "zeros_at_limits": "Int64",
    "dead_groups": "Int64",
    "levels_used": "Int64",
    "wasted_levels": "Int64",
    "levels_per_group": "float64",
    "nonfinite_scales": "Int64",
    "nonfinite_at": "object",
    "zero_scales": "Int64",
    "subnormal_scales": "Int64",
    "scale_min": "float64",
    "scale_max": "float64",
}


class CodeFigures(NamedTuple):
    """How often each level is used, and by how many groups.

    Parameters
    ----------
    level_counts : (2**bits,) ndarray of int64
        Codes of the linear at each level.
    group_levels : int
        Distinct levels of a group, summed over groups.
    dead_groups : int
        Groups whose codes all equal their zero point: their weights decode to 0.
    """

    level_counts: np.ndarray
    group_levels: int
    dead_groups: int


def code_figures(packed: PackedWeight) -> CodeFigures:
    """Count the levels of 2**bits that a linear and its groups use.

    Parameters
    ----------
    packed : PackedWeight
        Groups may be short or in activation order.

    Returns
    -------
    CodeFigures

    Examples
    --------
    >>> codes = np.array([[0, 3, 2, 2]], np.uint8)
    >>> ones = np.ones((1, 2), np.float32)
    >>> packed = PackedWeight(codes, ones, np.full((1, 2), 2, np.uint8), bits=2, group_size=2)
    >>> code_figures(packed)
    CodeFigures(level_counts=array([1, 0, 2, 1]), group_levels=3, dead_groups=1)
    """
    n_levels, n_groups = 1 << packed.bits, packed.n_groups
    group_index = packed.group_index()
    lengths = np.bincount(group_index, minlength=n_groups)
    rows_at_once = max(1, _CODES_AT_ONCE // max(packed.in_features, n_groups * n_levels))
    level_counts, group_levels, dead_groups = np.zeros(n_levels, np.int64), 0, 0
    for start in range(0, packed.out_features, rows_at_once):
        codes = packed.codes[start : start + rows_at_once]
        zeros = packed.zeros[start : start + rows_at_once].astype(np.int64)
        group = group_index + np.arange(len(codes))[:, None] * n_groups
        counts = np.bincount((group * n_levels + codes).ravel(), minlength=zeros.size * n_levels)
        counts = counts.reshape(*zeros.shape, n_levels)
        level_counts += counts.sum(axis=(0, 1))
        group_levels += int(np.count_nonzero(counts))
        # A zero point of 2**bits, which GPTQ's v1 can express, is no level.
        inside = np.minimum(zeros, n_levels - 1)[..., None]
        at_zero = np.take_along_axis(counts, inside, axis=-1)[..., 0]
        dead_groups += int(((at_zero == lengths) & (lengths > 0) & (zeros < n_levels)).sum())
    return CodeFigures(level_counts, group_levels, dead_groups)


def linear_figures(packed: PackedWeight) -> dict[str, Any]:
    """Return the columns of `COLUMNS` that need a linear's numbers.

    Parameters
    ----------
    packed : PackedWeight

    Returns
    -------
    dict
        `nonfinite_at` is the row and group of the first scale that is NaN or infinite;
        `scale_min` and `scale_max` are of the finite ones.
    """
    found = code_figures(packed)
    levels_used = int(np.count_nonzero(found.level_counts))
    zeros, scales = packed.zeros, packed.scales
    limit = (1 << packed.bits) - 1
    finite = np.isfinite(scales)
    tiny = limits_of(packed.scale_dtype).smallest_normal
    bad = np.argwhere(~finite)
    return {
        "group_size": packed.group_size,
        "out_features": packed.out_features,
        "in_features": packed.in_features,
        "groups": scales.size,
        "scale_dtype": packed.scale_dtype,
        "zero_point": packed.zero_point,
        "act_order": packed.g_idx is not None,
        "zero_min": int(zeros.min()),
        "zero_max": int(zeros.max()),
        "zeros_at_limits": int(((zeros == 0) | (zeros == limit)).sum()),
        "dead_groups": found.dead_groups,
        "levels_used": levels_used,
        "wasted_levels": limit + 1 - levels_used,
        "levels_per_group": found.group_levels / scales.size,
        "nonfinite_scales": len(bad),
        "nonfinite_at": "row {}, group {}".format(*bad[0]) if len(bad) else "",
        "zero_scales": int((scales == 0).sum()),
        "subnormal_scales": int(((scales != 0) & (np.abs(scales) < tiny)).sum()),
        "scale_min": float(scales[finite].min()) if finite.any() else np.nan,
        "scale_max": float(scales[finite].max()) if finite.any() else np.nan,
    }


def header_figures(ckpt: Checkpoint, module: str) -> dict[str, Any]:
    """Return what headers and configuration say of a packed linear.

    Parameters
    ----------
    ckpt : Checkpoint
    module : str
        One of ``ckpt.quantized_linears()``.

    Returns
    -------
    dict
        `out_features` and `in_features` are missing where the headers cannot tell.

    Raises
    ------
    FormatError
        If the configuration does not say how many bits the linear has.
    """
    layout = LAYOUTS[ckpt.quantization.layout]
    infos = {
        part: ckpt.tensors[f"{module}.{part}"]
        for part in packed_parts(layout)
        if f"{module}.{part}" in ckpt.tensors
    }
    scheme = ckpt.quantization.scheme(module)
    shapes = {part: info.shape for part, info in infos.items()}
    n, k = _shape(layout.name, shapes, scheme.bits)
    scales = infos.get("scales") or infos.get("weight_scale")
    group_size = k if scheme.group_size in (None, -1) else scheme.group_size
    return {
        "name": module,
        "bits": scheme.bits,
        "group_size": group_size,
        "out_features": n,
        "in_features": k,
        "groups": n * -(-k // group_size) if n and k and group_size else None,
        "weight_bytes": sum(info.nbytes for info in infos.values()),
        "scale_dtype": scales.dtype if scales else None,
        "zero_point": scheme.zero_point,
    }


def _shape(
    layout: str, shapes: dict[str, tuple[int, ...]], bits: int
) -> tuple[int | None, int | None]:
    """Return N and K by the shapes of a linear's tensors, None for what they do not tell."""
    codes = shapes[LAYOUTS[layout].marker]
    scales = shapes.get("scales", shapes.get("weight_scale", ()))
    if len(codes) != 2 or not scales:
        return None, None
    rows, columns = codes
    g_idx = shapes.get("g_idx", ())
    gptq = (columns, g_idx[0] if len(g_idx) == 1 else rows * 32 // bits)
    return {
        "awq-gemm": (scales[-1], rows),
        "awq-gemv": (rows, columns * 8),
        "awq-gemv-fast": (rows * 4, columns),
        "awq-marlin": (columns // 2, rows * 16),
        "gptq": gptq,
        "gptq-v2": gptq,
        # Words that a row of other widths pads cannot be told from the header alone.
        "compressed-tensors": (rows, columns * 32 // bits if 32 % bits == 0 else None),
        "chatglm": (rows, columns * 8 // bits),
    }[layout]
