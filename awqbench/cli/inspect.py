"""The command that looks through a folder, or compares two."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from awqbench.cli.app import FAILED, JsonOption, app


@app.command()
def inspect(
    folder: Annotated[str, typer.Argument(help="A model folder, a GGUF file, or a hub id.")],
    other: Annotated[str | None, typer.Argument(help="A second folder to compare with.")] = None,
    scan: Annotated[
        bool, typer.Option("--scan/--no-scan", help="Read the packed numbers, or headers only.")
    ] = True,
    as_json: JsonOption = False,
) -> None:
    """X-ray a folder: layout, bytes, zero points, dead groups, bad scales. Or compare two.

    The exit status is 1 if a finding is bad, such as scales that are NaN;
    with a second folder, if the two do not hold the same numbers.
    """
    from awqbench.errors import ParameterError
    from awqbench.inspect.folders.diff import diff
    from awqbench.inspect.folders.xray import xray

    if other is not None and not scan:
        raise ParameterError("--no-scan reads no numbers, and comparing OTHER needs them.")
    found = xray(folder, scan=scan) if other is None else diff(folder, other)
    typer.echo(json.dumps(found.as_dict(), indent=1) if as_json else str(found))
    if found.is_bad if other is None else not found.is_same:
        raise typer.Exit(FAILED)
