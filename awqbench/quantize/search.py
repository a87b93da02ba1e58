"""From statistics to settings: search every linear of a model without running it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from awqbench.errors import ParameterError
from awqbench.model_experts import name_in_model
from awqbench.progress import progress_bar
from awqbench.quantize.choices.dense import is_quantized
from awqbench.quantize.choices.mixed import choose_linears, round_linears
from awqbench.quantize.choices.rule_checks import check_rules
from awqbench.quantize.choices.scales_shared import shared_scales
from awqbench.quantize.choices.site import SiteChoice, measure
from awqbench.quantize.choices.table import alarms, as_frame, curve_rows, linear_row
from awqbench.quantize.run.device import AUTO, chosen_device, own_device
from awqbench.quantize.run.device_memory import lack_of_memory_named, largest_need
from awqbench.quantize.settings import Settings
from awqbench.quantize.statistics.stats import SiteRecord, Stats, load_stats

if TYPE_CHECKING:
    import pandas as pd
    import torch

    from awqbench.formats.checkpoint import Checkpoint
    from awqbench.quantize.choices.scales import ScaleChoice

OBJECTIVES = ("statistics", "block")


class BlockResult(NamedTuple):
    """The search of one block.

    `effective` holds each quantized linear's weight as the quantized model applies it,
    (N, K) float32.
    """

    name: str
    choices: dict[str, SiteChoice]
    effective: dict[str, torch.Tensor]
    rows: list[dict]
    curves: list[dict]


@dataclass(frozen=True)
class SearchResult:
    """What a search found.

    Parameters
    ----------
    settings : Settings
    table : DataFrame
        A row for each linear: `block`, `linear`, `alpha`, `output_error` and
        `rounding_error` (squared output error as a share of the output's energy, with these
        settings and by plain rounding), `gain`, `scale_range` (largest over smallest channel
        scale), `clip_gain`, `alarm`, and more.
    curves : DataFrame
        `block`, `site`, `alpha` (NaN for no scaling), `loss`.
    choices : dict of (str, str) to SiteChoice
        By block and site.
    """

    settings: Settings
    table: pd.DataFrame
    curves: pd.DataFrame
    choices: dict[tuple[str, str], SiteChoice]

    def channel_scales(self) -> dict[tuple[str, str], np.ndarray]:
        """Return each site's channel scales, (K,) ndarray of float32."""
        return {key: choice.channel_scales.numpy() for key, choice in self.choices.items()}

    def _repr_html_(self) -> str:
        columns = ["block", "linear", "alpha", "output_error", "rounding_error", "alarm"]
        return self.table[columns].to_html(index=False, float_format="%.3g")


def search(
    ckpt: Checkpoint | str | Path,
    stats: Stats | str | Path,
    settings: Settings | None = None,
    *,
    objective: str = "statistics",
    tokens: np.ndarray | None = None,
    device: str = AUTO,
    **changes,
) -> SearchResult:
    """Search channel scales, ranges and rounding for every linear from statistics.

    Parameters
    ----------
    ckpt : Checkpoint or str or Path
        The full-precision model.
    stats : Stats or str or Path
        Of this model, by `calibrate`.
    settings : Settings, optional
    objective : {"statistics", "block"}
        ``"block"`` chooses the scales as AutoAWQ does, running the parent module on
        `tokens` for every alpha; for comparison, it is many times slower.
    tokens : (n, seq) ndarray of int64, optional
        For ``objective="block"``.
    device : str
        ``"cpu"``, ``"cuda"``, ``"cuda:1"``; ``"auto"`` is a GPU where torch finds one. Last bits
        depend on it. The parents of ``objective="block"`` run on the CPU.
    **changes
        Fields of `Settings`, such as ``bits=3, group_size=64, rounding="gptq"``.

    Returns
    -------
    SearchResult

    Raises
    ------
    StatisticsError
        If the statistics are of another model.
    AlignmentError
        If the group size does not divide a linear's in_features; before any search.
    NonFiniteError
        If statistics are not finite and the settings say "raise".
    DeviceError
        If `device` is not there.
    MemoryLimitError
        If the memory of a GPU does not suffice.
    """
    settings = make_settings(settings, **changes)
    how = {"objective": objective, "tokens": tokens, "device": device}
    blocks = search_blocks(ckpt, stats, settings, **how)
    return collect_result(settings, [block._replace(effective={}) for block in blocks])


def collect_result(settings: Settings, blocks: list[BlockResult]) -> SearchResult:
    """Put the results of a model's blocks together."""
    rows = [{"block": block.name} | row for block in blocks for row in block.rows]
    curves = [{"block": block.name} | row for block in blocks for row in block.curves]
    choices = {
        (block.name, site): choice for block in blocks for site, choice in block.choices.items()
    }
    return SearchResult(settings, as_frame(rows), as_frame(curves), choices)


