"""The search of one block as a task: the same wherever, whenever and however often it runs.

It reads the statistics and the weights of the block from disk and leaves the finished block
there; its arguments are paths, numbers and dictionaries, so that any process can run it.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from awqbench.formats.checkpoint import open_checkpoint
from awqbench.quantize.choices.block import quantize_block
from awqbench.quantize.run.blocks import BlockFiles
from awqbench.quantize.run.device import own_device
from awqbench.quantize.run.device_memory import lack_of_memory_named, largest_need
from awqbench.quantize.run.stored_names import as_stored
from awqbench.quantize.settings import Settings
from awqbench.quantize.statistics.chunk import check_block_weights
from awqbench.quantize.statistics.stats import read_block
from awqbench.quantize.stopwatch import Stopwatch, fixed_threads


def run_block(
    i: int,
    *,
    model: str,
    statistics: str,
    finished: str,
    name: str,
    stored_prefix: str,
    stored_names: Mapping[str, str],
    settings: Mapping[str, Any],
    threads: int,
    device: str = "cpu",
) -> int:
    """Search, fold and round one block, and write it, whole or not at all.

    Parameters
    ----------
    i : int
        Which block.
    model : str
        Folder of the full-precision model.
    statistics : str
        Folder with the block's statistics.
    finished : str
        Folder for the finished block.
    name : str
        Path of the block in the model, for settings and error texts.
    stored_prefix : str
        What its tensors are called in the folder, up to their path in the block.
    stored_names : mapping of str to str
        Name in the folder by path in the block.
    settings : mapping
        ``Settings.as_dict()``.
    threads : int
        To compute on; see `fixed_threads`.
    device : str
        To search on; see `own_device`.

    Returns
    -------
    int
        `i`.

    Raises
    ------
    NonFiniteError, OverflowCastError, StatisticsError, OutputError
        As `quantize_block`, `read_block` and `BlockFiles.save`.
    DeviceError
        If this host has no such device.
    MemoryLimitError
        If the memory of its GPU does not suffice; says how much the block takes.
    """
    import torch

    watch, target = Stopwatch(), own_device(device)
    with fixed_threads(threads):
        with watch("read"):
            ckpt = open_checkpoint(model)
            tensors = {path: ckpt.read(stored) for path, stored in stored_names.items()}
            check_block_weights(tensors, name)
            records = read_block(Path(statistics), i)
            chosen = Settings(**settings)
            rows = {p.removesuffix(".weight"): len(t) for p, t in tensors.items() if t.ndim == 2}
            need = partial(largest_need, records, rows, chosen)
        with watch("search"):
            with lack_of_memory_named(target, need, name=name):
                done = quantize_block(tensors, records, chosen, name=name, device=target)
            if target.type == "cuda":
                # Torch keeps what was freed; other processes may share the GPU.
                torch.cuda.empty_cache()
            renamed = as_stored(done.tensors, stored_names, stored_prefix)
            done = done._replace(tensors=renamed)
        del tensors, records
        BlockFiles(Path(finished)).save(i, stored_prefix, done, watch.seconds)
    return i
