"""AutoAWQ's way to choose channel scales, kept for comparison.

For every alpha the module that holds a site's linears (attention, MLP) runs on all
calibration tokens with scaled and rounded weights, and the alpha with the least mean
squared change of that module's output wins. The cost is a pass through the module for
each alpha and each setting, where the statistics need one pass for all.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from awqbench.errors import CalibrationTextError
from awqbench.quantize.choices.rounding import grid_of, group_ranges, quantization_error
from awqbench.quantize.choices.scales import ScaleChoice, candidate_scales, weight_magnitude
from awqbench.text import checked_tokens, tokens_digest

if TYPE_CHECKING:
    import torch

    from awqbench.formats.checkpoint import Checkpoint
    from awqbench.quantize.settings import Settings
    from awqbench.quantize.statistics.stats import SiteRecord, Stats

_BATCH = 8


def block_scales(
    ckpt: Checkpoint, stats: Stats, tokens: np.ndarray | None, settings: Settings
) -> Iterator[dict[str, ScaleChoice]]:
    """Choose channel scales block by block, by the change of each parent's output.

    Sites of a single linear are left out: there the output error from statistics is the
    same number.

    Parameters
    ----------
    ckpt : Checkpoint
    stats : Stats
        Sites, and mean activation magnitudes.
    tokens : (n, seq) ndarray of int64
        The calibration text of `stats`.
    settings : Settings

    Yields
    ------
    dict of str to ScaleChoice
        By site.

    Raises
    ------
    CalibrationTextError
        If `tokens` are missing, or others than the statistics were made from.
    """
    import torch

    from awqbench.model import BlockRunner

    if tokens is None or tokens_digest(tokens) != stats.manifest["calibration_digest"]:
        raise CalibrationTextError(
            "objective='block' runs the model on the calibration text again: pass the same "
            "tokens that the statistics were made from."
        )
    runner = BlockRunner(ckpt, dtype=getattr(torch, stats.manifest["dtype"]))
    batches = torch.from_numpy(checked_tokens(tokens)).split(_BATCH)
    chunks = [runner.embed(batch) for batch in batches]
    for i in range(runner.n_blocks):
        block = runner.load_block(i)
        records = [record for record in stats.block(i) if is_searched(record, settings)]
        parents = {parent_of(record.site.linears) for record in records}
        calls: dict[str, list] = {parent: [] for parent in parents}
        handles = [_keep_calls(block.get_submodule(p), calls[p]) for p in parents]
        for j, chunk in enumerate(chunks):
            chunks[j] = runner.run_block(block, i, chunk)
        for handle in handles:
            handle.remove()
        yield {
            record.site.name: search_by_output(
                block, record, calls[parent_of(record.site.linears)], settings
            )
            for record in records
        }


def is_searched(record: SiteRecord, settings: Settings) -> bool:
    """Tell whether a site's scales are chosen by its parent's output."""
    site = record.site
    is_own = site.prev_op is not None and not site.shares
    return settings.scales == "awq" and is_own and len(site.linears) > 1


def parent_of(linears: tuple[str, ...]) -> str:
    """Return the path of the smallest module that holds all linears, "" for the block."""
    split = [path.split(".")[:-1] for path in linears]
    shared = []
    for parts in zip(*split, strict=False):
        if len(set(parts)) > 1:
            break
        shared.append(parts[0])
    return ".".join(shared)


def _keep_calls(module: torch.nn.Module, calls: list):
    def hook(_module, args, kwargs, output):
        calls.append((args, kwargs, output[0] if isinstance(output, tuple) else output))

    return module.register_forward_hook(hook, with_kwargs=True)


def search_by_output(
    block: torch.nn.Module, record: SiteRecord, calls: list, settings: Settings
) -> ScaleChoice:
    """Choose one site's scales by running its parent for every alpha.

    Parameters
    ----------
    block : torch.nn.Module
        Weights are changed and put back.
    record : SiteRecord
    calls : list of (args, kwargs, output)
        The parent's calls on the calibration text.
    settings : Settings

    Returns
    -------
    ScaleChoice
        `losses` are mean squared differences of the parent's output.
    """
    import torch

    site, moments = record
    parent = block.get_submodule(parent_of(site.linears))
    linears = [block.get_submodule(path) for path in site.linears]
    originals = [linear.weight.detach().clone() for linear in linears]
    group_size = settings.group_size_for(site.in_features, name=site.name)
    magnitude = weight_magnitude(torch.cat([w.float() for w in originals]), group_size)
    alphas = np.arange(settings.n_grid) / settings.n_grid
    candidates = [torch.ones(site.in_features)] + [
        candidate_scales(moments.mean_abs(), magnitude, alpha, site.source) for alpha in alphas
    ]
    losses = []
    with torch.no_grad():
        for scales in candidates:
            for linear, original in zip(linears, originals, strict=True):
                scaled = original.float() * scales
                grid = grid_of(*group_ranges(scaled, group_size), settings)
                error = quantization_error(scaled, grid, settings.bits)
                linear.weight.copy_((scaled + error) / scales)
            losses.append(output_change(parent, calls))
        for linear, original in zip(linears, originals, strict=True):
            linear.weight.copy_(original)
    finite = np.where(np.isfinite(losses), losses, np.inf)
    best = int(np.argmin(finite))
    grid_points = np.concatenate([[np.nan], alphas])
    return ScaleChoice(candidates[best], float(grid_points[best]), grid_points, finite)


def output_change(parent: torch.nn.Module, calls: list) -> float:
    """Return the mean squared difference of a module's output from what it was."""
    total, count = 0.0, 0
    for args, kwargs, before in calls:
        output = parent(*args, **kwargs)
        output = output[0] if isinstance(output, tuple) else output
        total += float((output - before).float().square().sum(dtype=before.float().dtype))
        count += before.numel()
    return total / count
