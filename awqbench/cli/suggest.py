"""The command that suggests bits for every linear under a size limit."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Annotated

import typer

from awqbench.cli.app import JsonOption, ModelArgument, app


@app.command()
def suggest(
    model: ModelArgument,
    stats: Annotated[Path, typer.Option(help="Statistics by `awqbench calibrate`.")],
    target_size: Annotated[
        str | None, typer.Option(help="The most that all tensors may take, such as 3.5GiB.")
    ] = None,
    bits_per_weight: Annotated[
        float | None,
        typer.Option(help="In its place: bits for a quantized weight, scales counted."),
    ] = None,
    choice: Annotated[
        list[str] | None,
        typer.Option(
            metavar="BITS:GROUP_SIZE",
            help="To choose from, such as 3:64, or skip; repeat. Default: 3 to 8 bits.",
        ),
    ] = None,
    layout: Annotated[
        str, typer.Option(help="compressed-tensors, gptq-v2 or gptq.")
    ] = "compressed-tensors",
    as_json: JsonOption = False,
) -> None:
    """Suggest bits and group size of every linear, from statistics alone.

    Linears that engines merge get the same. Prints the command that quantizes so.
    """
    from awqbench.inspect.bits.suggest import CHOICES, suggest_bits

    choices = [_choice(text) for text in choice] if choice else CHOICES
    found = suggest_bits(
        model,
        stats,
        target_size,
        bits_per_weight=bits_per_weight,
        choices=choices,
        layout=layout,
    )
    if as_json:
        typer.echo(json.dumps(found.as_dict(), indent=1))
        return
    typer.echo(f"{found}\n")
    words = ["awqbench", "quantize", model, "OUT", "--stats", str(stats), "--layout", layout]
    words += [word for rule in found.rules for word in ("--rule", str(rule))]
    typer.echo(shlex.join(words))


def _choice(text: str) -> tuple[int, int] | str:
    """Read ``3:64``."""
    from awqbench.errors import ParameterError

    bits, _, group_size = text.partition(":")
    if text == "skip":
        return text
    try:
        return int(bits), int(group_size)
    except ValueError as error:
        raise ParameterError(f"--choice {text!r}: write BITS:GROUP_SIZE, such as 3:64.") from error
