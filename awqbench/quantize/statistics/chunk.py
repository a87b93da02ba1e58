"""A chunk of the text on its way through one block, and the sums over what enters its linears.

Sums are made over chunks of `SUM_WINDOWS` windows and added in their order, so that they do
not depend on who makes them: this process, one chunk after another, or several.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from awqbench.errors import NonFiniteError
from awqbench.quantize.statistics.experts import sketch_rows
from awqbench.quantize.statistics.moments import Moments, merge_tensor

if TYPE_CHECKING:
    import torch

    from awqbench.model import BlockCall, BlockRunner
    from awqbench.quantize.folds.find import Site
    from awqbench.quantize.statistics.activations import Activations
    from awqbench.quantize.stopwatch import Stopwatch

# A Gram matrix of more channels than this takes over 1 GiB; a sketch is kept instead.
SKETCH_ABOVE = 16384
SKETCH_ROWS = 1024
# Windows run at a time, and windows whose products are added up before they join the total.
# The second is a constant so that one process and many give the same bytes.
BATCH_SIZE = 8
SUM_WINDOWS = 32

# Sums of one chunk or of all: for each site what `Moments.tensors` gives.
Sums = list[dict[str, "torch.Tensor"]]


class Sketching(NamedTuple):
    """Sites with more than `above` channels keep a sketch of `rows` rows in place of H."""

    above: int = SKETCH_ABOVE
    rows: int = SKETCH_ROWS


@dataclass(frozen=True, repr=False)
class Chunk:
    """What to do with one chunk of the text in one block.

    Parameters
    ----------
    block, number : int
    n_windows : int
    batch_size : int
        Windows run at a time.
    calls : sequence of tuple of BlockCall
        What each of the batches calls the blocks with.
    sites : sequence of Site
        Where sums are made; may be none.
    sketch : Sketching
    route_all_experts : bool
        Send every token through every expert, for the sums alone.
    is_last : bool
        Whether nobody needs what comes out of the block.
    """

    block: int
    number: int
    n_windows: int
    batch_size: int
    calls: Sequence[tuple[BlockCall, ...]]
    sites: Sequence[Site]
    sketch: Sketching
    route_all_experts: bool
    is_last: bool

    def __repr__(self) -> str:
        first = self.number * SUM_WINDOWS
        return f"windows {first} to {first + self.n_windows - 1} through block {self.block}"


def run_chunk(
    chunk: Chunk,
    runner: BlockRunner,
    block: torch.nn.Module,
    activations: Activations,
    watch: Stopwatch,
) -> Sums:
    """Run a chunk through a block; returns the sums, and puts the outputs.

    Parameters
    ----------
    chunk : Chunk
    runner : BlockRunner
    block : torch.nn.Module
        As the runner loaded it.
    activations : Activations
        Has the inputs of the block; takes those of the next.
    watch : Stopwatch
    """
    from awqbench.model import BlockInputs
    from awqbench.model_experts import every_expert

    i, size = chunk.block, chunk.batch_size
    moments = _moments(chunk)
    routing = every_expert(block) if chunk.route_all_experts else nullcontext()
    if not chunk.is_last:
        activations.start(i + 1, chunk.number, chunk.n_windows)
    with routing, _collecting(block, chunk.sites, moments, watch):
        for j, calls in enumerate(chunk.calls):
            with watch("spill"):
                hidden = activations.batch(chunk.number, j, j * size, (j + 1) * size)
            with watch("forward"):
                hidden = runner.run_block(block, i, BlockInputs(hidden, calls)).hidden
            if not chunk.is_last:
                with watch("spill"):
                    activations.put(hidden)
    with watch("spill"):
        activations.end()
    return [each.tensors() for each in moments]


def add_sums(total: Sums, part: Sums) -> Sums:
    """Add the sums of the next chunk to a total, in place; an empty total becomes the part."""
    for mine, theirs in zip(total, part, strict=bool(total)):
        for name, tensor in mine.items():
            merge_tensor(name, tensor, theirs[name])
    return total or part


def _moments(chunk: Chunk) -> list[Moments]:
    seed = (chunk.number << 32) + chunk.block
    of_experts = sketch_rows({s.name: s.in_features for s in chunk.sites}, chunk.sketch.rows)
    found = []
    for site in chunk.sites:
        is_wide = site.in_features > chunk.sketch.above
        rows = chunk.sketch.rows if is_wide else of_experts[site.name]
        found.append(Moments(site.in_features, sketch_rows=rows, seed=seed))
    return found


@contextmanager
def _collecting(
    block: torch.nn.Module, sites: Sequence[Site], moments: list[Moments], watch: Stopwatch
) -> Iterator[None]:
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


def load_checked(runner: BlockRunner, i: int) -> torch.nn.Module:
    """Load a block, its weights checked by `check_block_weights`."""
    block = runner.load_block(i)
    check_block_weights(dict(block.named_parameters()), runner.block_name(i))
    return block
