"""What ``device_map="auto"`` does with the same model and budgets, beside our placement."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from awqbench.errors import BackendError
from awqbench.inspect.placement.budgets import OFFLOAD, parse_budgets
from awqbench.inspect.placement.module_bytes import ModelBytes, block_of
from awqbench.inspect.placement.modules import pieces_of
from awqbench.inspect.placement.plan import loads_of
from awqbench.inspect.placement.result import Placement

if TYPE_CHECKING:
    import pandas as pd
    import torch

# Name of the class that accelerate is told not to split.
_BLOCK_CLASS = "Block"


def accelerate_rule(
    model: ModelBytes, budgets: Mapping[str | int, int | str], *, balanced: bool = True
) -> dict[str, str | int]:
    """Return the device map of accelerate's rule, as read in 1.15 and transformers 5.23.

    A device but the last is given the model's bytes over the number of devices, and 1.25
    times the largest block or leaf; then devices are filled in order. The first device keeps
    room for the largest piece that is still to come. KV caches play no part.

    Parameters
    ----------
    model : ModelBytes
        Its exact tensors; accelerate's own view, where quantized linears are replaced first.
    budgets : mapping
    balanced : bool
        As for ``device_map="auto"``; False for ``"sequential"``.

    Returns
    -------
    dict of str to str or int
        Each block and each module outside the blocks; ``"disk"`` for what does not fit.
    """
    devices = parse_budgets(budgets, 0)
    pieces = [(piece.module, piece.weight_bytes) for piece in pieces_of(model).placed]
    limits = {device.name: device.budget_bytes for device in devices}
    runs = [device.name for device in devices if not device.is_offload]
    if balanced and runs:
        share = sum(size for _, size in pieces) // len(runs)
        share += int(1.25 * max(size for _, size in pieces))
        limits |= {name: min(share, limits[name]) for name in runs[:-1]}
    keeps_room = {*runs[:1], "cpu"}
    names = [*limits] + ([] if "disk" in limits else ["disk"])
    placed: dict[str, str | int] = {}
    at, used = 0, 0
    for i, (module, size) in enumerate(pieces):
        largest = max((later for _, later in pieces[i + 1 :]), default=0)
        while at < len(names) and names[at] != "disk":
            room = limits[names[at]] - (largest if names[at] in keeps_room else 0)
            if used + size <= room:
                break
            at, used = at + 1, 0
        placed[module] = names[at]
        used += size
    return placed


def accelerate_device_map(
    model: ModelBytes, budgets: Mapping[str | int, int | str], *, balanced: bool = True
) -> dict[str, str | int]:
    """Ask the installed transformers and accelerate for their device map.

    Parameters
    ----------
    model, budgets, balanced
        As in `accelerate_rule`; devices are numbered in order, as accelerate balances
        numbered devices only.

    Returns
    -------
    dict of str to str or int
        As accelerate gives it: parents stand for modules that lie together.

    Raises
    ------
    BackendError
        If accelerate is not installed, or transformers is older than 5.
    """
    if find_spec("accelerate") is None:
        raise BackendError(
            "accelerate is not installed, so its device map cannot be asked for: "
            "pip install accelerate. accelerate_rule() shows its rule without it."
        )
    from transformers.integrations import accelerate as theirs

    if not hasattr(theirs, "infer_auto_device_map"):
        raise BackendError("transformers before 5 has no device maps of its own; update it.")
    numbered, limits = _numbered(budgets)
    shell = meta_shell(model)
    if balanced:
        limits = theirs.get_balanced_memory(shell, limits, [_BLOCK_CLASS])
    found = theirs.infer_auto_device_map(shell, limits, [_BLOCK_CLASS])
    return {module: numbered.get(device, device) for module, device in found.items()}


def _numbered(budgets: Mapping[str | int, int | str]) -> tuple[dict, dict]:
    devices = parse_budgets(budgets, 0)
    runs = [device.name for device in devices if device.name not in OFFLOAD]
    key = {name: number for number, name in enumerate(runs)}
    limits = {key.get(device.name, device.name): device.budget_bytes for device in devices}
    return {number: name for name, number in key.items()}, limits


def meta_shell(model: ModelBytes) -> torch.nn.Module:
    """Build a tree of modules that hold a model's tensors on the meta device.

    It has the names, shapes and dtypes of the model and nothing else, so that it stands for
    architectures too that transformers does not know.

    Parameters
    ----------
    model : ModelBytes

    Returns
    -------
    torch.nn.Module
        Blocks are of a class named ``Block``.
    """
    import torch

    block_class = type(_BLOCK_CLASS, (torch.nn.Module,), {})
    root = torch.nn.Module()
    root.all_tied_weights_keys = {}
    pieces = pieces_of(model, with_kv=False)
    kinds = {piece.module: piece.kind for piece in pieces.placed}
    order = {piece.module: i for i, piece in enumerate(pieces.placed)}
    names = [name for name in model.tensors if block_of(name) in order]
    for name in sorted(names, key=lambda name: order[block_of(name)]):
        size, path = model.tensors[name], name.split(".")
        parent, here = root, ""
        for part in path[:-1]:
            here = f"{here}.{part}".lstrip(".")
            is_block = "block" in kinds.get(here, "")
            if not hasattr(parent, part):
                parent.add_module(part, block_class() if is_block else torch.nn.Module())
            parent = getattr(parent, part)
        tensor = torch.empty(size.shape, dtype=getattr(torch, size.dtype), device="meta")
        parent.register_buffer(path[-1], tensor)
    return root


def device_of(module: str, device_map: Mapping[str, Any]) -> Any:
    """Return the device of a module in a map where parents stand for their children.

    Raises
    ------
    KeyError
        If neither the module nor a parent is in the map.
    """
    path = module
    while path not in device_map:
        if not path:
            raise KeyError(module)
        path = path.rpartition(".")[0]
    return device_map[path]


def compare_maps(
    placement: Placement, model: ModelBytes, maps: Mapping[str, Mapping[str, str | int]]
) -> pd.DataFrame:
    """Put other device maps beside a placement, with the KV cache that they leave out.

    Parameters
    ----------
    placement : Placement
        Gives budgets, reserve, context and batch.
    model : ModelBytes
        What was placed.
    maps : mapping of str to mapping
        Device maps by the name to show, such as those of `accelerate_rule`.

    Returns
    -------
    DataFrame
        A row for each map and device, ours first: `map`, `device`, `n_blocks`,
        `weight_bytes` (all that accelerate counts), `kv_bytes`, `free_bytes` under the
        budget with the reserve, and `fits`.
    """
    import pandas as pd

    case, table = placement.case, placement.table.set_index("device")
    pieces = pieces_of(model, with_kv=case["context"] > 0)
    loads = loads_of(pieces, case["context"], case["batch"], case["kv_dtype"])
    in_blocks = {piece.module for piece in pieces.placed if "block" in piece.kind}
    rows = []
    every = {f"awqbench, {case['strategy']}": placement.device_map} | dict(maps)
    for name, device_map in every.items():
        where = [device_of(load.module, device_map) for load in loads]
        devices = list(table.index) + [d for d in dict.fromkeys(where) if d not in table.index]
        for device in devices:
            here = [load for load, place in zip(loads, where, strict=True) if place == device]
            sums = partial(_sum, here)
            free = None
            if device in table.index:
                known = table.loc[device]
                free = int(known["budget_bytes"] - known["reserve_bytes"])
                free -= sums("weight_bytes") + sums("kv_bytes")
            blocks = sum(1 for load in here if load.module in in_blocks)
            rows.append(
                (name, device, blocks, sums("weight_bytes"), sums("kv_bytes"), free)
                + (free is not None and free >= 0,)
            )
    columns = ["map", "device", "n_blocks", "weight_bytes", "kv_bytes", "free_bytes", "fits"]
    return pd.DataFrame(rows, columns=columns).astype({"free_bytes": "Int64"})


def _sum(loads, field: str) -> int:
    return sum(getattr(load, field) for load in loads)
