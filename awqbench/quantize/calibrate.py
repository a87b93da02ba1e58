"""One pass of a text through the full-precision model, block by block: the statistics.

Every later question - scales, clip, rounding, bits, group size - is answered from what is
collected here; the model is not run again.
"""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from awqbench.errors import CalibrationTextError, NonFiniteError
from awqbench.progress import progress_bar
from awqbench.quantize.moments import Moments
from awqbench.quantize.stats import FORMAT, Stats, new_stats_folder, save_block, save_manifest
from awqbench.text import tokens_digest

if TYPE_CHECKING:
    import torch

    from awqbench.formats.checkpoint import Checkpoint
    from awqbench.model import BlockInputs, BlockRunner
    from awqbench.quantize.fold import Site

# A Gram matrix of more channels than this takes over 1 GiB; a sketch is kept instead.
SKETCH_ABOVE = 16384
SKETCH_ROWS = 1024


class Sketching(NamedTuple):
    """Sites with more than `above` channels keep a sketch of `rows` rows in place of H."""

    above: int = SKETCH_ABOVE
    rows: int = SKETCH_ROWS


def calibrate(
    ckpt: Checkpoint | str | Path,
    tokens: np.ndarray,
    out: str | Path = "stats",
    *,
    dtype: str | None = None,
    batch_size: int = 8,
    sketch: Sketching = Sketching(),  # noqa: B008 (immutable)
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
    chunks = _embed(runner, tokens, batch_size)
    for i in progress_bar(range(runner.n_blocks), "calibrate", unit="block"):
        block = runner.load_block(i)
        check_block_weights(dict(block.named_parameters()), runner.block_name(i))
        sites = [site for site in sites_of[i] if site.linears]
        moments = [_moments_for(site, sketch, seed=i) for site in sites]
        with _collecting(block, sites, moments):
            for j, chunk in enumerate(chunks):
                chunks[j] = runner.run_block(block, i, chunk)
        save_block(folder, i, [(s, m.tensors()) for s, m in zip(sites, moments, strict=True)])
    manifest = {
        "format": FORMAT,
        "model_name": ckpt.path.name,
        "model_digest": ckpt.digest,
        "calibration_digest": tokens_digest(tokens),
        "n_samples": int(tokens.shape[0]),
        "seq_len": int(tokens.shape[1]),
        "dtype": str(runner.dtype).removeprefix("torch."),
        "sketch_rows": sketch.rows,
        "n_blocks": runner.n_blocks,
        "prefix": runner.prefix,
        "in_features": {
            f"{runner.block_name(i)}.{path}": site.in_features
            for i, sites in enumerate(sites_of)
            for site in sites
            for path in site.linears
        },
    }
    return save_manifest(folder, manifest)


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


def _embed(runner: BlockRunner, tokens: np.ndarray, batch_size: int) -> list[BlockInputs]:
    import torch

    batches = torch.from_numpy(np.ascontiguousarray(tokens)).split(batch_size)
    return [runner.embed(batch) for batch in batches]


def _moments_for(site: Site, sketch: Sketching, *, seed: int) -> Moments:
    rows = sketch.rows if site.in_features > sketch.above else None
    return Moments(site.in_features, sketch_rows=rows, seed=seed)


def check_block_weights(tensors: dict[str, torch.Tensor], name: str) -> None:
    """Raise if a block's weights hold NaN or infinity.

    Parameters
    ----------
    tensors : dict of str to torch.Tensor
        By block-relative path.
    name : str
        Path of the block.

    Raises
    ------
    NonFiniteError
        Names the tensor and counts its bad elements.
    """
    import torch

    for path, tensor in tensors.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            bad = int((~torch.isfinite(tensor)).sum())
            raise NonFiniteError(
                f"{name}.{path} holds NaN or inf ({bad} of {tensor.numel()} elements); the "
                "checkpoint is damaged or was saved in a dtype too small for it: convert it "
                "again from the original."
            )


@contextmanager
def _collecting(block: torch.nn.Module, sites: list[Site], moments: list[Moments]):
    """Add what enters each site's first linear to its moments, while the context lasts."""
    handles = []
    for site, sums in zip(sites, moments, strict=True):

        def hook(_module, args, sums=sums):
            sums.add(args[0])

        linear = block.get_submodule(site.linears[0])
        handles.append(linear.register_forward_pre_hook(hook))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
