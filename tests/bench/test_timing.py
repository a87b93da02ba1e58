"""Turns: who is called when, and waiting for threads that spin."""

import threading
import time

from awqbench.bench import timing
from awqbench.bench.timing import time_in_turns, wait_for_idle_threads


def test_what_is_not_timed_comes_before_each_call():
    called = []
    times = time_in_turns(
        {"a": lambda: called.append("a"), "b": lambda: called.append("b")},
        rounds=2,
        before_each=lambda: called.append("settle"),
        wake={"b": lambda: called.append("wake b")},
    )
    once = ["settle", "a", "settle", "wake b", "b"]
    assert called == ["a", "b", *once, *once]
    assert {name: len(found.samples_s) for name, found in times.items()} == {"a": 2, "b": 2}


def test_a_thread_that_uses_the_processor_is_waited_for():
    spinning, stop = threading.Event(), threading.Event()

    def spin():
        spinning.set()
        while not stop.is_set():
            sum(range(1000))

    thread = threading.Thread(target=spin)
    thread.start()
    spinning.wait()
    threading.Timer(0.1, stop.set).start()
    wait_for_idle_threads()
    assert stop.is_set()
    thread.join()


def test_waiting_ends_where_a_thread_never_sleeps(monkeypatch):
    monkeypatch.setattr(timing, "_IDLE_LIMIT_S", 0.02)
    used = iter(range(10**6))
    monkeypatch.setattr(time, "process_time", lambda: next(used))
    wait_for_idle_threads()
    assert next(used) > 2  # looked more than once
