"""Model parallel against tensor parallel: what one device holds, in one table."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from awqbench.errors import AlignmentError, ParameterError
from awqbench.formats.checkpoint import Checkpoint
from awqbench.inspect.parallel.engine_rules import VOCAB_MULTIPLE, broken_rules
from awqbench.inspect.parallel.model_shapes import model_shapes
from awqbench.inspect.parallel.shape_types import COLUMN, REPLICATED, LinearShape, ModelShapes
from awqbench.inspect.placement.assign import STRATEGIES
from awqbench.inspect.placement.budgets import parse_budgets
from awqbench.inspect.placement.kv_cache import kv_layers
from awqbench.inspect.placement.module_bytes import ModelBytes, as_model
from awqbench.inspect.placement.plan import RESERVE, plan_placement

if TYPE_CHECKING:
    import pandas as pd

_VOCABULARY = re.compile(r"(embed_tokens|wte|word_embeddings|lm_head|output_layer)$")
_GROUP_ROWS = ("scales", "qzeros", "weight_scale", "weight_zero_point")


class RankBytes(NamedTuple):
    """What each rank of a tensor parallel group holds."""

    weight_bytes: int
    kv_bytes: int


def rank_bytes(model: ModelBytes, tp_size: int, *, context: int, batch: int = 1) -> RankBytes:
    """Return the bytes on one rank of tensor parallelism as vLLM splits a model.

    Column-parallel linears give a rank its outputs, row-parallel ones its inputs; the
    vocabulary is padded and split; norms, routers and the biases of row-parallel linears are
    on every rank; so are key-value heads where ranks outnumber them, and the latent keys and
    values of DeepSeek.

    Parameters
    ----------
    model : ModelBytes
    tp_size : int
        Ranks.
    context, batch : int

    Returns
    -------
    RankBytes

    Raises
    ------
    FormatError
        If the config does not tell the model's linears.
    """
    shapes = model_shapes(model.config)
    patterns = [(_pattern(linear), linear) for linear in shapes.linears]
    weights = 0
    for name, tensor in model.tensors.items():
        module, _, part = name.rpartition(".")
        if _VOCABULARY.search(module):
            rows = tensor.shape[0]
            padded = -(-rows // VOCAB_MULTIPLE) * VOCAB_MULTIPLE
            weights += tensor.nbytes // rows * -(-padded // tp_size)
            continue
        linear = next((lin for pattern, lin in patterns if pattern.fullmatch(module)), None)
        weights += _on_rank(linear, part, tensor, tp_size)
    elements = (kept.nbytes(context, batch, model.kv_dtype) for kept in kv_layers(model.config))
    return RankBytes(weights, sum(_kv_on_rank(size, shapes, tp_size) for size in elements))


def _pattern(linear: LinearShape) -> re.Pattern:
    layers = re.search(r"[^.]+\.\*", linear.name)
    return re.compile(
        r"(?:.*\.)?" + re.escape(linear.name[layers.start() :]).replace(r"\*", r"\d+")
    )


def _on_rank(linear: LinearShape | None, part: str, tensor, tp_size: int) -> int:
    if linear is None or linear.split == REPLICATED or part == "weight_shape":
        return tensor.nbytes
    if linear.split == COLUMN:
        if part in ("g_idx", "weight_g_idx"):
            return tensor.nbytes
        return -(-tensor.nbytes * _outputs_on_rank(linear, tp_size) // linear.out_features)
    # One group, or one scale a row, cannot be split by inputs.
    is_whole = part in _GROUP_ROWS and 1 in tensor.shape or len(tensor.shape) == 1
    if is_whole and part not in ("g_idx", "weight_g_idx"):
        return tensor.nbytes
    return -(-tensor.nbytes // tp_size)


def _outputs_on_rank(linear: LinearShape, tp_size: int) -> int:
    return sum(
        max(-(-part.out_features // tp_size), part.head_size if part.head_size else 1)
        for part in linear.parts
    )


def _kv_on_rank(nbytes: int, shapes: ModelShapes, tp_size: int) -> int:
    heads = shapes.num_key_value_heads
    return nbytes if not heads else -(-nbytes // min(heads, tp_size))


def parallel_table(
    source: Checkpoint | ModelBytes | Mapping | str | Path,
    budgets: Mapping[str | int, int | str],
    *,
    contexts: Iterable[int] = (4096,),
    batch: int = 1,
    reserve: int | str = RESERVE,
    engine: str = "vllm",
) -> pd.DataFrame:
    """Compare model parallel and tensor parallel on the same devices.

    With model parallel a token passes the devices one after another, and one works at a
    time; with tensor parallel all work on each layer and exchange their results twice a
    layer.

    Parameters
    ----------
    source : Checkpoint or ModelBytes or mapping or str or Path
    budgets : mapping
        Accelerators only; tensor parallel counts on the smallest.
    contexts : iterable of int
    batch : int
    reserve : int or str
        As in `plan_placement`.
    engine : str
        Whose alignment rules tensor parallel has to meet.

    Returns
    -------
    DataFrame
        A row for each context and way: `context`, `way`, `devices`, `weight_bytes`,
        `kv_bytes` and `free_bytes` of the fullest device, `working_share` (of the devices,
        at a time), `fits`, and `why_not`.

    Raises
    ------
    ParameterError
        If a budget is of cpu or disk.
    """
    import pandas as pd

    model, devices = as_model(source), parse_budgets(budgets, reserve)
    if any(device.is_offload for device in devices):
        raise ParameterError("tensor parallel runs on accelerators; leave cpu and disk out.")
    count, rows = len(devices), []
    for context in contexts:
        for strategy in STRATEGIES:
            plan = plan_placement(
                model, budgets, context=context, batch=batch, strategy=strategy, reserve=reserve
            )
            full = plan.table.loc[plan.table["free_bytes"].idxmin()]
            sizes = tuple(int(full[f"{kind}_bytes"]) for kind in ("weight", "kv", "free"))
            why = "" if plan.fits else "memory"
            way = f"model parallel, {strategy.replace('_', ' ')}"
            rows.append((context, way, count, *sizes, 1 / count, plan.fits, why))
        rank = rank_bytes(model, count, context=context, batch=batch)
        free = min(device.usable_bytes for device in devices) - sum(rank)
        why = "memory" if free < 0 else _misaligned(model, count, engine)
        rows.append((context, f"tensor parallel {count}", count, *rank, free, 1.0, not why, why))
    columns = ["context", "way", "devices", "weight_bytes", "kv_bytes", "free_bytes"]
    return pd.DataFrame(rows, columns=[*columns, "working_share", "fits", "why_not"])


def _misaligned(model: ModelBytes, tp_size: int, engine: str) -> str:
    """Return the first rule that a quantized model breaks, from its own group size."""
    group_size = group_size_of(model)
    broken = broken_rules(model_shapes(model.config), tp_size, group_size or 1, engine=engine)
    if group_size is None:  # full precision: heads and vocabulary only
        broken = [rule for rule in broken if rule.linear is None]
    return broken[0].sentence if broken else ""


def group_size_of(model: ModelBytes) -> int | None:
    """Return the group size of the packed linears, -1 for whole rows, None without any.

    Raises
    ------
    AlignmentError
        If linears have different ones, so that one rule cannot hold for all.
    """
    shapes = model_shapes(model.config)
    found = set()
    for linear in shapes.linears:
        pattern = _pattern(linear)
        for name, tensor in model.tensors.items():
            module, _, part = name.rpartition(".")
            if part in ("scales", "weight_scale") and pattern.fullmatch(module):
                side = 1 if part == "weight_scale" else 0
                groups = tensor.shape[side] if len(tensor.shape) > side else 1
                found.add(-1 if groups == 1 else -(-linear.in_features // groups))
                break
    groups = found - {-1} if len(found) > 1 else found
    if len(groups) > 1:
        raise AlignmentError(f"{model.name} has group sizes {sorted(groups)}.")
    return next(iter(groups), None)
