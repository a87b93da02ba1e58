"""The run record: run.json, the only truth about the state of a notebook's run.

papermill marks the cells of a killed run as completed, so its own metadata is not read.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

SCHEMA = "awqbench-run-1"
STATES = ("running", "ok", "failed", "timeout", "kernel_died", "interrupted")
# A traceback's end names the cause; more of it is in the page.
TRACEBACK_LINES = 20


@dataclass(frozen=True)
class RunRecord:
    """What run.json holds.

    Attributes
    ----------
    notebook : str
        File name without extension.
    title, question : str
        From the notebook's first heading and the sentence under it.
    key : str
        Digest of all that the result depends on.
    state : str
        One of `STATES`.
    parameters : dict
        Effective values, defaults too, without `out_dir`.
    started, finished : str
        UTC, ISO 8601 to the second; `finished` is empty while running.
    elapsed_s : float
    pid : int
        Of the process that runs, or ran, the notebook.
    cell : int or None
        Index in the notebook file of the cell that did not finish; -1 for the injected
        parameters.
    ename, evalue : str
        Name and text of the error.
    traceback : tuple of str
        Its last lines, without colour codes.
    provenance : dict
        `awqbench.bench.machine.MachineRecord` as a dict.
    """

    notebook: str
    key: str
    state: str
    title: str = ""
    question: str = ""
    parameters: dict[str, Any] = field(default_factory=dict)
    started: str = ""
    finished: str = ""
    elapsed_s: float = 0.0
    pid: int = 0
    cell: int | None = None
    ename: str = ""
    evalue: str = ""
    traceback: tuple[str, ...] = ()
    provenance: dict[str, Any] = field(default_factory=dict)


def write_record(folder: Path, record: RunRecord) -> None:
    """Write run.json into a run's folder, whole or not at all."""
    content = {"schema": SCHEMA, **asdict(record)}
    write_atomic(folder / "run.json", json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def read_record(folder: Path) -> RunRecord | None:
    """Read a run's record.

    A run that claims to be running while its process is gone was interrupted.

    Parameters
    ----------
    folder : Path

    Returns
    -------
    RunRecord or None
        None where there is no run.json of ours.
    """
    try:
        content = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(content, dict) or content.get("schema") != SCHEMA:
        return None
    content["traceback"] = tuple(content.get("traceback", ()))
    names = {item.name for item in fields(RunRecord)}
    record = RunRecord(**{name: content[name] for name in names & content.keys()})
    if record.state == "running" and not _is_alive(record.pid):
        return replace(record, state="interrupted")
    return record


def _is_alive(pid: int) -> bool:
    import psutil

    return psutil.pid_exists(pid)


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write a file beside its place and move it there, so that no reader sees half of it.

    Parameters
    ----------
    path : Path
        Its folder exists.
    content : str or bytes
        Text is written as UTF-8.
    """
    data = content.encode() if isinstance(content, str) else content
    handle, part = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        os.chmod(part, 0o644)
        os.replace(part, path)
    except BaseException:
        Path(part).unlink(missing_ok=True)
        raise


def hide_home(value: Any) -> Any:
    """Write the home folder as ``~``, so that a report to share names no user.

    Parameters
    ----------
    value : str, list, dict or other
        Lists and dicts are walked; what is not text stays as it is.

    Returns
    -------
    object
        A copy.

    Examples
    --------
    >>> hide_home([str(Path.home() / "models"), 3])
    ['~/models', 3]
    """
    if isinstance(value, dict):
        return {key: hide_home(item) for key, item in value.items()}
    if isinstance(value, list):
        return [hide_home(item) for item in value]
    home = str(Path.home())
    if not isinstance(value, str) or len(home) < 2:
        return value
    return re.sub(rf"(?<![\w./~-]){re.escape(home)}(?![\w.-])", "~", value)
