"""Run monitor: a quantization in the background, with its losses and alarms as they come."""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from awqbench.errors import AwqbenchError, ParameterError
from awqbench.plots.explore import block_losses
from awqbench.quantize.job import quantize
from awqbench.widgets import controls
from awqbench.widgets.controls import Picture
from awqbench.widgets.drawing import View

if TYPE_CHECKING:
    from awqbench.formats.checkpoint import Checkpoint
    from awqbench.quantize.statistics.stats import Stats

READY, RUNNING, STOPPING = "ready", "running", "stopping after this block"
INTERRUPTED, FINISHED, FAILED = "interrupted", "finished", "failed"
_COLUMNS = ["block", "linear", "output_error", "rounding_error", "alarm"]
_POLL_S = 0.1


class Interrupted(Exception):
    """A run was asked to stop; finished blocks are kept."""


class RunMonitor:
    """One quantization that can be watched, interrupted and resumed.

    The run has a thread of its own. It only puts what it did in a queue; widgets and figures
    are changed by the thread of the notebook, when it is idle or waits in `wait`.

    Parameters
    ----------
    ckpt, out : as in `quantize`
    live : bool, optional
        As in `Explorer`.
    **arguments
        Of `quantize`: `stats`, `tokens`, `settings`, or fields of `Settings`.
    """

    def __init__(
        self,
        ckpt: Checkpoint | str | Path,
        out: str | Path,
        *,
        live: bool | None = None,
        **arguments: Any,
    ):
        self.ckpt, self.out, self.live, self.arguments = ckpt, Path(out), live, arguments
        self.table = pd.DataFrame(columns=_COLUMNS)
        self.state, self.n_blocks = READY, 0
        self._events: queue.SimpleQueue = queue.SimpleQueue()
        self._stop = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._future: Future | None = None
        self._started = 0.0
        self.picture = Picture()
        self.bar = controls.progress(1)
        self.stop_button = controls.button("Interrupt", self.interrupt, style="warning")
        self.resume_button = controls.button("Resume", self.resume)
        head = controls.row([self.bar, self.stop_button, self.resume_button])
        self.box = controls.column([head, *self.picture.children])
        self._show()

    @property
    def alarms(self) -> pd.DataFrame:
        """Linears with something suspicious, so far."""
        return self.table[self.table["alarm"] != ""]

    @property
    def record(self) -> dict | None:
        """The run record, once it is finished."""
        return self._future.result() if self.state == FINISHED else None

    def resume(self) -> RunMonitor:
        """Start, or go on after an interruption or an error.

        Raises
        ------
        ParameterError
            If it is running or finished.
        """
        if self.state in (RUNNING, STOPPING, FINISHED):
            raise ParameterError(f"the run is {self.state}; there is nothing to resume.")
        self._stop.clear()
        self.table, self.state = self.table.iloc[:0], RUNNING
        self._started = time.monotonic()
        try:
            self._loop = asyncio.get_running_loop()
        except RuntimeError:
            self._loop = None
        # A new executor each time: its thread ends with the run.
        with_one = ThreadPoolExecutor(1, thread_name_prefix="awqbench-quantize")
        self._future = with_one.submit(
            quantize, self.ckpt, self.out, on_block=self._on_block, **self.arguments
        )
        self._future.add_done_callback(lambda _: self._notify())
        with_one.shutdown(wait=False)
        self._show()
        return self

    def interrupt(self) -> None:
        """Ask the run to stop after the block it is at; `resume` goes on from there."""
        if self.state == RUNNING:
            self._stop.set()
            self.state = STOPPING
            self._show()

    def wait(self) -> dict | None:
        """Wait until the run ends, showing what it does, and return its record.

        An interrupt of the notebook (Ctrl-C) interrupts the run too, then goes on its way.

        Returns
        -------
        dict or None
            None if the run was interrupted.

        Raises
        ------
        AwqbenchError
            What stopped the run.
        """
        try:
            while self._future is not None and not self._future.done():
                self.update()
                time.sleep(_POLL_S)
        except KeyboardInterrupt:
            self.interrupt()
            raise
        self.update()
        if self.state == FAILED:
            raise self._future.exception()
        return self.record

    def update(self) -> None:
        """Take in what the run has done since the last time, and show it."""
        rows = []
        while not self._events.empty():
            index, self.n_blocks, block = self._events.get()
            rows += [row | {"block": index} for row in block]
        if rows:
            news = pd.DataFrame(rows)[_COLUMNS]
            self.table = news if self.table.empty else pd.concat([self.table, news])
        ended = self._future is not None and self._future.done()
        if ended and self.state in (RUNNING, STOPPING):
            self.state = self._end()
        elif not rows:
            return
        self._show()

    def _on_block(self, index: int, n_blocks: int, rows: list[dict]) -> None:
        """Note a finished block; in the run's thread."""
        self._events.put((index, n_blocks, rows))
        self._notify()
        if self._stop.is_set() and index + 1 < n_blocks:
            raise Interrupted

    def _notify(self) -> None:
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self.update)

    def _end(self) -> str:
        error = self._future.exception()
        if error is None:
            return FINISHED
        return INTERRUPTED if isinstance(error, Interrupted) else FAILED

    def _show(self) -> None:
        done = self.table["block"].nunique()
        self.bar.max, self.bar.value = max(self.n_blocks, 1), done
        self.stop_button.disabled = self.state != RUNNING
        self.resume_button.disabled = self.state in (RUNNING, STOPPING, FINISHED)
        axes = block_losses(self.table, max(self.n_blocks, 1), conditions=self._conditions())
        text = f"{self.state}: {axes.get_title(loc='left')}."
        self.picture.show(View(axes, text, {"losses": self.table}, self._details()))
        if self.state == FAILED and isinstance(self._future.exception(), AwqbenchError):
            self.picture.show_error(self._future.exception())

    def _conditions(self) -> str:
        spent = f", {time.monotonic() - self._started:.0f} s" if self._started else ""
        return f"{self.out.name}: {self.state}{spent}"

    def _details(self) -> str:
        return "".join(
            controls.paragraph(f"block {row.block}, {row.linear}: {row.alarm}")
            for row in self.alarms.itertuples()
        )

    def _repr_mimebundle_(self, **_: Any) -> tuple[dict, dict]:
        live = controls.runs_widgets() if self.live is None else self.live
        if not live and self._future is not None:  # a picture cannot be changed later
            self._future.exception()
            self.update()
        return controls.bundle(self.box, self.picture, live=live)


def run(
    ckpt: Checkpoint | str | Path,
    out: str | Path,
    *,
    stats: Stats | str | Path | None = None,
    live: bool | None = None,
    **arguments: Any,
) -> RunMonitor:
    """Start to quantize a model in the background, and watch.

    Parameters
    ----------
    ckpt, out, stats : as in `quantize`
    live : bool, optional
        As in `Explorer`.
    **arguments
        Of `quantize`: `tokens`, `settings`, or fields of `Settings`.

    Returns
    -------
    RunMonitor
        To be shown; ``.wait()`` gives the run record. Where no widgets run, showing it waits
        for the end.
    """
    return RunMonitor(ckpt, out, stats=stats, live=live, **arguments).resume()
