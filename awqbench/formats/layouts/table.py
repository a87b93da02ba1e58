"""The layouts that awqbench reads and writes, by name: one table, one way in, one way out."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, NamedTuple

from awqbench.errors import FormatError, ParameterError
from awqbench.formats.config.quantization import Quantization, Scheme
from awqbench.formats.headers import TensorInfo
from awqbench.packed import PackedWeight

if TYPE_CHECKING:
    import torch


class Layout(NamedTuple):
    """How one tool lays out a packed linear.

    Parameters
    ----------
    name : str
        As `convert` takes it and `Quantization.layout` gives it.
    module : str
        Below `awqbench.formats`.
    marker : str
        The tensor, by the last part of its name, that every packed module has.
    parts : tuple of str
        Other tensors of a module; those that a module lacks are not read.
    options : dict
        What `read_linear` and `write_linear` of the module are called with besides.
    is_written : bool
    what : str
        One phrase for people.
    rounds_decoded : bool
        Whether the tools round decoded weights to the scales' dtype before they multiply.
    """

    name: str
    module: str
    marker: str
    parts: tuple[str, ...]
    options: Mapping[str, int]
    is_written: bool
    what: str
    rounds_decoded: bool = True

    def home(self) -> ModuleType:
        """Return the module that reads and writes it."""
        return import_module(f"awqbench.formats.layouts.{self.module}")


_AWQ = ("qzeros", "scales")
# Parts that no dense module has a tensor of the same name as.
_ONLY_PACKED = ("qzeros", "weight_shape")
LAYOUTS = {
    layout.name: layout
    for layout in (
        Layout("awq-gemm", "awq", "qweight", _AWQ, {}, True, "AutoAWQ GEMM; vLLM, transformers"),
        Layout("awq-gemv", "awq_gemv", "qweight", _AWQ, {}, True, "AutoAWQ GEMV"),
        Layout(
            "awq-gemv-fast",
            "awq_gemv_fast",
            "qweight",
            (*_AWQ, "scaled_zeros"),
            {},
            False,
            "AutoAWQ GEMV-fast, llm-awq v2",
        ),
        Layout("awq-marlin", "awq_marlin", "qweight", ("scales",), {}, False, "AutoAWQ Marlin"),
        Layout(
            "gptq",
            "gptq",
            "qweight",
            (*_AWQ, "g_idx"),
            {"version": 1},
            True,
            "GPTQ v1 (zero points minus one); vLLM where it is symmetric",
        ),
        Layout(
            "gptq-v2", "gptq", "qweight", (*_AWQ, "g_idx"), {"version": 2}, True, "GPTQModel's v2"
        ),
        Layout(
            "compressed-tensors",
            "compressed_tensors",
            "weight_packed",
            ("weight_scale", "weight_shape", "weight_zero_point", "weight_g_idx"),
            {},
            True,
            "compressed-tensors pack-quantized; vLLM, llm-compressor",
        ),
        Layout(
            "chatglm",
            "chatglm",
            "weight",
            ("weight_scale",),
            {},
            True,
            "ChatGLM's QuantizedLinear",
            rounds_decoded=False,
        ),
    )
}


def layout_named(name: str, *, to_write: bool = False) -> Layout:
    """Return a layout by its name.

    Raises
    ------
    ParameterError
        If there is none, or it is only read; lists those that fit.
    """
    fitting = [item.name for item in LAYOUTS.values() if item.is_written or not to_write]
    if name not in fitting:
        verb = "written" if to_write else "read"
        why = "is read but not written" if name in LAYOUTS else "is not known"
        raise ParameterError(
            f"layout {name!r} {why}; layouts that are {verb}: {', '.join(fitting)}."
        )
    return LAYOUTS[name]


def packed_parts(layout: Layout) -> tuple[str, ...]:
    """Return the last parts of the names of a packed module's tensors, bias left out."""
    return (layout.marker, *layout.parts)


def packed_modules(layout: Layout, tensors: Mapping[str, TensorInfo]) -> list[str]:
    """Return the module paths that have packed weights, in order of their names.

    Raises
    ------
    FormatError
        If a module has zero points, or a packed shape, and no packed weight.
    """
    suffix = f".{layout.marker}"
    names = {name.removesuffix(suffix) for name in tensors if name.endswith(suffix)}
    if layout.name == "chatglm":  # a dense weight has the same name
        return sorted(name for name in names if tensors[f"{name}{suffix}"].dtype == "int8")
    for name in tensors:
        module, _, part = name.rpartition(".")
        if part in _ONLY_PACKED and part in layout.parts and module not in names:
            raise FormatError(f"{module}: tensor {module}{suffix} is missing; {name} is there.")
    return sorted(names)


def require_declared(
    quantization: Quantization, scheme: Scheme, present: list[str], *, name: str
) -> None:
    """Raise if a tensor is missing that only the configuration says must be there.

    Without it the others decode to other numbers, and nothing would tell.

    Raises
    ------
    FormatError
        Names the tensor and the key of the configuration.
    """
    missing = None
    if quantization.act_order and "g_idx" not in present:
        missing = "g_idx", "desc_act is true"
    if quantization.layout == "compressed-tensors" and scheme.zero_point:
        if "weight_zero_point" not in present:
            missing = "weight_zero_point", "symmetric is false"
    if missing:
        raise FormatError(
            f"{name}: tensor {name}.{missing[0]} is missing, and by config.json {missing[1]}."
        )


def read_linear(
    layout: str | Layout,
    tensors: Mapping[str, torch.Tensor],
    *,
    bits: int,
    group_size: int | None = None,
    name: str = "",
) -> PackedWeight:
    """Read one linear from the tensors of a layout.

    Parameters
    ----------
    layout : str or Layout
    tensors : mapping of str to torch.Tensor
        By the last part of their names, such as ``qweight``.
    bits : int
    group_size : int, optional
        -1 means whole rows; None takes it from the tensors.
    name : str
        Module path, for error texts.

    Returns
    -------
    PackedWeight

    Raises
    ------
    FormatError
        If a tensor is missing, or has a shape or dtype that the layout cannot have.
    ParameterError
        If there is no such layout.
    """
    layout = layout_named(layout) if isinstance(layout, str) else layout
    return layout.home().read_linear(
        tensors, bits=bits, group_size=group_size, name=name, **layout.options
    )


def write_linear(layout: str | Layout, packed: PackedWeight) -> dict[str, torch.Tensor]:
    """Lay one linear out; tensors by the last part of their names.

    Raises
    ------
    FormatError, AlignmentError
        If the layout cannot hold the numbers; says why and what can.
    ParameterError
        If there is no such layout, or it is only read.
    """
    layout = layout_named(layout, to_write=True) if isinstance(layout, str) else layout
    return layout.home().write_linear(packed, **layout.options)
