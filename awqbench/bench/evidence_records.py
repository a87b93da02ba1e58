"""Records of the repository that say something of ARM without an ARM machine, by name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from awqbench.bench.records import read_records
from awqbench.errors import FormatError, ParameterError

if TYPE_CHECKING:
    import pandas as pd

_RECORDS = Path(__file__).resolve().parents[2] / "data" / "records"
# What writes each record, and its columns, which an absent one has too.
_SOURCES: dict[str, tuple[str, tuple[str, ...]]] = {
    "arm_digests": (
        "arm_emulated.py",
        ("provenance", "name", "what", "results", "same_bits", "largest_error"),
    ),
    "arm_semantics": (
        "arm_emulated.py",
        ("provenance", "operation", "x86_64", "aarch64", "is_same"),
    ),
    "arm_instructions": (
        "arm_instructions.py",
        ("provenance", "processor", "level", "activations", "tokens", "instructions_per_1024"),
    ),
    "static_throughput": (
        "arm_static.py",
        (
            "provenance", "core", "processor", "level", "activations", "tokens",
            "instructions_per_1024", "simulated_cycles_per_1024", "bound_cycles_per_1024",
            "measured_cycles_per_1024", "refused",
        ),
    ),
    "memory_parallelism": (
        "memory_parallelism.py",
        ("chains", "ns_per_line", "gb_s", "lines_in_flight"),
    ),
}  # fmt: skip
NAMES = tuple(_SOURCES)


class Evidence(NamedTuple):
    """The newest run of a benchmark: its rows, on what machine, or why there is none.

    `absent` is "" where there is one; else `rows` is empty with the same columns.
    """

    rows: pd.DataFrame
    cpu: str
    settings: Mapping[str, Any]
    absent: str


def read_evidence(name: str, folder: str | Path | None = None) -> Evidence:
    """Return the newest run of a benchmark whose records the repository holds.

    Parameters
    ----------
    name : str
        One of `NAMES`.
    folder : str or Path, optional
        Default: the repository's data/records.

    Raises
    ------
    ParameterError
        If `name` is none of them.
    FormatError
        If a file is there and cannot be read, or lacks a column.
    """
    if name not in _SOURCES:
        raise ParameterError(f"no evidence {name!r}; choose {', '.join(_SOURCES)}.")
    program, columns = _SOURCES[name]
    file = Path(folder or _RECORDS) / f"{name}.jsonl"
    return newest_run(file, f"python benchmarks/{program}", columns)


def newest_run(file: Path, command: str, columns: tuple[str, ...]) -> Evidence:
    """Return the newest run in a file of records, or an empty one if there is no file.

    Parameters
    ----------
    file : Path
    command : str
        What writes the file: said where there is none.
    columns : tuple of str
        That the rows must have; an absent run has them too.

    Raises
    ------
    FormatError
        If the file cannot be read, or its newest run lacks a column.
    """
    import pandas as pd

    runs = read_records(file) if file.is_file() else []
    if not runs:
        absent = f"not recorded here: {command} writes {file.name}."
        return Evidence(pd.DataFrame(columns=list(columns)), "", {}, absent)
    rows = pd.DataFrame(runs[-1]["rows"])
    missing = [column for column in columns if column not in rows]
    if missing:
        raise FormatError(f"{file.name}: the newest run has no column {', '.join(missing)}.")
    return Evidence(rows, runs[-1]["machine"]["cpu"], runs[-1]["settings"], "")
