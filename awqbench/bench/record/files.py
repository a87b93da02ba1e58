"""Records on disk: JSON Lines, written whole or not at all, and checked when read."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

from awqbench.bench.record.check import Record, check_record, seal
from awqbench.errors import FormatError, OutputError, RecordConsistencyError


def require_new(file: str | Path) -> Path:
    """Check that records can be written to a new file, before minutes are spent on them.

    Raises
    ------
    OutputError
        If it exists, or its folder cannot be written.
    """
    file = Path(file)
    if file.exists():
        raise OutputError(f"{file} exists; a run has a file of its own: give another name.")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot write {file}: {error.strerror}.") from error
    if not os.access(file.parent, os.W_OK):
        raise OutputError(f"cannot write {file}: the folder {file.parent} is read-only.")
    return file


def write_records(file: str | Path, records: Sequence[Record]) -> Path:
    """Seal, check and write records, one a line; the file appears when all are in it.

    Parameters
    ----------
    file : str or Path
        A new one.
    records : sequence of dict

    Returns
    -------
    Path

    Raises
    ------
    RecordError
        If a record is not what it should be; nothing is written then.
    OutputError
        As `require_new`.
    """
    file = require_new(file)
    sealed = [seal(record) for record in records]
    for number, record in enumerate(sealed, start=1):
        check_record(record, where=f"{file.name}, line {number}")
    part = file.with_name(f".{file.name}.part")
    try:
        part.write_text("".join(f"{json.dumps(r, allow_nan=False)}\n" for r in sealed), "utf-8")
        os.replace(part, file)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise OutputError(f"cannot write {file}: {error.strerror}.") from error
    return file


def read_machine_records(file: str | Path, *, here: str | None = None) -> list[Record]:
    """Read and check the records of a file.

    Parameters
    ----------
    file : str or Path
    here : str, optional
        Id of this machine: what was measured on another one comes back as ``recorded``.

    Returns
    -------
    list of dict

    Raises
    ------
    FormatError
        If the file cannot be read, or a line is no JSON object.
    RecordError
        As `check_record`; also if two lines are of the same case.
    """
    from awqbench.bench.records import read_records

    file = Path(file)
    records = read_records(file)
    if not records:
        raise FormatError(f"{file.name} holds no record.")
    seen: dict[tuple, int] = {}
    for number, record in enumerate(records, start=1):
        check_record(record, where=f"{file.name}, line {number}")
        key = (record["machine"]["id"], record["tool"]["git"], *case_key(record))
        if key in seen:
            raise RecordConsistencyError(
                f"{file.name}: lines {seen[key]} and {number} are of the same case; keep one run "
                "in a file."
            )
        seen[key] = number
    return [_seen_from(record, here) for record in records]


def case_key(record: Record) -> tuple:
    """Return what a case is told by, to join records on."""
    return tuple(sorted(record["case"].items(), key=lambda item: item[0]))


def _seen_from(record: Record, here: str | None) -> Record:
    is_foreign = here is not None and record["machine"]["id"] != here
    if record["provenance"] == "measured" and is_foreign:
        return record | {"provenance": "recorded"}
    return record
