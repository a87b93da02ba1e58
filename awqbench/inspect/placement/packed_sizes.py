"""The tensors that a packed linear has in each layout, by shape and dtype: nothing is read."""

from __future__ import annotations

import math
from typing import NamedTuple

from awqbench.errors import ParameterError
from awqbench.formats.headers import DTYPES
from awqbench.formats.layouts.awq_gemv import padded_groups
from awqbench.formats.layouts.packing import words_for
from awqbench.formats.layouts.table import layout_named

ITEM_BYTES = {torch_name: size for size, torch_name in DTYPES.values()}


class TensorSize(NamedTuple):
    """A tensor without its values; `dtype` is torch's name, such as ``bfloat16``."""

    shape: tuple[int, ...]
    dtype: str

    @property
    def nbytes(self) -> int:
        """Bytes of data."""
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]


class PackedForm(NamedTuple):
    """How a linear is packed.

    Parameters
    ----------
    layout : str
        A key of `awqbench.formats.layouts.LAYOUTS`.
    bits : int
    group_size : int
        -1 means whole rows.
    zero_point : bool
        Only compressed-tensors leaves zero points out where they say nothing.
    scale_dtype : str
    has_g_idx : bool
        Whether a GPTQ folder stores the group of each input; AutoRound's own does not.
    """

    layout: str
    bits: int
    group_size: int
    zero_point: bool = True
    scale_dtype: str = "float16"
    has_g_idx: bool = True


def packed_tensors(
    out_features: int, in_features: int, form: PackedForm, *, name: str = ""
) -> dict[str, TensorSize]:
    """List the tensors of one packed linear, its bias left out.

    Padding is counted: the last word of a row that codes do not fill, a short last group,
    and the groups of zeros that AutoAWQ's GEMV layout adds.

    Parameters
    ----------
    out_features, in_features : int
    form : PackedForm
    name : str
        Module path, for error texts.

    Returns
    -------
    dict of str to TensorSize
        By the last part of their names, such as ``qweight``.

    Raises
    ------
    ParameterError
        If the layout is not known, or has words of whole bytes only (ChatGLM's).

    Examples
    --------
    >>> parts = packed_tensors(128, 200, PackedForm("gptq", 4, 128))
    >>> parts["qweight"].shape, parts["scales"].shape  # the second group is short
    ((25, 128), (2, 128))
    """
    layout = layout_named(form.layout).name
    n_groups = 1 if form.group_size == -1 else -(-in_features // form.group_size)
    scales = TensorSize((n_groups, out_features), form.scale_dtype)
    zero_words = _words(n_groups, words_for(out_features, form.bits))
    if layout == "awq-gemm":
        codes = _words(in_features, words_for(out_features, form.bits))
        return {"qweight": codes, "qzeros": zero_words, "scales": scales}
    if layout in ("gptq", "gptq-v2"):
        codes = _words(words_for(in_features, form.bits), out_features)
        parts = {"qweight": codes, "qzeros": zero_words, "scales": scales}
        return parts | ({"g_idx": _words(in_features)} if form.has_g_idx else {})
    if layout == "compressed-tensors":
        return _compressed(out_features, in_features, n_groups, form)
    if layout == "chatglm":
        return _chatglm(out_features, in_features, form, name)
    return _autoawq_variants(out_features, in_features, form, scales)


def _words(*shape: int) -> TensorSize:
    return TensorSize(shape, "int32")


def _compressed(
    out_features: int, in_features: int, n_groups: int, form: PackedForm
) -> dict[str, TensorSize]:
    parts = {
        "weight_packed": _words(out_features, words_for(in_features, form.bits)),
        "weight_scale": TensorSize((out_features, n_groups), form.scale_dtype),
        "weight_shape": TensorSize((2,), "int64"),
    }
    if form.zero_point:
        parts["weight_zero_point"] = _words(words_for(out_features, form.bits), n_groups)
    return parts


def _chatglm(
    out_features: int, in_features: int, form: PackedForm, name: str
) -> dict[str, TensorSize]:
    if form.bits not in (4, 8) or in_features * form.bits % 8:
        raise ParameterError(
            f"{name or 'weight'}: the chatglm layout holds rows of whole bytes at 4 or 8 bits, "
            f"not {in_features} codes of {form.bits} bits; choose gptq-v2 or compressed-tensors."
        )
    return {
        "weight": TensorSize((out_features, in_features * form.bits // 8), "int8"),
        "weight_scale": TensorSize((out_features,), form.scale_dtype),
    }


def _autoawq_variants(
    out_features: int, in_features: int, form: PackedForm, scales: TensorSize
) -> dict[str, TensorSize]:
    if form.layout == "awq-marlin":
        return {"qweight": _words(in_features // 16, 2 * out_features), "scales": scales}
    group_size = in_features if form.group_size == -1 else form.group_size
    stored = padded_groups(in_features, group_size)
    if form.layout == "awq-gemv":
        return {
            "qweight": _words(out_features, words_for(in_features, form.bits)),
            "qzeros": _words(out_features, stored // 8),
            "scales": TensorSize((out_features, stored), form.scale_dtype),
        }
    padded = TensorSize((stored, out_features), form.scale_dtype)
    codes = TensorSize((out_features // 4, in_features), "int16")
    return {"qweight": codes, "qzeros": padded, "scales": padded}
