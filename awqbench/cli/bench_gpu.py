"""`bench gemm --device cuda`: the products of `bench gemm`, timed on a GPU."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from awqbench.cli.app import FAILED
from awqbench.cli.bench_outputs import check_outputs, print_absent, save_figure

if TYPE_CHECKING:
    import pandas as pd

Asked = tuple[Path | None, Path | None, bool]


def gemm_on_gpu(
    device: str, case: tuple[list[str] | None, list[int] | None, int, int, bool], asked: Asked
) -> None:
    """Time products on the first GPU, with its ceilings measured in the same run.

    Parameters
    ----------
    device : {"cuda"}
    case : tuple
        Shapes and tokens (None: those of the benchmark), bits, group size, and whether few of
        them will do.
    asked : tuple
        File of records, file of a figure, and whether to print JSON.
    """
    from awqbench.bench import gpu_gemm, gpu_timing
    from awqbench.bench.gemm_cases import make_cases
    from awqbench.errors import BackendError, ParameterError
    from awqbench.gemm import cuda

    if device != "cuda":
        raise ParameterError(f"device {device!r} is none of cpu, cuda.")
    shapes, tokens, bits, group_size, quick = case
    gpu_gemm.require_gpu()
    if reason := cuda.why_absent():
        raise BackendError(f"backend 'cuda' is not available: {reason}")
    check_outputs(*asked[:2])
    names = shapes or [f"{k}x{n}" for k, n in gpu_gemm.SHAPES[: 1 if quick else None]]
    tokens = tokens or list(gpu_gemm.TOKENS[: 3 if quick else None])
    cases = make_cases(names, tokens, bits=bits, group_size=group_size)
    pairs = tuple(dict.fromkeys((one.in_features, one.out_features) for one in cases))
    ceilings = gpu_timing.measure_ceilings()
    settings = {"shapes": names, "tokens": tokens, "bits": bits, "group_size": group_size}
    table = gpu_gemm.bench_gemm(
        ceilings, device="cuda:0", shapes=pairs, tokens=tuple(tokens), bits=bits,
        group_size=group_size,
    )  # fmt: skip
    _report(table, settings, ceilings._asdict(), asked)


def _report(
    table: pd.DataFrame, settings: dict[str, Any], ceilings: dict[str, Any], asked: Asked
) -> None:
    from awqbench.bench.gpu_evidence import measured_table
    from awqbench.bench.records import append_record, make_record
    from awqbench.plots.gpu_measured import plot_measured

    out, figure, as_json = asked
    if table.empty:
        if not as_json:
            print_absent(table)
        typer.echo("nothing was timed.", err=True)
        raise typer.Exit(FAILED)
    is_complete = table.attrs["is_complete"]
    record = make_record("gpu_gemm", table, settings, ceilings=ceilings, is_complete=is_complete)
    if as_json:
        typer.echo(json.dumps(record, indent=1))
    else:
        typer.echo(
            f"{ceilings['device']}: copy {ceilings['copy_gb_s']:.0f} GB/s, product "
            f"{ceilings['product_tflop_s']:.0f} TFLOP/s"
        )
        typer.echo(measured_table(table).to_string(index=False))
        print_absent(table)
    if not is_complete:
        typer.echo("time ran out: some sizes were not timed.", err=True)
    if out is not None:
        append_record(out, record)
        typer.echo(f"appended to {out}", err=True)
    if figure is not None:
        save_figure(figure, plot_measured(table, conditions=ceilings["device"])[0].figure)
    wrong = table[table["is_wrong"]]
    if len(wrong):
        typer.echo(f"WRONG results: {', '.join(wrong['path'].unique())}", err=True)
    if table.attrs["failed"]:
        typer.echo(f"FAILED: {', '.join(table.attrs['failed'])}", err=True)
    # (A peer's rounding is not this package's fault.)
    if table.attrs["failed"] or not wrong["is_peer"].all():
        raise typer.Exit(FAILED)
