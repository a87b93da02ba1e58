"""Write a copy of a full-precision model whose MLPs are wide enough to split over ranks.

A padded channel adds nothing because its column of the down projection is zero. These
columns lie between real ones: appended in one piece they would be whole groups of zeros,
which AutoAWQ's ``|w| / max|w|`` turns into NaN. For the same reason rows of gate and up are
copies of their neighbours, not zeros: a row of zeros is a row of zero groups wherever it lies.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from awqbench.errors import AlignmentError, FormatError, ParameterError
from awqbench.formats.checkpoint import Checkpoint, open_checkpoint
from awqbench.formats.writer import CheckpointWriter, require_new_folder
from awqbench.inspect.parallel.match_linears import find_linears
from awqbench.inspect.parallel.model_shapes import model_shapes
from awqbench.inspect.parallel.pad_channels import (
    PLACEMENTS,
    count_zero_groups,
    mlp_output,
    pad_columns,
    pad_rows,
    place_channels,
)
from awqbench.inspect.parallel.padding_plan import PaddingPlan, padding_plan
from awqbench.inspect.parallel.shape_types import ROW, LinearShape, ModelShapes
from awqbench.progress import progress_bar

if TYPE_CHECKING:
    import torch

# Outputs are compared in float64, where only the order of the sums differs.
_TOLERANCE = 1e-9
_TEST_ROWS = 4


class Mlp(NamedTuple):
    """The linears of one MLP or expert, by module path.

    Parameters
    ----------
    columns : tuple of (str, LinearShape)
        Gate and up, or one weight that holds both, or the first linear of a plain MLP.
    down : (str, LinearShape)
    """

    columns: tuple[tuple[str, LinearShape], ...]
    down: tuple[str, LinearShape]


def pad_checkpoint(
    ckpt: Checkpoint | str | Path,
    out: str | Path,
    *,
    tp_size: int,
    group_size: int,
    engine: str = "vllm",
    placement: str = "interleaved",
) -> dict:
    """Write a padded copy of a full-precision model that splits over so many ranks.

    One MLP is in memory at a time. Before the folder appears, each padded MLP is run beside
    the original on random input in float64.

    Parameters
    ----------
    ckpt : Checkpoint or str or Path
        Full precision.
    out : str or Path
        Folder to make.
    tp_size, group_size : int
        What it shall fit, once quantized.
    engine : str
        A key of `awqbench.inspect.parallel.engine_rules.ENGINES`.
    placement : {"interleaved", "interleaved zeros", "appended"}
        The last two show what goes wrong; see `place_channels`.

    Returns
    -------
    dict
        The record, also written as pad_record.json: `widths`, `n_mlps`, the largest
        `max_difference` of the comparison with its MLP's `max_output`, `zero_groups` of
        `group_size` by role before and after, and sizes.

    Raises
    ------
    AlreadyQuantizedError
        If the model is quantized.
    AlignmentError
        If padding cannot make it fit, or outputs differ.
    ParameterError
        If it fits already, or an argument is out of range.
    FormatError
        If the MLPs are not found as the config describes them.
    OutputError
        If `out` cannot be written.
    """
    ckpt = open_checkpoint(ckpt)
    ckpt.require_full_precision()
    if placement not in PLACEMENTS:
        raise ParameterError(f"placement {placement!r}; choose one of {', '.join(PLACEMENTS)}.")
    require_new_folder(out)
    shapes = model_shapes(ckpt.config)
    plan = padding_plan(shapes, tp_size, group_size, engine=engine)
    _require_use(ckpt, plan)
    mlps = find_mlps(shapes, ckpt, set(plan.config_values))
    figures, n_bytes = [], 0
    with CheckpointWriter(out) as writer:
        for name, tensor in _padded_tensors(ckpt, mlps, plan, placement, figures):
            writer.add(name, tensor)
            n_bytes += tensor.numel() * tensor.element_size()
        record = _record(ckpt, plan, placement, figures) | {"bytes_after": n_bytes}
        config = padded_config(ckpt.config, shapes, plan.config_values)
        writer.finish(config, side_files=ckpt, pad_record=json.dumps(record, indent=1) + "\n")
    return record


def _require_use(ckpt: Checkpoint, plan: PaddingPlan) -> None:
    what = f"tp_size {plan.tp_size} and group_size {plan.group_size} ({plan.engine})"
    if plan.remaining:
        raise AlignmentError(f"{ckpt.path.name} cannot fit {what}: {plan.describe()}.")
    if not plan.is_needed:
        raise ParameterError(f"{ckpt.path.name} fits {what} as it is: there is nothing to pad.")


def find_mlps(shapes: ModelShapes, ckpt: Checkpoint, width_keys: set[str]) -> list[Mlp]:
    """Return every MLP and expert whose width is set by one of some config keys.

    Raises
    ------
    FormatError
        If there are fewer than the config says, or one holds a vector of the inner width,
        such as a norm, so that padding would change its output.
    """
    chosen = {
        n: lin for n, lin in find_linears(shapes, ckpt).items() if lin.width_key in width_keys
    }
    for linear in shapes.linears:
        found = sum(1 for lin in chosen.values() if lin.name == linear.name)
        if linear.width_key in width_keys and found < linear.count:
            raise FormatError(
                f"{ckpt.path.name} holds {found} of {linear.count} linears {linear.name} of shape "
                f"{(linear.out_features, linear.in_features)}; experts stored as one tensor of "
                "three dimensions cannot be padded yet."
            )
    modules: dict[str, list[tuple[str, LinearShape]]] = {}
    for name, linear in chosen.items():
        modules.setdefault(name.rpartition(".")[0], []).append((name, linear))
    mlps = [_mlp(items) for items in modules.values()]
    _refuse_inner_vectors(ckpt, mlps)
    return mlps


def _mlp(items: list[tuple[str, LinearShape]]) -> Mlp:
    columns = tuple(item for item in items if item[1].split != ROW)
    return Mlp(columns, next(item for item in items if item[1].split == ROW))


def _refuse_inner_vectors(ckpt: Checkpoint, mlps: list[Mlp]) -> None:
    own = {f"{column}.bias" for mlp in mlps for column, _ in mlp.columns}
    vectors = [n for n, info in ckpt.tensors.items() if len(info.shape) == 1 and n not in own]
    widths = {mlp.down[0].rpartition(".")[0]: mlp.down[1] for mlp in mlps}
    for name in vectors:
        # A vector lies in the MLP, or in a module of its own there, as a norm does.
        module = name.rpartition(".")[0]
        down = widths.get(module) or widths.get(module.rpartition(".")[0])
        if down is None or down.in_features == down.out_features:
            continue
        if ckpt.tensors[name].shape[0] == down.in_features:
            raise FormatError(
                f"{name} has the inner width {down.in_features} and is neither a linear nor "
                "its bias; padding would change what it computes."
            )


def _padded_tensors(ckpt: Checkpoint, mlps: list[Mlp], plan: PaddingPlan, placement, figures):
    """Yield every tensor in the order of the folder; an MLP's come together at its first."""
    owner = {f"{name}.{kind}": i for i, mlp in enumerate(mlps) for name, kind in _owned(mlp)}
    done: set[int] = set()
    for tensor in progress_bar(list(ckpt.tensors), "pad", unit="tensor"):
        if tensor not in owner:
            yield tensor, ckpt.read(tensor)
        elif owner[tensor] not in done:
            done.add(owner[tensor])
            padded, row = pad_mlp(ckpt, mlps[owner[tensor]], plan, placement)
            figures.append(row)
            yield from padded.items()


