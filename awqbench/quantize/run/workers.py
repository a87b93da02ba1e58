"""A queue of block searches on worker processes or hosts; see `awqbench.quantize.run.queue`."""

from __future__ import annotations

from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

from awqbench.cluster import (
    open_client,
    result_of,
    run_tasks,
    task_key,
    tasks_of_workers,
    wait_for_any,
    workers_alive,
)
from awqbench.quantize.run.queue import Arguments, SerialQueue
from awqbench.quantize.run.task import run_block

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from awqbench.cluster import Client, Future
    from awqbench.quantize.run.queue import BlockQueue
    from awqbench.quantize.statistics.collect import Spread

# Blocks that wait for a worker beside those that are searched: their statistics are on disk.
_WAITING = 1


class WorkerQueue:
    """Searches blocks on the workers of a Dask cluster.

    A block whose worker dies is searched again by another; both leave the same bytes. Workers
    see the same folders as this process, under the same paths.

    Parameters
    ----------
    client : distributed.Client
    arguments : callable
        Gives the keyword arguments of `run_block` for a block.
    """

    def __init__(self, client: Client, arguments: Arguments):
        self._client, self._arguments = client, arguments
        self._under_way: dict[Future, int] = {}

    def spread(self) -> Spread | None:
        """Return what shares tasks among the workers, None if there is but one.

        Raises
        ------
        ClusterError
            If the scheduler is gone.
        """
        return _spread_of(self._client)

    def submit(self, i: int) -> None:
        """Take block `i`; waits while every worker is busy and another block waits.

        Raises
        ------
        ClusterError
            If the scheduler is gone.
        """
        what = f"search of block {i}"
        while len(self._running()) >= workers_alive(self._client, what) + _WAITING:
            wait_for_any(self._running())
        key = task_key(f"search of block {i}")
        future = self._client.submit(run_block, i, key=key, **self._arguments(i))
        self._under_way[future] = i

    def status(self) -> str:
        """Say what each worker does, such as ``0: search of block 3, 1: idle``."""
        return status_of(tasks_of_workers(self._client))

    def _running(self) -> list[Future]:
        return [future for future in self._under_way if not future.done()]

    def finished(self) -> list[int]:
        """Return blocks done since the last call, in the order of submission.

        Raises
        ------
        ClusterError
            If workers died on a block again and again, or the scheduler is gone.
        AwqbenchError
            What a search raised.
        """
        return [self._taken(future) for future in list(self._under_way) if future.done()]

    def drain(self) -> list[int]:
        """Wait for all that was submitted."""
        done = []
        while self._under_way:
            wait_for_any(list(self._under_way))
            done += self.finished()
        return done

    def _taken(self, future: Future) -> int:
        i = self._under_way.pop(future)
        return result_of(future, f"search of block {i}")

    def close(self) -> None:
        """Drop what is under way; finished blocks stay on disk."""
        if self._under_way and self._client.status == "running":
            self._client.cancel(list(self._under_way))


def threads_of_a_share(workers: int | None) -> int | None:
    """Return the threads of each of several workers of this machine; None for one or none."""
    import torch

    return max(1, torch.get_num_threads() // workers) if (workers or 1) > 1 else None


@contextmanager
def queue_on(
    workers: int | None, scheduler: str | None
) -> Iterator[Callable[[Arguments], BlockQueue]]:
    """Give what makes the queue of a run, its workers alive while the context lasts.

    Parameters
    ----------
    workers : int, optional
        Processes beside this one; None or 1 without a scheduler searches in this process.
    scheduler : str, optional
        Address of a Dask scheduler.

    Raises
    ------
    ClusterError, ParameterError
        As `awqbench.cluster.open_client`.
    """
    if scheduler is None and (workers is None or workers == 1):
        yield SerialQueue
        return
    with open_client(workers, scheduler) as client:
        yield partial(WorkerQueue, client)


def _spread_of(client: Client) -> Spread | None:
    if workers_alive(client, "statistics of the next block") < 2:
        return None
    # Before the searches that wait: with what these leave the next search begins.
    return partial(run_tasks, client, priority=1, name=repr)


def status_of(tasks: Mapping[str, Sequence[str]]) -> str:
    """Say what workers do, from the names of their tasks; those that wait are counted.

    Examples
    --------
    >>> status_of({"0": ["search of block 3", "search of block 4"], "1": []})
    '0: search of block 3 (+1), 1: idle'
    """
    said = []
    for worker, names in sorted(tasks.items()):
        waiting = f" (+{len(names) - 1})" if len(names) > 1 else ""
        said.append(f"{worker}: {names[0] if names else 'idle'}{waiting}")
    return ", ".join(said)
