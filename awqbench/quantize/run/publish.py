"""The checkpoint of a finished run: its blocks, all else as it was, and the configuration."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from awqbench.formats.checkpoint import Checkpoint
from awqbench.formats.config.quantization import Scheme
from awqbench.formats.config.section import awq_version, quantization_section
from awqbench.formats.convert import dense_linears
from awqbench.formats.layouts import awq
from awqbench.formats.writer import CheckpointWriter
from awqbench.quantize.choices.dense import kept_dense
from awqbench.quantize.run.work import WorkFolder
from awqbench.quantize.settings import Settings

if TYPE_CHECKING:
    from awqbench.model import BlockRunner

RECORD = "awqbench_run"
# A result up to this size is one file, as of other tools; beyond, each block is a shard, and
# tensors outside the blocks are written in shards of this size.
SINGLE_FILE_BYTES = 1_000_000_000


def publish(
    ckpt: Checkpoint,
    out: Path,
    settings: Settings,
    work: WorkFolder,
    runner: BlockRunner,
    record: dict,
) -> None:
    """Write the checkpoint: blocks from the work folder, all else as it was.

    The files of finished blocks become shards as they are; only a small model's are copied
    into one file.
    """
    block_of = {name: i for i in range(runner.n_blocks) for name in runner.stored_names(i).values()}
    rest = [name for name in ckpt.tensors if name not in block_of]
    files = [work.blocks.path(i) for i in range(runner.n_blocks)]
    nbytes = sum(file.stat().st_size for file in files)
    nbytes += sum(ckpt.tensors[name].nbytes for name in rest)
    with CheckpointWriter(
        out, max_shard_bytes=SINGLE_FILE_BYTES, partial=work.result_path
    ) as writer:
        for name in rest:
            writer.add(name, ckpt.read(name))
        for file in files:
            if nbytes > SINGLE_FILE_BYTES:
                writer.adopt(file)
            else:
                _copy(file, writer)
        section = section_of(ckpt, settings, runner)
        text = json.dumps(record, indent=1) + "\n"
        config = ckpt.config | {"quantization_config": section}
        writer.finish(config, side_files=ckpt, **{RECORD: text})


def _copy(file: Path, writer: CheckpointWriter) -> None:
    from safetensors import safe_open

    with safe_open(file, framework="pt") as tensors:
        for name in tensors.keys():
            writer.add(name, tensors.get_tensor(name))


def stored_prefix(names: Mapping[str, str], block: str) -> str:
    """Return what a block's tensors are called in the folder, up to their path in it.

    Parameters
    ----------
    names : mapping of str to str
        Name in the folder by path in the block.
    block : str
        Path of the block in the model, where no tensor tells.
    """
    found = (n.removesuffix(f".{path}") for path, n in names.items() if n.endswith(f".{path}"))
    return next(found, block)


def section_of(ckpt: Checkpoint, settings: Settings, runner: BlockRunner) -> dict:
    """Return the folder's `quantization_config`; FormatError if the layout cannot hold it."""
    shapes = runner.linear_shapes()
    automatic = kept_dense(runner, settings)
    schemes: dict[str, Scheme] = {}
    for i in range(runner.n_blocks):
        for path, name in runner.stored_names(i).items():
            linear = f"{runner.block_name(i)}.{path.removesuffix('.weight')}"
            module = name.removesuffix(".weight")
            if not path.endswith(".weight") or linear not in shapes or module in automatic:
                continue
            if settings.converts(linear):
                own = settings.for_linear(linear)
                schemes[module] = Scheme(own.bits, own.group_size, own.zero_point)
    # As the user named them, for readers to look for; rules and routers have no such names.
    if settings.layout.startswith("awq-") and not settings.rules and not automatic:
        section = awq.quantization_config(
            bits=settings.bits,
            group_size=settings.group_size,
            modules_to_not_convert=list(settings.modules_to_not_convert) or None,
        )
        return section | {"version": awq_version(settings.layout)}
    dense = [name for name in dense_linears(ckpt, list(ckpt.tensors)) if name not in schemes]
    return quantization_section(settings.layout, schemes, dense)