def _owned(mlp: Mlp):
    yield mlp.down[0], "weight"
    for name, _ in mlp.columns:
        yield name, "weight"
        yield name, "bias"


def pad_mlp(
    ckpt: Checkpoint, mlp: Mlp, plan: PaddingPlan, placement: str
) -> tuple[dict[str, torch.Tensor], dict]:
    """Pad one MLP, and compare it with the original.

    Returns
    -------
    tensors : dict of str to torch.Tensor
    figures : dict
        `max_difference`, `max_output`, `zero_groups` by role, before and after.

    Raises
    ------
    AlignmentError
        If the outputs differ by more than the order of the sums explains.
    """
    name, down = mlp.down
    channels = place_channels(
        down.in_features, down.multiple * plan.widths[down.width_key][1], placement=placement
    )
    old, new = {}, {}
    for column, linear in mlp.columns:
        for kind in ("weight", "bias"):
            tensor = f"{column}.{kind}"
            if tensor in ckpt.tensors:
                old[tensor] = ckpt.read(tensor)
                new[tensor] = pad_rows(old[tensor], channels, n_parts=len(linear.parts))
    down_name = f"{name}.weight"
    old[down_name] = ckpt.read(down_name)
    new[down_name] = pad_columns(old[down_name], channels)
    columns = [column for column, _ in mlp.columns]
    figures = _compare(old, new, columns, name)
    figures["zero_groups"] = {
        f"{role} {when}": _zero_groups(tensors, names, plan.group_size)
        for role, names in (("gate_up", columns), ("down", [name]))
        for when, tensors in (("before", old), ("after", new))
    }
    return new, figures


def _zero_groups(tensors, names: list[str], group_size: int) -> int:
    return sum(count_zero_groups(tensors[f"{name}.weight"], group_size) for name in names)


def _compare(old, new, columns: list[str], down: str) -> dict[str, float]:
    before, after = (mlp_output(t, columns, down, n_rows=_TEST_ROWS) for t in (old, new))
    difference, largest = float((after - before).abs().max()), float(before.abs().max())
    # Written so that NaN fails too.
    if not difference <= _TOLERANCE * largest:
        raise AlignmentError(
            f"{down}: padded output differs from the original by {difference:.3g} where the "
            f"largest is {largest:.3g}; nothing was written. Are all weights finite?"
        )
    return {"max_difference": difference, "max_output": largest}


def _record(ckpt: Checkpoint, plan: PaddingPlan, placement: str, figures: list[dict]) -> dict:
    worst = max(figures, key=lambda row: row["max_difference"])
    return {
        "source": ckpt.path.name,
        "source_digest": ckpt.digest,
        "tp_size": plan.tp_size,
        "group_size": plan.group_size,
        "engine": plan.engine,
        "placement": placement,
        "widths": {key: list(pair) for key, pair in plan.widths.items() if pair[0] != pair[1]},
        "config_values": plan.config_values,
        "n_mlps": len(figures),
        "max_difference": worst["max_difference"],
        "max_output": worst["max_output"],
        "zero_groups": {
            key: sum(row["zero_groups"][key] for row in figures) for key in worst["zero_groups"]
        },
        "bytes_before": ckpt.nbytes,
    }


def padded_config(config: Mapping, shapes: ModelShapes, values: Mapping[str, int]) -> dict:
    """Return a config with new widths, wherever it holds the language model's old ones."""
    new = copy.deepcopy(dict(config))
    part = new
    for key in shapes.config_path:
        part = part[key]
    for key, value in values.items():
        # Older multimodal configs repeat the language model's keys at the top.
        if new.get(key) == part.get(key):
            new[key] = value
        part[key] = value
    return new
