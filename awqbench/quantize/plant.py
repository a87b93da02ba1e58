"""Plant outliers in a model without changing what it computes: a teaching knob.

A norm's weight is multiplied by k in a few channels, and the columns of the linears that
read it are divided by k. In exact arithmetic the model stays the same; activations of
those channels are k times as large, as large language models have them by nature.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from awqbench.errors import ParameterError
from awqbench.formats.checkpoint import Checkpoint, open_checkpoint
from awqbench.formats.writer import CheckpointWriter


def plant_outliers(
    ckpt: Checkpoint | str | Path,
    out: str | Path,
    *,
    factor: float = 30.0,
    channels: int = 4,
    seed: int = 0,
) -> Path:
    """Write a copy of a model with outlier channels that compute nothing new.

    Parameters
    ----------
    ckpt : Checkpoint or str or Path
        Full precision.
    out : str or Path
        Folder to make; weights are stored in float32, so that nothing is rounded.
    factor : float
        How much larger the activations of the planted channels become.
    channels : int
        Planted channels at each norm.
    seed : int
        Which channels.

    Returns
    -------
    Path

    Raises
    ------
    ParameterError
        If `factor` is not positive, or there are fewer channels than asked for.
    AlreadyQuantizedError
        If the model is quantized.
    """
    import torch

    from awqbench.model import BlockRunner
    from awqbench.quantize.folds.apply import fold_scales, share_scales
    from awqbench.quantize.folds.find import trace_sites

    ckpt = open_checkpoint(ckpt)
    ckpt.require_full_precision()
    if not factor > 0:
        raise ParameterError(f"factor is {factor}; it must be positive.")
    runner = BlockRunner(ckpt, dtype=torch.float32)
    rng = np.random.default_rng(seed)
    changed: dict[str, torch.Tensor] = {}
    for i, sites in enumerate(trace_sites(runner)):
        name = runner.block_name(i)
        tensors = {
            path.removeprefix(f"{name}."): ckpt.read(path).float()
            for path in ckpt.tensors
            if path.startswith(f"{name}.")
        }
        for site in sites:
            if site.kind is None or not site.kind.startswith("norm"):
                continue
            if channels > site.in_features:
                raise ParameterError(
                    f"channels is {channels}; {name}.{site.name} has {site.in_features}."
                )
            scales = np.ones(site.in_features, dtype=np.float32)
            scales[rng.choice(site.in_features, channels, replace=False)] = 1 / factor
            fold_scales(tensors, site, share_scales(site, scales))
        changed |= {f"{name}.{path}": tensor for path, tensor in tensors.items()}
    key = "dtype" if "dtype" in ckpt.config else "torch_dtype"
    with CheckpointWriter(out) as writer:
        for path in ckpt.tensors:
            writer.add(path, changed[path] if path in changed else ckpt.read(path).float())
        return writer.finish(ckpt.config | {key: "float32"}, side_files=ckpt)
