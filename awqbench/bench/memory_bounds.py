"""What a kernel on one thread waits for: arithmetic, memory's rate, or neither alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from awqbench.bench.record.check import Record

if TYPE_CHECKING:
    import pandas as pd

# A bound that accounts for this share of the time is said to be the one.
_MOST = 0.75
COLUMNS = (
    "machine", "backend", "activations", "of_read", "cycles", "reading", "in_cache", "waits_for",
)  # fmt: skip


def memory_bounds(records: Sequence[Record], loops: pd.DataFrame, loops_cpu: str) -> pd.DataFrame:
    """Split the cycles of each product of packed weights, from memory and on one thread.

    Parameters
    ----------
    records : sequence of dict
        Of machines; those whose clock was not measured have no cycles and are left out.
    loops : DataFrame
        Rows of a ``static_throughput`` record: the `measured_here` ones are the kernels' loops
        with all data in the first cache.
    loops_cpu : str
        The processor that they were measured on; other machines have no such figure.

    Returns
    -------
    DataFrame
        `COLUMNS`, the largest shape of each kernel: `of_read` is the rate of weights as a share
        of what reading alone gave in the same run; and for 1024 weights `cycles` as measured,
        `reading` what their bytes take at that rate, `in_cache` what the loop takes without
        waiting (NaN where it was not measured). `waits_for` is "memory" or "arithmetic" where
        that is most of the cycles, else "both in turn": what more lines in flight, or
        prefetching, would hide.
    """
    import pandas as pd

    rows = []
    for record in _largest(records):
        case, derived = record["case"], record["derived"]
        read = record["bandwidth"]["read_gb_s"].get("1")
        cycles = derived["cycles_per_1024_weights"]
        if read is None or cycles is None:
            continue
        reading = cycles * derived["gb_s"] / read
        is_same = record["machine"]["cpu"] == loops_cpu
        in_cache = _loop_cycles(case, loops) if is_same else float("nan")
        rows.append(
            {
                "machine": f"{record['machine']['cpu']} {record['machine']['id'][:8]}",
                "backend": case["backend"],
                "activations": case["act_dtype"],
                "of_read": derived["gb_s"] / read,
                "cycles": cycles,
                "reading": reading,
                "in_cache": in_cache,
                "waits_for": _bound(cycles, reading, in_cache),
            }
        )
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _largest(records: Sequence[Record]) -> list[Record]:
    """Return the record of the largest shape of each machine's products on one thread."""
    found: dict[tuple, Record] = {}
    for record in records:
        case = record["case"]
        if case["kernel"] != "gemm" or case["threads"] != 1 or record["provenance"] == "emulated":
            continue
        key = (record["machine"]["id"], case["backend"], case["act_dtype"])
        known = found.setdefault(key, record)
        if record["bytes_per_call"] > known["bytes_per_call"]:
            found[key] = record
    return list(found.values())


def _loop_cycles(case: dict, loops: pd.DataFrame) -> float:
    """Return measured cycles of the native loop of one token, of the level that is chosen."""
    own = loops[(loops["provenance"] == "measured_here") & (loops["tokens"] == case["M"])]
    own = own[own["activations"] == case["act_dtype"]]
    if case["backend"] != "native" or own.empty:
        return float("nan")
    # The chosen level is the widest, which has the fewest instructions.
    return float(own.loc[own["instructions_per_1024"].idxmin(), "measured_cycles_per_1024"])


def _bound(cycles: float, reading: float, in_cache: float) -> str:
    if reading >= _MOST * cycles:
        return "memory"
    if in_cache != in_cache or in_cache >= _MOST * cycles:
        # What is neither reading nor known to be a loop is arithmetic and calls.
        return "arithmetic"
    return "both in turn"
