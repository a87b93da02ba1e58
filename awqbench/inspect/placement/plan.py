"""Plan where the modules of a model go: the device map that fits, or what is missing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from awqbench.errors import ParameterError
from awqbench.formats.checkpoint import Checkpoint
from awqbench.inspect.placement.assign import Assignment, Load, assign, require_strategy
from awqbench.inspect.placement.budgets import GIB, Device, parse_budgets
from awqbench.inspect.placement.kv_cache import check_context
from awqbench.inspect.placement.module_bytes import ModelBytes, as_model
from awqbench.inspect.placement.modules import Pieces, pieces_of
from awqbench.inspect.placement.packed_sizes import ITEM_BYTES
from awqbench.inspect.placement.result import Placement

if TYPE_CHECKING:
    import pandas as pd

# What a process holds on an accelerator besides weights and cache: the driver's context
# (0.3 to 0.6 GiB) and the activations and logits of a step.
RESERVE = "1GiB"
# No longer context is looked for.
_LONGEST = 2**20


def plan_placement(
    source: Checkpoint | ModelBytes | Mapping | str | Path,
    budgets: Mapping[str | int, int | str],
    *,
    context: int = 4096,
    batch: int = 1,
    strategy: str = "even",
    reserve: int | str | Mapping[str | int, int | str] = RESERVE,
) -> Placement:
    """Place every module of a model on a device, within budgets, by exact bytes.

    Weights that are not quantized (embedding, head, norms) count as they are stored, and
    each block's KV cache lies with its block. No block is split, and blocks stay in order,
    so that hidden states pass from device to device once.

    Parameters
    ----------
    source : Checkpoint or ModelBytes or mapping or str or Path
        A folder, whose headers are read; or a config or its file, from which sizes are
        predicted (`predicted_model` predicts settings of your choice).
    budgets : mapping
        Device to memory, in the order to fill: ``{"cuda:0": "40GiB", "cuda:1": "40GiB"}``.
        What accelerators cannot hold goes to ``"cpu"`` and ``"disk"`` if they are named.
    context : int
        Tokens of a sequence, prompt and answer together; 0 leaves the KV cache out.
    batch : int
        Sequences at a time.
    strategy : {"even", "in_order"}
        Keep the fullest device as empty as can be, or fill one before the next.
    reserve : int or str or mapping
        Kept free on each accelerator for its context and activations, or by device.

    Returns
    -------
    Placement

    Raises
    ------
    ParameterError
        If a budget cannot be read, or a number or the strategy is out of range.
    FormatError
        If the model's tensors or its KV cache cannot be told.

    Examples
    --------
    >>> placement = plan_placement("tiny", {"cuda:0": "6MiB", "cuda:1": "12MiB"}, reserve=0)
    >>> placement.fits, placement.device_map["model.layers.1"], placement.device_map["lm_head"]
    (False, 'cuda:0', 'cuda:0')
    """
    require_strategy(strategy)
    check_context(context, batch)
    devices = parse_budgets(budgets, reserve)
    model = as_model(source)
    if model.kv_dtype not in ITEM_BYTES:
        raise ParameterError(f"kv_dtype {model.kv_dtype!r} is not known.")
    pieces = pieces_of(model, with_kv=context > 0)
    loads = loads_of(pieces, context, batch, model.kv_dtype)
    found = assign(loads, devices, strategy)
    longest = longest_context(pieces, devices, batch, model.kv_dtype)
    case = {"model": model.name, "how": model.how, "context": context, "batch": batch}
    case |= {"strategy": strategy, "kv_dtype": model.kv_dtype}
    modules = _modules(pieces, loads, devices, found)
    table = _table(modules, devices, found)
    return Placement(
        _device_map(pieces, devices, found),
        table,
        modules,
        found.fits,
        _verdict(table, found, longest, case, bool(context)),
        longest,
        case,
    )


def loads_of(pieces: Pieces, context: int, batch: int, kv_dtype: str) -> list[Load]:
    """Return the bytes of each piece for a context and batch."""
    return [
        Load(
            piece.module,
            piece.weight_bytes,
            piece.kv_layer.nbytes(context, batch, kv_dtype) if piece.kv_layer else 0,
        )
        for piece in pieces.placed
    ]


def longest_context(pieces: Pieces, devices: Sequence[Device], batch: int, kv_dtype: str) -> int:
    """Return the longest context that fits, up to 2^20 tokens; -1 if the weights do not.

    Filling in order finds a split wherever there is one, so it stands for every strategy.
    """

    def fits(context: int) -> bool:
        return assign(loads_of(pieces, context, batch, kv_dtype), devices, "in_order").fits

    if not fits(0):
        return -1
    if fits(_LONGEST):
        return _LONGEST
    low, high = 0, _LONGEST
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def _device_map(
    pieces: Pieces, devices: Sequence[Device], found: Assignment
) -> dict[str, str | int]:
    placed = {
        piece.module: devices[place].name
        for piece, place in zip(pieces.placed, found.places, strict=True)
    }
    return placed | {module: placed[other] for module, other in pieces.followers.items()}


def _modules(
    pieces: Pieces, loads: Sequence[Load], devices: Sequence[Device], found: Assignment
) -> pd.DataFrame:
    import pandas as pd

    rows = [
        (piece.module, piece.kind, devices[place].name, load.weight_bytes, load.kv_bytes)
        for piece, load, place in zip(pieces.placed, loads, found.places, strict=True)
    ]
    return pd.DataFrame(rows, columns=["module", "kind", "device", "weight_bytes", "kv_bytes"])


def _table(modules: pd.DataFrame, devices: Sequence[Device], found: Assignment) -> pd.DataFrame:
    import pandas as pd

    # What is offloaded is run by the first device that runs anything.
    runner = next(device for device in devices if not device.is_offload)
    rows = []
    for device in devices:
        here = modules[modules["device"] == device.name]
        weights, cache = int(here["weight_bytes"].sum()), int(here["kv_bytes"].sum())
        kept = min(device.reserve_bytes, device.budget_bytes)
        if found.guest_bytes:
            if device is runner:
                kept += found.guest_bytes
                away = modules["device"].isin([d.name for d in devices if d.is_offload])
                cache += int(modules["kv_bytes"][away].sum())
            elif device.is_offload:
                cache = 0
        free = device.budget_bytes - kept - weights - cache
        rows.append(
            {
                "device": device.name,
                "is_offload": device.is_offload,
                "budget_bytes": device.budget_bytes,
                "reserve_bytes": kept,
                "weight_bytes": weights,
                "kv_bytes": cache,
                "free_bytes": free,
                "share": 1 - free / device.budget_bytes if device.budget_bytes else 1.0,
                "n_blocks": int(here["kind"].isin(["block", "other block"]).sum()),
                "first": here["module"].iloc[0] if len(here) else "",
                "last": here["module"].iloc[-1] if len(here) else "",
            }
        )
    return pd.DataFrame(rows)


def _verdict(
    table: pd.DataFrame, found: Assignment, longest: int, case: Mapping, has_cache: bool
) -> str:
    if found.fits:
        tightest = table.loc[table["share"].idxmax()]
        text = (
            f"Fits: {tightest['device']} is fullest, at {tightest['share']:.0%} of its budget "
            f"with {_size(tightest['free_bytes'])} free"
        )
        if found.guest_bytes:
            away = table["weight_bytes"][table["is_offload"]].sum()
            text += f"; {_size(away)} are offloaded to cpu or disk and copied over for every token"
        return text + (f"; {_contexts(longest, case['batch'])}." if has_cache else ".")
    short = -int(table["free_bytes"].clip(upper=0).sum())
    needed = int((table["weight_bytes"] + table["kv_bytes"]).sum())
    text = (
        f"Does not fit: weights and KV cache are {_size(needed)}, and devices lack {_size(short)}"
    )
    if longest < 0:
        weights = int(table["weight_bytes"].sum())
        return (
            f"{text}; the weights alone, {_size(weights)}, are too many: add a device or a cpu "
            "budget, lower the reserve, or choose fewer bits."
        )
    return f"{text}; {_contexts(longest, case['batch'])}: shorten the context or add a device."


def _contexts(longest: int, batch: int) -> str:
    if longest == 0:
        return f"not one token's cache fits with batch {batch}"
    reach = f"a context of {longest:,} tokens" if longest < _LONGEST else "any context"
    return f"{reach} fits with batch {batch}"


def _size(nbytes: int) -> str:
    if nbytes >= GIB / 10:
        return f"{nbytes / GIB:.2f} GiB"
    return f"{nbytes / 2**20:.2f} MiB"
