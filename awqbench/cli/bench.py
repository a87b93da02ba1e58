"""Commands that measure how fast: `bench gemm` and `bench model`."""

from __future__ import annotations

import json
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from awqbench.cli.app import INTERRUPTED, JsonOption, app
from awqbench.cli.bench_gpu import gemm_on_gpu
from awqbench.cli.bench_outputs import check_outputs, print_absent, save_figure

if TYPE_CHECKING:
    import pandas as pd

bench = typer.Typer(
    help="Measure how fast packed products and whole models run here.", no_args_is_help=True
)
app.add_typer(bench, name="bench")

ThreadsOption = Annotated[int | None, typer.Option(help="Default: as many as torch takes.")]
OutOption = Annotated[
    Path | None, typer.Option(help="Append the run to this JSON Lines file.", metavar="FILE.jsonl")
]
QuickOption = Annotated[bool, typer.Option("--quick", help="Small and short, to try it out.")]
RoundsOption = Annotated[int | None, typer.Option(help="Turns of each.", min=1)]
# Of a full run and of --quick.
_SHAPES, _QUICK_SHAPES = ("4096x4096", "4096x12288"), ("1024x1024",)
_TOKENS, _QUICK_TOKENS = (1, 4, 16, 128, 512), (1, 64)
_QUICK_PROBE_BYTES = 64_000_000


@bench.command()
def gemm(
    shape: Annotated[
        list[str] | None, typer.Option(help="KxN such as 4096x12288, or qwen3-8b-up; repeat.")
    ] = None,
    tokens: Annotated[list[int] | None, typer.Option(help="M; repeat.")] = None,
    bits: int = 4,
    group_size: Annotated[int, typer.Option(help="-1 for whole rows.")] = 128,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    threads: ThreadsOption = None,
    rounds: RoundsOption = None,
    path: Annotated[
        list[str] | None,
        typer.Option(help="Time only paths whose names begin so, such as native; repeat."),
    ] = None,
    quick: QuickOption = False,
    out: OutOption = None,
    figure: Annotated[Path | None, typer.Option(help="Draw it here.", metavar="FILE.png")] = None,
    as_json: JsonOption = False,
) -> None:
    """Time y = x Wᵀ by every backend and every peer installed, in turns with probes.

    Ctrl-C prints what was measured so far. With --device cuda graphs of calls are replayed
    instead: --threads, --rounds and --path are not used, and Ctrl-C leaves nothing.
    """
    if device != "cpu":
        gemm_on_gpu(device, (shape, tokens, bits, group_size, quick), (out, figure, as_json))
        return
    from awqbench.bench.gemm_bench import choose_paths, measure_gemm
    from awqbench.bench.gemm_cases import make_cases
    from awqbench.bench.probes import limited_threads, measure_ceilings

    shapes = shape or (_QUICK_SHAPES if quick else _SHAPES)
    tokens = tokens or (_QUICK_TOKENS if quick else _TOKENS)
    rounds = rounds or (3 if quick else 11)
    cases = make_cases(shapes, tokens, bits=bits, group_size=group_size)
    settings = {"shapes": list(shapes), "tokens": list(tokens), "bits": bits}
    settings |= {"group_size": group_size, "rounds": rounds, "paths": path}
    check_outputs(out, figure)
    paths = choose_paths(path)
    tables: list[pd.DataFrame] = []
    stopped = False
    with limited_threads(threads):
        ceilings = measure_ceilings(nbytes=_QUICK_PROBE_BYTES if quick else None)._asdict()
        try:
            for table in measure_gemm(cases, rounds=rounds, paths=paths):
                tables.append(table)
        except KeyboardInterrupt:
            stopped = True
    if tables:
        _report_gemm(_joined(tables), settings, ceilings, (out, figure, as_json, not stopped))
    if stopped:
        typer.echo(f"stopped after {len(tables)} of {len(cases)} cases.", err=True)
        raise typer.Exit(INTERRUPTED)


def _joined(tables: list[pd.DataFrame]) -> pd.DataFrame:
    import pandas as pd

    from awqbench.bench.gemm_bench import join_tables

    return join_tables(tables, pd.concat)


def _report_gemm(
    table: pd.DataFrame, settings: dict[str, Any], ceilings: dict[str, Any], asked: tuple
) -> None:
    from awqbench.bench.records import append_record, make_record

    out, figure, as_json, is_complete = asked
    record = make_record("gemm", table, settings, ceilings=ceilings, is_complete=is_complete)
    if as_json:
        typer.echo(json.dumps(record, indent=1))
    else:
        _print_gemm(table, ceilings, record["machine"])
    if out is not None:
        append_record(out, record)
        typer.echo(f"appended to {out}", err=True)
    if figure is not None:
        conditions = f"{record['machine']['cpu']}, {_counted(ceilings['threads'])}"
        _draw(figure, table, conditions)


