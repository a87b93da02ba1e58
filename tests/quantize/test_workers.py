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
from awqbench.errors import (
    AwqbenchError,
    ClusterError,
    NonFiniteError,
    ResumeError,
    StatisticsError,
)
from awqbench.quantize.run import task
from awqbench.quantize.run.blocks import BlockFiles
from awqbench.quantize.run.queue import SerialQueue
from awqbench.quantize.run.work import work_path
from awqbench.quantize.run.workers import WorkerQueue
from awqbench.quantize.statistics import chunk_task, collect

distributed = pytest.importorskip("distributed", reason="Dask is not installed")

# Three chunks of windows, the last one short.
TOKENS = np.random.default_rng(0).integers(0, VOCABULARY, (70, 12))
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
    """Writes down which process does what; the first to do one deadly thing dies of it."""

    def __init__(self, module, function, name_of, notes, deadly):
        self.module, self.function, self.name_of = module, function, name_of
        self.notes, self.deadly = notes, deadly

    def setup(self, worker):
        self.real = getattr(self.module, self.function)
        setattr(self.module, self.function, self.spied)

    def teardown(self, worker):
        setattr(self.module, self.function, self.real)

    def spied(self, *args, **kwargs):
        name = self.name_of(*args, **kwargs)
        is_first = not (self.notes / name).exists()
        with (self.notes / name).open("a") as file:
            file.write(f"{os.getpid()}\n")
        if name == self.deadly and is_first:
            os.kill(os.getpid(), signal.SIGKILL)
        return self.real(*args, **kwargs)


def name_of_block(*_, name, **__):
    return name


def name_of_chunk(chunk, *_):
    return f"block {chunk.block} chunk {chunk.number}"


@pytest.mark.parametrize(
    ("module", "function", "name_of", "deadly"),
    [
        (task, "quantize_block", name_of_block, "model.layers.2"),
        (chunk_task, "run_chunk", name_of_chunk, "block 2 chunk 1"),
    ],
)
def test_what_a_killed_worker_did_is_done_by_another(
    client, folder, expected, tmp_path, module, function, name_of, deadly
):
    notes = tmp_path / "notes"
    notes.mkdir()
    client.wait_for_workers(2)  # the one that died in another test is being replaced
    client.register_plugin(Spy(module, function, name_of, notes, deadly), name="spy")
    try:
        ab.quantize(folder, tmp_path / "out", **on(client), **SETTINGS)
    finally:
        client.unregister_worker_plugin("spy")
    assert contents(tmp_path / "out") == expected
    first, second = (notes / deadly).read_text().split()
    assert first != second
    # While one worker is left, this process runs the text itself.
    done = {f"block {i} chunk {j}" for i in range(3) for j in range(3)}
    if module is task:
        done = {f"model.layers.{i}" for i in range(N_BLOCKS)}
    assert done <= {note.name for note in notes.iterdir()}


def test_a_task_of_a_run_that_was_given_up_does_not_write_into_the_next(folder, expected, tmp_path):
    """As of a worker that nobody stopped, with other settings, at the worst moment."""
    stray = {}

    class KeepsArguments(SerialQueue):
        def submit(self, i):
            stray[i] = self._arguments(i)
            raise KeyboardInterrupt

    class StrayAtTheEnd(SerialQueue):
        def drain(self):
            with pytest.raises(AwqbenchError):
                task.run_block(0, **stray[0] | {"statistics": str(kept)})
            return super().drain()

    out, kept = tmp_path / "out", tmp_path / "stats"
    other = SETTINGS | {"group_size": 16}
    with pytest.raises(KeyboardInterrupt):
        ab.quantize(folder, out, make_queue=KeepsArguments, keep_stats=kept, **other)
    ab.quantize(folder, out, make_queue=StrayAtTheEnd, resume=False, **SETTINGS)
    assert contents(out) == expected


