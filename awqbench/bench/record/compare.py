"""How many times faster is one machine, or version, than another? By records of both."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from awqbench.bench.record.check import Record, check_digest
from awqbench.bench.record.files import case_key, read_machine_records
from awqbench.bench.record.statistics import Interval, block_medians, ratio_interval
from awqbench.errors import EmulatedTimingError, ParameterError, RecordConsistencyError

if TYPE_CHECKING:
    import pandas as pd

NORMALIZE = ("none", "bandwidth", "clock")
# Together, all "faster" and "slower" of a comparison are wrong at most this often.
_ERROR_RATE = 0.05
# An interval that ends at more than this many times its begin tells nothing.
_TELLING = 4


def compare_records(
    a: str | Path | Sequence[Record],
    b: str | Path | Sequence[Record],
    *,
    normalize: str = "none",
) -> pd.DataFrame:
    """Compare two files of records, case by case.

    Parameters
    ----------
    a, b : str, Path, or sequence of dict
        Files, or what `read_machine_records` returns.
    normalize : {"none", "bandwidth", "clock"}
        "bandwidth" compares bytes a second as a share of what memory gave at as many threads
        in the same blocks; "clock" compares cycles.

    Returns
    -------
    DataFrame
        A row for each case of both: its fields, `a_s` and `b_s` (seconds, the geometric mean
        of blocks' medians), `ratio`
        (b is so many times faster than a), `low`, `high`, and `verdict`: "equal" where the
        interval holds 1 ("undecided" if it spans a factor of four or more: the machine was too
        restless to tell), else "b faster" or "b slower". Intervals are wide enough that in 95
        of 100 comparisons of equal machines every case is "equal". `attrs["warnings"]`
        lists what differs in versions, `attrs["only_a"]` and `attrs["only_b"]` count cases
        without a partner.

    Raises
    ------
    ParameterError
        If `normalize` is none of the three, or what it needs was not measured.
    EmulatedTimingError
        If a record is of an emulated processor.
    RecordError
        If a record is damaged, was changed, or its output is not its kernel's.
    """
    import pandas as pd

    if normalize not in NORMALIZE:
        raise ParameterError(f"normalize is {normalize!r}; choose {', '.join(NORMALIZE)}.")
    sides = [_checked(side, name) for side, name in ((a, "A"), (b, "B"))]
    by_case = [{case_key(record): record for record in side} for side in sides]
    shared = [key for key in by_case[0] if key in by_case[1]]
    if not shared:
        raise RecordConsistencyError(
            f"A has {len(by_case[0])} cases and B {len(by_case[1])}, and none is in both: record "
            "both with the same shapes and threads."
        )
    level = 1 - _ERROR_RATE / len(shared)
    rows = []
    for key in shared:
        pair = [cases[key] for cases in by_case]
        if normalize == "bandwidth" and pair[0]["case"]["kernel"] == "read":
            continue
        values = [
            _blocks(record, side, normalize) for record, side in zip(pair, sides, strict=True)
        ]
        found = _interval(*values, level=level)
        rows.append(_row(pair, found))
    table = pd.DataFrame(rows)
    table.attrs["warnings"] = _warnings(*(side[0] for side in sides))
    for name, mine, other in (("only_a", 0, 1), ("only_b", 1, 0)):
        table.attrs[name] = len(by_case[mine].keys() - by_case[other].keys())
    return table


def _checked(side: str | Path | Sequence[Record], name: str) -> list[Record]:
    records = read_machine_records(side) if isinstance(side, str | Path) else list(side)
    where = Path(side).name if isinstance(side, str | Path) else name
    for number, record in enumerate(records, start=1):
        if record["provenance"] == "emulated":
            raise EmulatedTimingError(
                f"{where}, line {number}: of an emulated processor, which has no times to "
                "compare; compare records that were measured."
            )
        check_digest(record, where=f"{where}, line {number}")
    return records


def _blocks(record: Record, side: Sequence[Record], normalize: str) -> np.ndarray:
    """Return what is compared, a value a block: seconds, seconds x GB/s, or cycles."""
    samples = record["samples_s"]
    if not samples:
        return np.array([record["stat"]["median_s"]])
    seconds = block_medians(samples, record["block_size"])
    if normalize == "clock":
        mhz = record["freq"]["measured_mhz"]
        if not mhz:
            raise ParameterError(
                "the clock was not measured on one of the machines (that takes a C++ compiler); "
                "normalize by bandwidth instead."
            )
        return seconds * mhz
    if normalize == "bandwidth":
        return seconds * _bandwidth(side, record, len(seconds))
    return seconds


def _bandwidth(side: Sequence[Record], record: Record, blocks: int) -> np.ndarray:
    threads = record["case"]["threads"]
    for other in side:
        if other["case"]["kernel"] == "read" and other["case"]["threads"] == threads:
            rates = other["bytes_per_call"] / block_medians(other["samples_s"], other["block_size"])
            return rates if len(rates) == blocks else np.full(blocks, np.median(rates))
    raise ParameterError(
        f"no bandwidth at {threads} threads beside {record['case']['kernel']} by "
        f"{record['case']['backend']}; compare without normalizing."
    )


def _interval(a: np.ndarray, b: np.ndarray, *, level: float) -> Interval:
    """Return how many times faster b is; an unbounded interval where blocks are too few."""
    if min(len(a), len(b)) < 2:
        return Interval(float(np.median(a) / np.median(b)), 0.0, float("inf"))
    return ratio_interval(a, b, level=level)


def _row(pair: Sequence[Record], found: Interval) -> dict[str, Any]:
    if not found.holds_one:
        verdict = "b faster" if found.value > 1 else "b slower"
    else:
        verdict = "equal" if found.high <= _TELLING * found.low else "undecided"
    first, second = (_typical_s(record) for record in pair)
    figures = {"a_s": first, "b_s": second, "ratio": found.value}
    return pair[0]["case"] | figures | {"low": found.low, "high": found.high, "verdict": verdict}


def _typical_s(record: Record) -> float:
    if not record["samples_s"]:
        return record["stat"]["median_s"]
    return float(np.exp(np.log(block_medians(record["samples_s"], record["block_size"])).mean()))


def _warnings(a: Record, b: Record) -> list[str]:
    """Say what differs between two runs beside the machine."""
    found = []
    for group in ("tool", "software"):
        for key in sorted(a[group].keys() | b[group].keys()):
            one, other = a[group].get(key), b[group].get(key)
            if one != other:
                found.append(f"{key} differs: {one} and {other}")
    if a["machine"]["id"] == b["machine"]["id"]:
        return found
    return [f"machines differ: {a['machine']['cpu']} and {b['machine']['cpu']}", *found]
