"""How the GPU is timed, on a made-up clock."""

import subprocess

import pytest

from awqbench.bench import gpu_timing

CALL_S, LAUNCH_S = 30e-6, 9e-6


class Clock:
    """A host that launches graphs, and a GPU that works while the host launches the next."""

    def __init__(self, monkeypatch):
        self.replayed = 0
        monkeypatch.setattr(gpu_timing, "capture", self.capture)
        monkeypatch.setattr(gpu_timing, "_elapsed", self.elapsed)

    def capture(self, calls):
        for call in calls:
            call()
        return self

    def replay(self):
        self.replayed += 1

    def elapsed(self, call):
        before = self.replayed
        call()
        return LAUNCH_S + (self.replayed - before) * 3 * CALL_S


def test_launches_of_short_graphs_are_not_counted(monkeypatch):
    """Three copies of a weight of 100 MB take 90 us, and launching their graph another 9."""
    Clock(monkeypatch)
    times, failures = gpu_timing.time_in_turns({"a": [lambda: None] * 3, "b": [lambda: None] * 3})
    assert set(times) == {"a", "b"} and not failures
    assert times["a"].median_s == pytest.approx(CALL_S, rel=0.015) and times["a"].iqr_s == 0


def test_a_path_that_cannot_be_captured_is_returned_as_such(monkeypatch):
    Clock(monkeypatch)

    def refuses():
        raise KeyError("no graph")

    times, failures = gpu_timing.time_in_turns({"a": [refuses], "b": [lambda: None]})
    assert list(times) == ["b"] and repr(failures["a"]) == "KeyError('no graph')"
    assert gpu_timing.time_in_turns({}) == ({}, {})


@pytest.mark.parametrize(
    "error", [FileNotFoundError(), subprocess.TimeoutExpired("nvidia-smi", 20)], ids=type
)
def test_a_clock_that_is_not_told_is_left_out(monkeypatch, error):
    def fails(*args, **how):
        raise error

    monkeypatch.setattr(gpu_timing.shutil, "which", lambda name: name)
    monkeypatch.setattr(gpu_timing.subprocess, "run", fails)
    assert gpu_timing._sm_clock() == ""
    done = subprocess.CompletedProcess([], 0, stdout="1980\n1410\n")
    monkeypatch.setattr(gpu_timing.subprocess, "run", lambda *args, **how: done)
    assert gpu_timing._sm_clock() == "1980"
