"""One folder in several layouts, beside each other: bytes, and whether numbers stay."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from awqbench.errors import AlignmentError, FormatError
from awqbench.formats.checkpoint import Checkpoint, open_checkpoint
from awqbench.formats.convert import convert
from awqbench.inspect.folders.diff import diff
from awqbench.inspect.folders.xray import xray

if TYPE_CHECKING:
    import pandas as pd


class Rewritten(NamedTuple):
    """Folders by their layouts, and why a layout cannot hold the numbers."""

    folders: dict[str, Path]
    refused: dict[str, str]


def rewrite(source: Checkpoint | str | Path, out: str | Path, layouts: Iterable[str]) -> Rewritten:
    """Write a quantized folder in each of several layouts; those that cannot hold it are named.

    Parameters
    ----------
    source : Checkpoint or str or Path
    out : str or Path
        Folder to make a folder in for each layout. The source's own layout is not written
        again.
    layouts : iterable of str
        As `convert` takes them.

    Returns
    -------
    Rewritten
        The source comes first.

    Raises
    ------
    FormatError
        If the source is not quantized or cannot be read.
    ParameterError
        If there is no such layout.
    """
    source = open_checkpoint(source)
    if source.quantization is None:
        raise FormatError(f"{source.path.name} is not quantized; quantize it first.")
    source.quantization.require_readable()
    folders, refused = {source.quantization.layout: source.path}, {}
    for layout in layouts:
        if layout in folders:
            continue
        try:
            folders[layout] = convert(source, Path(out) / layout, layout).out
        except (FormatError, AlignmentError) as error:
            refused[layout] = str(error)
    return Rewritten(folders, refused)


def compare_layouts(folders: Mapping[str, Path]) -> pd.DataFrame:
    """Compare folders of one model with the first, number by number and in size.

    Parameters
    ----------
    folders : mapping of str to Path
        By the name that the table gives them.

    Returns
    -------
    DataFrame
        `layout`, `weight_bytes`, `bits_per_weight` of the packed linears, `more_bytes`
        (share above the smallest folder), `same_codes`, `same_scales` and `same_zeros`
        (linears whose numbers are those of the first folder) and `linears`.
    """
    import pandas as pd

    first, rows = next(iter(folders.values())), []
    for name, folder in folders.items():
        facts, found = xray(folder, scan=False).summary, diff(first, folder)
        same = {
            column: int(found.linears[column].sum())
            for column in ("same_codes", "same_scales", "same_zeros")
        }
        sizes = {"weight_bytes": facts.total_bytes, "bits_per_weight": facts.bits_per_weight}
        rows.append({"layout": name} | sizes | same | {"linears": facts.linears})
    table = pd.DataFrame(rows)
    table.insert(3, "more_bytes", table["weight_bytes"] / table["weight_bytes"].min() - 1)
    return table
