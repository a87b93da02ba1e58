"""One progress bar for terminals, notebooks and logs."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager


def progress_bar(items: Iterable, label: str, *, unit: str, total: int | None = None):
    """Iterate with a bar: a widget-free line in terminals, silent where nobody looks.

    Widget bars freeze in executed notebooks and their text differs from run to run, so a
    notebook kernel gets none; in a terminal the bar goes to standard error.

    Parameters
    ----------
    items : iterable
    label : str
    unit : str
        What one item is, in the singular.
    total : int, optional
        Number of items where `items` cannot tell.
    """
    from tqdm import tqdm

    silent = bool(os.environ.get("AWQBENCH_QUIET")) or not sys.stderr.isatty()
    return tqdm(items, desc=label, unit=unit, total=total, disable=silent, file=sys.stderr)


@contextmanager
def status_behind(bar, status: Callable[[], str], *, every_s: float = 1.0) -> Iterator[None]:
    """Show behind a bar what a function says, anew every second, while the context lasts.

    Parameters
    ----------
    bar
        As `progress_bar` gives it; where nobody looks the function is not asked.
    status : callable
        Called from a thread of its own; must not raise.
    every_s : float
    """
    if bar.disable:
        yield
        return
    over = threading.Event()

    def show() -> None:
        while not over.wait(every_s):
            bar.set_postfix_str(status())

    thread = threading.Thread(target=show, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
