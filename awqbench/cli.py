"""The command line: parse, call, print.

A command is a thin function here; what it needs is imported inside it, so that `--help`
does not wait for torch. Errors of the family are caught once, in `main`.

Exit status: 0 done, 1 a notebook failed or a check found something, 2 a mistake in the
call, 130 interrupted.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from awqbench.errors import AwqbenchError

if TYPE_CHECKING:
    from awqbench.report.record import RunRecord

FAILED, USAGE, INTERRUPTED = 1, 2, 130

app = typer.Typer(
    name="awqbench",
    help="A Jupyter-first workbench for weight-only quantization of language models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
notebooks_app = typer.Typer(no_args_is_help=True, help="List, describe, refresh, check notebooks.")
app.add_typer(notebooks_app, name="notebooks")

NotebookNames = Annotated[
    list[str] | None,
    typer.Argument(metavar="NOTEBOOK", help="Names or .ipynb files; all by default."),
]
ModelArgument = Annotated[str, typer.Argument(help="A model folder, a hub id, or 'tiny'.")]
TextOption = Annotated[
    str, typer.Option(help="'stdlib', a text file, a .jsonl file, or datasets:NAME.")
]
SamplesOption = Annotated[int, typer.Option(help="Calibration windows.")]
SeqLenOption = Annotated[int, typer.Option(help="Tokens in a window.")]


def main() -> None:
    """Run the command line; the console script's entry point."""
    try:
        app()
    except AwqbenchError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        sys.exit(USAGE)


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
) -> None:
    """Run notebooks into pages to read and share, with an index.

    What is up to date is not run again. See `awqbench notebooks params NAME` for what -p takes.
    """
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


def _print_run(record: RunRecord, was_up_to_date: bool) -> None:
    from awqbench.report.facts import STATUS, duration

    status = STATUS[record.state]
    took = "up to date" if was_up_to_date else duration(record.elapsed_s)
    why = f"  {record.ename}: {record.evalue.splitlines()[0] if record.evalue else ''}"
    failed = why if record.state != "ok" else ""
    typer.echo(f"{status.symbol} {record.notebook}: {status.word}, {took}{failed}")


@app.command()
def calibrate(
    model: ModelArgument,
    out: Annotated[Path, typer.Argument(help="Folder for the statistics.")],
    text: TextOption = "stdlib",
    n_samples: SamplesOption = 128,
    seq_len: SeqLenOption = 512,
) -> None:
    """Collect statistics of a model on a text, once, for every later quantization."""
    import awqbench as ab

    ckpt = ab.open_checkpoint(model)
    ckpt.require_full_precision()
    tokens = ab.text_tokens(ckpt, text, n_samples=n_samples, seq_len=seq_len)
    stats = ab.calibrate(ckpt, tokens, out)
    typer.echo(f"{stats.n_blocks} blocks, {stats.n_tokens:,} tokens: {out}")


@app.command()
def quantize(
    model: ModelArgument,
    out: Annotated[Path, typer.Argument(help="Folder to make, in the AutoAWQ layout.")],
    stats: Annotated[
        Path | None, typer.Option(help="Statistics by `awqbench calibrate`; else collected now.")
    ] = None,
    text: TextOption = "stdlib",
    n_samples: SamplesOption = 128,
    seq_len: SeqLenOption = 512,
    group_size: Annotated[int, typer.Option(help="Input channels that share a scale.")] = 128,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="Another setting, such as rounding=gptq."),
    ] = None,
    resume: Annotated[bool, typer.Option(help="Go on with an unfinished run.")] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print the run record.")] = False,
) -> None:
    """Quantize a model to 4 bits; a run that is stopped goes on when called again."""
    import awqbench as ab
    from awqbench.report.parameters import parse_settings

    ckpt = ab.open_checkpoint(model)
    ckpt.require_full_precision()
    changes = {"group_size": group_size} | _typed_settings(parse_settings(settings or []))
    tokens = None
    if stats is None:
        tokens = ab.text_tokens(ckpt, text, n_samples=n_samples, seq_len=seq_len)
    try:
        record = ab.quantize(ckpt, out, stats=stats, tokens=tokens, resume=resume, **changes)
    except KeyboardInterrupt:
        typer.echo("stopped; the same command goes on from the last finished block.", err=True)
        raise typer.Exit(INTERRUPTED) from None
    if as_json:
        typer.echo(json.dumps(record, indent=1))
        return
    linears = record["linears"]
    for row in linears:
        if row["alarm"]:
            typer.echo(f"look at {row['block']}.{row['linear']}: {row['alarm']}")
    worst = max(linears, key=lambda row: row["output_error"])
    typer.echo(
        f"{len(linears)} linears in {record['times']['total_s']:.0f} s; largest output error "
        f"{worst['output_error']:.2%} at {worst['block']}.{worst['linear']}"
    )
    typer.echo(f"wrote {out}")


def _typed_settings(items: dict[str, str]) -> dict:
    """Give settings from the command line the types of the fields of `Settings`."""
    from dataclasses import fields

    from awqbench.errors import ParameterError
    from awqbench.quantize.settings import Settings

    kinds = {field.name: type(field.default) for field in fields(Settings)}
    words = {"true": True, "false": False}
    typed = {}
    for name, value in items.items():
        kind = kinds.get(name, str)
        try:
            if kind is bool:
                typed[name] = words[value.lower()]
            elif kind is tuple:
                typed[name] = tuple(part for part in value.split(",") if part)
            else:
                typed[name] = kind(value)
        except (KeyError, ValueError) as error:
            raise ParameterError(f"{name}={value}: not a {kind.__name__}.") from error
    return typed


@app.command()
def evaluate(
    model: ModelArgument,
    against: Annotated[
        str | None, typer.Option(help="A full-precision model to compare with.")
    ] = None,
    text: TextOption = "stdlib",
    n_samples: Annotated[int, typer.Option(help="Evaluation windows.")] = 32,
    seq_len: SeqLenOption = 512,
    as_json: Annotated[bool, typer.Option("--json", help="Print numbers for machines.")] = False,
) -> None:
    """Measure perplexity, and the distance from a full-precision model."""
    import awqbench as ab
    from awqbench.inspect.evaluate import summary

    loaded = _load_any(model)
    tokens = ab.text_tokens(model, text, "evaluation", n_samples=n_samples, seq_len=seq_len)
    facts = summary(ab.perplexity(loaded, tokens))
    if against is not None:
        facts |= ab.compare(_load_any(against), loaded, tokens)._asdict()
    if as_json:
        typer.echo(json.dumps(facts, indent=1))
        return
    for name, value in facts.items():
        typer.echo(f"{name:<18} {value:.5g}")


def _load_any(model: str):
    import torch

    import awqbench as ab

    ckpt = ab.open_checkpoint(model)
    if ckpt.quantization is None:
        return ab.load_model(ckpt)
    return ab.load_quantized(ckpt.path, dtype=torch.float32)


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


if __name__ == "__main__":
    main()
