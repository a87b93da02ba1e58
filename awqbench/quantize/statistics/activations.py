"""Hidden states on their way between two blocks: in memory, on disk, or both.

What enters a block is written to files while the block before it runs. They are where a run
that was killed goes on, and where batches are read from that memory has no room for.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

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

    The text is in chunks of windows, each a file of its own, so that several processes can
    write the inputs of one block; a chunk is put and taken batch by batch.

    Parameters
    ----------
    folder : Path or None
        Where they are written at every block; None keeps them in memory alone.
    in_memory : bool
        Whether batches stay in memory too.
    """

    def __init__(self, folder: Path | None, *, in_memory: bool = True):
        self.folder, self.in_memory = folder, in_memory or folder is None
        self._batches: dict[tuple[int, int], torch.Tensor] = {}
        self._next: dict[tuple[int, int], torch.Tensor] = {}
        self._at: int | None = None
        self._chunk, self._n_put = 0, 0
        self._file: _TensorFile | None = None

    def saved_blocks(self, n_chunks: int) -> list[int]:
        """Return the blocks whose inputs an earlier run left whole; all others are removed."""
        if self.folder is None:
            return []
        chunks: dict[int, set[int]] = {}
        for path in self.folder.glob("enters-*.safetensors"):
            block, chunk = (int(number) for number in path.stem.split("-")[1:])
            chunks.setdefault(block, set())
            if is_intact(path):
                chunks[block].add(chunk)
        whole = {block for block, there in chunks.items() if len(there) == n_chunks}
        for block in chunks.keys() - whole:
            self._remove(block)
        return sorted(whole)

    def take_up(self, block: int) -> None:
        """Go on from what lies on disk of the inputs of a block."""
        self._at, self._batches = block, {}

    def start(self, block: int, chunk: int, n: int) -> None:
        """Begin a chunk of the inputs of a block.

        Parameters
        ----------
        block, chunk : int
        n : int
            Windows that will be put, all batches of the chunk together.
        """
        self._chunk, self._n_put = chunk, 0
        if self.folder is not None:
            self._file = _TensorFile(self._path(block, chunk), n)

    def put(self, hidden: torch.Tensor) -> None:
        """Take the next batch of the chunk, (windows, seq, hidden_size)."""
        if self.in_memory:
            self._next[self._chunk, self._n_put] = hidden
            self._n_put += 1
        if self._file is not None:
            self._file.append(hidden)

    def end(self) -> None:
        """Make what was put of the chunk stay."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def finish(self, block: int) -> None:
        """Make the inputs of `block` those that `batch` returns; older ones are removed."""
        if self._at is not None and self._at != block:
            self._remove(self._at)
        self._at, self._batches, self._next = block, self._next, {}

    def batch(self, chunk: int, j: int, first: int, last: int) -> torch.Tensor:
        """Return batch `j` of a chunk, its windows `first` to `last`, and let go of it."""
        if (chunk, j) in self._batches:
            return self._batches.pop((chunk, j))
        from safetensors import safe_open

        with safe_open(self._path(self._at, chunk), framework="pt") as file:
            return file.get_slice("hidden")[first:last].clone()

    def close(self) -> None:
        """Leave a file that is being written unfinished."""
        if self._file is not None:
            self._file.abandon()

    def _path(self, block: int, chunk: int) -> Path:
        return self.folder / f"enters-{block:05d}-{chunk:05d}.safetensors"

    def _remove(self, block: int) -> None:
        if self.folder is not None:
            for path in self.folder.glob(f"enters-{block:05d}-*.safetensors"):
                remove_sealed(path)


class _TensorFile:
    """One tensor, written batch by batch to a safetensors file, with a running digest."""

    def __init__(self, path: Path, n: int):
        self.path, self._n = path, n
        # Two processes may write the same chunk, one of them given up for lost.
        self._partial = path.with_name(f".{path.name}.{uuid4().hex[:8]}.partial")
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
