"""The command that writes a quantized folder in another layout."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from awqbench.cli.app import JsonOption, app


@app.command()
def convert(
    source: Annotated[str, typer.Argument(help="A quantized folder, or a hub id.")],
    out: Annotated[Path, typer.Argument(help="Folder to make.")],
    layout: Annotated[
        str,
        typer.Option(
            help="awq-gemm, awq-gemv, gptq, gptq-v2, compressed-tensors or chatglm.",
        ),
    ],
    as_json: JsonOption = False,
) -> None:
    """Write a quantized folder in another layout, bit for bit, or say why that cannot be."""
    import awqbench as ab

    done = ab.convert(source, out, layout)
    if as_json:
        typer.echo(json.dumps(done._asdict(), default=str, indent=1))
        return
    typer.echo(
        f"{done.linears} linears from {done.source_layout} to {done.layout}, the same numbers; "
        f"{done.source_bytes / 1e6:,.1f} MB became {done.out_bytes / 1e6:,.1f} MB"
    )
    typer.echo(f"wrote {done.out}")
