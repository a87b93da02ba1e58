"""The scan of the weights: every tensor of a checkpoint as a cast would see it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial, reduce
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

import numpy as np

from awqbench.errors import ParameterError
from awqbench.inspect.health.figures import Figures, Scratch
from awqbench.inspect.health.native_tally import make_tally
from awqbench.inspect.health.patterns import SHORT_NAMES, patterns_of
from awqbench.inspect.health.pieces import (
    add_piece,
    bytes_of,
    look_at_window,
    pieces_of,
    seen_as,
    windows_of,
)
from awqbench.numerics import limits_of
from awqbench.progress import progress_bar

if TYPE_CHECKING:
    import pandas as pd
    import torch

    from awqbench.formats.checkpoint import Checkpoint

# Lookup tables are (N, K) too, but nobody quantizes them in groups.
_LOOKUP_NAMES = ("embed", "wte", "wpe")
_COUNTS = ("nonfinite", "zero_groups_created", "one_signed_groups", "groups", "outlier_channels")
# One core cannot count as fast as memory gives; more than two wait for memory.
THREADS = 2
# An input channel stands out if its largest weight is so many times the median channel's.
OUTLIER_RATIO = 8.0


def health(
    ckpt: Checkpoint | str | Path, *, group_size: int = 128, cast_dtype: str = "float16"
) -> pd.DataFrame:
    """Look at every tensor of a checkpoint as a cast to a narrower dtype would see it.

    The files are read two megabytes at a time: no tensor is in memory as a whole.

    Parameters
    ----------
    ckpt : Checkpoint or str or Path
    group_size : int
        Input channels in a group; the last group of a row may be short.
    cast_dtype : {"float16", "bfloat16", "float32"}
        Where the weights would go.

    Returns
    -------
    DataFrame
        A row for each tensor, in the order of their data, as `tensor_health` gives it.

    Raises
    ------
    ParameterError
        If `group_size` is not positive or there is no such dtype.
    FormatError
        If the folder or a tensor cannot be read.
    """
    import pandas as pd

    from awqbench.formats.checkpoint import open_checkpoint

    ckpt = open_checkpoint(ckpt)
    _check_settings(group_size, cast_dtype)
    rows = list(_rows(ckpt, group_size, cast_dtype))
    counts = [*_COUNTS, f"overflow_{SHORT_NAMES[cast_dtype]}"]
    table = pd.DataFrame(rows)
    return table.astype(dict.fromkeys(counts, "Int64")) if rows else table


def _rows(ckpt: Checkpoint, group_size: int, cast_dtype: str) -> Iterator[dict[str, Any]]:
    """Yield the tensors' rows; windows of several tensors are looked at together."""
    threads = max(1, min(THREADS, os.cpu_count() or 1))
    scratches: SimpleQueue[Scratch] = SimpleQueue()
    for _ in range(threads):
        scratches.put(Scratch())
    pool = ThreadPoolExecutor(threads)
    try:
        pending = []
        for name, info in ckpt.tensors.items():
            is_float = info.dtype.startswith(("float", "bfloat"))
            size = group_size if is_float and is_linear_weight(name, len(info.shape)) else None
            look = partial(look_at_window, info, cast_dtype=cast_dtype, group_size=size)
            windows = windows_of(info, group_size=size) if is_float else []
            futures = [pool.submit(_borrowing, scratches, look, window) for window in windows]
            pending.append((info, is_float, size, futures))
        pending.reverse()  # so that a finished tensor's figures can be dropped
        for _ in progress_bar(range(len(pending)), "health", unit="tensor"):
            info, is_float, size, futures = pending.pop()
            found = reduce(Figures.plus, (future.result() for future in futures), Figures())
            if not is_float:
                found = None
            yield _row(info.name, info.shape, info.dtype, found, size, cast_dtype)
    finally:
        pool.shutdown(cancel_futures=True)


def _borrowing(scratches: SimpleQueue, look: Callable[..., Figures], window: list) -> Figures:
    scratch = scratches.get()
    try:
        return look(window, scratch=scratch)
    finally:
        scratches.put(scratch)


