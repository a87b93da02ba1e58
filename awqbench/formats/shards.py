"""Where a folder's tensors are: one safetensors file, or shards and the index that names them."""

from __future__ import annotations

import os
from pathlib import Path

from awqbench.errors import FormatError
from awqbench.formats.config.fields import read_json
from awqbench.formats.headers import TensorInfo, read_header, shown

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"


def read_tensors(path: Path) -> dict[str, TensorInfo]:
    """Read the headers of a folder's weights, in one file or in shards with an index.

    Raises
    ------
    FormatError
        If a file is missing or damaged, the index points elsewhere, or they are pickles.
    """
    if (path / INDEX_FILE).exists():
        return _read_indexed(path)
    if (path / SINGLE_FILE).exists():
        return read_header(path / SINGLE_FILE)
    files = sorted(path.glob("*.safetensors"))
    if len(files) == 1:
        return read_header(files[0])
    pickles = sorted(p.name for p in path.iterdir() if p.suffix in (".bin", ".pt", ".pth"))
    if pickles:
        raise FormatError(
            f"{path.name} holds its weights as pickles ({pickles[0]}), which can run code when "
            "read. Convert it once: AutoModelForCausalLM.from_pretrained(...)"
            ".save_pretrained(..., safe_serialization=True)."
        )
    raise FormatError(f"{path.name} holds no {SINGLE_FILE} and no {INDEX_FILE}.")


def _read_indexed(path: Path) -> dict[str, TensorInfo]:
    weight_map = read_json(path / INDEX_FILE).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(v, str) for v in weight_map.values()):
        raise FormatError(f"{INDEX_FILE} has no weight_map of tensor names to file names.")
    headers = {}
    for file in sorted(set(weight_map.values())):
        if Path(file).name != file or file in ("", ".", ".."):
            raise FormatError(f"{INDEX_FILE} points outside the folder: {shown(file)}.")
        if not _is_file(path / file):
            raise FormatError(
                f"{INDEX_FILE} names {shown(file)}, which is missing; the download is not complete."
            )
        headers[file] = read_header(path / file)
    tensors = {}
    for name, file in weight_map.items():
        if name not in headers[file]:
            raise FormatError(
                f"{INDEX_FILE} says {shown(name)} is in {shown(file)}, which does not hold it."
            )
        tensors[name] = headers[file][name]
    return tensors


def _is_file(path: Path) -> bool:
    """Tell whether there is a file, whatever its name: Path.is_file raises for some."""
    try:
        return os.path.isfile(path)
    except ValueError:  # a zero byte, a lone surrogate
        return False
