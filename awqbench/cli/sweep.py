"""The command that runs a notebook over a grid of parameters."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from awqbench.cli.app import FAILED, INTERRUPTED, JsonOption, app

WorkersOption = Annotated[
    int | None,
    typer.Option(min=1, help="Processes that work at the same time; needs the extra 'cluster'."),
]
SchedulerOption = Annotated[
    str | None,
    typer.Option(
        metavar="ADDRESS", help="A running Dask scheduler, whose workers see the same folders."
    ),
]


@app.command()
def sweep(
    notebook: Annotated[str, typer.Argument(help="A name or an .ipynb file.")],
    parameters: Annotated[
        list[str] | None,
        typer.Option(
            "--parameter",
            "-p",
            metavar="NAME=A,B,...",
            help="Values of a parameter; repeat. A list is written in brackets.",
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for the runs.")] = Path("sweeps"),
    workers: WorkersOption = None,
    scheduler: SchedulerOption = None,
    force: Annotated[bool, typer.Option("--force", help="Run what is up to date too.")] = False,
    timeout: Annotated[
        float, typer.Option(min=0, metavar="SECONDS", help="Limit for one cell; 0 for none.")
    ] = 1800.0,
    as_json: JsonOption = False,
) -> None:
    """Run a notebook at every point of a grid; ends in one page that compares the runs.

    For instance `awqbench sweep 02_group_size -p bits=[2],[3] -p seed=0,1`. What is up to date
    is not run again, so that a sweep that was stopped goes on.
    """
    from awqbench.report.facts import STATUS, duration
    from awqbench.report.parameters import parse_settings
    from awqbench.report.sweep import run_sweep

    runs = []

    def show(point, record, was_up_to_date) -> None:
        runs.append(
            {
                "values": point.values,
                "state": record.state,
                "elapsed_s": record.elapsed_s,
                "folder": str(point.job.folder),
            }
        )
        if not as_json:
            where = ", ".join(f"{key}={value}" for key, value in point.values.items())
            took = "up to date" if was_up_to_date else duration(record.elapsed_s)
            status = STATUS[record.state]
            typer.echo(f"{status.symbol} {where}: {status.word}, {took}")

    try:
        page = run_sweep(
            notebook,
            parse_settings(parameters or []),
            out,
            workers=workers,
            scheduler=scheduler,
            force=force,
            cell_timeout_s=timeout or None,
            on_done=show,
        )
    except KeyboardInterrupt:
        typer.echo("stopped; the same command goes on with the runs that are missing.", err=True)
        raise typer.Exit(INTERRUPTED) from None
    typer.echo(
        json.dumps({"page": str(page), "runs": runs}, indent=1) if as_json else f"open {page}"
    )
    states = {run["state"] for run in runs}
    if "interrupted" in states:
        raise typer.Exit(INTERRUPTED)
    if states - {"ok"}:
        raise typer.Exit(FAILED)
