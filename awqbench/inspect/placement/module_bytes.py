"""Bytes of every module of a model: read from headers, or predicted before there are any."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from awqbench.errors import FormatError
from awqbench.formats.checkpoint import Checkpoint
from awqbench.formats.config.detect import detect_quantization
from awqbench.formats.config.quantization import Quantization, matches
from awqbench.inspect.parallel.plan import read_config
from awqbench.inspect.placement.dense_sizes import dense_tensors, model_dtype
from awqbench.inspect.placement.packed_sizes import (
    PackedForm,
    TensorSize,
    packed_tensors,
)
from awqbench.quantize.settings import Settings

if TYPE_CHECKING:
    import pandas as pd

# A block is what stands behind the first number of a name: model.layers.3
_BLOCK = re.compile(r"^(?P<stack>.*?)\.(?P<number>\d+)\.")
# Matrices inside a block that are looked up or route tokens, and are not quantized.
_KEPT = re.compile(r"embed|(^|\.)(router|gate|shared_expert_gate)$")


class ModelBytes(NamedTuple):
    """A model by the sizes of its tensors.

    Parameters
    ----------
    name : str
    config : mapping
    tensors : dict of str to TensorSize
    kv_dtype : str
        Of keys and values that are kept.
    how : str
        Whether the sizes were read or predicted, in words.
    """

    name: str
    config: Mapping
    tensors: dict[str, TensorSize]
    kv_dtype: str
    how: str

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.nbytes for tensor in self.tensors.values())


def stored_model(ckpt: Checkpoint) -> ModelBytes:
    """Take the sizes of a folder's tensors from its headers; exact, whatever the layout."""
    tensors = {name: TensorSize(info.shape, info.dtype) for name, info in ckpt.tensors.items()}
    return ModelBytes(
        ckpt.path.name, ckpt.config, tensors, model_dtype(ckpt.config), "read from headers"
    )


def predicted_model(
    source: Checkpoint | Mapping | str | Path,
    settings: Settings | None = None,
    *,
    kv_dtype: str | None = None,
    name: str = "",
) -> ModelBytes:
    """Predict the tensors of a quantized model; nothing is quantized or read.

    Parameters
    ----------
    source : Checkpoint or mapping or str or Path
        A full-precision folder, whose headers are then changed linear by linear, or a
        config, from which they are listed. The config may be that of a quantized model.
    settings : Settings, optional
        Width, group size, layout and what to leave alone. By default what the config
        itself says; full precision if that is nothing.
    kv_dtype : str, optional
        Of the KV cache; by default the model's.
    name : str
        For tables; by default the folder's.

    Returns
    -------
    ModelBytes

    Raises
    ------
    FormatError
        If the config does not tell the tensors.
    AlreadyQuantizedError
        If settings are given for a folder that is quantized.
    ParameterError, AlignmentError
        If the layout cannot hold a linear.
    """
    source = read_config(source) if isinstance(source, str | Path) else source
    config = source if isinstance(source, Mapping) else source.config
    if isinstance(source, Mapping) or settings is None:
        dense = dense_tensors(config)
    else:
        source.require_full_precision()
        dense = stored_model(source).tensors
    declared = None if settings else _declared(source, config)
    tensors: dict[str, TensorSize] = {}
    for tensor, size in dense.items():
        module, _, part = tensor.rpartition(".")
        is_linear = part == "weight" and len(size.shape) == 2 and is_quantizable(module)
        form = _form(module, size, settings, declared, config) if is_linear else None
        if form is None:
            tensors[tensor] = size
            continue
        parts = packed_tensors(*size.shape, form, name=module)
        tensors |= {f"{module}.{key}": value for key, value in parts.items()}
    name = name or (source.path.name if isinstance(source, Checkpoint) else _type_of(config))
    return ModelBytes(name, config, tensors, kv_dtype or model_dtype(config), "predicted")


