import getpass
import json
import platform
import shutil
import subprocess
from pathlib import Path

import pytest

from awqbench.bench.cpuinfo import first_cpu
from awqbench.bench.machine import (
    THREAD_VARIABLES,
    cpu_name,
    cpu_quota,
    git_state,
    machine_record,
)


def test_record_survives_json():
    record = machine_record().to_dict()
    assert json.loads(json.dumps(record)) == record
    assert record["cpu"] and record["arch"] == platform.machine()
    assert record["packages"]["numpy"]


def test_record_names_no_user_host_or_path():
    text = json.dumps(machine_record().to_dict())
    assert str(Path.home()) not in text
    assert str(Path.cwd()) not in text
    for name in (platform.node(), getpass.getuser()):
        if len(name) > 4:
            assert name not in text


def test_thread_settings_are_those_of_now(monkeypatch):
    for name in THREAD_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    assert machine_record().thread_env == {}
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert machine_record().thread_env == {"OMP_NUM_THREADS": "3"}


def test_reads_an_x86_cpuinfo():
    text = "processor\t: 0\nmodel name\t: Some CPU @ 2 GHz\nflags\t\t: fpu avx2 amx_int8\n\n"
    first = first_cpu(text + "model name\t: other")
    assert cpu_name(first) == "Some CPU @ 2 GHz" and first["flags"] == "fpu avx2 amx_int8"


def test_an_unknown_arm_part_has_no_name():
    assert cpu_name({"CPU implementer": "0x99", "CPU part": "0x1", "Features": "sve"}) == ""


@pytest.mark.parametrize(
    ("files", "groups", "expected"),
    [
        ({"a/b/cpu.max": "max 100000", "a/cpu.max": "150000 100000"}, "0::/a/b", 1.5),
        ({"cpu/x/cpu.cfs_quota_us": "50000", "cpu/x/cpu.cfs_period_us": "100000"}, "1:cpu:/x", 0.5),
        ({"cpu/x/cpu.cfs_quota_us": "-1", "cpu/x/cpu.cfs_period_us": "100000"}, "1:cpu:/x", None),
        ({}, "0::/", None),
    ],
)
def test_quota_is_the_smallest_limit_on_the_way_up(tmp_path, files, groups, expected):
    for name, text in files.items():
        path = tmp_path / "cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    (tmp_path / "self").write_text(groups + "\n")
    assert cpu_quota(tmp_path / "cgroup", tmp_path / "self") == expected


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_git_state_follows_the_checkout(tmp_path):
    def git(*words):
        who = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
        subprocess.run(["git", "-C", str(tmp_path), *who, *words], check=True, capture_output=True)

    assert git_state(tmp_path) == (None, None)
    git("init")
    assert git_state(tmp_path) == (None, None)
    (tmp_path / "file").write_text("a")
    git("add", "file")
    git("commit", "-m", "one")
    commit, dirty = git_state(tmp_path)
    assert (len(commit), dirty) == (40, False)
    (tmp_path / "other").write_text("untracked does not count")
    assert git_state(tmp_path)[1] is False
    (tmp_path / "file").write_text("b")
    assert git_state(tmp_path) == (commit, True)
    (tmp_path / "inner").mkdir()
    assert git_state(tmp_path / "inner") == (None, None)
