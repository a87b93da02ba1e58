"""Where the bytes of a folder lie: each tensor has one kind, by its name and its header."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from awqbench.formats.convert import dense_linears
from awqbench.formats.layouts.table import LAYOUTS, packed_parts

if TYPE_CHECKING:
    import pandas as pd

    from awqbench.formats.checkpoint import Checkpoint

KINDS = (
    "codes",
    "scales",
    "zero points",
    "g_idx",
    "embeddings",
    "norms",
    "dense linears",
    "biases",
    "lm_head",
    "other",
)
_EMBEDDING = re.compile(r"embed|(^|\.)(wte|wpe)\.")
_HEAD = re.compile(r"(^|\.)(lm_head|output_layer|embed_out)\.")
_NORM = re.compile(r"norm|(^|[._])ln(_|\d|\.)", re.IGNORECASE)
_FLOATS = ("float16", "bfloat16", "float32", "float64")
# Names that tools awqbench does not read give to the scales of their packed weights.
_FOREIGN_SCALES = re.compile(r"scale|SCB|absmax|quant_map|quant_state")


def tensor_kind(ckpt: Checkpoint, name: str) -> str:
    """Return which of `KINDS` a tensor is.

    Parameters
    ----------
    ckpt : Checkpoint
    name : str

    Returns
    -------
    str
        A packed output layer counts as codes, scales and zero points like any linear.
    """
    module, _, part = name.rpartition(".")
    if ckpt.is_packed(module) and part in _packed_parts(ckpt):
        return _part_kind(part)
    info = ckpt.tensors[name]
    if ckpt.quantization is not None and ckpt.quantization.layout is None:
        if _FOREIGN_SCALES.search(part):
            return "scales"
        if info.dtype not in _FLOATS and info.dtype not in ("bool", "int64"):
            return "codes"
    if _HEAD.search(name):
        return "lm_head"
    if _EMBEDDING.search(name):
        return "embeddings"
    if _NORM.search(name):
        return "norms"
    if part == "bias" or part.endswith("_bias"):
        return "biases"
    is_linear = (len(info.shape) == 2 and part == "weight") or (
        len(info.shape) == 3 and "expert" in name
    )
    return "dense linears" if is_linear else "other"


def _packed_parts(ckpt: Checkpoint) -> tuple[str, ...]:
    return packed_parts(LAYOUTS[ckpt.quantization.layout])


def _part_kind(part: str) -> str:
    if part == "weight_shape":
        return "other"
    for word, kind in (("g_idx", "g_idx"), ("zero", "zero points"), ("scale", "scales")):
        if word in part:
            return kind
    return "codes"


def bytes_by_kind(ckpt: Checkpoint) -> pd.DataFrame:
    """Count the bytes of each kind of tensor, from headers alone.

    Parameters
    ----------
    ckpt : Checkpoint

    Returns
    -------
    DataFrame
        `kind`, `tensors`, `weight_bytes` and `share` of all bytes; a row for each kind
        that there is, in the order of `KINDS`.
    """
    import pandas as pd

    sums = {kind: [0, 0] for kind in KINDS}
    for name, info in ckpt.tensors.items():
        entry = sums[tensor_kind(ckpt, name)]
        entry[0] += 1
        entry[1] += info.nbytes
    rows = [(kind, count, size) for kind, (count, size) in sums.items() if count]
    table = pd.DataFrame(rows, columns=["kind", "tensors", "weight_bytes"])
    return table.assign(share=table["weight_bytes"] / max(ckpt.nbytes, 1))


def skipped_linears(ckpt: Checkpoint) -> tuple[str, ...]:
    """Return the linears of a quantized folder that are in full precision, in tensor order.

    Empty where nothing is packed in a layout that can be read.
    """
    if not ckpt.quantized_linears():
        return ()
    names = [name for name in ckpt.tensors if not ckpt.is_packed(name.rpartition(".")[0])]
    return tuple(name for name in dense_linears(ckpt, names) if f"{name}.weight" in ckpt.tensors)
