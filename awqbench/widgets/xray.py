"""Checkpoint X-ray: where a folder's bytes are, and how its packed linears use their levels."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from awqbench.formats.checkpoint import Checkpoint, open_checkpoint
from awqbench.inspect.folders.xray import XRay
from awqbench.inspect.folders.xray import xray as look_through
from awqbench.plots.xray import bytes_by_kind, levels_used, zero_point_histogram
from awqbench.widgets import controls
from awqbench.widgets.controls import Explorer
from awqbench.widgets.drawing import View

BYTES, ZEROS, LEVELS = "bytes", "zero points", "levels used"


def explore(
    folders: Checkpoint | str | Path | Iterable[Checkpoint | str | Path],
    *,
    view: str = LEVELS,
    live: bool | None = None,
) -> Explorer:
    """Look through model folders: bytes, zero points, levels, and what is wrong.

    Parameters
    ----------
    folders : Checkpoint, str or Path, or several of them
        Quantized or not; each is read once, when it is first chosen.
    view : {"bytes", "zero points", "levels used"}
        To begin with; a folder without packed linears shows its bytes.
    live : bool, optional
        As in `Explorer`.

    Returns
    -------
    Explorer

    Raises
    ------
    FormatError
        If the first folder cannot be read.
    """
    if isinstance(folders, Checkpoint | str | Path):
        folders = [folders]
    opened: dict[str, Checkpoint] = {}
    for ckpt in map(open_checkpoint, folders):
        name = ckpt.path.name
        opened[f"{ckpt.path.parent.name}/{name}" if name in opened else name] = ckpt
    found: dict[str, XRay] = {}
    made = {
        "folder": controls.listed("folder", list(opened)),
        "view": controls.choice("view", [BYTES, ZEROS, LEVELS], view),
    }

    def look(folder: str, view: str) -> View:
        if folder not in found:
            found[folder] = look_through(opened[folder])
        seen = found[folder]
        axes = _draw(seen, view)
        tables = {"linears": seen.linears, "bytes": seen.bytes_by_kind, "zeros": seen.zero_points}
        text = f"{axes.get_title(loc='left')}. {'; '.join(map(str, seen.verdict))}"
        return View(axes, text, tables, seen._repr_html_())

    return Explorer(made, look, live=live)


def _draw(seen: XRay, view: str):
    conditions = f"{seen.summary.name}: {seen.summary.what}"
    if view == ZEROS and len(seen.zero_points):
        return zero_point_histogram(seen.zero_points, conditions=conditions)
    if view == LEVELS and seen.linears["levels_used"].notna().any():
        return levels_used(seen.linears, conditions=conditions)
    return bytes_by_kind(seen.bytes_by_kind, conditions=conditions)
