"""The command that places a model on devices."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from awqbench.cli.app import FAILED, JsonOption, app


@app.command()
def plan(
    model: Annotated[
        str, typer.Argument(help="A model folder, a config.json, a hub id, or 'tiny'.")
    ],
    budget: Annotated[
        list[str] | None,
        typer.Option(
            metavar="DEVICE=SIZE",
            help="Such as cuda:0=40GiB; repeat. Default: the free memory of this machine.",
        ),
    ] = None,
    context: Annotated[int, typer.Option(help="Tokens of a sequence; 0: no KV cache.")] = 4096,
    batch: Annotated[int, typer.Option(help="Sequences at a time.")] = 1,
    strategy: Annotated[str, typer.Option(help="even, or in_order.")] = "even",
    reserve: Annotated[
        str, typer.Option(help="Kept free on each accelerator for its context and activations.")
    ] = "1GiB",
    bits: Annotated[
        int | None, typer.Option(help="Plan a full-precision model as if quantized.")
    ] = None,
    group_size: Annotated[int, typer.Option(help="With --bits; -1 for whole rows.")] = 128,
    layout: Annotated[str, typer.Option(help="With --bits: awq-gemm, gptq, ...")] = "awq-gemm",
    symmetric: Annotated[bool, typer.Option("--symmetric", help="With --bits.")] = False,
    device_map: Annotated[
        Path | None, typer.Option(help="Write the device map here, as JSON.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Tell where each module goes, by exact bytes with the KV cache, and whether it fits.

    Headers or the config are read, no weights. Exit status 1 if it does not fit.
    """
    from awqbench.inspect.placement import plan_placement
    from awqbench.inspect.placement.budgets import local_budgets
    from awqbench.inspect.placement.module_bytes import as_model, predicted_model
    from awqbench.quantize.settings import Settings

    budgets = _budgets(budget) if budget else local_budgets()
    sizes = as_model(model)
    if bits is not None:
        settings = Settings(
            bits=bits, group_size=group_size, layout=layout, zero_point=not symmetric
        )
        sizes = predicted_model(model, settings)
    found = plan_placement(
        sizes, budgets, context=context, batch=batch, strategy=strategy, reserve=reserve
    )
    if device_map is not None:
        _write(device_map, json.dumps(found.device_map, indent=1) + "\n")
    if as_json:
        typer.echo(json.dumps(found.as_dict(), indent=1))
    else:
        typer.echo(str(found))
        _print_ways(sizes, budgets, context, batch, reserve)
    if not found.fits:
        raise typer.Exit(FAILED)


def _budgets(items: list[str]) -> dict[str | int, str]:
    """Read ``cuda:0=40GiB``; a number alone is a device's number."""
    from awqbench.errors import ParameterError

    budgets: dict[str | int, str] = {}
    for item in items:
        device, equals, size = item.partition("=")
        if not equals or not device or not size:
            raise ParameterError(f"--budget {item!r}: write DEVICE=SIZE, such as cuda:0=40GiB.")
        key = int(device) if device.isdecimal() else device
        if key in budgets:
            raise ParameterError(f"--budget names {device} twice.")
        budgets[key] = size
    return budgets


def _print_ways(sizes, budgets, context: int, batch: int, reserve: str) -> None:
    """Print model parallel against tensor parallel, where there are several accelerators."""
    from awqbench.inspect.placement.budgets import OFFLOAD, unit_for
    from awqbench.inspect.placement.parallel import parallel_table

    if context == 0 or len(budgets) < 2 or any(device in OFFLOAD for device in budgets):
        return
    table = parallel_table(sizes, budgets, contexts=(context,), batch=batch, reserve=reserve)
    name, unit = unit_for(table["weight_bytes"].max())
    shown = table[["way"]].copy()
    for column in ("weight", "kv", "free"):
        shown[f"{column} {name}"] = (table[f"{column}_bytes"] / unit).round(2)
    shown["fits"] = [row.fits or f"no: {row.why_not}" for row in table.itertuples()]
    typer.echo(f"\nthe fullest device, by way:\n{shown.to_string(index=False)}")


def _write(file: Path, text: str) -> None:
    from awqbench.errors import OutputError

    try:
        file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise OutputError(f"cannot write {file}: {error.strerror}.") from error
