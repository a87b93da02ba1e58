"""What a run leaves to read: settings, digests, the table of linears, what was repaired."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from awqbench.formats.checkpoint import Checkpoint
from awqbench.quantize.choices.dense import kept_dense
from awqbench.quantize.run.work import WorkFolder
from awqbench.quantize.settings import Settings
from awqbench.quantize.statistics.experts import experts_record

if TYPE_CHECKING:
    from awqbench.model import BlockRunner


def record_of(
    ckpt: Checkpoint, settings: Settings, manifest: dict, work: WorkFolder, runner: BlockRunner
) -> dict:
    """Return the record of a run whose blocks are all finished."""
    from awqbench.bench.machine import machine_record

    rows, curves = [], []
    for i in range(runner.n_blocks):
        block = {"block": runner.block_name(i)}
        facts = work.blocks.facts(i)
        rows += [block | row for row in facts["rows"]]
        curves += [block | row for row in facts["curves"]]
    return {
        "format": "awqbench-run-1",
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "model": ckpt.path.name,
        "model_digest": ckpt.digest,
        "calibration": manifest,
        "settings": settings.as_dict(),
        "computed_with": work.facts,
        "resumed_blocks": work.resumed_blocks,
        "damaged_blocks": work.damaged,
        "repaired": {
            "masked_channels": sum(row["masked_channels"] for row in rows),
            "flushed_groups": sum(row["flushed_groups"] for row in rows),
            "alarms": sum(bool(row["alarm"]) for row in rows),
        },
        "linears": rows,
        "curves": curves,
        "kept_dense": kept_dense(runner, settings),
        **experts_record(rows),
        "machine": machine_record().to_dict(),
    }
