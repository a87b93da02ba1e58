"""Committed notebooks: run and strip them to the same bytes each time.

Outputs stay only in cells tagged `nbval-check-output`, where nbval compares them. A
notebook stripped of all outputs would pass nbval while nothing is compared.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from awqbench.errors import NotebookError
from awqbench.report.notebooks import read_notebook, tags
from awqbench.report.record import write_atomic

CHECKED = "nbval-check-output"
_KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}
REFRESH_TIMEOUT_S = 600


def refresh_notebook(path: Path) -> bool:
    """Execute a notebook at its defaults and write it back in its canonical form.

    Parameters
    ----------
    path : Path

    Returns
    -------
    bool
        Whether the file's bytes changed.

    Raises
    ------
    NotebookError
        If a cell fails; the file is left as it was.
    """
    import nbformat
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

    from awqbench.report.execute import kernel_settings

    before = path.read_bytes()
    notebook = nbformat.read(path, as_version=4)
    with kernel_settings() as settings:
        client = NotebookClient(
            notebook,
            kernel_name="python3",
            timeout=REFRESH_TIMEOUT_S,
            resources={"metadata": {"path": str(path.parent)}},
            **settings,
        )
        try:
            client.execute()
        except (CellExecutionError, CellTimeoutError, DeadKernelError) as error:
            raise NotebookError(f"{path.name} does not run: {error}") from error
    text = canonical_text(notebook)
    write_atomic(path, text)
    return text.encode() != before


def canonical_text(notebook: Mapping[str, Any]) -> str:
    """Write a notebook in the one form that is committed; the same input, the same bytes.

    Fixed cell ids and execution counts, no metadata but tags and alternative texts, no
    stderr, outputs of checked cells only.

    Parameters
    ----------
    notebook : mapping
        Format 4, executed or not.

    Returns
    -------
    str
        JSON with a newline at its end.

    Raises
    ------
    NotebookError
        If a cell is neither code, markdown nor raw.
    """
    cells, count = [], 0
    for index, cell in enumerate(notebook["cells"]):
        count += cell["cell_type"] == "code"
        cells.append(_canonical_cell(cell, index, count))
    content = {
        "cells": cells,
        "metadata": {"kernelspec": _KERNEL, "language_info": {"name": "python"}},
        "nbformat": 4,
        "nbformat_minor": 5,
    }
    return json.dumps(content, indent=1, ensure_ascii=False, sort_keys=True) + "\n"


def _canonical_cell(cell: Mapping[str, Any], index: int, count: int) -> dict[str, Any]:
    kind, source = cell["cell_type"], "".join(cell["source"])
    if kind not in ("code", "markdown", "raw"):
        raise NotebookError(f"cell {index} is of type {kind!r}; use code, markdown or raw.")
    names = tags(cell)
    canonical = {
        "cell_type": kind,
        "id": f"cell-{index:02d}",
        "metadata": {"tags": names} if names else {},
        "source": _lines(source),
    }
    if kind != "code":
        return canonical
    checked = CHECKED in names
    outputs = _canonical_outputs(cell.get("outputs", []), count) if checked else []
    # nbval takes a cell without a count for one that was never run, and skips it.
    return canonical | {"execution_count": count if outputs else None, "outputs": outputs}


def _canonical_outputs(outputs: list[Mapping[str, Any]], count: int) -> list[dict[str, Any]]:
    kept: list[dict[str, Any]] = []
    for output in outputs:
        if output["output_type"] == "stream":
            text = "".join(output["text"])
            if output["name"] == "stderr":
                continue
            if kept and kept[-1]["output_type"] == "stream":
                # How prints are split into messages depends on timing.
                kept[-1]["text"] = _lines("".join(kept[-1]["text"]) + text)
                continue
            kept.append({"name": "stdout", "output_type": "stream", "text": _lines(text)})
        elif output["output_type"] in ("display_data", "execute_result"):
            kept.append(_canonical_display(output, count))
    return kept


def _canonical_display(output: Mapping[str, Any], count: int) -> dict[str, Any]:
    """Keep text and tables; pixels are large, differ by machine, and nbval skips them."""
    data = {m: d for m, d in output["data"].items() if not m.startswith("image/")}
    shown = {mime: _lines("".join(d)) if not isinstance(d, dict) else d for mime, d in data.items()}
    kept = {"data": shown, "metadata": {}, "output_type": output["output_type"]}
    if output["output_type"] == "execute_result":
        kept["execution_count"] = count
    return kept


def _lines(text: str) -> list[str]:
    return text.splitlines(keepends=True)


def is_canonical(path: Path) -> bool:
    """Tell whether a file has the form that `refresh_notebook` writes."""
    return canonical_text(read_notebook(path)).encode() == path.read_bytes()