def search_blocks(
    ckpt: Checkpoint | str | Path,
    stats: Stats | str | Path,
    settings: Settings,
    *,
    objective: str = "statistics",
    tokens: np.ndarray | None = None,
    device: str = AUTO,
) -> Iterator[BlockResult]:
    """Search block by block; parameters and errors are those of `search`.

    Yields
    ------
    BlockResult
    """
    from awqbench.formats.checkpoint import open_checkpoint

    if objective not in OBJECTIVES:
        raise ParameterError(f"objective is {objective!r}; choose 'statistics' or 'block'.")
    ckpt, stats = open_checkpoint(ckpt), load_stats(stats)
    ckpt.require_full_precision()
    stats.check(ckpt)
    check_alignment(stats, settings)
    if objective == "block" and settings.rules:
        raise ParameterError(
            "objective='block' is AutoAWQ's way, which has one setting for all linears; leave out "
            "the rules, or the objective."
        )
    target = own_device(chosen_device(device))
    scales_of = iter([{}] * stats.n_blocks)
    if objective == "block":
        from awqbench.quantize.choices.block_objective import block_scales

        scales_of = block_scales(ckpt, stats, tokens, settings)
    blocks = progress_bar(range(stats.n_blocks), f"search {settings.label()}", unit="block")
    for i, scales in zip(blocks, scales_of, strict=True):
        records = stats.block(i)
        name = stats.block_name(i)
        weights = block_weights(ckpt, records, name)
        need = partial(largest_need, records, {p: len(w) for p, w in weights.items()}, settings)
        with lack_of_memory_named(target, need, name=name):
            found = search_block(
                records, weights, settings, name=name, scales=scales, device=target
            )
        yield found


def make_settings(settings: Settings | None, **changes) -> Settings:
    """Return settings with some fields changed.

    Raises
    ------
    ParameterError
        If there is no such field, or its value is out of range.
    """
    from difflib import get_close_matches

    fields = (settings or Settings()).as_dict()
    for name in changes:
        if name not in fields:
            close = get_close_matches(name, fields, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else f"; there are {', '.join(fields)}."
            raise ParameterError(f"no setting {name!r}{hint}")
    return Settings(**(fields | changes))


def check_alignment(stats: Stats, settings: Settings) -> None:
    """Check every linear's shape against the settings before any work is done.

    Raises
    ------
    AlignmentError
        For the first linear whose in_features the group size does not divide.
    ParameterError
        If a rule cannot be meant; see `check_rules`.
    """
    check_rules(settings, stats.manifest["in_features"])
    for name, in_features in stats.manifest["in_features"].items():
        if settings.converts(name):
            settings.group_size_for(in_features, name=name)


def block_weights(
    ckpt: Checkpoint, records: list[SiteRecord], name: str
) -> dict[str, torch.Tensor]:
    """Read the weights of a block's linears, (N, K) float32, by block-relative path."""
    paths = [path for record in records for path in record.site.linears]
    stored = {name_in_model(tensor): tensor for tensor in ckpt.tensors}
    full = {path: f"{name}.{path}.weight" for path in paths}
    return {path: ckpt.read(stored.get(full[path], full[path])).float() for path in paths}


def search_block(
    records: list[SiteRecord],
    weights: dict[str, torch.Tensor],
    settings: Settings,
    *,
    name: str,
    scales: dict[str, ScaleChoice] | None = None,
    device: torch.device | str = "cpu",
) -> BlockResult:
    """Choose, round and measure every linear of a block, without folding.

    Parameters
    ----------
    records : list of SiteRecord
    weights : dict of str to (N, K) torch.Tensor of float32
    settings : Settings
    name : str
        Path of the block.
    scales : dict of str to ScaleChoice, optional
        Scales chosen elsewhere, by site.
    device : torch.device or str
        To search on, one site at a time.

    Returns
    -------
    BlockResult
        On the CPU.
    """
    import torch

    result = BlockResult(name, {}, {}, [], [])
    weights = {path: w for path, w in weights.items() if is_quantized(path, w, settings, name)}
    scales = (scales or {}) | shared_scales(records, weights, settings, name=name, device=device)
    for site, moments in records:
        mine = {path: weights[path] for path in site.linears if path in weights}
        if not mine:
            continue
        given = scales.get(site.name)
        near = moments.to(device)
        choice = choose_linears(site, near, mine, settings, block=name, scales=given)
        scaled = {path: weight * choice.channel_scales for path, weight in mine.items()}
        rounded = round_linears(choice, near, scaled, settings, name=name)
        result.choices[site.name] = choice
        result.curves.extend(curve_rows(site, choice))
        for path, linear in rounded.items():
            effective = torch.from_numpy(linear.packed.dequantize()) / choice.channel_scales
            result.effective[path] = effective
            own = settings.for_linear(f"{name}.{path}")
            error = measure(mine[path], effective, near, own)
            row = linear_row(site, path, choice, linear, error)
            result.rows.append(row | {"alarm": alarms(row, site, choice, moments)})
    return result
