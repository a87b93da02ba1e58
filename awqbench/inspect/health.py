"""Numeric health of a model: what a cast would do to its weights, and its activations' room.

What users call "scale overflow" has two ends. Weights flush to zero, and where a whole
group does, formulas that divide by the group's largest weight divide by zero; activations
grow past the largest number. Both ends are counted here, tensor by tensor.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from awqbench.errors import ParameterError
from awqbench.numerics import LIMITS, limits_of
from awqbench.progress import progress_bar

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pandas as pd
    import torch

    from awqbench.formats.checkpoint import Checkpoint
    from awqbench.quantize.stats import Stats

# How column names call a dtype.
SHORT_NAMES = {"float16": "f16", "bfloat16": "bf16", "float32": "f32"}
# Elements looked at together: float32 temporaries of 16 MB stay near the caches.
_ELEMENTS_AT_ONCE = 1 << 22
# Lookup tables are (N, K) too, but nobody quantizes them in groups.
_LOOKUP_NAMES = ("embed", "wte", "wpe")
_COUNTS = ("nonfinite", "zero_groups_created", "one_signed_groups", "groups")


class CastThresholds(NamedTuple):
    """Magnitudes at which rounding to a dtype, ties to even, changes what a number is.

    Parameters
    ----------
    overflow_from : float
        From here on a number becomes infinite.
    subnormal_below : float
        Below this it is stored with fewer significant bits.
    flushed_upto : float
        Up to here it becomes 0.
    """

    overflow_from: float
    subnormal_below: float
    flushed_upto: float


def cast_thresholds(dtype: str) -> CastThresholds:
    """Return the thresholds of a storage dtype.

    Counting by thresholds gives what casting and looking gives, in fewer passes.

    Examples
    --------
    >>> cast_thresholds("float16").overflow_from, cast_thresholds("float16").flushed_upto
    (65520.0, 2.9802322387695312e-08)
    """
    limits = limits_of(dtype)
    half_step = limits.smallest_subnormal / 2
    top_power = limits.largest / (2 - 2.0 ** (1 - limits.significand_bits))
    return CastThresholds(
        limits.largest + top_power * 2.0**-limits.significand_bits,
        limits.smallest_normal - half_step,
        half_step,
    )


def health(
    ckpt: Checkpoint | str | Path, *, group_size: int = 128, cast_dtype: str = "float16"
) -> pd.DataFrame:
    """Look at every tensor of a checkpoint as a cast to a narrower dtype would see it.

    Tensors are read one at a time; only headers and one tensor are in memory.

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
    rows = [
        tensor_health(ckpt.read(name), name=name, group_size=group_size, cast_dtype=cast_dtype)
        for name in progress_bar(list(ckpt.tensors), "health", unit="tensor")
    ]
    counts = [*_COUNTS, f"overflow_{SHORT_NAMES[cast_dtype]}"]
    return pd.DataFrame(rows).astype(dict.fromkeys(counts, "Int64"))


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
        only the cast makes zero; `one_signed_groups`, whose range does not hold 0. What
        does not apply to a tensor is None.

    Raises
    ------
    ParameterError
        If `group_size` is not positive or there is no such dtype.
    """
    if group_size < 1:
        raise ParameterError(f"group_size is {group_size}; choose 1 or more.")
    limits = cast_thresholds(cast_dtype)
    short = SHORT_NAMES[cast_dtype]
    head = {
        "name": name,
        "shape": tuple(tensor.shape),
        "dtype": str(tensor.dtype).removeprefix("torch."),
    }
    elements, groups = ElementFigures(), None
    if tensor.is_floating_point():
        is_linear = is_linear_weight(name, tensor.ndim)
        groups = GroupFigures() if is_linear else None
        for part in _parts(tensor):
            elements = elements.plus(_look_at_elements(part, limits))
            for grouped in _grouped(part, group_size) if is_linear else ():
                groups = groups.plus(_look_at_groups(grouped, limits))
    is_float = tensor.is_floating_point()
    nonzero = max(elements.nonzero, 1)
    return head | {
        "absmax": elements.absmax if is_float else None,
        "smallest_nonzero": elements.smallest if elements.nonzero else None,
        "nonfinite": elements.nonfinite if is_float else None,
        f"overflow_{short}": elements.overflow if is_float else None,
        f"flushed_{short}": elements.flushed / nonzero if is_float else None,
        f"subnormal_{short}": elements.subnormal / nonzero if is_float else None,
        "groups": groups and groups.count,
        "smallest_group": groups and (groups.smallest if groups.smallest < math.inf else None),
        "zero_groups_created": groups and groups.vanished,
        "one_signed_groups": groups and groups.one_signed,
    }


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


class ElementFigures(NamedTuple):
    """What a cast does to elements (counts), and the ends of their magnitudes."""

    absmax: float = 0.0
    smallest: float = math.inf
    nonzero: int = 0
    nonfinite: int = 0
    overflow: int = 0
    flushed: int = 0
    subnormal: int = 0

    def plus(self, other: ElementFigures) -> ElementFigures:
        """Add up the figures of two parts."""
        counts = (a + b for a, b in zip(self[2:], other[2:], strict=True))
        ends = max(self.absmax, other.absmax), min(self.smallest, other.smallest)
        return ElementFigures(*ends, *counts)


class GroupFigures(NamedTuple):
    """What a cast does to the groups of a linear's weight (counts)."""

    smallest: float = math.inf
    count: int = 0
    vanished: int = 0
    one_signed: int = 0

    def plus(self, other: GroupFigures) -> GroupFigures:
        """Add up the figures of two parts."""
        counts = (a + b for a, b in zip(self[1:], other[1:], strict=True))
        return GroupFigures(min(self.smallest, other.smallest), *counts)


