"""Quantized folders that awqbench recognises and cannot read: what they are, what to do."""

from __future__ import annotations

from pathlib import Path

from awqbench.formats.config.quantization import Quantization
from awqbench.formats.headers import TensorInfo

_AGAIN = (
    "For a layout that this package reads, quantize the original bf16 folder "
    "(awqbench quantize); decoding this one first would add a second error to the first."
)

# Method: what it is, and the tool that loads it.
METHODS = {
    "bitsandbytes": "bitsandbytes weights, loaded by transformers with the package bitsandbytes",
    "fp8": "float8 weights with block scales (DeepSeek and Qwen FP8), loaded by vLLM, SGLang, "
    "or transformers on a GPU",
    "fbgemm_fp8": "float8 weights for FBGEMM kernels, loaded by vLLM or transformers on a GPU",
    "modelopt": "weights of NVIDIA ModelOpt, loaded by TensorRT-LLM, vLLM or SGLang",
    "quark": "weights of AMD Quark, loaded by vLLM or by transformers with the package quark",
    "torchao": "weights of torchao, loaded by transformers with the package torchao",
    "hqq": "HQQ weights, loaded with the package hqq",
    "mxfp4": "MXFP4 weights (4-bit floats in blocks of 32, as gpt-oss), loaded by vLLM or by "
    "transformers on a GPU",
    "mxfp8": "MXFP8 weights (8-bit floats in blocks of 32)",
    "nvfp4": "NVFP4 weights (4-bit floats in blocks of 16), loaded by vLLM on recent GPUs",
    "gguf": "a GGUF file, loaded by llama.cpp and Ollama",
    "aqlm": "AQLM codebooks, loaded by transformers with the package aqlm",
    "vptq": "VPTQ codebooks, loaded by transformers with the package vptq",
    "quip": "QuIP# codebooks, loaded with the tool that made them",
    "spqr": "SpQR weights, loaded by transformers with the package spqr_quant",
    "quanto": "quanto weights, loaded with the package optimum-quanto",
    "eetq": "EETQ int8 weights, loaded by transformers with the package eetq",
    "higgs": "HIGGS weights, loaded by transformers with the package flute",
    "bitnet": "ternary BitNet weights, loaded by transformers or bitnet.cpp",
    "exl2": "ExLlamaV2 weights, loaded by exllamav2",
    "exl3": "ExLlamaV3 weights, loaded by exllamav3",
    "fp_quant": "FP-Quant weights, loaded by transformers with the package fp_quant",
    "fouroversix": "Four Over Six weights, loaded by transformers with the package fouroversix",
    "sinq": "SINQ weights, loaded by transformers with the package sinq",
    "metal": "weights for Apple's Metal kernels, loaded by transformers on a Mac",
    "gemma": "quantization-aware Gemma weights, loaded by transformers",
}
# Formats of compressed-tensors other than pack-quantized: variant and what it is.
COMPRESSED = {
    "float-quantized": ("fp8", "float8 weights"),
    "naive-quantized": ("naive", "unpacked low-precision weights"),
    "int-quantized": ("int8", "int8 weights, and int8 activations when they run (W8A8)"),
    "mxfp4-pack-quantized": ("mxfp4", "MXFP4 weights (4-bit floats in blocks of 32)"),
    "mxfp8-quantized": ("mxfp8", "MXFP8 weights (8-bit floats in blocks of 32)"),
    "nvfp4-pack-quantized": ("nvfp4", "NVFP4 weights (4-bit floats in blocks of 16)"),
    "marlin-24": ("marlin-24", "4-bit weights with 2:4 sparsity in Marlin's order"),
    "sparse-bitmask": ("sparse", "sparse weights with a bit mask"),
    "sparse-24-bitmask": ("sparse-24", "2:4 sparse weights with a bit mask"),
    "mixed-precision": ("mixed", "several formats in one folder"),
}


def foreign(
    method: str, *, variant: str = "", bits: int | None = None, group_size: int | None = None
) -> Quantization:
    """Return the quantization of a method that is only recognised.

    An unknown method is no error in transformers: it warns, skips the weights, and gives
    every quantized linear random numbers. The advice says so.
    """
    what = METHODS.get(method)
    if what is None:
        advice = (
            f"quant_method {method!r} is not known. transformers would only warn, skip the "
            "quantization, and start every quantized linear from random weights: do not trust "
            f"a model that loads that way. Load it with the tool that made it. {_AGAIN}"
        )
    else:
        advice = f"it holds {what}. {_AGAIN}"
    return Quantization(method, bits, group_size, None, None, variant=variant, advice=advice)


def foreign_compressed(
    kind: str, *, bits: int | None = None, group_size: int | None = None
) -> Quantization:
    """Return the quantization of a compressed-tensors format that is only recognised."""
    variant, what = COMPRESSED.get(kind, (kind[:40], f"the format {kind[:40]!r}"))
    return Quantization(
        "compressed-tensors",
        bits,
        group_size,
        None,
        None,
        variant=variant,
        advice=f"it holds {what} of compressed-tensors, loaded by vLLM, or by transformers with "
        f"the package compressed-tensors. {_AGAIN}",
    )


def bitsandbytes(section: dict, tensors: dict[str, TensorInfo]) -> Quantization:
    """Return which of bitsandbytes' kinds a folder holds: nf4, fp4 or int8."""
    variant, bits = "", None
    if section.get("load_in_8bit") or any(name.endswith(".SCB") for name in tensors):
        variant, bits = "int8", 8
    elif section.get("load_in_4bit") or any("bitsandbytes__" in name for name in tensors):
        kind = section.get("bnb_4bit_quant_type")
        if any(name.endswith("bitsandbytes__fp4") for name in tensors):
            kind = "fp4"
        elif any(name.endswith("bitsandbytes__nf4") for name in tensors):
            kind = "nf4"
        variant, bits = "fp4" if kind == "fp4" else "nf4", 4
    return foreign("bitsandbytes", variant=variant, bits=bits)


def foreign_by_tensors(tensors: dict[str, TensorInfo]) -> Quantization | None:
    """Recognise a folder whose config.json says nothing, by the names of its tensors."""
    last = {name.rpartition(".")[2] for name in tensors}
    if "SCB" in last or any("bitsandbytes__" in name for name in tensors):
        return bitsandbytes({}, tensors)
    if "W_q" in last:
        return foreign("hqq")
    if "weight_scale_inv" in last:
        return foreign("fp8", bits=8)
    if any(name.endswith("_proj_blocks") for name in tensors):
        return foreign("mxfp4", bits=4, group_size=32)
    if any(info.dtype.startswith("float8") for info in tensors.values()):
        return foreign("fp8", bits=8)
    return None


def foreign_by_files(path: Path) -> Quantization | None:
    """Recognise a GGUF file, or a folder with GGUF or HQQ files in place of safetensors."""
    files = [path] if path.is_file() else sorted(path.iterdir()) if path.is_dir() else []
    if any(file.suffix == ".safetensors" for file in files):
        return None
    if any(file.suffix == ".gguf" or _starts_with(file, b"GGUF") for file in files):
        return foreign("gguf")
    if any(file.name == "qmodel.pt" for file in files):
        return foreign("hqq")
    return None


def _starts_with(file: Path, magic: bytes) -> bool:
    try:
        with file.open("rb") as opened:
            return opened.read(len(magic)) == magic
    except OSError:
        return False
