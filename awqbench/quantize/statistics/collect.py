"""A text on its way through a model, block by block, and the sums that are made of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from awqbench.errors import ParameterError
from awqbench.quantize.statistics.activations import Activations
from awqbench.quantize.statistics.chunk import (
    BATCH_SIZE,
    SUM_WINDOWS,
    Chunk,
    Sketching,
    Sums,
    add_sums,
    load_checked,
    run_chunk,
)
from awqbench.quantize.statistics.chunk_task import (
    ChunkTask,
    remove_sums,
    run_chunk_task,
    take_sums,
)
from awqbench.quantize.statistics.stats import FORMAT, save_block
from awqbench.quantize.stopwatch import Stopwatch
from awqbench.text import tokens_digest

if TYPE_CHECKING:
    from awqbench.model import BlockCall, BlockRunner
    from awqbench.quantize.folds.find import Site

# In a manifest: every token went through every expert.
ALL_EXPERTS = "all experts"
# Runs tasks on other processes and gives (task, result) as they end; see `run_tasks`.
Spread = Callable[[Callable, Iterable], Iterator[tuple]]


class Calibration:
    """A text on its way through a model, block by block.

    Parameters
    ----------
    runner : BlockRunner
    sites_of : sequence of sequence of Site
        As `trace_sites` gives them.
    tokens : (n, seq) ndarray of int64
    folder : Path
        Where the statistics of a block are written.
    batch_size : int
        Windows run at a time; divides `SUM_WINDOWS`.
    sketch : Sketching
    activations : Activations, optional
        Where hidden states are kept; default in memory.
    watch : Stopwatch, optional
    route_all_experts : bool
        See `calibrate`.

    Raises
    ------
    ParameterError
        If `batch_size` does not divide `SUM_WINDOWS`.
    """

    def __init__(
        self,
        runner: BlockRunner,
        sites_of: Sequence[Sequence[Site]],
        tokens: np.ndarray,
        folder: Path,
        *,
        batch_size: int = BATCH_SIZE,
        sketch: Sketching = Sketching(),  # noqa: B008 (immutable)
        activations: Activations | None = None,
        watch: Stopwatch | None = None,
        route_all_experts: bool = False,
    ) -> None:
        if batch_size < 1 or SUM_WINDOWS % batch_size:
            raise ParameterError(
                f"batch_size is {batch_size}; it must divide {SUM_WINDOWS}, the windows of one sum."
            )
        self._runner, self._sites_of = runner, sites_of
        self._tokens, self._folder = tokens, folder
        self._batch_size, self._sketch = batch_size, sketch
        self._activations = activations or Activations(None)
        self._watch = watch or Stopwatch()
        self._route_all_experts = route_all_experts
        self._chunks: list[list[tuple[BlockCall, ...]]] = []  # of each batch of each chunk

    def blocks(
        self,
        wanted: Sequence[int],
        *,
        has: Callable[[int], bool] = lambda i: False,
        on_saved: Callable[[int], None] | None = None,
        spread: Callable[[], Spread | None] = lambda: None,
    ) -> Iterator[int]:
        """Collect the statistics of some blocks and give each block's number when on disk.

        Those that are there already come first. For the others the text goes on from where
        `activations` has it on disk.

        Parameters
        ----------
        wanted : iterable of int
        has : callable, optional
            Tells whether the statistics of a block are there.
        on_saved : callable, optional
            Called when a block's statistics are written.
        spread : callable, optional
            Gives, before each block, what shares its chunks among other processes, or None to
            run them here.
        """
        there = [i for i in wanted if has(i)]
        yield from there
        wanted = set(wanted) - set(there)
        if not wanted:
            return
        last = max(wanted)
        if self._activations.folder is not None:
            remove_sums(self._activations.folder)
        saved = [i for i in self._activations.saved_blocks(self.n_chunks) if i <= min(wanted)]
        start = max(saved, default=None)
        if start is not None:
            self._activations.take_up(start)
        self._embed(keep=start is None)
        for i in range(start or 0, last + 1):
            sites = [site for site in self._sites_of[i] if site.linears] if i in wanted else []
            chunks = [self._chunk(i, number, sites, is_last=i == last) for number in self._numbers]
            share = spread() if len(chunks) > 1 else None
            sums = self._run(i, chunks) if share is None else self._run_spread(chunks, share)
            if i in wanted:
                with self._watch("write"):
                    save_block(self._folder, i, list(zip(sites, sums, strict=True)))
                    if on_saved is not None:
                        on_saved(i)
            del sums
            # Only now may what entered this block go: it is not needed again.
            if i < last:
                with self._watch("spill"):
                    self._activations.finish(i + 1)
            if i in wanted:
                yield i

    @property
    def n_chunks(self) -> int:
        """Chunks of `SUM_WINDOWS` windows in the text; the last may be shorter."""
        return -(-len(self._tokens) // SUM_WINDOWS)

    @property
    def _numbers(self) -> range:
        return range(self.n_chunks)

    def _embed(self, *, keep: bool) -> None:
        """Find out what every block is called with, and keep what enters block 0."""
        import torch

        tokens = torch.from_numpy(np.ascontiguousarray(self._tokens))
        with self._watch("forward"):
            for number, windows in enumerate(tokens.split(SUM_WINDOWS)):
                self._chunks.append([])
                if keep:
                    self._activations.start(0, number, len(windows))
                for batch in windows.split(self._batch_size):
                    inputs = self._runner.embed(batch)
                    self._chunks[-1].append(inputs.calls)
                    if keep:
                        self._activations.put(inputs.hidden)
                self._activations.end()
            self._runner.release_embedding()
        if keep:
            self._activations.finish(0)

    def _chunk(self, i: int, number: int, sites: list[Site], *, is_last: bool) -> Chunk:
        return Chunk(
            block=i,
            number=number,
            n_windows=min(SUM_WINDOWS, len(self._tokens) - number * SUM_WINDOWS),
            batch_size=self._batch_size,
            calls=self._chunks[number],
            sites=sites,
            sketch=self._sketch,
            route_all_experts=self._route_all_experts,
            is_last=is_last,
        )

    def _run(self, i: int, chunks: Sequence[Chunk]) -> Sums:
        """Run all chunks through a block and return the sums over what enters its sites."""
        with self._watch("read"):
            block = load_checked(self._runner, i)
        total: Sums = []
        for chunk in chunks:
            sums = run_chunk(chunk, self._runner, block, self._activations, self._watch)
            with self._watch("statistics"):
                total = add_sums(total, sums)
        return total

    def _run_spread(self, chunks: Sequence[Chunk], spread: Spread) -> Sums:
        """Let other processes run the chunks; add up what they leave, in the chunks' order."""
        import torch

        runner, folder = self._runner, self._activations.folder
        tasks = [
            ChunkTask(
                chunk,
                model=str(runner.ckpt.path.absolute()),
                model_digest=runner.ckpt.digest,
                dtype=str(runner.dtype).removeprefix("torch."),
                folder=str(folder.absolute()),
                threads=torch.get_num_threads(),
            )
            for chunk in chunks
        ]
        for _, seconds in spread(run_chunk_task, tasks):
            self._watch.add(seconds)
        total: Sums = []
        for chunk in chunks:
            with self._watch("statistics"):
                total = add_sums(total, take_sums(folder, chunk))
        return total

    def manifest(self) -> dict:
        """Return what `save_manifest` writes: of which model and text the statistics are."""
        runner, ckpt = self._runner, self._runner.ckpt
        return {
            "format": FORMAT,
            "model_name": ckpt.path.name,
            "model_digest": ckpt.digest,
            "calibration_digest": tokens_digest(self._tokens),
            "n_samples": int(self._tokens.shape[0]),
            "seq_len": int(self._tokens.shape[1]),
            "dtype": str(runner.dtype).removeprefix("torch."),
            "sketch_rows": self._sketch.rows,
            "routing": ALL_EXPERTS if self._route_all_experts else "real",
            "n_blocks": runner.n_blocks,
            "prefix": runner.prefix,
            "in_features": {
                f"{runner.block_name(i)}.{path}": site.in_features
                for i, sites in enumerate(self._sites_of)
                for site in sites
                for path in site.linears
            },
        }
