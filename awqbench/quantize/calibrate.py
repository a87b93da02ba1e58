"""One pass of a text through the full-precision model, block by block: the statistics.

Every later question - scales, clip, rounding, bits, group size - is answered from what is
collected here; the model is not run again. A pass that is stopped goes on from its last block.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from awqbench.progress import progress_bar, status_behind
from awqbench.quantize.run.work import WorkFolder
from awqbench.quantize.run.workers import queue_on, threads_of_a_share
from awqbench.quantize.statistics.activations import Activations
from awqbench.quantize.statistics.chunk import BATCH_SIZE, Sketching
from awqbench.quantize.statistics.collect import ALL_EXPERTS, Calibration
from awqbench.quantize.statistics.stats import Stats, new_stats_folder, save_manifest
from awqbench.quantize.stopwatch import fixed_threads, own_threads
from awqbench.text import checked_tokens, tokens_digest

if TYPE_CHECKING:
    import torch

    from awqbench.formats.checkpoint import Checkpoint


def calibrate(
    ckpt: Checkpoint | str | Path,
    tokens: np.ndarray,
    out: str | Path = "stats",
    *,
    dtype: str | None = None,
    batch_size: int = BATCH_SIZE,
    sketch: Sketching = Sketching(),  # noqa: B008 (immutable)
    route_all_experts: bool = False,
    resume: bool = True,
    threads: int | None = None,
    workers: int | None = None,
    scheduler: str | None = None,
) -> Stats:
    """Collect the statistics of every linear's input on a calibration text.

    Parameters
    ----------
    ckpt : Checkpoint or str or Path
        A full-precision model.
    tokens : (n, seq) ndarray of int64
        As `text_tokens` gives them.
    out : str or Path
        Folder for the statistics.
    dtype : {"float32", "bfloat16", "float16"}, optional
        To run the model in; default the checkpoint's own, and float32 for float16, whose
        activations can overflow.
    batch_size : int
        Windows run at a time.
    sketch : Sketching
    route_all_experts : bool
        Send every token through every expert of a mixture, for the statistics alone: what a
        block gives to the next stays that of the real routing.
    resume : bool
        Go on with an unfinished run into the same folder; False discards it.
    threads, workers, scheduler
        As for `quantize`: the text's way through a block is split among several workers.

    Returns
    -------
    Stats

    Raises
    ------
    AlreadyQuantizedError
        If the model is quantized.
    CalibrationTextError
        If `tokens` is empty or not (n, seq) integers.
    OutputError
        If `out` cannot be written or holds other files, or another run is writing it.
    ResumeError
        If an unfinished run into `out` is of another model or text, and `resume` is true.
    NonFiniteError
        If a weight of the model is NaN or infinite.
    ClusterError
        If workers cannot be had, or are lost; finished blocks stay for a later run.
    """
    from awqbench.formats.checkpoint import open_checkpoint
    from awqbench.model import BlockRunner
    from awqbench.quantize.folds.find import trace_sites

    ckpt = open_checkpoint(ckpt)
    ckpt.require_full_precision()
    tokens = checked_tokens(tokens)
    folder = Path(out).expanduser().absolute()
    runner = BlockRunner(ckpt, dtype=run_dtype(ckpt, dtype))
    identity = {
        "model": ckpt.path.name,
        "model_digest": ckpt.digest,
        "calibration_digest": tokens_digest(tokens),
        "dtype": str(runner.dtype).removeprefix("torch."),
        "routing": ALL_EXPERTS if route_all_experts else "real",
        "sketch": list(sketch),  # also a fact below: what kept statistics are compared by
    }
    threads = threads or threads_of_a_share(workers)
    with (
        queue_on(workers, scheduler) as make_queue,
        WorkFolder(folder, identity, resume=resume) as work,
    ):
        facts = {"threads": threads or own_threads(), "batch_size": batch_size}
        work.settle(facts | {"sketch": list(sketch)})
        new_stats_folder(folder)
        with fixed_threads(work.facts["threads"]):
            activations = Activations(work.files_path)
            run = Calibration(
                runner,
                trace_sites(runner),
                tokens,
                folder,
                batch_size=work.facts["batch_size"],
                sketch=sketch,
                activations=activations,
                route_all_experts=route_all_experts,
            )
            wanted = range(runner.n_blocks)
            queue = make_queue(lambda i: {})  # of its processes; no block is searched
            blocks = run.blocks(
                wanted,
                has=lambda i: work.has_stats(folder, i),
                on_saved=lambda i: work.seal_stats(folder, i),
                spread=queue.spread,
            )
            bar = progress_bar(blocks, "calibrate", unit="block", total=len(wanted))
            try:
                with status_behind(bar, queue.status):
                    for _ in bar:
                        pass
            finally:
                activations.close()
        stats = save_manifest(folder, run.manifest())
        work.discard()
    return stats


def run_dtype(ckpt: Checkpoint, name: str | None) -> torch.dtype | None:
    """Return the torch dtype to run a model in, None for the checkpoint's own."""
    import torch

    if name is not None:
        return getattr(torch, name)
    halves = sum(info.nbytes for info in ckpt.tensors.values() if info.dtype == "float16")
    return torch.float32 if halves > ckpt.nbytes / 2 else None
