"""One pass of a text through the full-precision model, block by block: the statistics.

Every later question - scales, clip, rounding, bits, group size - is answered from what is
collected here; the model is not run again.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from awqbench.errors import CalibrationTextError
from awqbench.progress import progress_bar
from awqbench.quantize.collect import BATCH_SIZE, Calibration, Sketching
from awqbench.quantize.stats import Stats, new_stats_folder, save_manifest

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
        If `out` cannot be written or holds other files.
    NonFiniteError
        If a weight of the model is NaN or infinite.
    """
    from awqbench.formats.checkpoint import open_checkpoint
    from awqbench.model import BlockRunner
    from awqbench.quantize.fold import trace_sites

    ckpt = open_checkpoint(ckpt)
    ckpt.require_full_precision()
    tokens = checked_tokens(tokens)
    folder = new_stats_folder(out)
    runner = BlockRunner(ckpt, dtype=run_dtype(ckpt, dtype))
    sites_of = trace_sites(runner)
    run = Calibration(
        runner,
        sites_of,
        tokens,
        folder,
        batch_size=batch_size,
        sketch=sketch,
        route_all_experts=route_all_experts,
    )
    wanted = range(runner.n_blocks)
    for _ in progress_bar(run.blocks(wanted), "calibrate", unit="block", total=len(wanted)):
        pass
    return save_manifest(folder, run.manifest())


def checked_tokens(tokens: np.ndarray) -> np.ndarray:
    """Return token ids as (n, seq) int64.

    Raises
    ------
    CalibrationTextError
        If they are not that.
    """
    tokens = np.asarray(tokens)
    if tokens.ndim != 2 or tokens.size == 0 or not np.issubdtype(tokens.dtype, np.integer):
        raise CalibrationTextError(
            f"tokens are {tokens.dtype} of shape {tokens.shape}; expected (n_samples, seq_len) "
            "integers with at least one window, as text_tokens() gives them."
        )
    return tokens.astype(np.int64, copy=False)


def run_dtype(ckpt: Checkpoint, name: str | None) -> torch.dtype | None:
    """Return the torch dtype to run a model in, None for the checkpoint's own."""
    import torch

    if name is not None:
        return getattr(torch, name)
    halves = sum(info.nbytes for info in ckpt.tensors.values() if info.dtype == "float16")
    return torch.float32 if halves > ckpt.nbytes / 2 else None
