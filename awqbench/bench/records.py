"""Measurements as JSON Lines: one run a line, with the machine, versions, commit and date."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from awqbench.bench.machine import machine_record
from awqbench.errors import FormatError, OutputError

if TYPE_CHECKING:
    import pandas as pd

# Packages that may stand in a table as peers; the machine record has the others.
PEER_PACKAGES = (
    "onnx",
    "onnxruntime",
    "openvino",
    "gptqmodel",
    "llama-cpp-python",
    "humming-kernels",
    "gemlite",
)


def make_record(
    benchmark: str,
    table: pd.DataFrame,
    settings: dict[str, Any],
    *,
    ceilings: dict[str, Any] | None = None,
    is_complete: bool = True,
) -> dict[str, Any]:
    """Return one run as plain JSON data.

    Parameters
    ----------
    benchmark : str
        Its name, such as ``gemm``.
    table : DataFrame
        The rows; what does not apply (NaN) becomes null. `attrs["absent"]` is kept.
    settings : dict
        What was asked for.
    ceilings : dict, optional
        Of the machine, `Ceilings._asdict()`.
    is_complete : bool
        False if the run was interrupted.
    """
    return {
        "benchmark": benchmark,
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "is_complete": is_complete,
        "settings": settings,
        "ceilings": ceilings,
        "rows": json.loads(table.to_json(orient="records", double_precision=15)),
        "absent": table.attrs.get("absent", {}),
        "peers": _versions(),
        "machine": machine_record().to_dict(),
    }


def _versions() -> dict[str, str]:
    found = {}
    for name in PEER_PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def require_appendable(file: str | Path) -> None:
    """Check that records can be added to a file, before an hour is spent on them.

    Raises
    ------
    OutputError
        If it cannot be written.
    """
    file = Path(file)
    is_new = not file.exists()
    _append(file, "")
    if is_new:
        file.unlink()


def append_record(file: str | Path, record: dict[str, Any]) -> None:
    """Add a line to a JSON Lines file, making it and its folder where there is none.

    Raises
    ------
    OutputError
        If it cannot be written.
    """
    _append(Path(file), json.dumps(record, allow_nan=False) + "\n")


def _append(file: Path, text: str) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("a", encoding="utf-8") as out:
            out.write(text)
    except OSError as error:
        raise OutputError(f"cannot write {file}: {error.strerror}.") from error


def read_records(file: str | Path) -> list[dict[str, Any]]:
    """Return the runs in a JSON Lines file, oldest first.

    Raises
    ------
    FormatError
        If it cannot be read, or a line is not a JSON object; names the line.
    """
    file = Path(file)
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise FormatError(f"{file.name} cannot be read: {error}.") from error
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
        except ValueError as error:
            raise FormatError(f"{file.name}, line {number}: not JSON ({error}).") from error
        if not isinstance(record, dict):
            raise FormatError(f"{file.name}, line {number}: not a JSON object.")
        records.append(record)
    return records
