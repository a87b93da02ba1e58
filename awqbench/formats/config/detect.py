"""What is this folder? The quantization that its configuration and its tensors declare."""

from __future__ import annotations

from pathlib import Path

from awqbench.errors import FormatError
from awqbench.formats.config.awq_gptq import autoround_section, awq_section, gptq_section
from awqbench.formats.config.compressed import compressed_section
from awqbench.formats.config.fields import checked, count, read_json
from awqbench.formats.config.foreign import (
    bitsandbytes,
    foreign,
    foreign_by_tensors,
)
from awqbench.formats.config.quantization import Quantization
from awqbench.formats.headers import TensorInfo

# Where tools put the section before, or beside, config.json.
OLD_FILES = ("quantize_config.json", "quant_config.json", "quantization_config.json")


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
        The folder, for old configuration files beside config.json and for error texts.

    Returns
    -------
    Quantization or None
        None for a full-precision folder.

    Raises
    ------
    FormatError
        If the configuration is not an object, or names impossible values.
    """
    section = _section(config, path)
    if section is None:
        chatglm = _chatglm(config, tensors)
        return chatglm or foreign_by_tensors(tensors) or _refuse_unlabelled(tensors, path)
    method = str(section.get("quant_method") or _method_of_old(section)).lower()
    if method == "awq":
        return awq_section(section)
    if method in ("gptq", "gptq_marlin", "marlin"):
        return gptq_section(section)
    if method in ("auto-round", "auto_round", "intel/auto-round"):
        return autoround_section(section)
    if method in ("compressed-tensors", "compressed_tensors"):
        return compressed_section(section)
    if method.startswith("bitsandbytes"):
        return bitsandbytes(section, tensors)
    return foreign(method[:80], bits=count(section, "bits"))


def _section(config: dict, path: Path) -> dict | None:
    text_config = config.get("text_config")
    section = config.get("quantization_config")
    if section is None and isinstance(text_config, dict):
        section = text_config.get("quantization_config")
    if section is None:
        section = config.get("compression_config")
    for name in OLD_FILES:
        if section is None and (path / name).is_file():
            section = read_json(path / name)
    if section is not None and not isinstance(section, dict):
        raise FormatError("config.json: quantization_config is not an object.")
    return section


def _method_of_old(section: dict) -> str:
    """Files of before `quant_method`: AWQ's have w_bit, AutoGPTQ's desc_act or damp_percent."""
    if "w_bit" in section or "q_group_size" in section:
        return "awq"
    if "desc_act" in section or "damp_percent" in section:
        return "gptq"
    return "unknown"


def _refuse_unlabelled(tensors: dict[str, TensorInfo], path: Path) -> None:
    if any(name.endswith((".qweight", ".weight_packed")) for name in tensors):
        raise FormatError(
            f"{path.name} holds packed weights (.qweight or .weight_packed) and config.json has no "
            "quantization_config: bits and layout are unknown. Add the section, or the "
            "quantize_config.json that came with the folder."
        )


def _chatglm(config: dict, tensors: dict[str, TensorInfo]) -> Quantization | None:
    bits = count(config, "quantization_bit", where="")
    is_packed = any(
        info.dtype == "int8" and f"{name}_scale" in tensors
        for name, info in tensors.items()
        if name.endswith(".weight")
    )
    if not bits or not is_packed:
        return None  # quantization_bit without int8 weights: quantized when it is loaded
    return checked(Quantization("chatglm", bits, -1, False, "chatglm"))
