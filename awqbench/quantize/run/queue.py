"""Who searches the blocks: a queue of tasks, here one that runs each at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from awqbench.quantize.run.task import run_block

if TYPE_CHECKING:
    from awqbench.quantize.statistics.collect import Spread

Arguments = Callable[[int], dict[str, Any]]


class BlockQueue(Protocol):
    """Runs `run_block` for blocks whose statistics are on disk, by whatever means.

    What ends up on disk must not depend on who ran a task, in what order, or how often.
    """

    def spread(self) -> Spread | None:
        """Return what runs other tasks on the queue's processes, None if it has but one."""

    def status(self) -> str:
        """Say who does what at present, for a line of progress; "" where that is plain."""

    def submit(self, i: int) -> None:
        """Take block `i`; may wait while many are under way, so that their files stay few."""

    def finished(self) -> list[int]:
        """Return blocks done since the last call, in the order of finishing; does not wait.

        Raises
        ------
        AwqbenchError
            What a task raised.
        """

    def drain(self) -> list[int]:
        """Wait for all that was submitted; return those not yet told by `finished`."""

    def close(self) -> None:
        """Let go of workers; what is under way may be given up. Called once, at the end."""


class SerialQueue:
    """Runs each task when it is submitted, in this process.

    Parameters
    ----------
    arguments : callable
        Gives the keyword arguments of `run_block` for a block.
    """

    def __init__(self, arguments: Arguments):
        self._arguments = arguments
        self._done: list[int] = []

    def spread(self) -> None:
        """Return None: there is this process alone."""

    def status(self) -> str:
        """Return "": the bar itself tells."""
        return ""

    def submit(self, i: int) -> None:
        """Run the task of block `i`."""
        self._done.append(run_block(i, **self._arguments(i)))

    def finished(self) -> list[int]:
        """Return blocks done since the last call."""
        done, self._done = self._done, []
        return done

    def drain(self) -> list[int]:
        """Return what `finished` does: nothing is ever under way."""
        return self.finished()

    def close(self) -> None:
        """Do nothing; there are no workers."""
