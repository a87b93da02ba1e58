"""JupyterLab on copies of the notebooks, on this machine only."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from awqbench.errors import NotebookError, OutputError, ParameterError
from awqbench.report.notebooks import find_notebooks
from awqbench.report.record import write_atomic

LOOPBACK = "127.0.0.1"
# Of each original as it was copied: tells an edited copy from one whose original moved on.
_DIGESTS = ".awqbench-copies.json"
_START_TIMEOUT_S = 120.0
_STOP_TIMEOUT_S = 15.0


class Copy(NamedTuple):
    """A notebook in the work folder.

    Attributes
    ----------
    path : Path
    what : str
        What was done, in words.
    """

    path: Path
    what: str


def copy_notebooks(names: Sequence[str | Path], folder: Path) -> list[Copy]:
    """Copy notebooks into a work folder, without overwriting what was edited there.

    A copy that is as it was made follows its original; running it in Jupyter edits it.

    Parameters
    ----------
    names : sequence of str or Path
        Notebook names or files; none means all of the package's own.
    folder : Path
        Made where it is missing.

    Returns
    -------
    list of Copy

    Raises
    ------
    NotebookError
        If a notebook is not found.
    OutputError
        If the folder cannot be written, or is where an original lies.
    """
    paths = find_notebooks(names)
    for path in paths:
        if path.parent == folder.resolve():
            raise OutputError(
                f"{folder} holds the original of {path.name}; choose another folder with --out."
            )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        digests = _read_digests(folder)
        copies = [_copy(path, folder / path.name, digests) for path in paths]
        write_atomic(folder / _DIGESTS, json.dumps(digests, indent=1) + "\n")
    except OSError as error:
        raise OutputError(
            f"cannot write into {folder}: {error.strerror}; choose another folder with --out."
        ) from error
    return copies


def _copy(original: Path, copy: Path, digests: dict[str, str]) -> Copy:
    data = original.read_bytes()
    there = _digest(copy.read_bytes()) if copy.exists() else None
    if there == _digest(data):
        what = "as the original"
    elif there is not None and there != digests.get(copy.name):
        return Copy(copy, "edited, so kept; delete or rename it for a fresh copy")
    else:
        write_atomic(copy, data)
        what = "copied" if there is None else "copied anew, for the original changed"
    digests[copy.name] = _digest(data)
    return Copy(copy, what)


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _read_digests(folder: Path) -> dict[str, str]:
    """Read what was copied before; without it every copy counts as edited, which is safe."""
    try:
        content = json.loads((folder / _DIGESTS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def run_lab(
    folder: Path,
    *,
    port: int = 8888,
    open_browser: bool = True,
    on_ready: Callable[[str], Any] = print,
) -> int:
    """Run JupyterLab on a folder until it ends or this process is asked to stop.

    The token goes to the server by its environment: a command line is for all users of a
    machine to read. It runs in a session of its own, so that Ctrl-C reaches it once, as the
    request to shut its kernels down.

    Parameters
    ----------
    folder : Path
    port : int
        On the loopback address; 0 takes any free one.
    open_browser : bool
    on_ready : callable
        Called with the address, token included, when the server answers.

    Returns
    -------
    int
        Exit status: 0 after Ctrl-C, a termination signal, or the menu's Shut Down.

    Raises
    ------
    NotebookError
        If JupyterLab is not installed, or does not come up.
    ParameterError
        If the port is taken.
    """
    if importlib.util.find_spec("jupyterlab") is None:
        raise NotebookError(
            f"JupyterLab is not installed in {sys.prefix}; `pip install jupyterlab` there, or "
            f"open the copies in {folder} with another editor."
        )
    port = _free_port(port)
    token = secrets.token_urlsafe(24)
    command = _lab_command(folder, port, open_browser)
    environment = {**os.environ, "JUPYTER_TOKEN": token}
    with _stop_signals():
        server = subprocess.Popen(command, env=environment, start_new_session=True)
        try:
            _wait_until_up(server, port, token)
            on_ready(f"http://{LOOPBACK}:{port}/lab?token={token}")
            return server.wait()
        except KeyboardInterrupt:
            return 0
        finally:
            _stop(server)


def _lab_command(folder: Path, port: int, open_browser: bool) -> list[str]:
    command = [
        *(sys.executable, "-m", "jupyterlab", f"--ip={LOOPBACK}", f"--port={port}"),
        *("--ServerApp.port_retries=0", f"--ServerApp.root_dir={folder.resolve()}"),
        # Its log would bury the one line that the user needs.
        *("--ServerApp.log_level=ERROR", "--LabApp.log_level=ERROR"),
    ]
    if not open_browser:
        command.append("--no-browser")
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        command.append("--allow-root")  # in a container there is no one else
    return command


def _free_port(port: int) -> int:
    with socket.socket() as probe:
        # As the server does: a port that a stopped one has just left is free.
        if os.name == "posix":
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError as error:
            raise ParameterError(
                f"port {port} on {LOOPBACK} cannot be used ({error.strerror}); choose another "
                "with --port, or --port 0 for any free one."
            ) from error
        return probe.getsockname()[1]


def _wait_until_up(server: subprocess.Popen[bytes], port: int, token: str) -> None:
    request = urllib.request.Request(
        f"http://{LOOPBACK}:{port}/api/status", headers={"Authorization": f"token {token}"}
    )
    # A proxy of the environment has no business on the loopback address.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    end = time.monotonic() + _START_TIMEOUT_S
    while time.monotonic() < end:
        if server.poll() is not None:
            raise NotebookError(
                f"JupyterLab ended with status {server.returncode} before it answered; its "
                "message is above. `jupyter lab` alone shows whether it works here."
            )
        try:
            with opener.open(request, timeout=2):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
    raise NotebookError(
        f"JupyterLab did not answer on port {port} within {_START_TIMEOUT_S:.0f} s; try again, "
        "or another --port."
    )


def _stop(server: subprocess.Popen[bytes]) -> None:
    """Ask the server to shut its kernels and itself down; insist where it does not."""
    if server.poll() is not None:
        return
    server.terminate()
    try:
        server.wait(_STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()


@contextmanager
def _stop_signals() -> Iterator[None]:
    """Treat a termination, or a closed terminal, as Ctrl-C, so that no server stays behind."""
    names = [name for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    before = {
        name: signal.signal(getattr(signal, name), signal.default_int_handler) for name in names
    }
    try:
        yield
    finally:
        for name, handler in before.items():
            signal.signal(getattr(signal, name), handler)
