"""A chunk of the text run through a block by another process, its sums left on disk.

What goes in and out lies in the folder of the run, which all processes see; both are written
whole or not at all, so that a task may run anywhere, and again.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from awqbench.formats.checkpoint import open_checkpoint
from awqbench.quantize.durable import write_durably
from awqbench.quantize.statistics.activations import Activations
from awqbench.quantize.statistics.chunk import Chunk, Sums, load_checked, run_chunk
from awqbench.quantize.stopwatch import Stopwatch, fixed_threads

if TYPE_CHECKING:
    from awqbench.model import BlockRunner


@dataclass(frozen=True, repr=False)
class ChunkTask:
    """A chunk with all that another process needs beside it.

    Parameters
    ----------
    chunk : Chunk
    model : str
        Folder of the full-precision model.
    model_digest : str
    dtype : str
        To run in, a name in torch.
    folder : str
        Where activations are, and where the sums go.
    threads : int
        See `fixed_threads`.
    """

    chunk: Chunk
    model: str
    model_digest: str
    dtype: str
    folder: str
    threads: int

    def __repr__(self) -> str:
        return repr(self.chunk)


def run_chunk_task(task: ChunkTask) -> dict[str, float]:
    """Run a chunk and write its sums; returns the seconds it took by stage.

    Raises
    ------
    NonFiniteError, OutputError
        As `load_checked` and `write_durably`.
    """
    from safetensors.torch import save_file

    watch = Stopwatch()
    with fixed_threads(task.threads):
        with watch("read"):
            runner = _runner(task.model, task.model_digest, task.dtype)
            block = load_checked(runner, task.chunk.block)
        activations = Activations(Path(task.folder), in_memory=False)
        activations.take_up(task.chunk.block)
        try:
            sums = run_chunk(task.chunk, runner, block, activations, watch)
        finally:
            activations.close()
        with watch("write"):
            path = _sums_file(Path(task.folder), task.chunk.block, task.chunk.number)
            named = {f"{n}/{name}": t for n, site in enumerate(sums) for name, t in site.items()}
            write_durably(path, lambda partial: save_file(named, partial))
    return watch.seconds


def take_sums(folder: Path, chunk: Chunk) -> Sums:
    """Read the sums that a task left, and remove them from the disk."""
    from safetensors.torch import load_file

    path = _sums_file(folder, chunk.block, chunk.number)
    sums: Sums = [{} for _ in chunk.sites]
    for key, tensor in load_file(path).items():
        number, name = key.split("/")
        sums[int(number)][name] = tensor
    path.unlink()
    return sums


def remove_sums(folder: Path) -> None:
    """Remove what tasks of an earlier run left."""
    for path in folder.glob("sums-*.safetensors"):
        path.unlink()


def _sums_file(folder: Path, block: int, chunk: int) -> Path:
    return folder / f"sums-{block:05d}-{chunk:05d}.safetensors"


@lru_cache(maxsize=1)
def _runner(model: str, digest: str, dtype: str) -> BlockRunner:
    """Return the runner of a model; a process keeps that of the last one it ran."""
    import torch

    from awqbench.model import BlockRunner

    return BlockRunner(open_checkpoint(model), dtype=getattr(torch, dtype))
