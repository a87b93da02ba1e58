"""Runs that are killed, run out of disk, are tampered with, or meet another run."""

import json
import multiprocessing
import os
import resource
import signal
import subprocess
import sys

import numpy as np
import pytest
from tiny_models import VOCABULARY, save_tiny_model

import awqbench as ab
from awqbench.errors import OutputError, ResumeError
from awqbench.quantize.durable import write_durably
from awqbench.quantize.run import task

TOKENS = np.random.default_rng(0).integers(0, VOCABULARY, (40, 12))  # two chunks
OF_THE_RUN = ("finished", "times", "resumed_blocks", "damaged_blocks", "memory")
KILLED = -signal.SIGKILL
FULL = 3
# Children are forked from a process that has imported all, and nothing of this one's threads.
PROCESSES = multiprocessing.get_context("forkserver")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    PROCESSES.set_forkserver_preload(
        [
            "awqbench.bench.machine",
            "awqbench.quantize.job",
            "awqbench.model_experts",
            "transformers.models.auto.modeling_auto",
            "transformers.models.qwen3.modeling_qwen3",
        ]
    )
    return save_tiny_model("qwen3", tmp_path_factory.mktemp("qwen3"), dtype="bfloat16")


@pytest.fixture(scope="module")
def expected(folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("expected") / "out"
    ab.quantize(folder, out, tokens=TOKENS, group_size=32, threads=1)
    return contents(out)


def contents(out):
    """Return every file's bytes; of the record what does not tell of the run."""
    found = {path.name: path.read_bytes() for path in out.iterdir()}
    record = json.loads(found["awqbench_run.json"])
    found["awqbench_run.json"] = {k: v for k, v in record.items() if k not in OF_THE_RUN}
    return found


def quantize_and_die(folder, out, steps):
    """Quantize, and at the given durable step end without any clean-up; in a child."""
    real = os.fsync
    left = [steps]

    def fsync(handle):
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        real(handle)

    os.fsync = fsync
    ab.quantize(folder, out, tokens=TOKENS, group_size=32, threads=1)


def quantize_small_files(folder, out, file_bytes):
    """Quantize where no file may grow beyond a size, as on a full disk; in a child."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, file_bytes))
    try:
        ab.quantize(folder, out, tokens=TOKENS, group_size=32, threads=1)
    except OutputError as error:
        sys.exit(FULL if "no space" in str(error) else str(error))


def in_child(target, *arguments):
    child = PROCESSES.Process(target=target, args=arguments)
    child.start()
    child.join(120)
    return child.exitcode


def test_a_run_killed_at_every_durable_step_ends_the_same(folder, expected, tmp_path):
    # Each life goes a few steps further than what the one before it had finished.
    out, lives = tmp_path / "out", 0
    while in_child(quantize_and_die, folder, out, 7 + lives) == KILLED:
        lives += 1
    if not out.exists():
        pytest.fail("the run failed for another reason than its killing")
    assert lives >= 3
    assert contents(out) == expected
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("steps", [3, 11, 19, 27])
def test_a_killed_run_goes_on_in_another_process(folder, expected, tmp_path, steps):
    out = tmp_path / "out"
    assert in_child(quantize_and_die, folder, out, steps) == KILLED
    assert not out.exists()
    ab.quantize(folder, out, tokens=TOKENS, group_size=32, threads=1)
    assert contents(out) == expected
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("file_bytes", [1_000, 30_000, 60_000])
def test_a_full_disk_is_named_and_nothing_is_lost(folder, expected, tmp_path, file_bytes):
    out = tmp_path / "out"
    assert in_child(quantize_small_files, folder, out, file_bytes) == FULL
    assert not out.exists()
    ab.quantize(folder, out, tokens=TOKENS, group_size=32, threads=1)
    assert contents(out) == expected


def stopped_run(folder, out, monkeypatch, *, after=1):
    """Leave an unfinished run with `after` finished blocks."""
    real, count = task.quantize_block, []

    def quantize_block(*args, **kwargs):
        if len(count) == after:
            raise KeyboardInterrupt
        count.append(1)
        return real(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(task, "quantize_block", quantize_block)
        with pytest.raises(KeyboardInterrupt):
            ab.quantize(folder, out, tokens=TOKENS, group_size=32, threads=1)
    (files,) = out.with_name(f".{out.name}.unfinished").glob("run-*")
    return files


@pytest.mark.parametrize(
    "file",
    ["block-00000.safetensors", "enters-00001-00001.safetensors", "stats/block-00001.safetensors"],
)
def test_what_is_damaged_on_disk_is_made_again(folder, expected, tmp_path, monkeypatch, file):
    out = tmp_path / "out"
    # What enters block 1 is read again only where its statistics are still to be collected.
    path = stopped_run(folder, out, monkeypatch, after=0 if "enters" in file else 1) / file
    data = path.read_bytes()
    path.write_bytes(data[:-500] + bytes(b ^ 0x21 for b in data[-500:]))
    if file.startswith("block"):
        with pytest.warns(UserWarning, match=r"model\.layers\.0 of the unfinished run is damaged"):
            record = ab.quantize(folder, out, tokens=TOKENS, group_size=32)
        assert (record["damaged_blocks"], record["resumed_blocks"]) == ([0], 0)
    else:
        ab.quantize(folder, out, tokens=TOKENS, group_size=32)
    assert contents(out) == expected


def test_going_on_calibrates_only_what_is_missing(folder, tmp_path, monkeypatch):
    from awqbench.model import BlockRunner
    from awqbench.quantize.folds.find import trace_sites

    out, ran = tmp_path / "out", []
    stopped_run(folder, out, monkeypatch, after=0)
    real, sites_of = BlockRunner.run_block, trace_sites(BlockRunner(ab.open_checkpoint(folder)))
    monkeypatch.setattr(
        BlockRunner, "run_block", lambda s, b, i, x: ran.append(i) or real(s, b, i, x)
    )
    # Tracing runs a block too, on a few random tokens.
    monkeypatch.setattr("awqbench.quantize.folds.find.trace_sites", lambda runner: sites_of)
    ab.quantize(folder, out, tokens=TOKENS, group_size=32)
    assert set(ran) == {1}


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"tokens": TOKENS % 7}, "calibration_digest"),
        ({"rounding": "gptq"}, "rounding"),
        ({"group_size": 16}, "group_size"),
    ],
)
def test_another_text_or_setting_is_refused_by_name(folder, tmp_path, monkeypatch, change, named):
    out = tmp_path / "out"
    stopped_run(folder, out, monkeypatch)
    with pytest.raises(ResumeError, match=named):
        ab.quantize(folder, out, **({"tokens": TOKENS, "group_size": 32} | change))


def test_another_model_is_refused_by_name(folder, tmp_path, monkeypatch):
    out = tmp_path / "out"
    stopped_run(folder, out, monkeypatch)
    other = save_tiny_model("qwen2", tmp_path / "other")
    with pytest.raises(ResumeError, match="model"):
        ab.quantize(other, out, tokens=TOKENS, group_size=32)


def test_a_second_process_on_the_same_folder_is_refused(folder, tmp_path):
    out = tmp_path / "out"
    code = (
        "import sys, numpy as np, awqbench as ab\n"
        "def hold(*_):\n"
        "    print('block', flush=True); sys.stdin.readline()\n"
        "t = np.random.default_rng(0).integers(0, 128, (12, 24))\n"
        "ab.quantize(sys.argv[1], sys.argv[2], tokens=t, group_size=32, on_block=hold)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(folder), str(out)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as first:
        assert first.stdout.readline().strip() == "block"
        for resume in (True, False):
            with pytest.raises(OutputError, match="another run is writing"):
                ab.quantize(folder, out, tokens=TOKENS, group_size=32, resume=resume)
        first.communicate("go\ngo\n", timeout=120)
    assert first.returncode == 0
    assert ab.open_checkpoint(out).quantization.group_size == 32


@pytest.mark.parametrize("is_half_removed", [False, True])
def test_a_run_killed_in_its_last_step_is_finished(folder, expected, tmp_path, is_half_removed):
    from awqbench.quantize.run.work import WorkFolder

    out = tmp_path / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(WorkFolder, "discard", lambda self: None)
        record = ab.quantize(folder, out, tokens=TOKENS, group_size=32, threads=1)
    assert out.with_name(".out.unfinished").exists()
    if is_half_removed:
        (tmp_path / ".out.unfinished" / "run.json").unlink()
    again = ab.quantize(folder, out, tokens=TOKENS, group_size=32)
    assert again == json.loads(json.dumps(record))
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert contents(out) == expected


def test_a_file_is_there_whole_or_not_at_all(tmp_path):
    path = tmp_path / "file"
    path.write_text("before")

    def fails(partial):
        partial.write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(OutputError, match="no space for file .* bytes are free"):
        write_durably(path, fails)
    assert path.read_text() == "before"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
