"""Commands on records of machines: `record`, `compare`, `import-llama-bench`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from awqbench.cli.app import INTERRUPTED, JsonOption, app

RecordFile = Annotated[Path, typer.Argument(help="Records as JSON Lines.", metavar="FILE.jsonl")]
_QUICK_SHAPES = ("1024x1024",)


@app.command()
def record(
    out: Annotated[
        Path, typer.Option("-o", "--out", help="A new file, or a folder.", metavar="FILE.jsonl")
    ],
    threads: Annotated[
        list[int] | None, typer.Option(help="Repeat; default one, half and all.", min=1)
    ] = None,
    everywhere_only: Annotated[
        bool, typer.Option(help="Only the kernels that need nothing but NumPy and numexpr.")
    ] = False,
    correctness_only: Annotated[
        bool, typer.Option(help="Digests and errors without times; for emulated processors.")
    ] = False,
    quick: Annotated[bool, typer.Option("--quick", help="Small and short, to try it out.")] = False,
    note: str = "",
) -> None:
    """Record what this machine does: memory, kernels, digests; about two minutes.

    Ctrl-C keeps what is whole.
    """
    from awqbench.bench.record.files import require_new, write_records
    from awqbench.bench.record.measure import Plan, check_correctness, default_name, measure
    from awqbench.progress import progress_bar

    file = require_new(out / default_name() if out.is_dir() else out)
    plan = Plan(threads=tuple(threads or ()), everywhere_only=everywhere_only)
    if quick:
        plan = plan._replace(shapes=_QUICK_SHAPES, blocks=3, block_size=3)
    if correctness_only:
        write_records(file, check_correctness(plan, note=note))
        typer.echo(f"wrote {file}: digests and errors, no times")
        return

    def steps(items: list) -> object:
        return progress_bar(items, "recording", unit="step")

    records, is_complete = measure(plan, note=note, progress=steps)
    if records:
        write_records(file, records)
        typer.echo(f"wrote {file}: {len(records)} cases of {records[0]['machine']['cpu']}")
    if not is_complete:
        kept = f"{len(records)} cases were kept" if records else "too little for an interval"
        typer.echo(f"stopped: {kept}.", err=True)
        raise typer.Exit(INTERRUPTED)


@app.command()
def compare(
    a: RecordFile,
    b: RecordFile,
    normalize: Annotated[str, typer.Option(help="none, bandwidth or clock.")] = "none",
    as_json: JsonOption = False,
) -> None:
    """Say case by case how many times faster B is than A, with an interval."""
    from awqbench.bench.record.compare import compare_records

    table = compare_records(a, b, normalize=normalize)
    if as_json:
        rows = json.loads(table.to_json(orient="records", double_precision=15))
        typer.echo(json.dumps({"rows": rows, **table.attrs}, indent=1))
        return
    for warning in table.attrs["warnings"]:
        typer.echo(f"warning: {warning}", err=True)
    typer.echo(_lines(table))
    alone = [f"{table.attrs[f'only_{side}']} only in {side.upper()}" for side in "ab"]
    equal = int((table["verdict"] == "equal").sum())
    typer.echo(f"{equal} of {len(table)} cases are equal; {', '.join(alone)}.")


def _lines(table) -> str:
    import pandas as pd

    names = [name for name in ("kernel", "backend", "model", "quant", "K", "N", "act_dtype",
                               "threads") if name in table]  # fmt: skip
    shown = table[names].astype(object).where(table[names].notna(), "").copy()
    for name in ("K", "N"):
        if name in shown:
            shown[name] = shown[name].map(lambda value: int(value) if value != "" else "")
    for side in "ab":
        shown[f"{side} ms"] = (table[f"{side}_s"] * 1e3).map("{:.3g}".format)
    shown["b faster"] = table["ratio"].map("{:.3g}".format)
    spans = zip(table["low"], table["high"], strict=True)
    shown["interval"] = pd.Series([f"{low:.3g} to {high:.3g}" for low, high in spans])
    shown[""] = table["verdict"]
    return shown.to_string(index=False)


@app.command("import-llama-bench")
def import_llama_bench(
    file: Annotated[Path, typer.Argument(help="Of llama-bench -o json, jsonl or csv.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="A new file.", metavar="FILE.jsonl")],
    source: Annotated[str, typer.Option(help="Where they were published.")] = "",
    arch: Annotated[str, typer.Option(help="x86_64 or aarch64, if the name does not tell.")] = "",
) -> None:
    """Turn llama-bench's decoding results on a CPU into records."""
    from awqbench.bench.record.files import require_new, write_records
    from awqbench.bench.record.llama_bench import import_llama_bench as read
    from awqbench.errors import FormatError

    require_new(out)
    records, left_out = read(file, source=source, arch=arch)
    for reason in left_out:
        typer.echo(f"left out: {reason}", err=True)
    if not records:
        raise FormatError(f"{file.name} holds no decoding on the CPU.")
    write_records(out, records)
    typer.echo(f"wrote {out}: {len(records)} results")
