"""ChatGLM's own quantization, on any device: one scale a row, rounded, nothing else.

ChatGLM's code insists on CUDA for it, though nothing in the rule needs a GPU: here the
weights are quantized where they are, or on the device that is asked for.
"""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from awqbench.devices import usable_device
from awqbench.errors import (
    AlreadyQuantizedError,
    FormatError,
    NonFiniteError,
    ParameterError,
)
from awqbench.formats.checkpoint import Checkpoint, open_checkpoint
from awqbench.formats.layouts.chatglm import BITS, check_in_features, write_linear
from awqbench.formats.layouts.parts import SCALE_DTYPES, dtype_of
from awqbench.formats.writer import CheckpointWriter, require_new_folder
from awqbench.grid import check_settings
from awqbench.numerics import limits_of
from awqbench.packed import PackedWeight
from awqbench.progress import progress_bar
from awqbench.quantize.run.publish import RECORD

if TYPE_CHECKING:
    import torch

# ChatGLM2, ChatGLM3 and GLM-4 have an encoder; ChatGLM-6B has none and calls it attention.
_LINEAR = re.compile(
    r"transformer\.(encoder\.)?layers\.\d+\."
    r"((self_)?attention\.(query_key_value|dense)|mlp\.(dense_h_to_4h|dense_4h_to_h))\.weight"
)


def quantize_channels(weight: torch.Tensor, *, bits: int = 4, name: str = "weight") -> PackedWeight:
    """Quantize each row to one scale, by ChatGLM's rule and in the weight's dtype.

    s = absmax / (2**(bits - 1) - 1) and round(w / s), both rounded to the weight's dtype,
    which gives ChatGLM's codes. Where ChatGLM's codes are accidents, these are not: a row of
    zeros gets scale 1 (there 0 / 0), and a scale so small that its dtype rounds it down
    too far is rounded up, so that no code leaves its range (there it wraps).

    Parameters
    ----------
    weight : (N, K) torch.Tensor
        float16, bfloat16 or float32, on any device. At 8 bits a quotient in bfloat16 has
        steps of a half beyond 64, so that an error can reach 3/4 of a step, as ChatGLM's.
    bits : int
        2 to 8; ChatGLM's layout holds 4 and 8.
    name : str
        Module path, for error texts.

    Returns
    -------
    PackedWeight
        Symmetric, one group in a row, scales in the weight's dtype.

    Raises
    ------
    FormatError
        If `weight` is not a matrix of one of these dtypes.
    NonFiniteError
        If it holds NaN or inf; names the first row.
    ParameterError
        If `bits` is not 2 to 8.
    """
    import torch

    _check_weight(tuple(weight.shape), dtype_of(weight), name=name)
    n_rows, in_features = weight.shape
    check_settings(bits, None, in_features, name=name)
    weight = weight.detach()
    top, half = (1 << (bits - 1)) - 1, 1 << (bits - 1)
    scales = _row_scales(weight.abs().amax(dim=1), top, name=name)
    codes = torch.round(weight / scales[:, None]).clamp_(-top, top).add_(half).to(torch.uint8)
    return PackedWeight(
        codes=codes.cpu().numpy(),
        scales=scales.float().cpu().numpy()[:, None],
        zeros=np.full((n_rows, 1), half, np.uint8),
        bits=bits,
        group_size=in_features,
        zero_point=False,
        scale_dtype=dtype_of(weight),
        name=name if name != "weight" else "",
    )


def quantize_chatglm(
    ckpt: Checkpoint | str | Path,
    out: str | Path,
    *,
    bits: int = 4,
    device: str | torch.device | None = None,
) -> dict:
    """Quantize a ChatGLM folder to ChatGLM's own layout, one tensor at a time.

    Embeddings, norms, biases and the output layer stay as they are. The folder's Python
    files, which ChatGLM needs with ``trust_remote_code``, are not copied: the record
    names them.

    Parameters
    ----------
    ckpt : Checkpoint or str or Path
        A full-precision ChatGLM, ChatGLM2, ChatGLM3 or GLM-4 folder, in safetensors.
    out : str or Path
        Folder to make.
    bits : int
        4 or 8.
    device : str or torch.device, optional
        Where to compute; default where the weights are, which is the CPU for a folder.

    Returns
    -------
    dict
        The run record, also written to the folder as ``awqbench_run.json``: device, bits,
        seconds, and for each linear its shape, rows of zeros, and relative error
        (Frobenius norm of the difference by that of the weight).

    Raises
    ------
    FormatError
        If the folder is no ChatGLM, or a linear does not fit the layout.
    AlreadyQuantizedError
        If its weights are quantized already.
    DeviceError
        If this torch cannot compute on `device`.
    NonFiniteError, OutputError, ParameterError
        On NaN or inf in a weight; where `out` cannot be made; for other `bits`.
    """
    started = time.perf_counter()
    if type(bits) is not int or bits not in BITS:
        raise ParameterError(f"bits is {bits!r}; ChatGLM's layout holds 4 or 8.")
    ckpt = open_checkpoint(ckpt)
    linears = _linears(ckpt, bits)
    target = usable_device("cpu" if device is None else device)
    out = require_new_folder(out)
    rows = []
    with CheckpointWriter(out) as writer:
        for tensor_name in progress_bar(list(ckpt.tensors), f"quantize {bits} bits", unit="tensor"):
            tensor = ckpt.read(tensor_name)
            if tensor_name not in linears:
                writer.add(tensor_name, tensor)
                continue
            name = tensor_name.removesuffix(".weight")
            packed = quantize_channels(tensor.to(target), bits=bits, name=name)
            for part, stored in write_linear(packed).items():
                writer.add(f"{name}.{part}", stored)
            rows.append(_row(packed, tensor))
        record = _record(ckpt, target, bits, rows) | {"seconds": time.perf_counter() - started}
        config = ckpt.config | {"quantization_bit": bits}
        text = json.dumps(record, indent=1) + "\n"
        writer.finish(config, side_files=ckpt, **{RECORD: text})
    return record


