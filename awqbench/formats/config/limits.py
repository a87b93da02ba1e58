"""What a layout can hold, asked before any work is done."""

from __future__ import annotations

from typing import Protocol

from awqbench.errors import AlignmentError, FormatError
from awqbench.formats.config.fields import LAYOUT_BITS
from awqbench.formats.layouts.awq import check_out_features
from awqbench.formats.layouts.table import layout_named

# K and N must be multiples of these.
_MULTIPLES = {"awq-gemv": (32, 8), "gptq": (32, 32), "gptq-v2": (32, 32)}


class Widths(Protocol):
    """The settings that a layout may be unable to hold."""

    bits: int
    group_size: int
    zero_point: bool
    scale_dtype: str


def check_layout(layout: str, settings: Widths) -> None:
    """Raise if a layout cannot hold the bits, zero points or scales of the settings.

    Raises
    ------
    FormatError
        Says which setting, and the nearest layout or setting that works.
    ParameterError
        If the layout is not one that is written.
    """
    layout_named(layout, to_write=True)
    if layout == "chatglm":
        raise FormatError(
            "the chatglm layout is quantized per channel by its own rule: quantize_chatglm()."
        )
    bits, zero_point, dtype = settings.bits, settings.zero_point, settings.scale_dtype
    if layout.startswith("awq-") and (bits != 4 or not zero_point or dtype != "float16"):
        raise FormatError(
            f"bits={bits}, zero_point={zero_point}, scale_dtype={dtype!r}: the AutoAWQ layout "
            "holds 4 bits with zero points and float16 scales. For other settings choose "
            "layout='compressed-tensors' or 'gptq-v2'."
        )
    if layout == "awq-gemv" and not (settings.group_size in (32, 64) or settings.group_size >= 128):
        raise FormatError(
            f"group_size={settings.group_size}: the awq-gemv layout holds 32, 64, and 128 or more."
        )
    if bits not in LAYOUT_BITS[layout]:
        allowed = ", ".join(map(str, LAYOUT_BITS[layout]))
        raise FormatError(
            f"bits={bits}: the {layout} layout holds {allowed}; choose one of these, or "
            "layout='compressed-tensors'."
        )
    if layout.startswith("gptq") and dtype != "float16":
        raise FormatError(
            f"scale_dtype={dtype!r}: the {layout} layout stores float16; choose that, or "
            "layout='compressed-tensors'."
        )
    if layout == "gptq" and zero_point:
        raise FormatError(
            "the gptq layout (v1) stores zero points minus one, and its readers disagree on a "
            "zero point of 0; choose layout='gptq-v2', or zero_point=False."
        )


def check_size(layout: str, out_features: int, in_features: int, *, name: str) -> None:
    """Raise if a linear's size does not fill the words of a layout.

    Raises
    ------
    AlignmentError
        With the remainder and the nearest multiple.
    """
    if layout == "awq-gemm":
        check_out_features(out_features, name=name)
    of_k, of_n = _MULTIPLES.get(layout, (1, 1))
    for side, size, multiple in (
        ("in_features", in_features, of_k),
        ("out_features", out_features, of_n),
    ):
        if size % multiple:
            raise AlignmentError(
                f"{name}: {side} is {size}, not a multiple of {multiple} (remainder "
                f"{size % multiple}), which the {layout} layout needs; pad by "
                f"{multiple - size % multiple}, list the module in modules_to_not_convert, or "
                "choose layout='compressed-tensors'."
            )
