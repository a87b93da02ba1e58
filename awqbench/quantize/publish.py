"""The checkpoint of a finished run: its blocks, all else as it was, and the configuration."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from awqbench.formats.checkpoint import Checkpoint
from awqbench.formats.config.quantization import Scheme
from awqbench.formats.config.section import awq_version, quantization_section
from awqbench.formats.convert import dense_linears
from awqbench.formats.layouts import awq
from awqbench.formats.writer import CheckpointWriter
from awqbench.quantize.settings import Settings
from awqbench.quantize.work import WorkFolder

if TYPE_CHECKING:
    from awqbench.model import BlockRunner

RECORD = "awqbench_run"


def publish(
    ckpt: Checkpoint,
    out: Path,
    settings: Settings,
    work: WorkFolder,
    runner: BlockRunner,
    record: dict,
) -> None:
    """Write the checkpoint: blocks from the work folder, all else as it was."""
    block_of, prefix_of = {}, {}
    for i in range(runner.n_blocks):
        for path, name in runner.stored_names(i).items():
            block_of[name], prefix_of[i] = i, name.removesuffix(path)
    written: set[int] = set()
    with CheckpointWriter(out) as writer:
        for name in ckpt.tensors:
            i = block_of.get(name)
            if i is None:
                writer.add(name, ckpt.read(name))
            elif i not in written:
                written.add(i)
                for path, tensor in work.block_tensors(i).items():
                    writer.add(prefix_of[i] + path, tensor)
        section = _section(ckpt, settings, runner)
        text = json.dumps(record, indent=1) + "\n"
        config = ckpt.config | {"quantization_config": section}
        writer.finish(config, side_files=ckpt, **{RECORD: text})


def _section(ckpt: Checkpoint, settings: Settings, runner: BlockRunner) -> dict:
    if settings.layout.startswith("awq-"):  # as the user named them, for readers to look for
        section = awq.quantization_config(
            bits=settings.bits,
            group_size=settings.group_size,
            modules_to_not_convert=list(settings.modules_to_not_convert) or None,
        )
        return section | {"version": awq_version(settings.layout)}
    scheme = Scheme(settings.bits, settings.group_size, settings.zero_point)
    shapes = runner.linear_shapes()
    converted = [
        name.removesuffix(".weight")
        for i in range(runner.n_blocks)
        for path, name in runner.stored_names(i).items()
        if f"{runner.block_name(i)}.{path.removesuffix('.weight')}" in shapes
        and settings.converts(f"{runner.block_name(i)}.{path}")
    ]
    dense = [name for name in dense_linears(ckpt, list(ckpt.tensors)) if name not in converted]
    return quantization_section(settings.layout, dict.fromkeys(converted, scheme), dense)