def _row_scales(absmax: torch.Tensor, top: int, *, name: str) -> torch.Tensor:
    """Return the scale of each row, (N,) in the weight's dtype, as it will be stored."""
    import torch

    bad = ~torch.isfinite(absmax)
    if bad.any():
        raise NonFiniteError(
            f"{name} row {int(bad.nonzero()[0])} holds NaN or inf ({int(bad.sum())} rows of "
            f"{len(bad)}); the checkpoint is damaged or was saved in a dtype too small for it: "
            "convert it again from the original."
        )
    scales = absmax / top
    scales = torch.where(absmax == 0, torch.ones_like(scales), scales)
    # Only among subnormals can rounding move a scale this far; the next number is enough.
    is_short = absmax.double() > scales.double() * (top + 0.5)
    return torch.where(is_short, scales + limits_of(dtype_of(absmax)).smallest_subnormal, scales)


def _check_weight(shape: tuple[int, ...], dtype: str, *, name: str) -> None:
    if len(shape) != 2 or 0 in shape or dtype not in SCALE_DTYPES:
        raise FormatError(
            f"{name} is {dtype} of shape {shape}; expected a matrix (N, K) of "
            f"{', '.join(SCALE_DTYPES[:-1])} or {SCALE_DTYPES[-1]}."
        )


def _linears(ckpt: Checkpoint, bits: int) -> set[str]:
    """Return the tensors to quantize, having checked all of them by their headers."""
    model_type = ckpt.config.get("model_type")
    if model_type != "chatglm":
        raise FormatError(
            f"{ckpt.path.name}: config.json says model_type {model_type!r}, and this is for "
            "'chatglm' alone; use awqbench.quantize for other models."
        )
    ckpt.require_full_precision()
    linears = {name for name in ckpt.tensors if _LINEAR.fullmatch(name)}
    if not linears:
        raise FormatError(
            f"{ckpt.path.name} has no linear by ChatGLM's names, such as "
            "transformer.encoder.layers.0.mlp.dense_h_to_4h.weight; use awqbench.quantize for "
            "models of the usual names."
        )
    for name in sorted(linears):
        info = ckpt.tensors[name]
        if info.dtype == "int8":
            raise AlreadyQuantizedError(
                f"{ckpt.path.name}: {name} is int8, quantized already, though config.json's "
                "quantization_bit and the tensors' names do not say how. Start from the "
                "original fp16 or bf16 folder."
            )
        _check_weight(info.shape, info.dtype, name=name)
        check_in_features(info.shape[1], bits, name=name.removesuffix(".weight"))
    return linears


def _row(packed: PackedWeight, weight: torch.Tensor) -> dict:
    import torch

    weight = weight.float()
    error = torch.linalg.vector_norm(torch.from_numpy(packed.dequantize()) - weight)
    norm = float(torch.linalg.vector_norm(weight))
    return {
        "name": packed.name,
        "out_features": packed.out_features,
        "in_features": packed.in_features,
        "zero_rows": int((packed.codes == packed.zeros).all(axis=1).sum()),
        "relative_error": float(error) / norm if norm else 0.0,
    }


def _record(ckpt: Checkpoint, device: torch.device, bits: int, rows: list[dict]) -> dict:
    import torch

    from awqbench.bench.machine import machine_record

    is_cuda = device.type == "cuda"
    return {
        "format": "awqbench-chatglm-1",
        "model": ckpt.path.name,
        "device": str(device),
        "device_name": torch.cuda.get_device_name(device) if is_cuda else device.type,
        "bits": bits,
        "linears": rows,
        "not_copied": sorted(path.name for path in ckpt.path.glob("*.py")),
        "machine": machine_record().to_dict(),
    }
