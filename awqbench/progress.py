"""One progress bar for terminals, notebooks and logs."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable


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
