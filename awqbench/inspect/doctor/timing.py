"""How long would it take? One block is timed, and the rest is multiplication."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, NamedTuple

from awqbench.inspect.doctor.findings import duration
from awqbench.inspect.doctor.resources import BATCH_SIZE, N_SAMPLES, SEQ_LEN

if TYPE_CHECKING:
    import torch

    from awqbench.model import BlockInputs, BlockRunner
    from awqbench.quantize.folds.find import Site
    from awqbench.quantize.statistics.moments import Moments


class TimeEstimate(NamedTuple):
    """Seconds of one block and of a whole run at the defaults of `quantize`.

    Parameters
    ----------
    load_s, trace_s : float
        Reading a block; finding its sites, once for each kind of block.
    batch_s : float
        Running a batch through a block and adding up its statistics.
    search_s : float
        Scales, ranges and codes of one block.
    n_blocks, n_kinds, n_batches : int
    """

    load_s: float
    trace_s: float
    batch_s: float
    search_s: float
    n_blocks: int
    n_kinds: int
    n_batches: int

    @property
    def total_s(self) -> float:
        """Seconds of the whole run; blocks are read for calibration and for the search."""
        one = 2 * self.load_s + self.n_batches * self.batch_s + self.search_s
        return self.n_kinds * self.trace_s + self.n_blocks * one

    def describe(self) -> str:
        """Explain the figure."""
        return (
            f"about {duration(self.total_s)}: {self.n_blocks} blocks of {self.load_s:.2f} s to "
            f"read (twice), {self.n_batches} batches of {self.batch_s:.2f} s, {self.search_s:.1f} "
            f"s to search; {self.n_kinds} times {self.trace_s:.1f} s to trace"
        )


def time_one_block(runner: BlockRunner, group_size: int) -> TimeEstimate:
    """Load, trace, run and search the first block, with random activations.

    Parameters
    ----------
    runner : BlockRunner
    group_size : int
        Divides every linear's in_features.
    """
    from awqbench.quantize.choices.block import quantize_block
    from awqbench.quantize.folds.find import SiteFinder
    from awqbench.quantize.search import make_settings
    from awqbench.quantize.statistics.moments import SiteMoments
    from awqbench.quantize.statistics.stats import SiteRecord

    clock = _Clock()
    block = runner.load_block(0)
    load_s = clock.lap()
    sites = [site for site in SiteFinder(runner).sites(0) if site.linears]
    trace_s = clock.lap()
    moments = [_moments_for(site) for site in sites]
    _run_batch(runner.random_inputs(1, 8), runner, block, (sites, moments))  # first calls are slow
    inputs = runner.random_inputs(BATCH_SIZE, SEQ_LEN)
    clock.lap()
    _run_batch(inputs, runner, block, (sites, moments))
    batch_s = clock.lap()
    records = [
        SiteRecord(site, SiteMoments(sums.tensors()))
        for site, sums in zip(sites, moments, strict=True)
    ]
    tensors = {path: runner.ckpt.read(name) for path, name in runner.stored_names(0).items()}
    clock.lap()
    settings = make_settings(None, group_size=group_size)
    quantize_block(tensors, records, settings, name=runner.block_name(0))
    return TimeEstimate(
        load_s,
        trace_s,
        batch_s,
        clock.lap(),
        runner.n_blocks,
        len({runner.block_kind(i) for i in range(runner.n_blocks)}),
        -(-N_SAMPLES // BATCH_SIZE),
    )


def _moments_for(site: Site) -> Moments:
    from awqbench.quantize.statistics.chunk import SKETCH_ABOVE, SKETCH_ROWS
    from awqbench.quantize.statistics.moments import Moments

    rows = SKETCH_ROWS if site.in_features > SKETCH_ABOVE else None
    return Moments(site.in_features, sketch_rows=rows)


def _run_batch(
    inputs: BlockInputs,
    runner: BlockRunner,
    block: torch.nn.Module,
    watched: tuple[list[Site], list[Moments]],
) -> None:
    """Run one batch and add what enters each site to its moments, as `calibrate` does."""
    handles = []
    for site, sums in zip(*watched, strict=True):

        def hook(_module, args, sums=sums):
            sums.add(args[0])

        handles.append(block.get_submodule(site.linears[0]).register_forward_pre_hook(hook))
    try:
        runner.run_block(block, 0, inputs)
    finally:
        for handle in handles:
            handle.remove()


class _Clock:
    """Seconds since the last look."""

    def __init__(self) -> None:
        self._before = time.perf_counter()

    def lap(self) -> float:
        now = time.perf_counter()
        self._before, before = now, self._before
        return now - before
