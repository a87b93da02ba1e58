"""Write one safetensors file, holding one tensor in memory at a time.

The format wants its header first, and the header wants every tensor's place: so data go to
a spool file as they come, and the finished file is the header and a copy of the spool, in
the order that safetensors' own writer has (largest dtype first, then by name), which keeps
every tensor aligned.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from awqbench.formats.headers import DTYPES

if TYPE_CHECKING:
    import torch

_CODES = {torch_name: code for code, (_, torch_name) in DTYPES.items()}
_COPY_BYTES = 1 << 22


def flush(path: Path) -> None:
    """Wait until a file's bytes, or a folder's names, are on the disk: a crash leaves them."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class _Spooled(NamedTuple):
    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    nbytes: int

    def sort_key(self) -> tuple[int, str]:
        return -DTYPES[self.dtype][0], self.name


class ShardWriter:
    """Collects tensors for one safetensors file; `close` writes it.

    Parameters
    ----------
    path : Path
        The file to make; its spool lies beside it until then.

    Raises
    ------
    OSError
        From any method, if the disk is full or cannot be written.
    """

    def __init__(self, path: Path):
        self.path = path
        self._spool_path = path.with_name(f"{path.name}.spool")
        self._spool = self._spool_path.open("wb")
        self._tensors: list[_Spooled] = []
        self.nbytes = 0

    @property
    def sizes(self) -> dict[str, int]:
        """Bytes of each tensor so far, by name."""
        return {item.name: item.nbytes for item in self._tensors}

    def add(self, name: str, tensor: torch.Tensor) -> None:
        """Append one tensor to the spool."""
        import torch

        data = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        self._spool.write(data)
        dtype = _CODES[str(tensor.dtype).removeprefix("torch.")]
        item = _Spooled(name, dtype, tuple(tensor.shape), self.nbytes, data.nbytes)
        self._tensors.append(item)
        self.nbytes += data.nbytes

    def close(self) -> None:
        """Write header and data to the file, and remove the spool."""
        self._spool.close()
        ordered = sorted(self._tensors, key=_Spooled.sort_key)
        with self._spool_path.open("rb") as spool, self.path.open("wb") as file:
            file.write(_header(ordered))
            for item in ordered:
                spool.seek(item.start)
                left = item.nbytes
                while left:
                    chunk = spool.read(min(left, _COPY_BYTES))
                    if not chunk:
                        raise OSError(f"{self._spool_path.name} was truncated by somebody else")
                    left -= file.write(chunk)
        self._spool_path.unlink()

    def abandon(self) -> None:
        """Close the spool without writing the file."""
        self._spool.close()


def _header(ordered: list[_Spooled]) -> bytes:
    entries: dict[str, dict] = {"__metadata__": {"format": "pt"}}
    at = 0
    for item in ordered:
        entries[item.name] = {
            "dtype": item.dtype,
            "shape": list(item.shape),
            "data_offsets": [at, at + item.nbytes],
        }
        at += item.nbytes
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # data start aligned
    return len(text).to_bytes(8, "little") + text
