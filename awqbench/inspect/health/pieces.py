"""A tensor in pieces of two megabytes: from memory, or from its file without holding it."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from awqbench.errors import FormatError
from awqbench.inspect.health.figures import ROWS_PER_SAMPLE, Figures, Scratch, Tally
from awqbench.inspect.health.native_tally import NativeTally, make_tally
from awqbench.inspect.health.patterns import has_patterns, integer_of, patterns_of

if TYPE_CHECKING:
    import torch

    from awqbench.formats.headers import TensorInfo

# A piece: smaller ones stay in the second-level cache and cost more calls than that gains.
BYTES_AT_ONCE = 1 << 21
# What one thread looks through at a time. Small, so that the threads read near each other: a disk
# gave 1.8 GB/s so and 1.5 at 32 MB; asking the system to read ahead made it slower, 1.2.
WINDOW_BYTES = 1 << 23
_BYTE = np.dtype(np.uint8)


class Piece(NamedTuple):
    """Whole rows of a tensor, or a part of one row: (rows, width) elements from `start` on."""

    start: int
    rows: int
    width: int

    @property
    def stop(self) -> int:
        """First element after it."""
        return self.start + self.rows * self.width


def pieces_of(shape: tuple[int, ...], *, itemsize: int, group_size: int | None) -> Iterator[Piece]:
    """Cut a tensor into pieces that no group crosses.

    Parameters
    ----------
    shape : tuple of int
    itemsize : int
    group_size : int, optional
        Of a linear's weight; None for tensors without groups, whose rows do not matter.

    Examples
    --------
    >>> list(pieces_of((3, 2**21), itemsize=2, group_size=128))[:2]
    [Piece(start=0, rows=1, width=1048576), Piece(start=1048576, rows=1, width=1048576)]
    """
    at_once = max(BYTES_AT_ONCE // itemsize, 1)
    size = int(np.prod(shape, dtype=np.int64))
    if group_size is None:
        for start in range(0, size, at_once):
            yield Piece(start, 1, min(at_once, size - start))
        return
    n_rows, width = shape
    if width <= at_once:
        # Whole samples of rows, so that where the cuts are makes no difference to them.
        rows = max(at_once // max(width, 1) // ROWS_PER_SAMPLE, 1) * ROWS_PER_SAMPLE
        for first in range(0, n_rows, rows):
            yield Piece(first * width, min(rows, n_rows - first), width)
        return
    step = max(at_once // group_size, 1) * group_size
    for row in range(n_rows):
        for first in range(0, width, step):
            yield Piece(row * width + first, 1, min(step, width - first))


def windows_of(info: TensorInfo, *, group_size: int | None) -> list[list[Piece]]:
    """Gather a stored tensor's pieces into windows of some megabytes."""
    itemsize = info.nbytes // max(info.size, 1)
    windows: list[list[Piece]] = []
    for piece in pieces_of(info.shape, itemsize=max(itemsize, 1), group_size=group_size):
        if not windows or (piece.stop - windows[-1][0].start) * itemsize > WINDOW_BYTES:
            windows.append([])
        windows[-1].append(piece)
    return windows


def look_at_window(
    info: TensorInfo,
    window: list[Piece],
    *,
    cast_dtype: str,
    group_size: int | None,
    scratch: Scratch | None = None,
) -> Figures:
    """Read neighbouring pieces of a stored tensor and count.

    Raises
    ------
    FormatError
        If the file cannot be read, or is shorter than its header says.
    """
    scratch = scratch or Scratch()
    itemsize = info.nbytes // info.size
    tally = make_tally(
        patterns_of(seen_as(info.dtype), cast_dtype), group_size=group_size, scratch=scratch
    )
    try:
        with info.file.open("rb", buffering=0) as file:
            file.seek(info.start + window[0].start * itemsize)
            for piece in window:
                data = scratch.array("read", (piece.rows * piece.width * itemsize,), _BYTE)
                _fill(data, file)
                add_piece(tally, data, piece._replace(start=0), info.dtype)
    except OSError as error:
        raise FormatError(f"{info.file.name}: {info.name} cannot be read ({error}).") from error
    return tally.figures()


def _fill(data: np.ndarray, file: io.RawIOBase) -> None:
    view = memoryview(data)
    while len(view):
        got = file.readinto(view)
        if not got:
            raise OSError("the file has become shorter since it was opened")
        view = view[got:]


def add_piece(tally: Tally | NativeTally, data: np.ndarray, piece: Piece, dtype: str) -> None:
    """Count in a piece of a tensor whose bytes lie in memory.

    Parameters
    ----------
    tally : Tally
    data : ndarray of uint8
        The bytes that the piece points into.
    piece : Piece
    dtype : str
        What the bytes are.
    """
    import torch

    itemsize = getattr(torch, dtype).itemsize
    part = data[piece.start * itemsize : piece.stop * itemsize]
    if has_patterns(dtype):
        stored = part.view(integer_of(dtype))
    else:  # float8
        narrow = torch.from_numpy(part.copy()).view(getattr(torch, dtype))
        stored = narrow.float().view(torch.int32).numpy()
    tally.add(stored.reshape(piece.rows, piece.width))


def seen_as(dtype: str) -> str:
    """Return the dtype whose patterns are compared: the stored one, or float32 for float8."""
    return dtype if has_patterns(dtype) else "float32"


def bytes_of(tensor: torch.Tensor) -> np.ndarray:
    """Return a tensor's bytes, without copying one that is contiguous on the CPU."""
    import torch

    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
