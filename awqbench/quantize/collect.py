"""A text on its way through a model, block by block, and the sums that are made of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from awqbench.errors import NonFiniteError, ParameterError
from awqbench.quantize.activations import Activations
from awqbench.quantize.experts import sketch_rows
from awqbench.quantize.moments import Moments
from awqbench.quantize.stats import FORMAT, save_block
from awqbench.quantize.stopwatch import Stopwatch
from awqbench.text import tokens_digest

if TYPE_CHECKING:
    import torch

    from awqbench.model import BlockRunner
    from awqbench.quantize.fold import Site

# A Gram matrix of more channels than this takes over 1 GiB; a sketch is kept instead.
SKETCH_ABOVE = 16384
SKETCH_ROWS = 1024
# Windows run at a time, and windows whose products are added up before they join the total.
# The second is a constant so that one process and many give the same bytes.
BATCH_SIZE = 8
SUM_WINDOWS = 32
# In a manifest: every token went through every expert.
ALL_EXPERTS = "all experts"


class Sketching(NamedTuple):
    """Sites with more than `above` channels keep a sketch of `rows` rows in place of H."""

    above: int = SKETCH_ABOVE
    rows: int = SKETCH_ROWS


class Calibration:
    """A text on its way through a model, block by block.

    Sums are made over runs of `SUM_WINDOWS` windows and added in their order, so that they
    do not depend on who makes them.

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
        self._calls: list[tuple] = []

    def blocks(
        self,
        wanted: Iterable[int],
        *,
        start: int | None = None,
        on_saved: Callable[[int], None] | None = None,
    ) -> Iterator[int]:
        """Collect the statistics of some blocks and give each block's number when on disk.

        Parameters
        ----------
        wanted : iterable of int
        start : int, optional
            Block whose inputs `activations` holds; default none, the text is embedded.
        on_saved : callable, optional
            Called when a block's statistics are written.
        """
        wanted = set(wanted)
        last = max(wanted, default=-1)
        if last < 0:
            return
        self._embed(keep=start is None)
        for i in range(start or 0, last + 1):
            with self._watch("read"):
                block = self._runner.load_block(i)
                check_block_weights(dict(block.named_parameters()), self._runner.block_name(i))
            sites = [site for site in self._sites_of[i] if site.linears] if i in wanted else []
            sums = self._run(block, i, sites, is_last=i == last)
            del block
            if i in wanted:
                with self._watch("write"):
                    records = [(s, m.tensors()) for s, m in zip(sites, sums, strict=True)]
                    save_block(self._folder, i, records)
                    if on_saved is not None:
                        on_saved(i)
                    del records, sums
            # Only now may what entered this block go: it is not needed again.
            if i < last:
                with self._watch("spill"):
                    self._activations.finish(i + 1)
            if i in wanted:
                yield i

    def _embed(self, *, keep: bool) -> None:
        """Find out what every block is called with, and keep what enters block 0."""
        import torch

        tokens = torch.from_numpy(np.ascontiguousarray(self._tokens))
        with self._watch("forward"):
            if keep:
                self._activations.start(0, len(tokens))
            for batch in tokens.split(self._batch_size):
                inputs = self._runner.embed(batch)
                self._calls.append(inputs.calls)
                if keep:
                    self._activations.put(inputs.hidden)
            self._runner.release_embedding()
        if keep:
            with self._watch("spill"):
                self._activations.finish(0)

    def _run(
        self, block: torch.nn.Module, i: int, sites: list[Site], *, is_last: bool
    ) -> list[Moments]:
        """Run all windows through a block and return the sums over what enters its sites."""
        from awqbench.model import BlockInputs
        from awqbench.model_experts import every_expert

        totals: list[Moments] = []
        if not is_last:
            self._activations.start(i + 1, len(self._tokens))
        per_sum = SUM_WINDOWS // self._batch_size
        for first in range(0, len(self._calls), per_sum):
            chunk = first // per_sum
            sums = [_moments_for(s, sites, self._sketch, block=i, chunk=chunk) for s in sites]
            routing = every_expert(block) if self._route_all_experts else nullcontext()
            with routing, _collecting(block, sites, sums, self._watch):
                for j in range(first, min(first + per_sum, len(self._calls))):
                    begin = j * self._batch_size
                    with self._watch("spill"):
                        hidden = self._activations.batch(j, begin, begin + self._batch_size)
                    with self._watch("forward"):
                        inputs = BlockInputs(hidden, self._calls[j])
                        hidden = self._runner.run_block(block, i, inputs).hidden
                    if not is_last:
                        with self._watch("spill"):
                            self._activations.put(hidden)
            with self._watch("statistics"):
                for total, part in zip(totals, sums, strict=False):
                    total.merge(part)
                totals = totals or sums
        return totals

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


def _moments_for(
    site: Site, sites: list[Site], sketch: Sketching, *, block: int, chunk: int
) -> Moments:
    is_wide = site.in_features > sketch.above
    rows = sketch.rows if is_wide else sketch_rows(site, sites, sketch.rows)
    return Moments(site.in_features, sketch_rows=rows, seed=(chunk << 32) + block)


def check_block_weights(tensors: dict[str, torch.Tensor], name: str) -> None:
    """Raise if a block's weights hold NaN or infinity.

    Parameters
    ----------
    tensors : dict of str to torch.Tensor
        By block-relative path.
    name : str
        Path of the block.

    Raises
    ------
    NonFiniteError
        Names the tensor and counts its bad elements.
    """
    import torch

    for path, tensor in tensors.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            bad = int((~torch.isfinite(tensor)).sum())
            raise NonFiniteError(
                f"{name}.{path} holds NaN or inf ({bad} of {tensor.numel()} elements); the "
                "checkpoint is damaged or was saved in a dtype too small for it: convert it "
                "again from the original."
            )


@contextmanager
def _collecting(
    block: torch.nn.Module, sites: list[Site], moments: list[Moments], watch: Stopwatch
):
    """Add what enters each site's first linear to its moments, while the context lasts."""
    handles = []
    for site, sums in zip(sites, moments, strict=True):

        def hook(_module, args, sums=sums):
            with watch("statistics"):
                sums.add(args[0])

        linear = block.get_submodule(site.linears[0])
        handles.append(linear.register_forward_pre_hook(hook))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
