"""What a report depends on, as one digest: a run is up to date while it stays the same."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from awqbench.report.record import hide_home

# The name of the model that ships in data/; every other model is a folder or a hub id.
EMBEDDED_MODEL = "tiny"
_SOURCES = (".py", ".cu", ".cuh", ".cpp", ".h", ".j2", ".css")


def run_key(notebook: Mapping[str, Any], parameters: Mapping[str, Any]) -> str:
    """Digest a notebook's source, its effective parameters, its model and this package.

    Outputs, metadata and cell ids don't count; neither does where the result is written.

    Parameters
    ----------
    notebook : mapping
        As `awqbench.report.notebooks.read_notebook` gives it.
    parameters : mapping
        Effective values; `model` may be a folder.

    Returns
    -------
    str
        64 hexadecimal digits.
    """
    content = {
        "cells": [[cell["cell_type"], cell["source"]] for cell in notebook["cells"]],
        # As the record keeps them, so that a key can be computed from a record.
        "parameters": hide_home({k: v for k, v in parameters.items() if k != "out_dir"}),
        "model": model_fingerprint(parameters.get("model", "")),
        "package": package_digest(),
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def model_fingerprint(model: Any) -> list[list[Any]]:
    """Describe a model folder by its files' names, sizes and times; a hub id has none.

    Parameters
    ----------
    model : str
        A folder, a hub id, or the name of the embedded model.

    Returns
    -------
    list of [str, int, int]
        Path, size in bytes, modification time in ns, sorted by path.
    """
    if not isinstance(model, str) or not model:
        return []
    embedded = _package().parent / "data" / "tiny-qwen3"
    folder = embedded if model == EMBEDDED_MODEL else Path(model).expanduser()
    files = sorted(path for path in folder.rglob("*") if path.is_file()) if folder.is_dir() else []
    stats = [(path.relative_to(folder).as_posix(), path.stat()) for path in files]
    return [[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats]


@cache
def package_digest() -> str:
    """Digest this package's source files and kernels, once in a process.

    Returns
    -------
    str
        64 hexadecimal digits.
    """
    digest = hashlib.sha256()
    roots = (_package(), _package().parent / "kernels")
    files = [path for root in roots for path in root.rglob("*") if path.suffix in _SOURCES]
    for path in sorted(files):
        digest.update(path.relative_to(_package().parent).as_posix().encode() + b"\0")
        digest.update(path.read_bytes() + b"\0")
    return digest.hexdigest()


def _package() -> Path:
    import awqbench

    return Path(awqbench.__file__).resolve().parent
