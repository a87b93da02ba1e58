"""One notebook at every point of a grid of parameters, one after another or on workers."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from awqbench.cluster import check_workers, open_client, run_tasks
from awqbench.progress import progress_bar
from awqbench.report.record import RunRecord
from awqbench.report.runner import Job, check_writable, run_job, up_to_date
from awqbench.report.sweep_grid import Point, plan_sweep
from awqbench.report.sweep_page import write_sweep_page


def run_sweep(
    name: str | Path,
    settings: Mapping[str, str],
    out: str | Path = "sweeps",
    *,
    workers: int | None = None,
    scheduler: str | None = None,
    force: bool = False,
    cell_timeout_s: float | None = None,
    on_done: Callable[[Point, RunRecord, bool], None] | None = None,
) -> Path:
    """Run a notebook at every point of a grid and set the results side by side.

    Parameters
    ----------
    name : str or Path
    settings : mapping of str to str
        Values of each parameter, separated by commas.
    out : str or Path
    workers : int, optional
        Processes that run notebooks at the same time; default one after another.
    scheduler : str, optional
        Address of a Dask scheduler whose workers see the same folders.
    force : bool
        Run also what is up to date.
    cell_timeout_s : float, optional
    on_done : callable, optional
        Called with each point, its record, and whether it was up to date already.

    Returns
    -------
    Path
        Of the page that compares the runs.

    Raises
    ------
    NotebookError, ParameterError, OutputError, ClusterError
    """
    check_workers(workers)
    out = Path(out)
    points = plan_sweep(name, settings, out)
    check_writable(out, [point.job.folder for point in points])
    done = {} if force else {i: up_to_date(point.job) for i, point in enumerate(points)}
    done = {i: record for i, record in done.items() if record is not None}
    if on_done:
        for i, record in done.items():
            on_done(points[i], record, True)
    todo = {i: point.job for i, point in enumerate(points) if i not in done}
    try:
        for i, record in _run_all(todo, workers, scheduler, cell_timeout_s):
            if on_done:
                on_done(points[i], record, False)
            if record.state == "interrupted":
                break
    finally:  # an interrupted sweep shows what it has
        page = write_sweep_page(points)
    return page


def _run_all(
    jobs: dict[int, Job], workers: int | None, scheduler: str | None, timeout_s: float | None
) -> Iterator[tuple[int, RunRecord]]:
    if (workers or 1) == 1 and scheduler is None:
        for i, job in jobs.items():
            yield i, run_job(job, cell_timeout_s=timeout_s)
        return
    tasks = [(i, job, timeout_s) for i, job in jobs.items()]
    with open_client(workers, scheduler) as client:
        done = run_tasks(client, _run_one, tasks)
        for (i, *_), record in progress_bar(done, "sweep", unit="run", total=len(tasks)):
            yield i, record


def _run_one(task: tuple[int, Job, float | None]) -> RunRecord:
    _, job, timeout_s = task
    os.environ["AWQBENCH_QUIET"] = "1"  # bars of several workers would overwrite one another
    return run_job(job, cell_timeout_s=timeout_s)
