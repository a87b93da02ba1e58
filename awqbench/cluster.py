"""Independent tasks on several processes: this machine's, or those of a Dask scheduler.

The only importer of Dask. A task that was on a worker when it died is run again on another;
tasks must therefore give the same whenever and wherever they run.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from awqbench.errors import ClusterError, ParameterError

if TYPE_CHECKING:
    from distributed import Client, Future

_ANSWER_WITHIN_S = 10
# Libraries that start threads of their own in every worker.
_THREAD_COUNTS = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
)


def check_workers(workers: int | None) -> None:
    """Refuse a number of workers that cannot be.

    Raises
    ------
    ParameterError
        If it is given and is not 1 or more.
    """
    if workers is not None and workers < 1:
        raise ParameterError(f"workers is {workers}; it must be 1 or more.")


@contextmanager
def open_client(
    workers: int | None = None, scheduler: str | None = None, *, threads: int | None = None
) -> Iterator[Client]:
    """Connect to workers for as long as the context lasts.

    Parameters
    ----------
    workers : int, optional
        Processes to start on this machine; default its processors.
    scheduler : str, optional
        Address of a running scheduler, such as ``tcp://host:8786``, in place of own processes.
    threads : int, optional
        Threads that libraries may start in each own process; default an equal share. Where
        ``OMP_NUM_THREADS`` and its like are set, they decide.

    Yields
    ------
    distributed.Client

    Raises
    ------
    ClusterError
        If Dask is not installed, or no scheduler answers at the address.
    ParameterError
        If both ways are asked for, or `workers` is not 1 or more.
    """
    check_workers(workers)
    if workers is not None and scheduler is not None:
        raise ParameterError("give workers or the address of a scheduler, not both.")
    try:
        import dask
        from distributed import Client, LocalCluster
    except ImportError as error:
        raise ClusterError(
            "several workers need Dask, which is not installed: pip install 'awqbench[cluster]', "
            "or run without workers."
        ) from error
    if scheduler is not None:
        try:
            client = Client(scheduler, timeout=_ANSWER_WITHIN_S)
        except (OSError, ValueError) as error:
            raise ClusterError(
                f"no scheduler answers at {scheduler} ({error}). Start one with `dask scheduler`, "
                "and on each host `dask worker ADDRESS`, with awqbench installed."
            ) from error
        with client:
            yield client
        return
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    workers = workers or cores
    share = str(threads or max(1, cores // workers))
    # Set in the workers alone: "pre-spawn" ones would be set in this process too, again when a
    # worker is replaced, and stand in its records.
    environ = {f"distributed.nanny.environ.{name}": share for name in _THREAD_COUNTS}
    environ |= {f"distributed.nanny.pre-spawn-environ.{name}": None for name in _THREAD_COUNTS}
    # Dask's own choice gives every freed tensor back to the system, and a search frees many: it
    # took 1.6 times as long for zeroing fresh pages.
    environ["distributed.nanny.pre-spawn-environ.MALLOC_TRIM_THRESHOLD_"] = str(1 << 30)
    environ["distributed.nanny.pre-spawn-environ.MALLOC_MMAP_THRESHOLD_"] = str(32 << 20)
    with (
        _same_environment_after(),
        dask.config.set(environ),
        LocalCluster(
            n_workers=workers,
            threads_per_worker=1,  # one task at a time in a worker
            host="127.0.0.1",
            dashboard_address="127.0.0.1:0",
            memory_limit=None,  # tasks know their own size; Dask would kill them half way
            silence_logs=logging.CRITICAL,
        ) as cluster,
        Client(cluster) as client,
    ):
        yield client


@contextmanager
def _same_environment_after() -> Iterator[None]:
    """Take back what Dask sets in this process's environment for its children to inherit."""
    before = dict(os.environ)
    try:
        yield
    finally:
        for name in os.environ.keys() - before.keys():
            del os.environ[name]
        os.environ.update(before)


def run_tasks(
    client: Client,
    function: Callable[[Any], Any],
    items: Iterable[Any],
    *,
    priority: int = 0,
    name: Callable[[Any], str] = lambda _: "",
) -> Iterator[tuple[Any, Any]]:
    """Run a function on each item and give results as they come.

    Parameters
    ----------
    client : distributed.Client
    function : callable
        Of one item; it and the items can be pickled.
    items : iterable
    priority : int
        Tasks of a higher one are begun first.
    name : callable, optional
        What an item's task is called by `tasks_of_workers`.

    Yields
    ------
    (item, result)
        In order of finishing. What a task raises is raised here, and the others are dropped.

    Raises
    ------
    ClusterError
        If workers died on one task again and again, or the scheduler is gone.
    """
    from distributed import as_completed

    futures = {
        client.submit(function, item, key=task_key(name(item)), priority=priority): item
        for item in items
    }
    try:
        for future in as_completed(list(futures)):
            yield futures[future], result_of(future, f"task {futures[future]!r}")
    finally:
        if client.status == "running":
            client.cancel(list(futures))


def task_key(name: str) -> tuple[str, str, str]:
    """Return a new key for a task, by which `tasks_of_workers` names it."""
    return ("awqbench", name, uuid4().hex)


def tasks_of_workers(client: Client) -> dict[str, list[str]]:
    """Return the names of the tasks that each worker has, running or waiting there.

    Empty where the scheduler does not answer: this is for looking at.
    """
    try:
        workers = client.scheduler_info(n_workers=-1)["workers"]
        tasks = client.processing()
    except (OSError, RuntimeError, KeyError):  # a timeout is an OSError
        return {}
    found = {}
    for address, worker in workers.items():
        keys = [key for key in tasks.get(address, ()) if isinstance(key, tuple)]
        found[str(worker["name"])] = [key[1] for key in keys if key[0] == "awqbench"]
    return found


def workers_alive(client: Client, what: str) -> int:
    """Return how many workers there are now; 0 while a lost one is replaced.

    Parameters
    ----------
    client : distributed.Client
    what : str
        Names what they are wanted for in an error.

    Raises
    ------
    ClusterError
        If the scheduler is gone.
    """
    try:
        if client.status == "running":
            return len(client.nthreads())
    except OSError as error:
        raise _gone(what) from error
    raise _gone(what)


def _gone(what: str) -> ClusterError:
    return ClusterError(
        f"{what}: the scheduler is gone; what was finished stays on disk. Start a scheduler "
        "again, then the same command."
    )


def wait_for_any(futures: list[Future]) -> None:
    """Wait until one of some tasks is done, or their scheduler is gone."""
    from concurrent.futures import CancelledError

    from distributed import wait

    with suppress(CancelledError):  # `result_of` says what happened
        wait(futures, return_when="FIRST_COMPLETED")


def result_of(future: Future, what: str) -> Any:
    """Return a finished future's result.

    Parameters
    ----------
    future : distributed.Future
    what : str
        Names the task in an error.

    Raises
    ------
    ClusterError
        If the task's workers died, or the scheduler did.
    """
    from concurrent.futures import CancelledError

    from distributed import KilledWorker

    try:
        return future.result()
    except KilledWorker as error:
        raise ClusterError(
            f"{what}: every worker that tried it died (out of memory?). Use fewer workers, or "
            "hosts with more memory."
        ) from error
    except (CancelledError, OSError) as error:
        if isinstance(error, OSError) and future.client.status == "running":
            raise  # the task's own error
        raise _gone(what) from error
