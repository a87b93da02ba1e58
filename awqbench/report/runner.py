"""From notebooks to a folder of reports: one run each, then the gallery."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from awqbench.errors import OutputError
from awqbench.report.execute import Execution, execute, read_executed, source_cell
from awqbench.report.keys import EMBEDDED_MODEL, run_key
from awqbench.report.notebooks import find_notebooks, read_notebook, title_and_question
from awqbench.report.parameters import read_parameters, resolve_parameters
from awqbench.report.record import (
    RunRecord,
    hide_home,
    read_record,
    write_atomic,
    write_record,
)

# What a run writes into its folder; cleared before the next run of the same notebook.
_FILES = ("report.ipynb", "report.html", "results.json")
_FOLDERS = ("figures", "tables")
_PART = ".report.part.ipynb"


@dataclass(frozen=True)
class Job:
    """One notebook, ready to run.

    Attributes
    ----------
    path : Path
        Of the notebook.
    folder : Path
        That the run writes into.
    parameters : dict
        Effective values, `model` made absolute.
    changed : dict
        Those that differ from the notebook's defaults: what is injected.
    has_out_dir : bool
        Whether the notebook has a parameter `out_dir` to fill in.
    key : str
    """

    path: Path
    folder: Path
    parameters: dict[str, Any]
    changed: dict[str, Any]
    has_out_dir: bool
    key: str


def run_report(
    names: Sequence[str | Path] = (),
    settings: Mapping[str, Any] | None = None,
    out: str | Path = "reports",
    *,
    force: bool = False,
    cell_timeout_s: float | None = None,
    on_done: Callable[[RunRecord, bool], None] | None = None,
) -> list[RunRecord]:
    """Run notebooks into `out` and write its index page.

    Everything that can be checked without a kernel is checked before the first one
    starts. A notebook that fails keeps its page, and the others still run.

    Parameters
    ----------
    names : sequence of str or Path
        Notebook names or files; none means all of the package's own.
    settings : mapping of str to object, optional
        Parameters, passed to the notebooks that know them.
    out : str or Path
        Each notebook gets a folder of its name in it.
    force : bool
        Run also what is up to date.
    cell_timeout_s : float, optional
        Limit for one cell.
    on_done : callable, optional
        Called with each record, and whether it was up to date already.

    Returns
    -------
    list of RunRecord
        Those run or up to date; after an interrupt the last one says so.

    Raises
    ------
    NotebookError
        If a notebook is not found or cannot be read.
    ParameterError
        If no notebook knows a parameter, or a value does not fit.
    OutputError
        If `out` cannot be written, or holds something else.
    """
    from awqbench.report.gallery import write_gallery

    jobs = plan(names, settings or {}, Path(out))
    check_writable(Path(out), [job.folder for job in jobs])
    records = []
    for job in jobs:
        done = None if force else up_to_date(job)
        record = done or run_job(job, cell_timeout_s=cell_timeout_s)
        records.append(record)
        if on_done:
            on_done(record, done is not None)
        if record.state == "interrupted":
            break
    write_gallery(Path(out), {job.path.stem: job.path for job in jobs})
    return records


def plan(names: Sequence[str | Path], settings: Mapping[str, Any], out: Path) -> list[Job]:
    """Resolve names and parameters to jobs, without writing or starting anything.

    Parameters
    ----------
    names : sequence of str or Path
    settings : mapping of str to object
    out : Path

    Returns
    -------
    list of Job
    """
    paths = find_notebooks(names)
    notebooks = {path.stem: read_notebook(path) for path in paths}
    schemas = {stem: read_parameters(nb, stem) for stem, nb in notebooks.items()}
    resolved = resolve_parameters(settings, schemas)
    jobs = []
    for path in paths:
        parameters = {k: v for k, v in resolved[path.stem].items() if k != "out_dir"}
        if "model" in parameters:
            parameters["model"] = absolute_model(parameters["model"])
        schema = schemas[path.stem]
        changed = {k: v for k, v in parameters.items() if v != schema[k].default}
        key = run_key(notebooks[path.stem], parameters)
        folder = out.resolve() / path.stem
        jobs.append(Job(path, folder, parameters, changed, "out_dir" in schema, key))
    return jobs


def absolute_model(model: Any) -> Any:
    """Make a model folder absolute: a notebook runs in its own folder, not in the user's.

    Parameters
    ----------
    model : str
        A folder, a hub id, or the name of the embedded model.

    Returns
    -------
    str
        Unchanged where no such folder or file exists.

    Examples
    --------
    >>> absolute_model("tiny"), absolute_model("Qwen/Qwen3-0.6B")
    ('tiny', 'Qwen/Qwen3-0.6B')
    """
    if not isinstance(model, str) or model in ("", EMBEDDED_MODEL):
        return model
    path = Path(model).expanduser()
    return str(path.resolve()) if path.exists() else model


def run_job(job: Job, *, cell_timeout_s: float | None = None) -> RunRecord:
    """Run one notebook into its folder, with a line of progress.

    Parameters
    ----------
    job : Job
    cell_timeout_s : float, optional

    Returns
    -------
    RunRecord
        As it stands in run.json.
    """
    from awqbench.bench.machine import machine_record

    job.folder.mkdir(parents=True, exist_ok=True)
    _clear(job.folder)
    title, question = title_and_question(read_notebook(job.path))
    record = RunRecord(
        notebook=job.path.stem,
        key=job.key,
        state="running",
        title=title,
        question=question,
        parameters=hide_home(job.parameters),
        started=_now(),
        pid=os.getpid(),
        provenance=machine_record().to_dict(),
    )
    write_record(job.folder, record)
    start = time.perf_counter()
    end = _execute_with_progress(job, cell_timeout_s)
    record = replace(
        record,
        state=end.state,
        ename=end.ename,
        evalue=hide_home(end.evalue),
        traceback=tuple(hide_home(list(end.traceback))),
        finished=_now(),
        elapsed_s=round(time.perf_counter() - start, 2),
    )
    return _finish(job.folder, record, end)


def _execute_with_progress(job: Job, cell_timeout_s: float | None) -> Execution:
    from tqdm import tqdm

    inject = dict(job.changed)
    if job.has_out_dir:
        # Relative to the notebook, where the kernel works: no absolute path in the report.
        inject["out_dir"] = Path(os.path.relpath(job.folder, job.path.parent)).as_posix()
    cells = len(read_notebook(job.path)["cells"]) + bool(inject)
    form = "{desc} {percentage:3.0f}% |{bar:24}| {n_fmt}/{total_fmt} cells {elapsed}{postfix}"
    quiet = bool(os.environ.get("AWQBENCH_QUIET"))
    bar = tqdm(total=cells, desc=f"{job.path.stem:<20}", bar_format=form, disable=quiet)
    with bar:
        end = execute(
            job.path,
            job.folder / _PART,
            inject,
            cell_timeout_s=cell_timeout_s,
            on_cell=lambda index: bar.update(index - bar.n),
        )
        if end.state == "ok":
            bar.update(cells - bar.n)
        else:
            bar.set_postfix_str(end.state)
    return end


def _finish(folder: Path, record: RunRecord, end: Execution) -> RunRecord:
    """Write notebook and page, then the record: a state of ok promises both."""
    from awqbench.report.html import mark_cells, report_page
    from awqbench.report.results import read_results

    part = folder / _PART
    try:
        if record.state != "interrupted" and part.is_file():
            executed = read_executed(part)
            mark_cells(executed, end.executed_cell)
            record = replace(record, cell=source_cell(executed, end.executed_cell))
            text = json.dumps(executed, indent=1, ensure_ascii=False)
            write_atomic(folder / "report.ipynb", text + "\n")
            answer = read_results(folder).get("answer", "")
            write_atomic(folder / "report.html", report_page(executed, record, answer))
    except KeyboardInterrupt:
        record = replace(record, state="interrupted", ename="KeyboardInterrupt")
    part.unlink(missing_ok=True)
    write_record(folder, record)
    return record


def up_to_date(job: Job) -> RunRecord | None:
    """Return the record of a run that need not be made again, or None."""
    record = read_record(job.folder)
    is_done = record is not None and record.state == "ok" and record.key == job.key
    return record if is_done and (job.folder / "report.html").is_file() else None


def check_writable(out: Path, folders: Sequence[Path]) -> None:
    """Refuse, before anything runs, folders that cannot be written or hold something else.

    Raises
    ------
    OutputError
        Names the folder, and the process that is writing into it if there is one.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_atomic(out / ".probe", b"")
        (out / ".probe").unlink()
    except OSError as error:
        raise OutputError(
            f"cannot write into {out}: {error.strerror}; choose another folder with --out, "
            "or make this one writable."
        ) from error
    for folder in folders:
        record = read_record(folder)
        if record is not None and record.state == "running" and record.pid != os.getpid():
            raise OutputError(
                f"{folder} is being written by process {record.pid}; wait for it, or choose "
                "another folder with --out."
            )
        if folder.exists() and record is None and any(folder.iterdir()):
            raise OutputError(
                f"{folder} is not a report of ours and is not empty; choose another folder "
                "with --out, or move it away."
            )


def _clear(folder: Path) -> None:
    for name in (*_FILES, _PART):
        (folder / name).unlink(missing_ok=True)
    for name in _FOLDERS:
        shutil.rmtree(folder / name, ignore_errors=True)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