def _parts(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    """Yield rows in float32 (float64 stays), a few megabytes at a time."""
    import torch

    rows = tensor.reshape(-1, tensor.shape[-1]) if tensor.ndim > 1 else tensor.reshape(1, -1)
    if rows.numel() == 0:
        return
    for part in rows.split(max(1, _ELEMENTS_AT_ONCE // rows.shape[1])):
        yield part if part.dtype == torch.float64 else part.float()


def _look_at_elements(part: torch.Tensor, limits: CastThresholds) -> ElementFigures:
    magnitude, nonfinite = part.abs(), 0
    absmax = float(magnitude.amax())
    if not math.isfinite(absmax):
        finite = magnitude.isfinite()
        nonfinite = int((~finite).sum())
        magnitude = magnitude[finite]
        absmax = float(magnitude.amax()) if magnitude.numel() else 0.0
    nonzero = int(magnitude.count_nonzero())
    zeros = magnitude.numel() - nonzero
    if nonzero == 0:
        return ElementFigures(nonfinite=nonfinite)
    present = magnitude.where(magnitude > 0, math.inf) if zeros else magnitude
    smallest = float(present.amin())
    # Most tensors are far from a limit: their ends say so without another pass.
    overflow = flushed = subnormal = 0
    if absmax >= limits.overflow_from:
        overflow = int((magnitude >= limits.overflow_from).count_nonzero())
    if smallest <= limits.flushed_upto:
        flushed = int((magnitude <= limits.flushed_upto).count_nonzero()) - zeros
    if smallest < limits.subnormal_below:
        small = int((magnitude < limits.subnormal_below).count_nonzero())
        subnormal = small - zeros - flushed
    return ElementFigures(absmax, smallest, nonzero, nonfinite, overflow, flushed, subnormal)


def _grouped(part: torch.Tensor, group_size: int) -> Iterator[torch.Tensor]:
    """Yield the whole groups of some rows, and the short ones at their ends."""
    whole = part.shape[1] // group_size * group_size
    if whole:
        yield part[:, :whole].unflatten(1, (-1, group_size))
    if whole < part.shape[1]:
        yield part[:, whole:].unsqueeze(1)


def _look_at_groups(grouped: torch.Tensor, limits: CastThresholds) -> GroupFigures:
    import torch

    low, high = torch.aminmax(grouped, dim=2)
    absmax = torch.maximum(high, -low)
    alive = absmax[absmax > 0]  # a group with NaN is not among them
    return GroupFigures(
        float(alive.amin()) if alive.numel() else math.inf,
        absmax.numel(),
        int((alive <= limits.flushed_upto).sum()),
        int(((low > 0) | (high < 0)).sum()),
    )


def activation_health(stats: Stats | str | Path) -> pd.DataFrame:
    """Read from calibration statistics how much room the activations have.

    These are inputs of linears. A linear's output, and the sum of a block, can be larger:
    where they overflow, the next site's inputs are not finite.

    Parameters
    ----------
    stats : Stats or str or Path
        As `calibrate` gives them.

    Returns
    -------
    DataFrame
        A row for each site of each block: `block`, `site` (path of its first linear),
        `linears`, `tokens`, `absmax`, `headroom_f16` and `headroom_bf16` (the dtype's
        largest number over absmax), `outlier_ratio` (largest channel mean over the median
        one), `nonfinite_tokens` (in which some channel is NaN or infinite).

    Raises
    ------
    StatisticsError
        If the statistics are damaged.
    """
    import pandas as pd

    from awqbench.quantize.stats import load_stats

    stats = load_stats(stats)
    rows = []
    for i in range(stats.n_blocks):
        for site, moments in stats.block(i):
            absmax = float(moments.absmax.max())
            means = moments.mean_abs()
            median = float(means.median())
            seen = moments.n_tokens > 0
            row = {
                "block": i,
                "site": site.name,
                "linears": ", ".join(site.linears),
                "tokens": moments.n_tokens + moments.masked_tokens,
                "absmax": absmax if seen else math.nan,
            }
            for dtype in ("float16", "bfloat16"):
                room = LIMITS[dtype].largest / absmax if seen and absmax else math.nan
                row[f"headroom_{SHORT_NAMES[dtype]}"] = room
            row["outlier_ratio"] = float(means.max()) / median if median else math.nan
            row["nonfinite_tokens"] = moments.masked_tokens
            rows.append(row)
    return pd.DataFrame(rows)
