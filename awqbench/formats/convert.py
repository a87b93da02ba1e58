"""From one layout of packed weights to another: the same numbers, another order of bits."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np

from awqbench.errors import FormatError
from awqbench.formats.checkpoint import Checkpoint, open_checkpoint
from awqbench.formats.config.quantization import Scheme
from awqbench.formats.config.section import quantization_section
from awqbench.formats.layouts.table import (
    LAYOUTS,
    Layout,
    layout_named,
    packed_parts,
    read_linear,
    write_linear,
)
from awqbench.formats.writer import CheckpointWriter
from awqbench.packed import PackedWeight
from awqbench.progress import progress_bar


class Conversion(NamedTuple):
    """What `convert` did; bytes are those of all tensors."""

    source: str
    out: Path
    source_layout: str
    layout: str
    linears: int
    source_bytes: int
    out_bytes: int


def convert(
    ckpt: Checkpoint | str | Path, out: str | Path, layout: str, *, verify: bool = True
) -> Conversion:
    """Write a quantized folder again in another layout, bit for bit, one linear at a time.

    Codes, scales and zero points are those of the source, or nothing is written.

    Parameters
    ----------
    ckpt : Checkpoint or str or Path
        A quantized folder in any layout that awqbench reads.
    out : str or Path
        Folder to make; it appears when it is complete.
    layout : str
        ``"awq-gemm"``, ``"awq-gemv"``, ``"gptq"``, ``"gptq-v2"``, ``"compressed-tensors"`` or
        ``"chatglm"``.
    verify : bool
        Read every linear back from what is written and compare.

    Returns
    -------
    Conversion

    Raises
    ------
    FormatError, AlignmentError
        If the source is not quantized or cannot be read, or the layout cannot hold its
        numbers; names the linear, the reason, and what can.
    ParameterError
        If there is no such layout.
    OutputError
        If `out` holds files or cannot be written.
    """
    target = layout_named(layout, to_write=True)
    ckpt = open_checkpoint(ckpt)
    _require_convertible(ckpt, target)
    source = LAYOUTS[ckpt.quantization.layout]
    modules = ckpt.quantized_linears()
    parts = {f"{m}.{part}" for m in modules for part in packed_parts(source)}
    kept = [name for name in ckpt.tensors if name not in parts]
    schemes: dict[str, Scheme] = {}
    desc_act = False
    out_bytes = 0
    with CheckpointWriter(out) as writer:
        for name in kept:
            writer.add(name, ckpt.read(name))
            out_bytes += ckpt.tensors[name].nbytes
        for module in progress_bar(modules, f"to {target.name}", unit="linear"):
            packed = ckpt.linear(module)
            tensors = write_linear(target, packed)
            if verify:
                _compare(packed, tensors, target)
            for part, tensor in tensors.items():
                writer.add(f"{module}.{part}", tensor)
                out_bytes += tensor.numel() * tensor.element_size()
            schemes[module] = _scheme(packed, ckpt.quantization.scheme(module))
            desc_act = desc_act or packed.g_idx is not None
        config, texts = _config(ckpt, target, schemes, dense_linears(ckpt, kept), desc_act)
        folder = writer.finish(config, side_files=ckpt, **texts)
    return Conversion(
        ckpt.path.name, folder, source.name, target.name, len(modules), ckpt.nbytes, out_bytes
    )


def _require_convertible(ckpt: Checkpoint, target: Layout) -> None:
    if ckpt.quantization is None:
        raise FormatError(
            f"{ckpt.path.name} is not quantized, so there is nothing to convert; quantize it: "
            f"awqbench quantize {ckpt.path.name} OUT."
        )
    ckpt.quantization.require_readable()
    if target.name == "chatglm" and ckpt.config.get("model_type") != "chatglm":
        raise FormatError(
            f"{ckpt.path.name} is a {ckpt.config.get('model_type')!r} model; only ChatGLM's own "
            "code reads the chatglm layout. Choose gptq-v2 or compressed-tensors."
        )


def _scheme(packed: PackedWeight, declared: Scheme) -> Scheme:
    """Whole rows stay whole rows: a group as long as this row may be shorter than others."""
    is_whole = declared.group_size in (None, -1) and packed.n_groups == 1
    return Scheme(packed.bits, -1 if is_whole else packed.group_size, packed.zero_point)


def _compare(packed: PackedWeight, tensors: dict, target: Layout) -> None:
    """Raise if what is written does not read back as it was: a bug, and not the user's."""
    back = read_linear(
        target, tensors, bits=packed.bits, group_size=packed.group_size, name=packed.name
    )
    for field in ("codes", "scales", "zeros"):
        if not np.array_equal(getattr(back, field), getattr(packed, field)):
            raise FormatError(f"{packed.name}: {field} changed in {target.name}; please report it.")
    if not np.array_equal(back.group_index(), packed.group_index()):
        raise FormatError(f"{packed.name}: groups changed in {target.name}; please report it.")


def _config(
    ckpt: Checkpoint,
    target: Layout,
    schemes: dict[str, Scheme],
    dense: list[str],
    desc_act: bool,
) -> tuple[dict, dict[str, str]]:
    """Return config.json and further files as the target's own tool writes them."""
    config = {
        key: value
        for key, value in ckpt.config.items()
        if key not in ("quantization_config", "quantization_bit", "compression_config")
    }
    if target.name == "chatglm":
        widths = Counter(scheme.bits for scheme in schemes.values())
        if len(widths) > 1:
            raise FormatError(f"the chatglm layout has one width, and the folder has {widths}.")
        return config | {"quantization_bit": next(iter(widths))}, {}
    section = quantization_section(target.name, schemes, dense, desc_act=desc_act)
    texts = {}
    if target.name.startswith("gptq"):
        texts["quantize_config"] = json.dumps(section, indent=2) + "\n"
    return config | {"quantization_config": section}, texts


def dense_linears(ckpt: Checkpoint, names: list[str]) -> list[str]:
    """Return the modules among `names` that are linears in full precision, by shape and name.

    Embeddings are matrices too; their names tell them. A tied lm_head has no tensor.
    """
    found = [
        name.removesuffix(".weight")
        for name in names
        if name.endswith(".weight")
        and len(ckpt.tensors[name].shape) == 2
        and not re.search(r"embed|(^|\.)(wte|wpe)\.", name)
    ]
    if "lm_head" not in found and not ckpt.is_packed("lm_head"):
        found.append("lm_head")
    return found
