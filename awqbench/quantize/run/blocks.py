"""Finished blocks on disk: each a file of the checkpoint to be, and a seal with its tables."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

from awqbench.quantize.durable import (
    is_intact,
    remove_sealed,
    seal,
    sealed_facts,
    write_durably,
)

if TYPE_CHECKING:
    from awqbench.quantize.choices.block import QuantizedBlock


class BlockFiles:
    """The finished blocks in a folder; any process may write one, at any time.

    A block counts as finished when its seal is there: digest, tables of its linears, and the
    seconds it took.

    Parameters
    ----------
    folder : Path
    """

    def __init__(self, folder: Path):
        self.folder = folder

    def path(self, i: int) -> Path:
        """Return the file of block `i`."""
        return self.folder / f"block-{i:05d}.safetensors"

    def has(self, i: int) -> bool:
        """Tell whether block `i` is finished."""
        return sealed_facts(self.path(i)) is not None

    def remove_damaged(self, n_blocks: int) -> list[int]:
        """Compare every finished block with its digest; remove and return what differs."""
        damaged = [i for i in range(n_blocks) if self.has(i) and not is_intact(self.path(i))]
        for i in damaged:
            self.remove(i)
        return damaged

    def remove(self, i: int) -> None:
        """Remove a block; it is no longer finished."""
        remove_sealed(self.path(i))

    def save(self, i: int, name: str, block: QuantizedBlock, seconds: dict[str, float]) -> None:
        """Write a block, whole or not at all; writing it twice is no harm.

        Parameters
        ----------
        i : int
        name : str
            What the block's tensors are called in the checkpoint, up to their path in it.
        block : QuantizedBlock
        seconds : dict of str to float

        Raises
        ------
        OutputError
            If the folder cannot be written or the disk is full.
        """
        from safetensors.torch import save_file

        tensors = {f"{name}.{path}": t.contiguous() for path, t in block.tensors.items()}
        metadata = {"format": "pt"}
        write_durably(self.path(i), lambda partial: save_file(tensors, partial, metadata=metadata))
        seal(self.path(i), rows=plain(block.rows), curves=plain(block.curves), seconds=seconds)

    def facts(self, i: int) -> dict:
        """Return a finished block's `rows`, `curves` and `seconds`."""
        return sealed_facts(self.path(i)) or {}


def plain(rows: list[dict]) -> list[dict]:
    """Return rows that JSON can hold: numbers of Python, None for NaN and infinity."""

    def value_of(value):
        value = value.item() if hasattr(value, "item") else value
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return [{key: value_of(value) for key, value in row.items()} for row in rows]
