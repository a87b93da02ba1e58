"""When an explorer draws, and how: events that pause, a view, its picture."""

from __future__ import annotations

import asyncio
import gc
import io
import time
from collections.abc import Callable
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from pandas import DataFrame

DEBOUNCE_S = 0.12
_DPI = 100
# Text is most of a figure's time, and fitting letters to pixels a third of that.
_QUICK_TEXT = {"text.hinting": "none"}


class View(NamedTuple):
    """What an explorer shows for one state of its controls.

    Parameters
    ----------
    axes : Axes or list of Axes
    text : str
        The finding in words: for screen readers, and where there is no picture.
    data : dict of str to DataFrame
        What was drawn.
    details : str
        HTML below the figure.
    """

    axes: Axes | list[Axes]
    text: str
    data: dict[str, DataFrame]
    details: str = ""


class Debounced:
    """Calls an action once events pause: a newer event cancels the older one's timer.

    The first event after a pause is answered at once, so that one move of a slider does not
    wait for the timer. Without a running event loop every event is answered at once.

    Parameters
    ----------
    action : callable
    delay_s : float
    """

    def __init__(self, action: Callable[[], Any], delay_s: float = DEBOUNCE_S):
        self.action, self.delay_s = action, delay_s
        self._timer: asyncio.TimerHandle | None = None
        self._last = -delay_s

    def __call__(self, *_: Any) -> None:
        """Note an event."""
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            self._fire()
            return
        paused = self._timer is None and time.monotonic() - self._last > self.delay_s
        if self._timer is not None:
            self._timer.cancel()
        if paused:
            self._fire()
        else:
            self._timer = loop.call_later(self.delay_s, self._fire)

    def _fire(self) -> None:
        self._timer = None
        try:
            self.action()
        finally:  # a slow action is no pause
            self._last = time.monotonic()


@contextmanager
def collection_postponed():
    """Keep Python from looking for garbage inside this block.

    Figures are full of cycles, and with torch and transformers loaded every look through all
    objects takes tens of milliseconds, a quarter of the time of a figure.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def render(axes: Axes | list[Axes]) -> bytes:
    """Draw the figure of axes as PNG and close it.

    Compressed as fast as can be: it is looked at for a moment.
    """
    import matplotlib.pyplot as plt

    figure: Figure = (axes[0] if isinstance(axes, list) else axes).figure
    buffer = io.BytesIO()
    with plt.rc_context(_QUICK_TEXT):
        figure.savefig(buffer, format="png", dpi=_DPI, pil_kwargs={"compress_level": 1})
    plt.close(figure)
    return buffer.getvalue()
