"""Blocks searched by several processes: the same bytes, whoever searches, dies or is lost."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from tiny_models import VOCABULARY, save_tiny_model

import awqbench as ab
from awqbench.cluster import open_client
from awqbench.errors import ClusterError, NonFiniteError
from awqbench.quantize import task
from awqbench.quantize.blocks import BlockFiles
from awqbench.quantize.work import work_path
from awqbench.quantize.workers import WorkerQueue

distributed = pytest.importorskip("distributed", reason="Dask is not installed")

TOKENS = np.random.default_rng(0).integers(0, VOCABULARY, (12, 24))
# One thread in every process: last bits depend on their number, as `quantize` says.
SETTINGS = {"tokens": TOKENS, "group_size": 32, "threads": 1}
N_BLOCKS = 5
OF_THE_RUN = ("finished", "times", "resumed_blocks", "damaged_blocks", "memory")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny_model(
        "qwen3", tmp_path_factory.mktemp("qwen3"), dtype="float32", num_hidden_layers=N_BLOCKS
    )


@pytest.fixture(scope="module")
def expected(folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("expected") / "out"
    ab.quantize(folder, out, **SETTINGS)
    return contents(out)


@pytest.fixture(scope="module")
def client():
    with open_client(workers=2, threads=1) as client:
        yield client


def contents(out):
    """Return every file's bytes; of the record what does not tell of the run."""
    found = {path.name: path.read_bytes() for path in out.iterdir()}
    record = json.loads(found["awqbench_run.json"])
    found["awqbench_run.json"] = {k: v for k, v in record.items() if k not in OF_THE_RUN}
    return found


def on(client):
    return {"make_queue": lambda arguments: WorkerQueue(client, arguments)}


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_any_number_of_workers_leaves_the_bytes_of_one_process(folder, expected, tmp_path, workers):
    out, told = tmp_path / "out", []
    ab.quantize(folder, out, workers=workers, on_block=lambda i, *_: told.append(i), **SETTINGS)
    assert contents(out) == expected
    assert sorted(told) == list(range(N_BLOCKS))
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


class Spy(distributed.WorkerPlugin):
    """Writes down which process searches a block; the first to search one block dies of it."""

    def __init__(self, notes, deadly):
        self.notes, self.deadly = notes, deadly

    def setup(self, worker):
        self.real = task.quantize_block
        task.quantize_block = self.quantize_block

    def teardown(self, worker):
        task.quantize_block = self.real

    def quantize_block(self, *args, name, **kwargs):
        is_first = not (self.notes / name).exists()
        with (self.notes / name).open("a") as file:
            file.write(f"{os.getpid()}\n")
        if name == self.deadly and is_first:
            os.kill(os.getpid(), signal.SIGKILL)
        return self.real(*args, name=name, **kwargs)


def test_a_block_whose_worker_was_killed_is_searched_by_another(client, folder, expected, tmp_path):
    notes, deadly = tmp_path / "notes", "model.layers.2"
    notes.mkdir()
    client.register_plugin(Spy(notes, deadly), name="spy")
    try:
        ab.quantize(folder, tmp_path / "out", **on(client), **SETTINGS)
    finally:
        client.unregister_worker_plugin("spy")
    assert contents(tmp_path / "out") == expected
    first, second = (notes / deadly).read_text().split()
    assert first != second
    pids = {pid for note in notes.iterdir() for pid in note.read_text().split()}
    assert str(os.getpid()) not in pids


def test_the_error_of_a_search_keeps_its_class_and_text(client, folder, tmp_path):
    model = shutil.copytree(folder, tmp_path / "model")
    stats = ab.calibrate(model, TOKENS, tmp_path / "stats")
    spoil(model, "model.layers.3.mlp.down_proj.weight")
    with pytest.raises(NonFiniteError, match=r"model\.layers\.3\.mlp\.down_proj\.weight holds NaN"):
        ab.quantize(model, tmp_path / "out", stats=stats, group_size=32, threads=1, **on(client))
    assert not (tmp_path / "out").exists()


def spoil(model, name):
    """Put a NaN into a tensor where the model's digest does not look."""
    info = ab.open_checkpoint(model).tensors[name]
    with info.file.open("r+b") as file:
        file.seek(info.start + (info.stop - info.start) // 4)
        file.write(np.float32(np.nan).tobytes())


@pytest.fixture
def scheduler(tmp_path):
    """A scheduler and a worker of it, each a process, as on other hosts."""
    file = tmp_path / "scheduler.json"
    run = "from distributed.cli.dask_{0} import main; main()"
    common = ["--scheduler-file", str(file), "--no-dashboard"]
    environ = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", run.format(which), *common, *words],
            env=environ,
            cwd=tmp_path,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for which, words in (
            ("scheduler", ["--port", "0"]),
            ("worker", ["--nthreads", "1", "--no-nanny"]),
        )
    ]
    deadline = time.monotonic() + 60
    while not file.exists():
        assert time.monotonic() < deadline and processes[0].poll() is None
        time.sleep(0.1)
    yield json.loads(file.read_text())["address"], processes[0]
    for process in reversed(processes):
        process.kill()
        process.wait()


def test_a_run_whose_scheduler_was_killed_goes_on_without_one(
    folder, expected, tmp_path, scheduler
):
    address, server = scheduler
    out, told = tmp_path / "run" / "out", []
    out.parent.mkdir()

    def kill_after_two(i, *_):
        told.append(i)
        if len(told) == 2:
            server.kill()

    with pytest.raises(ClusterError, match="the scheduler is gone"):
        ab.quantize(folder, out, scheduler=address, on_block=kill_after_two, **SETTINGS)
    assert not out.exists()
    finished = [i for i in range(N_BLOCKS) if BlockFiles(work_path(out)).has(i)]
    assert set(told) <= set(finished) and len(finished) < N_BLOCKS
    record = ab.quantize(folder, out, **SETTINGS)
    # The worker, still alive, may have ended one more search meanwhile.
    assert len(finished) <= record["resumed_blocks"] < N_BLOCKS
    assert contents(out) == expected
    assert [path.name for path in out.parent.iterdir()] == ["out"]
