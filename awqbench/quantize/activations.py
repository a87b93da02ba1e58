"""Hidden states on their way between two blocks: in memory, on disk, or both.

What enters a block is written to one file while the block before it runs. The file is where
a run that was killed goes on, and where batches are read from that memory has no room for.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING

from awqbench.formats.headers import DTYPES
from awqbench.quantize.durable import (
    is_intact,
    put_in_place,
    remove_sealed,
    write_json,
    writing,
)

if TYPE_CHECKING:
    import torch

_CODES = {name: code for code, (_, name) in DTYPES.items()}


class Activations:
    """Hidden states that enter the blocks, for one block at a time.

    Parameters
    ----------
    folder : Path or None
        Where they are written at every block; None keeps them in memory alone.
    in_memory : bool
        Whether batches stay in memory too.
    """

    def __init__(self, folder: Path | None, *, in_memory: bool = True):
        self.folder, self.in_memory = folder, in_memory or folder is None
        self._batches: list[torch.Tensor] = []
        self._next: list[torch.Tensor] = []
        self._at: int | None = None
        self._file: _TensorFile | None = None

    def saved_blocks(self) -> list[int]:
        """Return the blocks whose inputs an earlier run left whole; damaged ones are removed."""
        if self.folder is None:
            return []
        found = []
        for path in sorted(self.folder.glob("enters-*.safetensors")):
            if is_intact(path):
                found.append(int(path.stem.removeprefix("enters-")))
            else:
                remove_sealed(path)
        return found

    def take_up(self, block: int) -> None:
        """Go on from what an earlier run left at a block."""
        self._at, self._batches = block, []

    def start(self, block: int, n: int) -> None:
        """Begin to write the inputs of a block.

        Parameters
        ----------
        block : int
        n : int
            Windows that will be put, all batches together.
        """
        self._next = []
        if self.folder is not None:
            self._file = _TensorFile(self._path(block), n)

    def put(self, hidden: torch.Tensor) -> None:
        """Take the next batch, (windows, seq, hidden_size)."""
        if self.in_memory:
            self._next.append(hidden)
        if self._file is not None:
            self._file.append(hidden)

    def finish(self, block: int) -> None:
        """Make the inputs of `block` those that `batch` returns; older ones are removed."""
        if self._file is not None:
            self._file.close()
            self._file = None
            if self._at is not None and self._at != block:
                remove_sealed(self._path(self._at))
        self._at, self._batches, self._next = block, self._next, []

    def batch(self, j: int, first: int, last: int) -> torch.Tensor:
        """Return batch `j`, windows `first` to `last`, and let go of it in memory."""
        if j < len(self._batches):
            hidden, self._batches[j] = self._batches[j], None
            return hidden
        from safetensors import safe_open

        with safe_open(self._path(self._at), framework="pt") as file:
            return file.get_slice("hidden")[first:last].clone()

    def close(self) -> None:
        """Leave a file that is being written unfinished."""
        if self._file is not None:
            self._file.abandon()

    def _path(self, block: int) -> Path:
        return self.folder / f"enters-{block:05d}.safetensors"


class _TensorFile:
    """One tensor, written batch by batch to a safetensors file, with a running digest."""

    def __init__(self, path: Path, n: int):
        self.path, self._n = path, n
        self._partial = path.with_name(f".{path.name}.partial")
        self._digest = hashlib.sha256()
        self._file = None
        self._bytes = 0

    def append(self, hidden: torch.Tensor) -> None:
        import torch

        data = hidden.detach().cpu().contiguous().view(torch.uint8).reshape(-1).numpy()
        with writing(self._partial):
            if self._file is None:
                self._file = self._partial.open("wb")
                self._write(_header(hidden, self._n))
            self._write(data)

    def _write(self, data) -> None:
        self._file.write(data)
        self._digest.update(data)
        self._bytes += len(data)

    def close(self) -> None:
        seal_path = self.path.with_suffix(".json")
        with writing(self._partial):
            self._file.close()
            seal_path.unlink(missing_ok=True)
            put_in_place(self._partial, self.path)
        write_json(seal_path, {"sha256": self._digest.hexdigest(), "bytes": self._bytes})

    def abandon(self) -> None:
        if self._file is not None:
            self._file.close()
        self._partial.unlink(missing_ok=True)


def _header(like: torch.Tensor, n: int) -> bytes:
    """Return the head of a safetensors file with one tensor of `n` rows."""
    shape = [n, *like.shape[1:]]
    nbytes = like.numel() // len(like) * n * like.element_size()
    dtype = _CODES[str(like.dtype).removeprefix("torch.")]
    entry = {"dtype": dtype, "shape": shape, "data_offsets": [0, nbytes]}
    text = json.dumps({"hidden": entry}).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
