"""Where the bench commands put what they measured."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


def check_outputs(out: Path | None, figure: Path | None) -> None:
    """Check that both can be written, before anything is measured."""
    from awqbench.bench.records import require_appendable
    from awqbench.errors import OutputError

    if out is not None:
        require_appendable(out)
    if figure is not None and not figure.absolute().parent.is_dir():
        raise OutputError(f"cannot draw {figure}: there is no folder {figure.parent}.")


def save_figure(file: Path, drawn: Figure) -> None:
    """Write a figure, and say so."""
    from awqbench.errors import OutputError

    try:
        drawn.savefig(file)
    except (OSError, ValueError) as error:  # no such folder; no such format
        raise OutputError(f"cannot draw {file}: {error}.") from error
    typer.echo(f"drew {file}", err=True)


def print_absent(table: pd.DataFrame) -> None:
    """Print what was not timed, and why."""
    absent = table.attrs.get("absent", {})
    if absent:
        typer.echo("\nnot timed:")
    for name, reason in absent.items():
        typer.echo(f"  {name}: {reason}")