def tensor_health(
    tensor: torch.Tensor,
    *,
    name: str = "weight",
    group_size: int = 128,
    cast_dtype: str = "float16",
) -> dict:
    """Look at one tensor as a cast to a narrower dtype would see it.

    Parameters
    ----------
    tensor : torch.Tensor
        Any shape. A 2-D ``*.weight`` that is no embedding counts as a linear's, (N, K).
    name : str
        Its path in the checkpoint.
    group_size : int
    cast_dtype : {"float16", "bfloat16", "float32"}

    Returns
    -------
    dict
        `name`, `shape`, `dtype`; `absmax` and `smallest_nonzero`, magnitudes of the finite
        elements; `nonfinite`, elements; with the dtype's short name at their ends
        (``_f16``): `overflow`, elements that become infinite, and `flushed` and
        `subnormal`, shares of the non-zero elements that become 0 or stay below the
        smallest normal number. For a linear's weight: `groups`; `smallest_group`, the
        absmax of the smallest group that is not zero; `zero_groups_created`, groups that
        only the cast makes zero; `one_signed_groups`, whose range does not hold 0;
        `outlier_channels`, input channels whose largest weight (of every eighth row) is over
        `OUTLIER_RATIO` times the median channel's. What does not apply to a tensor is None.

    Raises
    ------
    ParameterError
        If `group_size` is not positive or there is no such dtype.
    """
    _check_settings(group_size, cast_dtype)
    dtype = str(tensor.dtype).removeprefix("torch.")
    shape, found, size = tuple(tensor.shape), None, None
    if tensor.is_floating_point():
        size = group_size if is_linear_weight(name, tensor.ndim) else None
        tally, data = make_tally(patterns_of(seen_as(dtype), cast_dtype), group_size=size), None
        for piece in pieces_of(shape, itemsize=tensor.element_size(), group_size=size):
            data = bytes_of(tensor) if data is None else data
            add_piece(tally, data, piece, dtype)
        found = tally.figures()
    return _row(name, shape, dtype, found, size, cast_dtype)


def _check_settings(group_size: int, cast_dtype: str) -> None:
    if group_size < 1:
        raise ParameterError(f"group_size is {group_size}; choose 1 or more.")
    limits_of(cast_dtype)


def _row(
    name: str,
    shape: tuple[int, ...],
    dtype: str,
    found: Figures | None,
    group_size: int | None,
    cast_dtype: str,
) -> dict[str, Any]:
    """Put figures into the columns of the table; None is a tensor of integers."""
    short = SHORT_NAMES[cast_dtype]
    row = {"name": name, "shape": shape, "dtype": dtype}
    columns = ("absmax", "smallest_nonzero", "nonfinite")
    columns += tuple(f"{what}_{short}" for what in ("overflow", "flushed", "subnormal"))
    columns += ("groups", "smallest_group", "zero_groups_created", "one_signed_groups")
    row |= dict.fromkeys((*columns, "outlier_channels"))
    if found is None:
        return row
    patterns, nonzero = patterns_of(seen_as(dtype), cast_dtype), max(found.nonzero, 1)
    row |= {
        "absmax": patterns.value(found.absmax),
        "smallest_nonzero": patterns.value(found.smallest) if found.nonzero else None,
        "nonfinite": found.nonfinite,
        f"overflow_{short}": found.overflow,
        f"flushed_{short}": found.flushed / nonzero,
        f"subnormal_{short}": found.subnormal / nonzero,
    }
    if group_size is not None:
        has_group = found.smallest_group <= patterns.infinite
        row |= {
            "groups": found.groups,
            "smallest_group": patterns.value(found.smallest_group) if has_group else None,
            "zero_groups_created": found.vanished,
            "one_signed_groups": found.one_signed,
            "outlier_channels": _outlier_channels(found.channels, dtype),
        }
    return row


def _outlier_channels(channels: np.ndarray | None, dtype: str) -> int:
    import torch

    if channels is None:
        return 0
    largest = torch.from_numpy(channels).view(getattr(torch, seen_as(dtype))).double().numpy()
    finite = largest[np.isfinite(largest)]
    if finite.size == 0:
        return 0
    return int(np.count_nonzero(finite > OUTLIER_RATIO * np.median(finite)))


def is_linear_weight(name: str, ndim: int) -> bool:
    """Tell by its name and dimensions whether a tensor is the weight of a linear.

    Examples
    --------
    >>> is_linear_weight("model.layers.0.mlp.up_proj.weight", 2)
    True
    >>> is_linear_weight("model.embed_tokens.weight", 2), is_linear_weight("model.norm.weight", 1)
    (False, False)
    """
    is_lookup = any(part in name for part in _LOOKUP_NAMES)
    return ndim == 2 and name.endswith("weight") and not is_lookup