def _draw(file: Path, table: pd.DataFrame, conditions: str) -> None:
    from awqbench.plots.roofline import plot_roofline

    save_figure(file, plot_roofline(table, conditions=conditions)[0].figure)


def _print_gemm(table: pd.DataFrame, ceilings: dict[str, Any], machine: dict[str, Any]) -> None:
    from awqbench.bench.tables import ceilings_text, gemm_lines

    typer.echo(f"{machine['cpu']}: {', '.join(machine['isa']) or 'no ISA flags used here'}")
    typer.echo(ceilings_text(ceilings))
    for _, case in table.groupby(["shape", "bits", "group_size", "tokens"], sort=False):
        typer.echo("\n" + gemm_lines(case))
    print_absent(table)


@bench.command()
def model(
    folder: Annotated[
        str,
        typer.Argument(
            help="A quantized folder; 'tiny' or another in full precision is rounded to 4 bits "
            "first; qwen3-0.6b and qwen3-1.7b are made up at random."
        ),
    ],
    backend: Annotated[
        list[str] | None,
        typer.Option(help="auto, native, torch, numpy, or dense (decoded); repeat."),
    ] = None,
    dtype: Annotated[str | None, typer.Option(help="bfloat16, float32 ...")] = None,
    prompt: Annotated[int, typer.Option(help="Tokens in the prompt.", min=1)] = 128,
    new: Annotated[int, typer.Option(help="Tokens to generate.", min=2)] = 64,
    group_size: Annotated[int, typer.Option(help="Of a folder made here.")] = 128,
    threads: ThreadsOption = None,
    rounds: RoundsOption = None,
    quick: QuickOption = False,
    out: OutOption = None,
    as_json: JsonOption = False,
) -> None:
    """Time a whole model: loading, the prompt, tokens one by one, and its peak of memory.

    Backends take turns if they all fit into memory. Ctrl-C prints what was measured so far.
    """
    from awqbench.bench.model_bench import Workload, measure_model
    from awqbench.bench.probes import limited_threads

    work = Workload(16, 8, rounds or 2) if quick else Workload(prompt, new, rounds or 3)
    backends = list(dict.fromkeys(backend or ["auto"]))
    check_outputs(out, None)
    tables: list[pd.DataFrame] = []
    stopped = False
    with ExitStack() as stack:
        stack.enter_context(limited_threads(threads))
        try:
            made = _quantized_folder(folder, group_size, stack)
            for table in measure_model(made, work, backends=backends, dtype=dtype):
                tables.append(table)
        except KeyboardInterrupt:
            stopped = True
        if tables:
            settings = {"model": folder, "backends": backends, "dtype": dtype}
            settings |= {"group_size": group_size, "threads": _threads_now(), **work._asdict()}
            _report_model(tables, settings, (out, as_json, not stopped))
    if stopped:
        typer.echo(f"stopped with {sum(map(len, tables))} of {len(backends)} backends.", err=True)
        raise typer.Exit(INTERRUPTED)


def _counted(threads: int) -> str:
    return f"{threads} thread{'s' if threads > 1 else ''}"


def _threads_now() -> int:
    import torch

    return torch.get_num_threads()


def _quantized_folder(name: str, group_size: int, stack: ExitStack) -> str | Path:
    """Return a quantized folder, made in a temporary place where `name` is none."""
    from awqbench.bench.model_bench import MODELS, rounded_folder, synthetic_folder
    from awqbench.formats.checkpoint import open_checkpoint

    made_up = name in MODELS and not Path(name).exists()
    if not made_up:
        ckpt = open_checkpoint(name)
        if ckpt.quantization is not None:
            return ckpt.path
    place = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    if made_up:
        typer.echo(f"making a folder of {name}'s shape from random numbers", err=True)
        return synthetic_folder(place / f"{name}-random-w4", name, group_size=group_size)
    typer.echo(f"rounding {ckpt.path.name} to 4 bits, for its speed only", err=True)
    out = place / f"{ckpt.path.name}-rounded-w4"
    return rounded_folder(ckpt, out, group_size=group_size)


def _report_model(tables: list[pd.DataFrame], settings: dict[str, Any], asked: tuple) -> None:
    import pandas as pd

    from awqbench.bench.model_bench import with_model_ratios
    from awqbench.bench.records import append_record, make_record
    from awqbench.bench.tables import model_lines

    out, as_json, is_complete = asked
    table = with_model_ratios(pd.concat(tables, ignore_index=True))
    record = make_record("model", table, settings, is_complete=is_complete)
    if as_json:
        typer.echo(json.dumps(record, indent=1))
    else:
        typer.echo(f"{record['machine']['cpu']}, {_counted(settings['threads'])}")
        typer.echo(model_lines(table))
    if out is not None:
        append_record(out, record)
        typer.echo(f"appended to {out}", err=True)
