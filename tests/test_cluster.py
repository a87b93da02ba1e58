"""Tasks on worker processes: lost workers, lost schedulers, errors of the tasks themselves."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from awqbench.cluster import open_client, run_tasks, tasks_of_workers
from awqbench.errors import ClusterError, FormatError, ParameterError
from awqbench.progress import progress_bar, status_behind
from awqbench.quantize.run.workers import status_of

pytest.importorskip("distributed", reason="Dask is not installed")


def square(x):
    return x * x


def refuse_three(x):
    if x == 3:
        raise FormatError("three is refused")
    return x


def die_once(task):
    """Kill the worker the first time that the task runs."""
    marker, value = task
    if not os.path.exists(marker):
        open(marker, "w").close()
        os.kill(os.getpid(), signal.SIGKILL)
    return value


def die(_):
    os.kill(os.getpid(), signal.SIGKILL)


def threads(_):
    return os.environ["OMP_NUM_THREADS"], os.getpid()


def nap(seconds):
    time.sleep(seconds)


@pytest.fixture(scope="module")
def client():
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("OMP_NUM_THREADS", raising=False)
        before = dict(os.environ)
        with open_client(workers=2, threads=3) as client:
            yield client
        assert dict(os.environ) == before


def test_results_come_with_their_items(client):
    assert dict(run_tasks(client, square, range(7))) == {i: i * i for i in range(7)}


def test_each_worker_is_a_process_with_its_share_of_threads(client):
    shares, pids = zip(*(r for _, r in run_tasks(client, threads, range(8))), strict=True)
    assert set(shares) == {"3"}
    assert os.getpid() not in pids


def test_an_error_of_a_task_keeps_its_class_and_text(client):
    with pytest.raises(FormatError, match="three is refused"):
        list(run_tasks(client, refuse_three, range(5)))


def test_who_does_what_is_told_while_it_is_done(client):
    assert tasks_of_workers(client) == {"0": [], "1": []}
    done = run_tasks(client, nap, [2, 2, 2], name=lambda seconds: f"nap of {seconds} s")
    with ThreadPoolExecutor(1) as pool:
        results = pool.submit(list, done)
        deadline = time.monotonic() + 20
        while not all((told := tasks_of_workers(client)).values()):
            assert time.monotonic() < deadline and told.keys() == {"0", "1"}
        results.result()
    assert {name for names in told.values() for name in names} == {"nap of 2 s"}
    assert tasks_of_workers(client) == {"0": [], "1": []}


def test_a_bar_shows_what_workers_do(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.delenv("AWQBENCH_QUIET", raising=False)
    bar = progress_bar(range(2), "quantize", unit="block")
    with status_behind(bar, lambda: status_of({"1": ["search of block 3"], "0": []}), every_s=0.01):
        for _ in bar:
            time.sleep(0.1)
    assert "quantize:  50%" in sys.stderr.getvalue()
    assert "0: idle, 1: search of block 3" in sys.stderr.getvalue()


def test_nobody_is_asked_where_nobody_looks(monkeypatch):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    bar = progress_bar(range(1), "quantize", unit="block")
    with status_behind(bar, lambda: pytest.fail("asked"), every_s=0.001):
        time.sleep(0.05)


def test_a_task_whose_worker_died_is_run_again(client, tmp_path):
    tasks = [(str(tmp_path / str(i)), i) for i in range(2)]
    assert sorted(r for _, r in run_tasks(client, die_once, tasks)) == [0, 1]


def test_a_task_that_kills_every_worker_is_given_up(client):
    with pytest.raises(ClusterError, match="every worker that tried it died"):
        list(run_tasks(client, die, ["deadly"]))


def test_a_scheduler_that_is_not_there_is_named():
    with pytest.raises(ClusterError, match="127.0.0.1:9"):
        with open_client(scheduler="tcp://127.0.0.1:9"):
            pass


@pytest.mark.parametrize(
    "given", [{"workers": 0}, {"workers": -1}, {"workers": 2, "scheduler": "tcp://host:1"}]
)
def test_impossible_workers_are_refused(given):
    with pytest.raises(ParameterError):
        with open_client(**given):
            pass


@pytest.fixture
def scheduler(tmp_path):
    """A scheduler and a worker of it, each a process."""
    file = tmp_path / "scheduler.json"
    where = ["--scheduler-file", str(file)]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": tmp_path}
    environ = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    run = "from distributed.cli.dask_{0} import main; main()"
    words = [sys.executable, "-c"]
    server = subprocess.Popen(
        [*words, run.format("scheduler"), *where, "--port", "0", "--no-dashboard"],
        env=environ,
        **quiet,
    )
    worker = subprocess.Popen(
        [*words, run.format("worker"), *where, "--nthreads", "1", "--no-nanny", "--no-dashboard"],
        env=environ,
        **quiet,
    )
    deadline = time.monotonic() + 60
    while not file.exists():
        assert time.monotonic() < deadline and server.poll() is None
        time.sleep(0.1)

    yield json.loads(file.read_text())["address"], server
    for process in (worker, server):
        process.kill()
        process.wait()


def test_a_scheduler_s_workers_are_used_and_its_death_is_named(scheduler):
    address, server = scheduler
    with pytest.raises(ClusterError, match="the scheduler is gone"):
        with open_client(scheduler=address) as client:
            assert dict(run_tasks(client, square, [5])) == {5: 25}
            done = run_tasks(client, nap, [0.01, 600])
            assert next(done)[0] == 0.01
            server.kill()
            next(done)
