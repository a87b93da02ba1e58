"""Run one notebook in a kernel of this interpreter and say truthfully how it ended.

The one module that imports papermill.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from awqbench.report.notebooks import tags
from awqbench.report.record import TRACEBACK_LINES, hide_home

# A cold file system and a loaded machine have taken 89 s to start a kernel.
KERNEL_START_S = 120
# A Unix socket's path must fit 107 bytes; jupyter_client appends "-5" to this one.
_SOCKET_PATH_BYTES = 100
_ANSI = re.compile(r"\x1b\[[0-9;]*m")


class Execution(NamedTuple):
    """How a notebook's run ended.

    Attributes
    ----------
    state : str
        ``ok``, ``failed``, ``timeout``, ``kernel_died`` or ``interrupted``.
    executed_cell : int or None
        Index, in the executed notebook, of the cell that did not finish.
    ename, evalue : str
        Name and text of the error.
    traceback : tuple of str
        Its last lines, without colour codes.
    """

    state: str
    executed_cell: int | None = None
    ename: str = ""
    evalue: str = ""
    traceback: tuple[str, ...] = ()


def execute(
    notebook: Path,
    output: Path,
    parameters: Mapping[str, Any],
    *,
    cell_timeout_s: float | None = None,
    on_cell: Callable[[int], None] | None = None,
) -> Execution:
    """Run a notebook in its own folder and write the executed copy.

    The copy is there after every end but an interrupt at the very start.

    Parameters
    ----------
    notebook : Path
    output : Path
        Written several times while running, not atomically.
    parameters : mapping
        Injected after the `parameters` cell; checked before.
    cell_timeout_s : float, optional
        Limit for one cell.
    on_cell : callable, optional
        Called with a cell's index before the cell runs.

    Returns
    -------
    Execution
    """
    import papermill
    from nbclient.exceptions import CellTimeoutError

    # The record says how a run ended; logged as well it would break the progress line.
    logging.getLogger("papermill").addHandler(logging.NullHandler())
    at: list[int | None] = [None]

    def note(cell: Mapping[str, Any], cell_index: int) -> None:
        at[0] = cell_index
        if on_cell:
            on_cell(cell_index)

    try:
        with kernel_settings() as settings:
            papermill.execute_notebook(
                _literal(notebook),
                _literal(output),
                dict(parameters),
                kernel_name="python3",
                language="python",
                progress_bar=False,
                start_timeout=KERNEL_START_S,
                execution_timeout=cell_timeout_s,
                cwd=notebook.parent,
                on_cell_start=note,
                **settings,
            )
    except KeyboardInterrupt:
        return Execution("interrupted", at[0], "KeyboardInterrupt", "stopped by the user.")
    except (papermill.PapermillExecutionError, CellTimeoutError, RuntimeError) as error:
        return _failure(error, at[0], cell_timeout_s)
    return Execution("ok")


def _failure(error: Exception, cell: int | None, cell_timeout_s: float | None) -> Execution:
    """Name how a run failed; RuntimeErrors are nbclient's, about the kernel's process."""
    from nbclient.exceptions import CellTimeoutError, DeadKernelError
    from papermill import PapermillExecutionError

    if isinstance(error, PapermillExecutionError):
        lines = _ANSI.sub("", "\n".join(error.traceback)).splitlines()[-TRACEBACK_LINES:]
        return Execution("failed", cell, error.ename, error.evalue, tuple(lines))
    if isinstance(error, CellTimeoutError):
        text = f"the cell ran longer than {cell_timeout_s:g} s; allow more with --timeout."
        return Execution("timeout", cell, "CellTimeoutError", text)
    if isinstance(error, DeadKernelError):
        text = "the kernel's process ended in this cell: out of memory, or a crash in native code."
        return Execution("kernel_died", cell, "DeadKernelError", text)
    return Execution("failed", cell, "KernelStartError", str(error))


def source_cell(executed: Mapping[str, Any], index: int | None) -> int | None:
    """Translate an executed notebook's cell index to the source's: -1 for the injected cell.

    Parameters
    ----------
    executed : mapping
        The executed notebook, without papermill's error markers.
    index : int or None

    Returns
    -------
    int or None
    """
    if index is None:
        return None
    before = [tags(cell) for cell in executed["cells"][: index + 1]]
    if before and "injected-parameters" in before[-1]:
        return -1
    return index - sum("injected-parameters" in names for names in before)


def read_executed(path: Path) -> dict[str, Any]:
    """Read what papermill wrote, without what must not be kept of it.

    That is the cells it adds around an error (the page has its own banner), its metadata
    (a killed run is "completed" there, and paths are absolute), and the home folder.

    Parameters
    ----------
    path : Path

    Returns
    -------
    dict
    """
    import nbformat

    executed = hide_home(nbformat.read(path, as_version=4))
    marker = "papermill-error-cell-tag"
    executed["cells"] = [cell for cell in executed["cells"] if marker not in tags(cell)]
    for owner in (executed, *executed["cells"]):
        owner["metadata"].pop("papermill", None)
    return executed


def _literal(path: Path) -> str:
    """Write a path as papermill takes it: as a format string, where braces are fields."""
    return str(path).replace("{", "{{").replace("}", "}}")


@contextlib.contextmanager
def kernel_settings() -> Iterator[dict[str, Any]]:
    """Give nbclient a kernel of this interpreter with a transport of its own.

    Free TCP ports can be taken by another kernel between choice and use. Unix sockets
    can't, given a path of their own; the default path is shared by all in a folder.
    """
    from traitlets.config import Config

    with tempfile.TemporaryDirectory(prefix="awqbench-", ignore_cleanup_errors=True) as folder:
        socket = os.path.join(folder, "kernel")
        config = Config()
        if os.name == "posix" and len(os.fsencode(socket)) <= _SOCKET_PATH_BYTES:
            config.KernelManager.transport = "ipc"
            config.KernelManager.ip = socket
        yield {"config": config, "kernel_manager_class": _same_interpreter_manager()}


def _same_interpreter_manager() -> type:
    """Make a kernel manager that starts this interpreter, whatever "python3" is registered as.

    A kernel that a user registered under that name wins over the environment's own, and
    would run the report with other packages than the record says.
    """
    from jupyter_client import AsyncKernelManager
    from jupyter_client.kernelspec import KernelSpec, KernelSpecManager

    class SameInterpreterSpecs(KernelSpecManager):
        def get_kernel_spec(self, kernel_name: str) -> KernelSpec:
            # Without the level, every shutdown prints an error about an interrupt.
            quiet = "--IPKernelApp.log_level=50"
            argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}", quiet]
            return KernelSpec(argv=argv, display_name="Python 3", language="python")

    class SameInterpreterManager(AsyncKernelManager):
        def _kernel_spec_manager_default(self) -> KernelSpecManager:
            return SameInterpreterSpecs(parent=self)

    return SameInterpreterManager
