"""Tokens a second from all kinds of evidence in one table, each row with its provenance."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from awqbench.bench.predict import Prediction
from awqbench.bench.record.check import Record
from awqbench.bench.record.files import read_machine_records
from awqbench.errors import EmulatedTimingError

if TYPE_CHECKING:
    import pandas as pd

# A file made here is "measured", and "recorded" when it is read on another machine.
PROVENANCES = ("measured", "recorded", "published", "predicted", "emulated")
# Of the table of throughput; `gb_s` is bytes of weights a token times tokens a second.
ROW = (
    "provenance",
    "arch",
    "chip",
    "machine_id",
    "source",
    "model",
    "quant",
    "software",
    "threads",
    "tok_per_s",
    "low",
    "high",
    "gb_s",
    "bandwidth_gb_s",
    "note",
)
_ARCH_NAMES = {"x86_64": "x86", "aarch64": "ARM"}


def record_rows(records: Iterable[Record]) -> pd.DataFrame:
    """Return the decoding speeds among records as rows of the table.

    Parameters
    ----------
    records : iterable of dict
        Of `read_machine_records`.

    Returns
    -------
    DataFrame
        Columns `ROW`; `low` and `high` from the 90th and the 10th percentile of times.

    Raises
    ------
    EmulatedTimingError
        If one is of an emulated processor.
    """
    import pandas as pd

    rows = []
    for record in records:
        if record["provenance"] == "emulated":
            raise EmulatedTimingError(
                "a record of an emulated processor stands in no table of throughput."
            )
        if record["case"]["kernel"] == "decode":
            rows.append(_record_row(record))
    return pd.DataFrame(rows, columns=list(ROW))


def _record_row(record: Record) -> dict[str, Any]:
    case, machine, stat = record["case"], record["machine"], record["stat"]
    rates = (record["bandwidth"] or {}).get("read_gb_s") or {}
    speed = 1 / stat["median_s"]
    return {
        "provenance": record["provenance"],
        "arch": machine["arch"],
        "chip": machine["cpu"],
        "machine_id": machine["id"][:8],
        "source": record.get("source", ""),
        "model": case["model"],
        "quant": case["quant"],
        "software": case["backend"],
        "threads": case["threads"],
        "tok_per_s": speed,
        "low": 1 / stat["p90_s"] if stat["p90_s"] else speed,
        "high": 1 / stat["p10_s"] if stat["p10_s"] else speed,
        "gb_s": record["derived"]["gb_s"],
        "bandwidth_gb_s": max(rates.values(), default=float("nan")),
        "note": record["note"],
    }


def predicted_row(
    found: Prediction,
    *,
    arch: str,
    chip: str,
    model: str,
    quant: str,
    threads: int,
    bytes_per_token: int,
    bandwidth_gb_s: float,
    source: str,
) -> dict[str, Any]:
    """Return a prediction as a row of the table.

    Parameters
    ----------
    found : Prediction
    arch, chip, model, quant, threads
        What it is of.
    bytes_per_token : int
    bandwidth_gb_s : float
        Of the memory, all threads.
    source : str
        What it was predicted from.

    Returns
    -------
    dict
        By `ROW`.
    """
    figures = {"tok_per_s": found.tok_per_s, "low": found.low, "high": found.high}
    about = {"arch": arch, "chip": chip, "model": model, "quant": quant, "threads": threads}
    empty = dict.fromkeys(ROW, "")
    return empty | about | figures | {
        "provenance": "predicted",
        "source": source,
        "gb_s": bytes_per_token * found.tok_per_s / 1e9,
        "bandwidth_gb_s": bandwidth_gb_s,
        "note": f"bound by {found.bound}",
    }  # fmt: skip


def read_folder(
    folder: str | Path, *, here: str | None = None, isa_filter: Sequence[str] = ()
) -> list[Record]:
    """Read every file of machine records in a folder, ``*.jsonl``.

    Parameters
    ----------
    folder : str or Path
    here : str, optional
        Id of this machine, as `read_machine_records` takes it.
    isa_filter : sequence of str
        Architectures to keep; all by default.

    Raises
    ------
    FormatError, RecordError
        As `read_machine_records`; nothing is passed over.
    """
    found = []
    for file in sorted(Path(folder).glob("*.jsonl")):
        found += read_machine_records(file, here=here)
    return [r for r in found if not isa_filter or r["machine"]["arch"] in isa_filter]


def coverage(table: pd.DataFrame) -> pd.DataFrame:
    """Count rows by architecture and provenance.

    Parameters
    ----------
    table : DataFrame
        With `arch` and `provenance`; emulated rows of correctness may be among them.

    Returns
    -------
    DataFrame
        A row for x86_64 and aarch64 each, and for any other there is; a column for each of
        `PROVENANCES`; zeros are shown.
    """
    import pandas as pd

    counts = pd.crosstab(table["arch"], table["provenance"])
    arches = [*_ARCH_NAMES, *sorted(set(counts.index) - set(_ARCH_NAMES))]
    return counts.reindex(index=arches, columns=list(PROVENANCES), fill_value=0)


def evidence_title(table: pd.DataFrame) -> str:
    """Say what each architecture's figures are, from the rows alone.

    Examples
    --------
    >>> import pandas as pd
    >>> rows = [("x86_64", "measured"), ("aarch64", "published"), ("aarch64", "predicted")]
    >>> evidence_title(pd.DataFrame(rows, columns=["arch", "provenance"]))
    'x86 measured, ARM published and predicted'
    """
    counts = coverage(table)
    parts = []
    for arch, row in counts.iterrows():
        # Where something was measured, that is what the figures are; else all that there is.
        timed = [kind for kind in PROVENANCES[:2] if row[kind]]
        kinds = timed or [kind for kind in PROVENANCES[2:4] if row[kind]] or ["without figures"]
        parts.append(f"{_ARCH_NAMES.get(arch, arch)} {' and '.join(kinds)}")
    return ", ".join(parts)
