"""The loop over a model's blocks: statistics where they are missing, then search and writing."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from awqbench.formats.checkpoint import Checkpoint
from awqbench.progress import progress_bar, status_behind
from awqbench.quantize.run.device import SearchDevice
from awqbench.quantize.run.memory import budget_of, plan_memory
from awqbench.quantize.run.publish import stored_prefix
from awqbench.quantize.run.queue import Arguments, BlockQueue
from awqbench.quantize.run.work import WorkFolder
from awqbench.quantize.settings import Settings
from awqbench.quantize.statistics.activations import Activations
from awqbench.quantize.statistics.chunk import Sketching
from awqbench.quantize.statistics.collect import Calibration
from awqbench.quantize.statistics.stats import Stats, new_stats_folder, save_manifest
from awqbench.quantize.stopwatch import Stopwatch, fixed_threads, own_threads

if TYPE_CHECKING:
    from awqbench.model import BlockRunner
    from awqbench.quantize.run.memory import MemoryPlan

OnBlock = Callable[[int, int, list[dict]], None]
MakeQueue = Callable[[Arguments], BlockQueue]


class Run:
    """One run: where its statistics come from, and the loop over its blocks.

    Attributes
    ----------
    settings_of_block : dict of int to Settings
        For blocks that have other settings than the rest.
    device : SearchDevice
        Where blocks are searched.
    """

    def __init__(
        self, ckpt: Checkpoint, runner: BlockRunner, settings: Settings, watch: Stopwatch
    ) -> None:
        self._ckpt, self._runner, self._settings = ckpt, runner, settings
        self._watch = watch
        self.settings_of_block: dict[int, Settings] = {}
        self.device = SearchDevice()
        self._calibration: Calibration | None = None
        self._given: Stats | None = None
        self._plan: MemoryPlan | None = None
        self._keeps = True
        self._activations: Activations | None = None
        self._folder = Path()
        self._fresh: list[int] = []

    def given(self, work: WorkFolder, stats: Stats, threads: int | None) -> None:
        """Take statistics that were collected before."""
        self._given, self._folder = stats, stats.path
        work.settle({"threads": threads or own_threads(), "device": self.device.fact})

    def plan(
        self,
        work: WorkFolder,
        tokens: np.ndarray,
        *,
        max_memory: int | str | None,
        threads: int | None,
        keep_stats: str | Path | None = None,
        route_all_experts: bool = False,
    ) -> None:
        """Prepare to collect statistics: find the sites, and what fits into memory."""
        from awqbench.quantize.folds.find import trace_sites

        budget = budget_of(max_memory)
        with fixed_threads(work.facts.get("threads", threads)), self._watch("trace"):
            sites_of = trace_sites(self._runner)
        facts = work.facts
        plan = plan_memory(
            self._runner,
            sites_of,
            tokens.shape,
            self._settings,
            budget_bytes=budget,
            sketch=Sketching(*facts["sketch"]) if facts else None,
            batch_size=facts.get("batch_size"),
        )
        work.settle(
            {
                "threads": threads or own_threads(),
                "device": self.device.fact,
                "batch_size": plan.batch_size,
                "sketch": list(plan.sketch),
            }
        )
        self._plan, self._keeps = plan, keep_stats is not None
        own = work.files_path / "stats"
        self._folder = new_stats_folder(keep_stats) if self._keeps else own
        own.mkdir(exist_ok=True)
        self._activations = Activations(work.files_path, in_memory=plan.keeps_activations)
        self._calibration = Calibration(
            self._runner,
            sites_of,
            tokens,
            self._folder,
            batch_size=plan.batch_size,
            sketch=plan.sketch,
            activations=self._activations,
            watch=self._watch,
            route_all_experts=route_all_experts,
        )

    def all_blocks(self, work: WorkFolder, make_queue: MakeQueue, on_block: OnBlock | None) -> None:
        """Finish every block that is not finished."""
        n_blocks = self._runner.n_blocks
        ready = [i for i in range(n_blocks) if work.blocks.has(i)]
        queue = make_queue(lambda i: self._arguments(work, i))
        try:
            blocks = self._finish(work, queue, set(ready))
            bar = progress_bar(blocks, "quantize", unit="block", total=n_blocks)
            with status_behind(bar, queue.status):
                for i in bar:
                    if on_block is not None:
                        on_block(i, n_blocks, work.blocks.facts(i)["rows"])
        finally:
            queue.close()
            if self._activations is not None:
                self._activations.close()
        if self._calibration is not None and self._keeps:
            save_manifest(self._folder, self._calibration.manifest())

    def _finish(self, work: WorkFolder, queue: BlockQueue, ready: set[int]) -> Iterator[int]:
        """Give finished blocks as they are: those of an earlier run, then each new one."""
        yield from sorted(ready)
        for i in self._with_statistics(work, ready, queue):
            if i in ready:  # only its statistics were wanted
                continue
            self._fresh.append(i)
            queue.submit(i)
            for done in queue.finished():
                yield self._close(work, done)
        for done in queue.drain():
            yield self._close(work, done)

    def _close(self, work: WorkFolder, i: int) -> int:
        if not self._keeps:
            work.drop_stats(self._folder, i)
        return i

    def _with_statistics(
        self, work: WorkFolder, ready: set[int], queue: BlockQueue
    ) -> Iterator[int]:
        """Give blocks whose statistics are on disk, collecting what is missing."""
        blocks = range(self._runner.n_blocks)
        if self._calibration is None:
            yield from (i for i in blocks if i not in ready)
            return
        yield from self._calibration.blocks(
            [i for i in blocks if i not in ready or self._keeps],
            has=lambda i: work.has_stats(self._folder, i),
            on_saved=lambda i: work.seal_stats(self._folder, i),
            spread=queue.spread,
        )

    def _arguments(self, work: WorkFolder, i: int) -> dict[str, Any]:
        """Return the keyword arguments of `run_block`."""
        names = self._runner.stored_names(i)
        return {
            "model": str(self._ckpt.path.absolute()),
            "statistics": str(self._folder.absolute()),
            "finished": str(work.blocks.folder),
            "name": self._runner.block_name(i),
            "stored_prefix": stored_prefix(names, self._runner.block_name(i)),
            "stored_names": names,
            "settings": self.settings_of_block.get(i, self._settings).as_dict(),
            "threads": work.facts["threads"],
            "device": self.device.name,
        }

    def manifest(self) -> dict:
        """Return what the statistics are of."""
        source = self._given.manifest if self._given else self._calibration.manifest()
        keys = ("calibration_digest", "n_samples", "seq_len", "dtype", "routing")
        return {key: source[key] for key in keys if key in source}

    def memory(self) -> dict:
        """Return what was planned, and the peak of this process so far."""
        import resource
        import sys

        unit = 1 if sys.platform == "darwin" else 1024
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
        plan = {}
        if self._plan is not None:
            plan = {
                "budget_bytes": self._plan.budget_bytes,
                "planned_peak_bytes": self._plan.peak_bytes,
                "activations_in_memory": self._plan.keeps_activations,
                "sketch_above": self._plan.sketch.above,
            }
        return plan | {"peak_bytes": peak}

    def times(self, work: WorkFolder, started: float) -> dict:
        """Return the seconds of this run by stage; those of tasks may add up to more."""
        total = Stopwatch()
        total.add(self._watch.seconds)
        for i in self._fresh:
            total.add(work.blocks.facts(i)["seconds"])
        stages = {f"{stage}_s": value for stage, value in sorted(total.seconds.items())}
        return stages | {"total_s": time.perf_counter() - started}
