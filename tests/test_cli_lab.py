import json
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request

import nbformat
import psutil
import pytest
from nbformat.v4 import new_code_cell, new_notebook

from awqbench.errors import NotebookError, OutputError, ParameterError
from awqbench.report import lab


@pytest.fixture
def original(tmp_path):
    return write(tmp_path / "originals" / "book.ipynb", "1 + 1")


def write(path, source):
    path.parent.mkdir(exist_ok=True)
    nbformat.write(new_notebook(cells=[new_code_cell(source, id="a")]), path)
    return path


def words(copies):
    return [copy.what.split(",")[0] for copy in copies]


def test_copies_follow_their_original_until_edited(original, tmp_path):
    work = tmp_path / "work"
    assert words(lab.copy_notebooks([original], work)) == ["copied"]
    assert (work / "book.ipynb").read_bytes() == original.read_bytes()
    assert words(lab.copy_notebooks([original], work)) == ["as the original"]
    write(original, "2 + 2")
    assert words(lab.copy_notebooks([original], work)) == ["copied anew"]

    write(work / "book.ipynb", "mine")
    before = (work / "book.ipynb").read_bytes()
    for _ in range(2):
        (copy,) = lab.copy_notebooks([original], work)
        assert copy.what == "edited, so kept; delete or rename it for a fresh copy"
        assert copy.path.read_bytes() == before


def test_a_file_that_was_there_before_is_kept(original, tmp_path):
    write(tmp_path / "work" / "book.ipynb", "not a copy")
    (copy,) = lab.copy_notebooks([original], tmp_path / "work")
    assert copy.what.startswith("edited")
    assert "not a copy" in copy.path.read_text()


def test_originals_are_never_the_work_folder(original):
    with pytest.raises(OutputError, match=r"holds the original of book.ipynb; choose another"):
        lab.copy_notebooks([original], original.parent)


def test_missing_jupyterlab_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(lab.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(NotebookError, match="JupyterLab is not installed in .*pip install"):
        lab.run_lab(tmp_path)


def test_a_taken_port_is_named(tmp_path):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(ParameterError, match=rf"port {port} on 127.0.0.1 .*--port 0"):
            lab.run_lab(tmp_path, port=port)


def status_of(url, token=""):
    request = urllib.request.Request(url, headers={"Authorization": f"token {token}"})
    try:
        return urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request).status
    except urllib.error.HTTPError as error:
        return error.code


@pytest.mark.skipif(os.name != "posix", reason="stops the server by POSIX signals")
@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_lab_serves_copies_with_a_token_and_stops_cleanly(original, tmp_path, stop):
    home = {name: str(tmp_path / "home") for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR")}
    command = [sys.executable, "-m", "awqbench.cli", "lab", str(original)]
    command += ["--out", str(tmp_path / "work"), "--port", "0", "--no-browser"]
    started = subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env={**os.environ, **home}
    )
    try:
        assert started.stdout.readline().endswith("book.ipynb: copied\n")
        line = started.stdout.readline()
        root, token = re.fullmatch(
            r"open (http://127\.0\.0\.1:\d+)/lab\?token=(\S+)\n", line
        ).groups()
        assert len(token) >= 32
        assert status_of(f"{root}/api/contents/book.ipynb", token) == 200
        assert status_of(f"{root}/api/contents/book.ipynb") == 403
        (server,) = psutil.Process(started.pid).children()
        assert {item.laddr.ip for item in server.net_connections() if item.status == "LISTEN"} == {
            "127.0.0.1"
        }
        assert not any(token in word for word in server.cmdline())  # other users could read it
        started.send_signal(stop)
        rest, _ = started.communicate(timeout=60)
    finally:
        started.kill()
    assert started.returncode == 0
    assert rest == f"JupyterLab has stopped; your copies are in {tmp_path / 'work'}\n"
    assert not server.is_running()
    assert json.loads((tmp_path / "work" / "book.ipynb").read_text())["cells"]
