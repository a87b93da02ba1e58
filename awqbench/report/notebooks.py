"""Find notebook files and read what is in them, without executing anything."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from awqbench.errors import NotebookError


def notebooks_dir() -> Path:
    """Give the folder of the notebooks that belong to this package.

    They lie beside the package in a checkout, so an editable install finds them; a wheel
    does not hold them.

    Returns
    -------
    Path

    Raises
    ------
    NotebookError
        If there is no such folder; says how to get one.
    """
    import awqbench

    folder = Path(awqbench.__file__).resolve().parent.parent / "notebooks"
    if not folder.is_dir():
        raise NotebookError(
            "the notebooks are not installed: they lie in the source checkout, beside the "
            "package. Install from a checkout with `pip install -e .`, or give the path of "
            "a notebook file."
        )
    return folder


def list_notebooks(folder: Path | None = None) -> list[Path]:
    """List the notebook files of a folder by name.

    Parameters
    ----------
    folder : Path, optional
        By default the package's own notebooks.

    Returns
    -------
    list of Path
    """
    return sorted((folder or notebooks_dir()).glob("*.ipynb"))


def find_notebooks(names: Sequence[str | Path] = ()) -> list[Path]:
    """Turn notebook names or paths into absolute paths; no names means all of them.

    Parameters
    ----------
    names : sequence of str or Path
        A path to a file, or a name in `notebooks_dir` such as ``"02_group_size"``.

    Returns
    -------
    list of Path
        In the order given, each once.

    Raises
    ------
    NotebookError
        If a name is neither, or two notebooks share a name (their reports would too).
    """
    paths = list(dict.fromkeys(_find(str(name)) for name in names)) or list_notebooks()
    if not paths:
        raise NotebookError(f"no notebook (*.ipynb) in {notebooks_dir()}; give a path.")
    stems = [path.stem for path in paths]
    twice = sorted({stem for stem in stems if stems.count(stem) > 1})
    if twice:
        raise NotebookError(f"two notebooks are called {twice[0]!r}; run them into two folders.")
    return paths


def _find(name: str) -> Path:
    path = Path(name).expanduser()
    if path.suffix == ".ipynb" and path.is_file():
        return path.resolve()
    if path.name != name:
        raise NotebookError(f"no notebook file {name!r}; paths end in .ipynb.")
    stem = path.stem if path.suffix == ".ipynb" else name
    known = {found.stem: found for found in list_notebooks()}
    if stem in known:
        return known[stem].resolve()
    near = difflib.get_close_matches(stem, known, n=1, cutoff=0.4)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise NotebookError(f"no notebook {name!r}; {hint}known: {', '.join(known) or 'none'}.")


def read_notebook(path: Path) -> dict[str, Any]:
    """Read a notebook file as plain JSON, with each cell's source joined to one string.

    Parameters
    ----------
    path : Path

    Returns
    -------
    dict

    Raises
    ------
    NotebookError
        If the file is not a notebook of format 4.
    """
    try:
        notebook = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise NotebookError(f"{path.name} cannot be read as a notebook: {error}.") from error
    if not isinstance(notebook, dict) or notebook.get("nbformat") != 4:
        raise NotebookError(f"{path.name} is not a notebook of format 4; save it with Jupyter.")
    for cell in notebook["cells"]:
        cell["source"] = "".join(cell["source"])
    return notebook


def tags(cell: dict[str, Any]) -> list[str]:
    """Give the tags of a cell; a cell without any has an empty list."""
    return list(cell.get("metadata", {}).get("tags", []))


def title_and_question(notebook: dict[str, Any]) -> tuple[str, str]:
    """Read the first heading of a notebook, and the first sentence of text under it.

    Parameters
    ----------
    notebook : dict
        As `read_notebook` gives it.

    Returns
    -------
    tuple of (str, str)
        Either is empty where there is none.
    """
    for cell in notebook["cells"]:
        if cell["cell_type"] == "markdown" and cell["source"].lstrip().startswith("# "):
            heading, _, rest = cell["source"].lstrip().partition("\n")
            paragraph = " ".join(rest.strip().split("\n\n")[0].split())
            question = re.split(r"(?<=[.?!])\s", paragraph)[0]
            return heading[2:].strip(), re.sub(r"[*_`]", "", question)
    return "", ""
