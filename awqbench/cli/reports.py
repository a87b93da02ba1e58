"""Commands that run, compare and open notebooks, and that describe this machine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from awqbench.cli.app import FAILED, INTERRUPTED, app

if TYPE_CHECKING:
    from awqbench.report.record import RunRecord

notebooks_app = typer.Typer(no_args_is_help=True, help="List, describe, refresh, check notebooks.")
app.add_typer(notebooks_app, name="notebooks")

NotebookNames = Annotated[
    list[str] | None,
    typer.Argument(metavar="NOTEBOOK", help="Names or .ipynb files; all by default."),
]


@app.command()
def report(
    notebooks: NotebookNames = None,
    model: Annotated[
        str | None, typer.Option(help="A model folder, a hub id, or 'tiny', the embedded one.")
    ] = None,
    parameters: Annotated[
        list[str] | None,
        typer.Option("--parameter", "-p", metavar="NAME=VALUE", help="Set a parameter; repeat."),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for the reports.")] = Path("reports"),
    force: Annotated[bool, typer.Option("--force", help="Run what is up to date too.")] = False,
    timeout: Annotated[
        float, typer.Option(min=0, metavar="SECONDS", help="Limit for one cell; 0 for none.")
    ] = 1800.0,
    compare: Annotated[
        tuple[Path, Path] | None,
        typer.Option(
            metavar="DIR1 DIR2", help="Run nothing; set two folders of reports side by side."
        ),
    ] = None,
) -> None:
    """Run notebooks into pages to read and share, with an index.

    What is up to date is not run again. See `awqbench notebooks params NAME` for what -p takes.
    `--compare DIR1 DIR2` writes compare.html into the folder of `--out`.
    """
    if compare is not None:
        if model is not None or parameters or force:
            raise typer.BadParameter("--compare runs nothing: leave out --model, -p and --force.")
        _compare(compare, out, notebooks or [])
        return
    from awqbench.errors import ParameterError
    from awqbench.report.parameters import parse_settings
    from awqbench.report.runner import run_report

    settings = parse_settings(parameters or [])
    if model is not None:
        if "model" in settings:
            raise ParameterError("the model is given by both --model and -p; give it once.")
        settings["model"] = model
    records = run_report(
        notebooks or [],
        settings,
        out,
        force=force,
        cell_timeout_s=timeout or None,
        on_done=_print_run,
    )
    typer.echo(f"open {out / 'index.html'}")
    states = {record.state for record in records}
    if "interrupted" in states:
        raise typer.Exit(INTERRUPTED)
    if states - {"ok"}:
        raise typer.Exit(FAILED)


def _compare(folders: tuple[Path, Path], out: Path, names: list[str]) -> None:
    from awqbench.report.compare import write_comparison

    typer.echo(f"open {write_comparison(*folders, out, names)}")


def _print_run(record: RunRecord, was_up_to_date: bool) -> None:
    from awqbench.report.facts import STATUS, duration

    status = STATUS[record.state]
    took = "up to date" if was_up_to_date else duration(record.elapsed_s)
    why = f"  {record.ename}: {record.evalue.splitlines()[0] if record.evalue else ''}"
    failed = why if record.state != "ok" else ""
    typer.echo(f"{status.symbol} {record.notebook}: {status.word}, {took}{failed}")


@app.command()
def lab(
    notebooks: NotebookNames = None,
    out: Annotated[Path, typer.Option(help="Folder for the copies.")] = Path("awqbench-lab"),
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes any free one.")] = 8888,
    browser: Annotated[
        bool, typer.Option("--browser/--no-browser", help="Open a browser window.")
    ] = True,
) -> None:
    """Open copies of the notebooks in JupyterLab; Ctrl-C stops it.

    The originals stay as they are, and a copy that you edited is never overwritten. The server
    listens on this machine only (127.0.0.1) and asks for a token, new at each start.
    """
    from awqbench.report.lab import copy_notebooks, run_lab

    for copy in copy_notebooks(notebooks or [], out):
        typer.echo(f"{copy.path}: {copy.what}")
    status = run_lab(
        out, port=port, open_browser=browser, on_ready=lambda url: typer.echo(f"open {url}")
    )
    typer.echo(f"JupyterLab has stopped; your copies are in {out}")
    if status:
        raise typer.Exit(FAILED)


@notebooks_app.command("list")
def list_() -> None:
    """List the notebooks that belong to this package, each with its title."""
    from awqbench.report.notebooks import list_notebooks, read_notebook, title_and_question

    for path in list_notebooks():
        typer.echo(f"{path.stem:<20} {title_and_question(read_notebook(path))[0]}")


@notebooks_app.command()
def params(notebook: Annotated[str, typer.Argument(help="A name or an .ipynb file.")]) -> None:
    """Show a notebook's parameters: name, type, default, meaning."""
    from awqbench.report.notebooks import find_notebooks, read_notebook
    from awqbench.report.parameters import read_parameters

    path = find_notebooks([notebook])[0]
    for item in read_parameters(read_notebook(path), path.stem).values():
        choices = f" (one of {', '.join(map(str, item.choices))})" if item.choices else ""
        left = f"{item.name}: {item.type_name} = {item.default!r}"
        typer.echo(f"{left:<40} {item.help}{choices}".rstrip())


@notebooks_app.command()
def refresh(notebooks: NotebookNames = None) -> None:
    """Execute notebooks and rewrite them as they are committed."""
    from awqbench.report.notebooks import find_notebooks
    from awqbench.report.refresh import refresh_notebook

    for path in find_notebooks(notebooks or []):
        typer.echo(f"{path.name}: {'changed' if refresh_notebook(path) else 'the same'}")


@notebooks_app.command()
def check(notebooks: NotebookNames = None) -> None:
    """Check notebooks against the house rules, without running them."""
    from awqbench.report.check import check_notebook
    from awqbench.report.notebooks import find_notebooks

    problems = [item for path in find_notebooks(notebooks or []) for item in check_notebook(path)]
    for problem in problems:
        typer.echo(str(problem))
    if problems:
        raise typer.Exit(FAILED)


@app.command()
def provenance(
    as_json: Annotated[bool, typer.Option("--json", help="Print the whole record.")] = False,
) -> None:
    """Describe this machine and its software, as every report does."""
    from awqbench.bench.machine import machine_record
    from awqbench.report.facts import commit_text, machine_text, versions_text

    record = machine_record().to_dict()
    if as_json:
        typer.echo(json.dumps(record, indent=1))
        return
    typer.echo(f"Machine   {machine_text(record)}")
    typer.echo(f"ISA       {', '.join(record['isa']) or 'none of those used here'}")
    typer.echo(f"System    {record['os']}, {record['arch']}")
    typer.echo(f"Versions  {versions_text(record)}")
    typer.echo(f"Commit    {commit_text(record)}")
