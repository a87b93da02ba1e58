"""The header of a safetensors file, read and checked without reading a weight.

The header is what a stranger sends us: every field is checked against the file before
anything is allocated or mapped. Layout: 8 bytes little-endian length, that many bytes of
JSON, then the data that the JSON's offsets point into.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import NamedTuple

from awqbench.errors import FormatError

# safetensors' own limit; larger headers are refused by every reader.
MAX_HEADER_BYTES = 100_000_000
# Ours: a name stands in error texts, and one of megabytes or of terminal codes is an attack.
MAX_NAME_CHARACTERS = 1000

# Name in the header: (bytes of an element, name of the torch dtype).
DTYPES = {
    "BOOL": (1, "bool"),
    "U8": (1, "uint8"),
    "I8": (1, "int8"),
    "F8_E4M3": (1, "float8_e4m3fn"),
    "F8_E5M2": (1, "float8_e5m2"),
    "F8_E8M0": (1, "float8_e8m0fnu"),
    "I16": (2, "int16"),
    "U16": (2, "uint16"),
    "F16": (2, "float16"),
    "BF16": (2, "bfloat16"),
    "I32": (4, "int32"),
    "U32": (4, "uint32"),
    "F32": (4, "float32"),
    "I64": (8, "int64"),
    "U64": (8, "uint64"),
    "F64": (8, "float64"),
}


def shown(value: object) -> str:
    """Return a stranger's value for an error text: short, and printable on any terminal."""
    text = ascii(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


class TensorInfo(NamedTuple):
    """Where a tensor lies and what it is; `dtype` is torch's name, such as ``bfloat16``."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    file: Path
    start: int
    stop: int

    @property
    def nbytes(self) -> int:
        """Bytes of data."""
        return self.stop - self.start

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


def read_header(path: Path) -> dict[str, TensorInfo]:
    """Read the header of one safetensors file.

    Parameters
    ----------
    path : Path

    Returns
    -------
    dict of str to TensorInfo
        In the order of their data.

    Raises
    ------
    FormatError
        If the file is too short, the header is not what safetensors defines, or an
        offset points outside the file; names the file and the tensor.
    """
    if not path.is_file():  # a pipe would be waited for
        raise FormatError(f"{path.name}: cannot be read, for it is missing or no file.")
    try:
        file_bytes = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(8)
            length = int.from_bytes(head, "little")
            if len(head) < 8 or length > min(MAX_HEADER_BYTES, file_bytes - 8):
                raise FormatError(
                    f"{path.name}: not a safetensors file, or truncated: header says {length:,} "
                    f"bytes, the file has {file_bytes:,}. Copy it again from its source."
                )
            raw = file.read(length)
    except OSError as error:
        raise FormatError(f"{path.name}: cannot be read ({error.strerror}).") from error
    try:
        header = json.loads(raw.decode("utf-8"), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{path.name}: the header is not JSON ({error}).") from error
    if not isinstance(header, dict):
        raise FormatError(f"{path.name}: the header is not a JSON object.")
    data_bytes = file_bytes - 8 - length
    infos = [
        _tensor_info(path, name, entry, 8 + length, data_bytes)
        for name, entry in header.items()
        if name != "__metadata__"
    ]
    infos.sort(key=lambda info: (info.start, info.stop))
    for before, after in zip(infos, infos[1:], strict=False):
        if after.start < before.stop:
            raise FormatError(
                f"{path.name}: tensors {before.name} and {after.name} overlap in the file."
            )
    return {info.name: info for info in infos}


def _unique(pairs: list[tuple[str, object]]) -> dict:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name stands twice in an object")
    return found


def _tensor_info(path: Path, name: str, entry, data_start: int, data_bytes: int) -> TensorInfo:
    def refuse(reason: str) -> FormatError:
        return FormatError(f"{path.name}: tensor {name}: {reason}.")

    def are_counts(values) -> bool:
        return isinstance(values, list) and all(
            type(value) is int and 0 <= value < 2**62 for value in values
        )

    if not name.isprintable() or len(name) > MAX_NAME_CHARACTERS:
        raise FormatError(f"{path.name}: {shown(name)} cannot be the name of a tensor.")
    if not isinstance(entry, dict):
        raise refuse("its header entry is not an object")
    dtype, shape, offsets = (entry.get(key) for key in ("dtype", "shape", "data_offsets"))
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise refuse(f"dtype {shown(dtype)} is not known")
    if not are_counts(shape) or len(shape) > 32 or math.prod(n or 1 for n in shape) >= 2**62:
        raise refuse(f"shape {shown(shape)} is not a list of sizes")
    if not are_counts(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise refuse(f"data_offsets {shown(offsets)} are not [start, stop]")
    itemsize, torch_name = DTYPES[dtype]
    needed = math.prod(shape) * itemsize
    if needed != offsets[1] - offsets[0]:
        raise refuse(
            f"shape {shape} of {dtype} needs {needed:,} bytes, data_offsets give "
            f"{offsets[1] - offsets[0]:,}"
        )
    if offsets[1] > data_bytes:
        raise refuse(
            f"its data ends at byte {offsets[1]:,} of {data_bytes:,}: the file is truncated"
        )
    start, stop = data_start + offsets[0], data_start + offsets[1]
    return TensorInfo(name, tuple(shape), torch_name, path, start, stop)
