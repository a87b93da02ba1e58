"""The whole run: text through the model, block after block searched and written.

A block's statistics are collected, the block is searched and written, and the statistics
are dropped: neither memory nor disk holds those of more than a few blocks. Every finished
block is on disk beside the target folder, with what enters the next one, so that a run that
was stopped, however, goes on where it was; the target itself appears at the end, whole.
"""

from __future__ import annotations

import json
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from awqbench.cluster import check_workers
from awqbench.formats.checkpoint import Checkpoint, open_checkpoint
from awqbench.formats.config.limits import check_size
from awqbench.formats.writer import require_new_folder
from awqbench.quantize.calibrate import run_dtype
from awqbench.quantize.choices.dense import keeps_dense
from awqbench.quantize.choices.rule_checks import check_rules, check_rules_held
from awqbench.quantize.durable import read_json
from awqbench.quantize.run.device import AUTO, chosen_device, settled_device
from awqbench.quantize.run.loop import MakeQueue, OnBlock, Run
from awqbench.quantize.run.publish import RECORD, publish
from awqbench.quantize.run.record import record_of
from awqbench.quantize.run.work import WorkFolder, work_path
from awqbench.quantize.run.workers import queue_on, threads_of_a_share
from awqbench.quantize.search import check_alignment, make_settings
from awqbench.quantize.settings import Settings
from awqbench.quantize.statistics.collect import ALL_EXPERTS
from awqbench.quantize.statistics.stats import Stats, load_stats
from awqbench.quantize.stopwatch import Stopwatch, fixed_threads
from awqbench.text import checked_tokens, text_tokens, tokens_digest

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
    on_block: OnBlock | None = None,
    keep_stats: str | Path | None = None,
    max_memory: int | str | None = None,
    threads: int | None = None,
    workers: int | None = None,
    scheduler: str | None = None,
    route_all_experts: bool = False,
    device: str = AUTO,
    make_queue: MakeQueue | None = None,
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
        Of this model; otherwise they are collected from `tokens`, block by block.
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
    keep_stats : str or Path, optional
        Folder to leave the statistics in; by default those of a block are dropped when the
        block is finished.
    max_memory : int or str, optional
        What each process may take, such as ``"6GiB"``; default most of what is free. Hidden
        states that do not fit are read from disk, and a sketch stands in for an H that does
        not.
    threads : int, optional
        Threads of torch in each process, which last bits depend on; default torch's number,
        or a share of it with several workers. The same number gives the same bytes, whoever
        does the work. A run that goes on keeps the number it began with.
    workers : int, optional
        Processes that share the work, the search of blocks and the text's way through the next
        one; needs the extra ``cluster``. By default, and with 1, this process does all.
    scheduler : str, optional
        Address of a Dask scheduler in place of own processes; its workers see `ckpt` and the
        folder of `out` under the same paths.
    route_all_experts : bool
        Collect the statistics of a mixture's experts on every token; see `calibrate`.
    device : str
        To search blocks on: ``"cpu"``, ``"cuda"`` (each process takes a GPU of its host) or
        one such as ``"cuda:1"``; ``"auto"`` is a GPU where torch finds one in this process.
        Last bits depend on it, so that a run that goes on keeps it.
    make_queue : callable, optional
        Makes another queue; see `awqbench.quantize.run.queue`.
    **changes
        Fields of `Settings`, such as ``group_size=64``.

    Returns
    -------
    dict
        The run record, which is also written to the folder as ``awqbench_run.json``:
        settings, versions, machine, digests of model and text, the table of linears, what
        was masked or repaired, times. ``times``, ``finished``, ``resumed_blocks``,
        ``damaged_blocks`` and ``memory`` tell of the run and differ from one to the next;
        all else, and every other file, is the same for the same input on one machine.

    Raises
    ------
    AlreadyQuantizedError, FormatError, AlignmentError, NonFiniteError, OutputError
        Before or during the run; nothing half-written is left in `out`.
    MemoryLimitError
        If not even one block fits into `max_memory`, before any work; or a search into the
        memory of its GPU.
    ResumeError
        If an unfinished run is there with other settings, or blocks of it were searched on
        another device, and `resume` is true.
    DeviceError
        If `device` is not there; before any work, unless on a worker of another host.
    ClusterError
        If workers cannot be had, or are lost; finished blocks stay for a later run.
    """
    from awqbench.model import BlockRunner

    watch = Stopwatch()
    started = time.perf_counter()
    ckpt = open_checkpoint(ckpt)
    ckpt.require_full_precision()
    settings = make_settings(settings, **changes)
    check_workers(workers)
    elsewhere = scheduler is not None
    chosen_device(device, elsewhere=elsewhere)
    out = Path(out).expanduser().absolute()
    with watch("read"):
        runner = BlockRunner(ckpt, dtype=None if stats is not None else run_dtype(ckpt, None))
    _check_shapes(runner, settings)
    if stats is None:
        tokens = text_tokens(ckpt) if tokens is None else checked_tokens(tokens)
        text_digest = tokens_digest(tokens)
    else:
        stats = load_stats(stats)
        stats.check(ckpt)
        check_alignment(stats, settings)
        text_digest = stats.manifest["calibration_digest"]
    identity = _identity(ckpt, settings, text_digest, route_all_experts=route_all_experts)
    done = _finished_before(out, identity)
    if done is not None:
        return done
    require_new_folder(out)
    run = Run(ckpt, runner, settings, watch)
    threads = threads or threads_of_a_share(workers)
    with (
        queue_on(workers, scheduler) as own_queue,
        WorkFolder(out, identity, resume=resume) as work,
    ):
        for i in work.damaged:
            name = runner.block_name(i)
            warnings.warn(f"{name} of the unfinished run is damaged: redone.", stacklevel=2)
        run.device = settled_device(device, work, elsewhere=elsewhere)
        if stats is None:
            run.plan(
                work,
                tokens,
                max_memory=max_memory,
                threads=threads,
                keep_stats=keep_stats,
                route_all_experts=route_all_experts,
            )
        else:
            run.given(work, stats, threads)
        with fixed_threads(work.facts["threads"]):
            run.all_blocks(work, make_queue or own_queue, on_block)
            manifest = run.manifest()
            record = record_of(ckpt, settings, manifest, work, runner)
            record["memory"] = run.memory()
            record["times"] = run.times(work, started)
            with watch("write"):
                publish(ckpt, out, settings, work, runner, record)
        work.discard()
    return record


def _finished_before(out: Path, identity: dict) -> dict | None:
    """Return the record of a run that was stopped while it removed its work folder."""
    record = read_json(out / f"{RECORD}.json")
    if record is None or not work_path(out).exists():
        return None
    calibration = record.get("calibration", {})
    of = {key: record.get(key) for key in ("model", "model_digest", "settings")}
    of["calibration_digest"] = calibration.get("calibration_digest")
    if calibration.get("routing") == ALL_EXPERTS:
        of["routing"] = ALL_EXPERTS
    if of != identity:
        return None
    with WorkFolder(out, identity, resume=False) as work:
        work.discard()
    return record


def _check_shapes(runner: BlockRunner, settings: Settings) -> None:
    """Check every linear before hours are spent; Ks and Ns are in the model's skeleton."""
    shapes = {
        name: shape
        for name, shape in runner.linear_shapes().items()
        if not keeps_dense(name, shape, settings.layout)
    }
    check_rules(settings, shapes)
    check_rules_held(settings, shapes)
    for name, (out_features, in_features) in shapes.items():
        if settings.converts(name):
            settings.group_size_for(in_features, name=name)
            check_size(settings.layout, out_features, in_features, name=name)


def _identity(
    ckpt: Checkpoint, settings: Settings, text_digest: str, *, route_all_experts: bool
) -> dict:
    identity = {
        "model": ckpt.path.name,
        "model_digest": ckpt.digest,
        "calibration_digest": text_digest,
        "settings": json.loads(json.dumps(settings.as_dict())),
    }
    return identity | ({"routing": ALL_EXPERTS} if route_all_experts else {})
