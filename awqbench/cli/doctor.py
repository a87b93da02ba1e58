"""The command that says beforehand whether a model can be quantized here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from awqbench.cli.app import FAILED, JsonOption, app


@app.command()
def doctor(
    model: Annotated[str, typer.Argument(help="A model folder, a hub id, 'tiny', or a GGUF file.")],
    scan: Annotated[
        bool, typer.Option("--scan/--no-scan", help="Read the weights, or headers only.")
    ] = True,
    timing: Annotated[
        bool, typer.Option("--time", help="Time one block and estimate the whole run.")
    ] = False,
    tp: Annotated[str, typer.Option(help="Tensor parallel sizes.")] = "1,2,4,8",
    group_size: Annotated[
        str, typer.Option(help="Group sizes, the wanted one first.")
    ] = "128,64,32",
    stats: Annotated[
        Path | None, typer.Option(help="Statistics by `awqbench calibrate`, for activations.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Say whether a model can be quantized here: verdict first, then reasons, worst first.

    The exit status is 1 if the answer is no.
    """
    from awqbench.inspect.doctor import doctor as examine

    sizes = {"tp_sizes": _numbers(tp, "--tp"), "group_sizes": _numbers(group_size, "--group-size")}
    report = examine(model, **sizes, scan=scan, timing=timing, stats=stats)
    typer.echo(json.dumps(report.to_dict(), indent=1) if as_json else str(report))
    if report.is_no:
        raise typer.Exit(FAILED)


def _numbers(text: str, option: str) -> tuple[int, ...]:
    """Read ``1,2,4``."""
    from awqbench.errors import ParameterError

    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdigit() for part in parts):
        raise ParameterError(f"{option} {text}: give whole numbers with commas, such as 1,2,4.")
    return tuple(int(part) for part in parts)
