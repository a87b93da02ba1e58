"""Commands that calibrate, quantize and evaluate."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from awqbench.cli.app import INTERRUPTED, JsonOption, ModelArgument, app
from awqbench.cli.sweep import SchedulerOption, WorkersOption

TextOption = Annotated[
    str, typer.Option(help="'stdlib', a text file, a .jsonl file, or datasets:NAME.")
]
SamplesOption = Annotated[int, typer.Option(help="Calibration windows.")]
SeqLenOption = Annotated[int, typer.Option(help="Tokens in a window.")]
AllExpertsOption = Annotated[
    bool,
    typer.Option(
        "--route-all-experts", help="Of a mixture: every token's statistics for every expert."
    ),
]
ResumeOption = Annotated[bool, typer.Option(help="Go on with an unfinished run.")]
ThreadsOption = Annotated[
    int | None, typer.Option(min=1, help="Of each process; the same number gives the same bytes.")
]
_STOPPED = "stopped; the same command goes on from the last finished block."
# Linears with an alarm that are named one by one; a mixture can have thousands.
_MOST_ALARMS = 20


@app.command()
def calibrate(
    model: ModelArgument,
    out: Annotated[Path, typer.Argument(help="Folder for the statistics.")],
    text: TextOption = "stdlib",
    n_samples: SamplesOption = 128,
    seq_len: SeqLenOption = 512,
    route_all_experts: AllExpertsOption = False,
    resume: ResumeOption = True,
    workers: WorkersOption = None,
    scheduler: SchedulerOption = None,
    threads: ThreadsOption = None,
) -> None:
    """Collect statistics of a model on a text, once, for every later quantization."""
    import awqbench as ab
    from awqbench.quantize.statistics.experts import coverage_lines, expert_coverage

    ckpt = ab.open_checkpoint(model)
    ckpt.require_full_precision()
    tokens = ab.text_tokens(ckpt, text, n_samples=n_samples, seq_len=seq_len)
    shared = {"resume": resume, "workers": workers, "scheduler": scheduler, "threads": threads}
    try:
        stats = ab.calibrate(ckpt, tokens, out, route_all_experts=route_all_experts, **shared)
    except KeyboardInterrupt:
        typer.echo(_STOPPED, err=True)
        raise typer.Exit(INTERRUPTED) from None
    typer.echo(f"{stats.n_blocks} blocks, {stats.n_tokens:,} tokens: {out}")
    for line in coverage_lines(expert_coverage(stats)):
        typer.echo(line)


@app.command()
def quantize(
    model: ModelArgument,
    out: Annotated[Path, typer.Argument(help="Folder to make.")],
    stats: Annotated[
        Path | None, typer.Option(help="Statistics by `awqbench calibrate`; else collected now.")
    ] = None,
    text: TextOption = "stdlib",
    n_samples: SamplesOption = 128,
    seq_len: SeqLenOption = 512,
    group_size: Annotated[
        int | None, typer.Option(help="Input channels that share a scale; default 128.")
    ] = None,
    layout: Annotated[
        str,
        typer.Option(help="awq-gemm, awq-gemv, gptq, gptq-v2, compressed-tensors or chatglm."),
    ] = "awq-gemm",
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="Another setting, such as rounding=gptq."),
    ] = None,
    rules: Annotated[
        list[str] | None,
        typer.Option(
            "--rule",
            metavar="PATTERN=CHANGES",
            help=r"Of single linears, such as 'down_proj=bits:8,group_size:64' or "
            r"'layers\.0\.=skip'; the first that matches counts; repeat.",
        ),
    ] = None,
    resume: ResumeOption = True,
    redo: Annotated[
        list[str] | None,
        typer.Option(help="Do a block of the finished OUT again, such as model.layers.7."),
    ] = None,
    keep_stats: Annotated[
        Path | None, typer.Option(help="Folder to leave the statistics in; else they are dropped.")
    ] = None,
    max_memory: Annotated[
        str | None, typer.Option(help="What the run may take, such as 6GiB; else most of it.")
    ] = None,
    workers: WorkersOption = None,
    scheduler: SchedulerOption = None,
    threads: ThreadsOption = None,
    route_all_experts: AllExpertsOption = False,
    device: Annotated[
        str,
        typer.Option(help="To search blocks on: cpu, cuda, cuda:1; auto is a GPU if there is one."),
    ] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print the run record.")] = False,
) -> None:
    """Quantize a model; a run that is stopped goes on when called again."""
    import awqbench as ab
    from awqbench.quantize.run.publish import RECORD
    from awqbench.quantize.statistics.experts import coverage_lines, coverage_of_run
    from awqbench.report.parameters import parse_settings

    ckpt = ab.open_checkpoint(model)
    ckpt.require_full_precision()
    given = parse_settings(settings or [])
    if layout == "chatglm":
        given |= {} if device == "auto" else {"device": device}
        _quantize_chatglm(ckpt, out, given, as_json)
        return
    changes = _typed_settings(given) | ({} if group_size is None else {"group_size": group_size})
    changes |= {"rules": tuple(rules)} if rules else {}
    tokens = None
    if stats is None:
        tokens = ab.text_tokens(ckpt, text, n_samples=n_samples, seq_len=seq_len)
    shared = {"stats": stats, "tokens": tokens, "max_memory": max_memory, "device": device}
    try:
        if redo:
            from awqbench.quantize.redo import redo as redo_blocks

            record = redo_blocks(ckpt, out, redo, **shared, **changes)
        else:
            shared |= {"resume": resume, "keep_stats": keep_stats, "layout": layout}
            shared |= {"workers": workers, "scheduler": scheduler, "threads": threads}
            shared["route_all_experts"] = route_all_experts
            record = ab.quantize(ckpt, out, **(shared | changes))
    except KeyboardInterrupt:
        typer.echo(_STOPPED, err=True)
        raise typer.Exit(INTERRUPTED) from None
    if as_json:
        typer.echo(json.dumps(record, indent=1))
        return
    linears = record["linears"]
    alarms = [row for row in linears if row["alarm"]]
    for row in alarms[:_MOST_ALARMS]:
        typer.echo(f"look at {row['block']}.{row['linear']}: {row['alarm']}")
    if len(alarms) > _MOST_ALARMS:
        typer.echo(f"and {len(alarms) - _MOST_ALARMS} more, in {RECORD}.json")
    for line in coverage_lines(coverage_of_run(linears)):
        typer.echo(line)
    worst = max(linears, key=lambda row: row["output_error"])
    typer.echo(
        f"{len(linears)} linears in {record['times']['total_s']:.0f} s; largest output error "
        f"{worst['output_error']:.2%} at {worst['block']}.{worst['linear']}"
    )
    typer.echo(f"wrote {out}")


def _quantize_chatglm(ckpt, out: Path, settings: dict[str, str], as_json: bool) -> None:
    """ChatGLM's own rule needs no calibration, and has a width and a device to choose."""
    import awqbench as ab
    from awqbench.errors import ParameterError

    unknown = settings.keys() - {"bits", "device"}
    bits = settings.get("bits", "4")
    if unknown or not bits.isdigit():
        raise ParameterError(
            f"the chatglm layout takes --set bits=4 or 8 and --set device=cpu, not {settings}."
        )
    record = ab.quantize_chatglm(ckpt, out, bits=int(bits), device=settings.get("device"))
    if as_json:
        typer.echo(json.dumps(record, indent=1))
        return
    typer.echo(f"{len(record['linears'])} linears to {bits} bits on {record['device']}")
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
    as_json: JsonOption = False,
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