def as_model(source: ModelBytes | Checkpoint | Mapping | str | Path) -> ModelBytes:
    """Read a folder's headers, or predict from a config where there are no weights."""
    if isinstance(source, ModelBytes):
        return source
    if isinstance(source, str | Path):
        source = read_config(source)
    return stored_model(source) if isinstance(source, Checkpoint) else predicted_model(source)


def _type_of(config: Mapping) -> str:
    return str(config.get("_name_or_path") or config.get("model_type") or "model")


def is_quantizable(module: str) -> bool:
    """Tell whether a matrix of this path is a linear inside a block, and no router."""
    return _BLOCK.match(module) is not None and not _KEPT.search(module)


def _form(
    module: str,
    size: TensorSize,
    settings: Settings | None,
    declared: Quantization | None,
    config: Mapping,
) -> PackedForm | None:
    if settings is not None:
        if not settings.converts(module):
            return None
        settings.group_size_for(size.shape[1], name=module)
        own = settings.for_linear(module)
        return PackedForm(own.layout, own.bits, own.group_size, own.zero_point, own.scale_dtype)
    if declared is None or any(part in module for part in declared.modules_to_not_convert):
        return None
    rule = next((r for r in declared.rules if matches(r.pattern, module)), None)
    if rule is not None and rule.scheme is None:
        return None
    bits, group_size, zero_point = declared.scheme(module)
    follows_model = declared.layout in ("compressed-tensors", "chatglm")
    return PackedForm(
        declared.layout,
        bits,
        group_size or -1,
        bool(zero_point),
        model_dtype(config) if follows_model else "float16",
        declared.method != "auto-round",
    )


def _declared(source: Checkpoint | Mapping, config: Mapping) -> Quantization | None:
    """Return what a config says of its quantization, with or without a folder."""
    if isinstance(source, Checkpoint):
        found = source.quantization
    elif config.get("quantization_bit"):
        found = Quantization("chatglm", int(config["quantization_bit"]), -1, False, "chatglm")
    else:
        found = detect_quantization(dict(config), {}, Path("config.json"))
    if found is not None and found.layout is None:
        raise FormatError(
            f"the model is quantized by {found.method!r}, whose sizes awqbench cannot predict; "
            "give the folder itself: its headers say them."
        )
    return found


def block_of(tensor: str) -> str:
    """Return the block that a tensor belongs to, or its module outside the blocks.

    Examples
    --------
    >>> block_of("model.layers.3.mlp.up_proj.qweight"), block_of("lm_head.weight")
    ('model.layers.3', 'lm_head')
    """
    found = _BLOCK.match(tensor)
    return f"{found['stack']}.{found['number']}" if found else tensor.rpartition(".")[0]


def bytes_by_block(model: ModelBytes) -> dict[str, int]:
    """Return the bytes of every block and of every module outside the blocks."""
    found: dict[str, int] = {}
    for name, tensor in model.tensors.items():
        block = block_of(name)
        found[block] = found.get(block, 0) + tensor.nbytes
    return found


def module_bytes(model: ModelBytes | Checkpoint | Mapping | str | Path) -> pd.DataFrame:
    """Return the bytes of every module that holds tensors of its own.

    Returns
    -------
    DataFrame
        `module`, `block`, `is_packed`, `n_tensors`, `weight_bytes`.

    Raises
    ------
    FormatError
        As `predicted_model`, and if a folder cannot be opened.
    """
    import pandas as pd

    rows: dict[str, dict] = {}
    for name, tensor in as_model(model).tensors.items():
        module, _, part = name.rpartition(".")
        row = rows.setdefault(
            module,
            {"module": module, "block": block_of(name), "is_packed": False}
            | {"n_tensors": 0, "weight_bytes": 0},
        )
        row["is_packed"] |= part in ("qweight", "weight_packed") or tensor.dtype == "int8"
        row["n_tensors"] += 1
        row["weight_bytes"] += tensor.nbytes
    return pd.DataFrame(list(rows.values()))
