"""The whole run: calibrate, quantize block by block, write a checkpoint and its record.

Every finished block is on disk beside the target folder, so that a run that was stopped
goes on where it was; the target itself appears at the end, whole.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from awqbench.formats.checkpoint import Checkpoint, open_checkpoint
from awqbench.formats.config.limits import check_layout, check_size
from awqbench.formats.writer import require_new_folder
from awqbench.progress import progress_bar
from awqbench.quantize.calibrate import calibrate, check_block_weights, checked_tokens
from awqbench.quantize.fold_block import quantize_block
from awqbench.quantize.publish import publish
from awqbench.quantize.search import check_alignment, make_settings
from awqbench.quantize.settings import Settings
from awqbench.quantize.stats import Stats, load_stats
from awqbench.quantize.work import WorkFolder
from awqbench.text import text_tokens, tokens_digest

if TYPE_CHECKING:
    from awqbench.model import BlockRunner


def quantize(
    ckpt: Checkpoint | str | Path,
    out: str | Path,
    *,
    stats: Stats | str | Path | None = None,
    tokens: np.ndarray | None = None,
    settings: Settings | None = None,
    resume: bool = True,
    on_block: Callable[[int, int, list[dict]], None] | None = None,
    **changes,
) -> dict:
    """Quantize a model to a checkpoint, in the AutoAWQ layout unless `layout` says another.

    Parameters
    ----------
    ckpt : Checkpoint or str or Path
        A full-precision model.
    out : str or Path
        Folder to make.
    stats : Stats or str or Path, optional
        Of this model; otherwise they are collected from `tokens`.
    tokens : (n, seq) ndarray of int64, optional
        Calibration text; default 128 windows of 512 tokens of the standard library.
    settings : Settings, optional
        The AutoAWQ layouts hold 4 bits with zero points and float16 scales.
    resume : bool
        Go on with an unfinished run of the same model, text and settings; False discards it.
    on_block : callable, optional
        Called after each block, also of those finished before, with its index, the number of
        blocks, and the rows of its linears. What it raises stops the run as Ctrl-C does:
        finished blocks stay for a later run.
    **changes
        Fields of `Settings`, such as ``group_size=64``.

    Returns
    -------
    dict
        The run record, which is also written to the folder as ``awqbench_run.json``:
        settings, versions, machine, digests of model and text, the table of linears, what
        was masked or repaired, times.

    Raises
    ------
    AlreadyQuantizedError, FormatError, AlignmentError, NonFiniteError, OutputError
        Before or during the run; nothing half-written is left in `out`.
    ResumeError
        If an unfinished run is there with other settings, and `resume` is true.
    """
    from awqbench.model import BlockRunner

    started = time.perf_counter()
    ckpt = open_checkpoint(ckpt)
    ckpt.require_full_precision()
    settings = make_settings(settings, **changes)
    check_layout(settings.layout, settings)
    out = require_new_folder(out)
    runner = BlockRunner(ckpt)
    _check_shapes(runner, settings)
    if stats is None:
        tokens = text_tokens(ckpt) if tokens is None else checked_tokens(tokens)
        text_digest = tokens_digest(tokens)
    else:
        stats = load_stats(stats)
        stats.check(ckpt)
        text_digest = stats.manifest["calibration_digest"]
    work = WorkFolder(out, _identity(ckpt, settings, text_digest), resume=resume)
    with work:
        calibrated = time.perf_counter()
        if stats is None:
            stats = work.stats() or calibrate(ckpt, tokens, work.stats_path)
        check_alignment(stats, settings)
        searched = time.perf_counter()
        for i in progress_bar(range(runner.n_blocks), "quantize", unit="block"):
            if not work.has_block(i):
                tensors = _block_tensors(runner, i)
                check_block_weights(tensors, runner.block_name(i))
                done = quantize_block(tensors, stats.block(i), settings, name=runner.block_name(i))
                work.save_block(i, done)
            if on_block is not None:
                on_block(i, runner.n_blocks, work.block_tables(i)["rows"])
        times = {
            "calibrate_s": searched - calibrated,
            "search_s": time.perf_counter() - searched,
            "total_s": time.perf_counter() - started,
        }
        record = _record(ckpt, settings, stats, work, runner, times)
        publish(ckpt, out, settings, work, runner, record)
        work.discard()
    return record


def _check_shapes(runner: BlockRunner, settings: Settings) -> None:
    """Check every linear before hours are spent; Ks and Ns are in the model's skeleton."""
    for name, (out_features, in_features) in runner.linear_shapes().items():
        if settings.converts(name):
            settings.group_size_for(in_features, name=name)
            check_size(settings.layout, out_features, in_features, name=name)


def _identity(ckpt: Checkpoint, settings: Settings, text_digest: str) -> dict:
    return {
        "model": ckpt.path.name,
        "model_digest": ckpt.digest,
        "calibration_digest": text_digest,
        "settings": json.loads(json.dumps(settings.as_dict())),
    }


def _block_tensors(runner: BlockRunner, i: int) -> dict:
    """Read a block's tensors as stored, by block-relative path."""
    return {path: runner.ckpt.read(name) for path, name in runner.stored_names(i).items()}


def _record(ckpt, settings, stats, work, runner, times) -> dict:
    from awqbench.bench.machine import machine_record

    rows, curves = [], []
    for i in range(runner.n_blocks):
        block = {"block": runner.block_name(i)}
        tables = work.block_tables(i)
        rows += [block | row for row in tables["rows"]]
        curves += [block | row for row in tables["curves"]]
    return {
        "format": "awqbench-run-1",
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "model": ckpt.path.name,
        "model_digest": ckpt.digest,
        "calibration": {
            key: stats.manifest[key]
            for key in ("calibration_digest", "n_samples", "seq_len", "dtype")
        },
        "settings": settings.as_dict(),
        "times": times,
        "resumed_blocks": work.resumed_blocks,
        "repaired": {
            "masked_channels": sum(row["masked_channels"] for row in rows),
            "flushed_groups": sum(row["flushed_groups"] for row in rows),
            "alarms": sum(bool(row["alarm"]) for row in rows),
        },
        "linears": rows,
        "curves": curves,
        "machine": machine_record().to_dict(),
    }
