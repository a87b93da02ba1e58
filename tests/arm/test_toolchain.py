"""Fetching the emulator: what is said when it cannot be, and that nothing half-made is left."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import toolchain
from toolchain import Unavailable


@pytest.fixture
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "awqbench" / "arm"


def play_apt(monkeypatch, tmp_path, text):
    programs = tmp_path / "programs"
    programs.mkdir()
    script = programs / "apt-get"
    script.write_text(f"#!/bin/sh\n{text}\n")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")


def test_nothing_fetched(cache):
    with pytest.raises(Unavailable, match="no aarch64 emulator in .*toolchain.py fetches it"):
        toolchain.find()
    with pytest.raises(Unavailable, match="--with-mca"):
        toolchain.find_mca()


def test_not_debian(cache, monkeypatch):
    monkeypatch.setattr(toolchain.shutil, "which", lambda name: None)
    with pytest.raises(Unavailable, match="apt-get is needed"):
        toolchain.fetch()


@pytest.mark.skipif(sys.platform != "linux", reason="shell scripts as apt-get and dpkg")
@pytest.mark.parametrize(
    "text", ["echo 'no network' >&2; exit 100", '[ "$1" = download ] && exit 100; exit 0']
)
def test_download_that_fails(cache, monkeypatch, tmp_path, text):
    play_apt(monkeypatch, tmp_path, text)
    monkeypatch.setattr(toolchain.shutil, "which", lambda name: f"/bin/{name}")
    with pytest.raises(Unavailable, match="apt-get .* failed"):
        toolchain.fetch()
    assert list(cache.iterdir()) == []


def test_command_says_why(cache, tmp_path):
    done = subprocess.run(
        [sys.executable, toolchain.__file__],
        env={"XDG_CACHE_HOME": str(tmp_path), "PATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1 and "apt-get is needed" in done.stderr
