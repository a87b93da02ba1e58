"""What is this folder? The quantization that config.json and the tensors declare."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from awqbench.errors import FormatError
from awqbench.formats.headers import TensorInfo


class Quantization(NamedTuple):
    """How a checkpoint is quantized.

    `layout` is None where awqbench recognises the method and cannot read its weights.
    """

    method: str
    bits: int | None
    group_size: int | None
    zero_point: bool | None
    layout: str | None
    modules_to_not_convert: tuple[str, ...]

    def summary(self) -> str:
        """Return one phrase for messages, such as ``awq gemm, 4 bits, group size 128``."""
        parts = [" ".join(filter(None, (self.method, self.layout)))]
        if self.bits:
            parts.append(f"{self.bits} bits")
        if self.group_size:
            parts.append(f"group size {self.group_size}")
        return ", ".join(parts)

    def require_readable(self) -> None:
        """Raise if the weights are in a layout that awqbench cannot read.

        Raises
        ------
        FormatError
            Names the method.
        """
        if self.layout is None:
            raise FormatError(
                f"the folder is quantized by {self.method!r}, whose weights awqbench cannot read; "
                "load it with the tool that made it."
            )


def detect_quantization(
    config: dict, tensors: dict[str, TensorInfo], path: Path
) -> Quantization | None:
    """Read a checkpoint's quantization from its configuration and tensor names.

    Parameters
    ----------
    config : dict
        config.json.
    tensors : dict of str to TensorInfo
    path : Path
        The folder, for error texts.

    Returns
    -------
    Quantization or None
        None for a full-precision folder.

    Raises
    ------
    FormatError
        If the configuration is not an object, or names impossible values.
    """
    section = config.get("quantization_config")
    has_packed = any(name.endswith(".qweight") for name in tensors)
    if section is None:
        if not has_packed:
            return None
        raise FormatError(
            f"{path.name} holds packed weights (.qweight) and config.json has no "
            "quantization_config: bits and layout are unknown."
        )
    if not isinstance(section, dict):
        raise FormatError("config.json: quantization_config is not an object.")
    method = str(section.get("quant_method", "unknown"))
    skipped = section.get("modules_to_not_convert") or ()
    if not isinstance(skipped, (list, tuple)):
        raise FormatError(
            f"config.json: quantization_config.modules_to_not_convert is {skipped!r}, not a list."
        )
    bits = section.get("bits", section.get("w_bit"))
    group_size = section.get("group_size", section.get("q_group_size"))
    for key, value in (("bits", bits), ("group_size", group_size)):
        if value is not None and type(value) is not int:
            raise FormatError(f"config.json: quantization_config.{key} is {value!r}, not a number.")
    layout = None
    if method == "awq":
        version = str(section.get("version", section.get("format", "gemm"))).lower()
        if version == "gemm":
            layout = "gemm"
            if bits is None or not 2 <= bits <= 8:
                raise FormatError(f"config.json: awq with bits {bits!r}; it has 2 to 8.")
    return Quantization(
        method=method,
        bits=bits,
        group_size=group_size,
        zero_point=section.get("zero_point"),
        layout=layout,
        modules_to_not_convert=tuple(str(name) for name in skipped),
    )
