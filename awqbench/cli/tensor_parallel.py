"""Commands that plan tensor parallelism, and pad a model for it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from awqbench.cli.app import FAILED, JsonOption, ModelArgument, app

EngineOption = Annotated[
    str, typer.Option(help="Rules of: vllm, vllm-marlin, awq, exllama, cpu; 'all' in plans.")
]


@app.command("tp", hidden=True)
@app.command("tensor-parallel")
def tensor_parallel(
    model: Annotated[
        str, typer.Argument(help="A model folder, a config.json, a hub id, or 'tiny'.")
    ],
    tp: Annotated[list[int] | None, typer.Option(help="Ranks; repeat. Default 1, 2, 4, 8.")] = None,
    group_size: Annotated[
        list[int] | None,
        typer.Option(help="Group size, -1 for whole rows; repeat. Default 128, 64, 32."),
    ] = None,
    engine: EngineOption = "vllm",
    as_json: JsonOption = False,
) -> None:
    """Tell which tensor parallel sizes fit at which group size; also called `tp`.

    Only the config and the headers are read. Exit status 1 if nothing that was asked fits.
    """
    from awqbench.inspect.parallel.plan import GROUP_SIZES, TP_SIZES, plan_tensor_parallel

    plan = plan_tensor_parallel(
        model, tp or TP_SIZES, group_size or GROUP_SIZES, None if engine == "all" else engine
    )
    if as_json:
        typer.echo(plan.to_json(orient="records", indent=1))
    else:
        _print_plan(plan)
    if not plan["fits"].any():
        raise typer.Exit(FAILED)


def _print_plan(plan) -> None:
    for name, rows in plan.groupby("engine", sort=False):
        grid = rows.pivot(index="tp_size", columns="group_size", values="fits")
        grid = grid[list(dict.fromkeys(rows["group_size"]))].replace({True: "fits", False: "no"})
        typer.echo(f"{name}: ranks down, group size across")
        typer.echo(grid.rename_axis(index=None, columns=None).to_string())
    for row in plan[~plan["fits"]].itertuples():
        typer.echo(f"\n{row.engine}, tp {row.tp_size}, group size {row.group_size}")
        more = f" (and {row.n_broken - 1} more)" if row.n_broken > 1 else ""
        typer.echo(f"  why: {row.layer}: {row.detail}{more}")
        typer.echo(f"  you would read: {row.error_text}")
        typer.echo(f"  fix: {row.fix}")


@app.command()
def pad(
    model: ModelArgument,
    out: Annotated[Path, typer.Argument(help="Folder to make, in full precision.")],
    tp: Annotated[int, typer.Option(help="Ranks that the quantized model shall split over.")],
    group_size: Annotated[int, typer.Option(help="Of the quantization to come.")] = 128,
    engine: EngineOption = "vllm",
    as_json: JsonOption = False,
) -> None:
    """Write a copy of a full-precision model whose MLPs split over so many ranks.

    It computes the same: this is checked for every MLP before the folder appears. Quantize
    the copy.
    """
    from awqbench.inspect.parallel.padding import pad_checkpoint

    record = pad_checkpoint(model, out, tp_size=tp, group_size=group_size, engine=engine)
    if as_json:
        typer.echo(json.dumps(record, indent=1))
        return
    for key, (now, new) in record["widths"].items():
        typer.echo(f"{key} {now} -> {new}")
    growth = record["bytes_after"] / record["bytes_before"] - 1
    typer.echo(
        f"{record['n_mlps']} MLPs: outputs differ by at most {record['max_difference']:.1e} "
        f"(largest output {record['max_output']:.3g}); {growth:.1%} more bytes"
    )
    typer.echo(f"wrote {out}; next: awqbench quantize {out} QUANTIZED --group-size {group_size}")