def test_a_run_begun_by_workers_is_ended_by_one_process(client, folder, expected, tmp_path):
    class Stop(Exception):
        pass

    def stop_after_two(i, *_):
        told.append(i)
        if len(told) == 2:
            raise Stop

    told = []
    with pytest.raises(Stop):
        ab.quantize(folder, tmp_path / "out", on_block=stop_after_two, **on(client), **SETTINGS)
    record = ab.quantize(folder, tmp_path / "out", **SETTINGS)
    assert record["resumed_blocks"] >= 2
    assert contents(tmp_path / "out") == expected


def test_the_error_of_a_search_keeps_its_class_and_text(client, folder, tmp_path):
    model = shutil.copytree(folder, tmp_path / "model")
    stats = ab.calibrate(model, TOKENS, tmp_path / "stats")
    spoil(model, "model.layers.3.mlp.down_proj.weight")
    with pytest.raises(NonFiniteError, match=r"model\.layers\.3\.mlp\.down_proj\.weight holds NaN"):
        ab.quantize(model, tmp_path / "out", stats=stats, group_size=32, threads=1, **on(client))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("workers", [1, 3])
def test_a_calibration_that_was_stopped_goes_on_from_its_last_block(folder, tmp_path, workers):
    whole = ab.calibrate(folder, TOKENS, tmp_path / "whole", threads=1)
    real, saved = collect.save_block, []

    def save_three(*args):
        if len(saved) == 3:
            raise KeyboardInterrupt
        saved.append(args[1])
        real(*args)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(collect, "save_block", save_three)
        ab.calibrate(folder, TOKENS, tmp_path / "stats", threads=1, workers=workers)
    with pytest.raises(StatisticsError, match=r"manifest\.json is missing"):
        ab.load_stats(tmp_path / "stats")
    with pytest.raises(ResumeError, match="another calibration_digest"):
        ab.calibrate(folder, TOKENS[:50], tmp_path / "stats", threads=1)
    again = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(collect, "save_block", lambda *a: again.append(a[1]) or real(*a))
        found = ab.calibrate(folder, TOKENS, tmp_path / "stats", threads=1)
    assert (saved, again) == ([0, 1, 2], [3, 4])
    assert contents_of_statistics(found.path) == contents_of_statistics(whole.path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["stats", "whole"]


def contents_of_statistics(path):
    return {p.name: p.read_bytes() for p in path.iterdir()}


def test_the_error_of_a_chunk_keeps_its_class_and_text(client, folder, tmp_path):
    model = shutil.copytree(folder, tmp_path / "model")
    spoil(model, "model.layers.3.mlp.down_proj.weight")
    with pytest.raises(NonFiniteError, match=r"model\.layers\.3\.mlp\.down_proj\.weight holds NaN"):
        ab.quantize(model, tmp_path / "out", **on(client), **SETTINGS)
    assert not (tmp_path / "out").exists()


def spoil(model, name):
    """Put a NaN into a tensor where the model's digest does not look."""
    info = ab.open_checkpoint(model).tensors[name]
    with info.file.open("r+b") as file:
        file.seek(info.start + (info.stop - info.start) // 4)
        file.write(np.float32(np.nan).tobytes())


@pytest.fixture
def scheduler(tmp_path):
    """A scheduler and two workers of it, each a process, as on other hosts."""
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
            *[("worker", ["--nthreads", "1", "--no-nanny"])] * 2,
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
    (files,) = work_path(out).glob("run-*")
    finished = [i for i in range(N_BLOCKS) if BlockFiles(files).has(i)]
    assert set(told) <= set(finished) and len(finished) < N_BLOCKS
    record = ab.quantize(folder, out, **SETTINGS)
    # The worker, still alive, may have ended one more search meanwhile.
    assert len(finished) <= record["resumed_blocks"] < N_BLOCKS
    assert contents(out) == expected
    assert [path.name for path in out.parent.iterdir()] == ["out"]
