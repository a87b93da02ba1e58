"""From samples of cases to records: what all lines of a run share, and what is each one's own."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import numpy as np

from awqbench.bench.record.check import Record, derive
from awqbench.bench.record.statistics import summarise

SCHEMA = 1


@dataclass
class Series:
    """The samples of one case; whole blocks only are kept."""

    case: dict[str, Any]
    nbytes: int
    working_set: int
    digests: dict[str, str | None] = field(default_factory=dict)
    rel_error: float | None = None
    samples_s: list[float] = field(default_factory=list)


def shared_fields(note: str) -> dict[str, Any]:
    """Return what every record of a run says of this machine and its software."""
    from awqbench.bench.isa import isa_flags
    from awqbench.bench.record.host import describe_machine, describe_software, describe_tool

    return {
        "schema": SCHEMA,
        "provenance": "measured",
        "utc": datetime.now(UTC).isoformat(timespec="seconds"),
        "tool": describe_tool(),
        "machine": describe_machine(),
        "isa": isa_flags(),
        "software": describe_software(),
        "note": note,
    }


def timed_records(
    series: Sequence[Series], shared: dict[str, Any], block_size: int, blocks: int
) -> list[Record]:
    """Return the records of cases that were timed, not yet sealed.

    Parameters
    ----------
    series : sequence of Series
        Among them reading memory, whose rates stand in every record.
    shared : dict
        Of `shared_fields`, with `freq` and `load_avg`.
    block_size, blocks : int
        Samples of a block, and how many blocks were whole; others are dropped.
    """
    kept = [s for s in series if len(s.samples_s) >= blocks * block_size]
    for one in kept:
        del one.samples_s[blocks * block_size :]
    reads = {s.case["threads"]: s for s in kept if s.case["kernel"] == "read"}
    rates = {
        str(count): one.nbytes / float(np.median(one.samples_s)) / 1e9
        for count, one in reads.items()
    }
    bandwidth = {"read_gb_s": rates, "buffer_bytes": reads[min(reads)].nbytes}
    timed = {"bandwidth": bandwidth, "block_size": block_size, "n_warmup": 1}
    return [_timed_record(one, shared | timed) for one in kept]


def _timed_record(series: Series, shared: dict[str, Any]) -> Record:
    record = untimed_record(series, shared) | {
        "samples_s": series.samples_s,
        "bytes_per_call": series.nbytes,
        "working_set_bytes": series.working_set,
        "stat": summarise(series.samples_s, shared["block_size"]),
    }
    return record | {"derived": derive(record)}


def untimed_record(series: Series, shared: dict[str, Any]) -> Record:
    """Return the record of what one case gave, without any time."""
    return shared | {
        "id": str(uuid.uuid4()),
        "case": series.case,
        "digest": series.digests,
        "rel_error": series.rel_error,
    }
