"""Which device a run takes: decided once, kept on resuming, and refused where it is not."""

import os
import socket
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny_models import VOCABULARY, save_tiny_model
from typer.testing import CliRunner

import awqbench as ab
from awqbench.cli.app import app
from awqbench.errors import DeviceError, ParameterError, ResumeError
from awqbench.quantize.redo import redo
from awqbench.quantize.run import device, task
from awqbench.quantize.run.device import SearchDevice, chosen_device, own_device, settled_device

TOKENS = np.random.default_rng(0).integers(0, VOCABULARY, (4, 24))
HOST = socket.gethostname()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny_model("qwen3", tmp_path_factory.mktemp("qwen3"), dtype="bfloat16")


@pytest.fixture(scope="module")
def stats(folder, tmp_path_factory):
    return ab.calibrate(folder, TOKENS, tmp_path_factory.mktemp("stats"))


@pytest.fixture
def no_gpu(monkeypatch):
    """A build of torch for CUDA that finds none, wherever these tests run."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


@pytest.fixture
def two_gpus(monkeypatch, tmp_path):
    """Two GPUs as torch tells of them, and locks of their own."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: "Stand-in")
    cards = [SimpleNamespace(uuid="card-a"), SimpleNamespace(uuid="card-b")]
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda i: cards[i])
    monkeypatch.setattr(device.tempfile, "gettempdir", lambda: str(tmp_path))
    held = []
    monkeypatch.setattr(device, "_held", held)
    device._taken_gpu.cache_clear()
    yield cards
    device._taken_gpu.cache_clear()
    for file in held:
        file.close()


def test_auto_is_what_torch_finds(no_gpu, monkeypatch):
    assert chosen_device() == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert chosen_device() == "cuda"


@pytest.mark.parametrize("asked", ["gpu", "cuda:", "cuda:x", "mps", "CPU"])
def test_other_names_are_refused(asked):
    with pytest.raises(ParameterError, match=f"'{asked}'; give 'auto', 'cpu', 'cuda'"):
        chosen_device(asked)


def build_for_cpu(monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(torch.version, "hip", None)


def no_driver(monkeypatch):
    def init():
        raise RuntimeError("Found no NVIDIA driver on your system.\nPlease check")

    monkeypatch.setattr(torch.cuda, "init", init)


def hidden(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


@pytest.mark.parametrize(
    ("why", "reason", "fix"),
    [
        (
            build_for_cpu,
            r"torch \S+ is built for the CPU only",
            "install a build of torch for CUDA",
        ),
        (no_driver, r"Found no NVIDIA driver on your system", "install or update the driver"),
        (hidden, "CUDA_VISIBLE_DEVICES is ''", "unset CUDA_VISIBLE_DEVICES"),
    ],
)
def test_no_gpu_is_refused_before_any_work_with_the_reason(
    no_gpu, monkeypatch, folder, stats, tmp_path, why, reason, fix
):
    why(monkeypatch)
    words = rf"'cuda', and not on host {HOST}: {reason}.*\(--device cpu\); or {fix}"
    with pytest.raises(DeviceError, match=words):
        ab.quantize(folder, tmp_path / "out", stats=stats, group_size=32, device="cuda")
    assert not list(tmp_path.iterdir())
    with pytest.raises(DeviceError, match=reason):
        ab.search(folder, stats, group_size=32, device="cuda")


def test_a_worker_without_a_gpu_names_its_host(no_gpu, monkeypatch):
    no_driver(monkeypatch)
    assert chosen_device("cuda", elsewhere=True) == "cuda"
    arguments = dict.fromkeys(("model", "statistics", "finished", "name", "stored_prefix"), "")
    with pytest.raises(DeviceError, match=f"host {HOST}: .*start workers on hosts with a GPU"):
        task.run_block(0, **arguments, stored_names={}, settings={}, threads=1, device="cuda")


def test_a_gpu_that_is_not_there_is_named_with_those_that_are(two_gpus):
    assert chosen_device("cuda:1") == "cuda:1"
    with pytest.raises(DeviceError, match="it has 2 GPUs, the last of them cuda:1"):
        chosen_device("cuda:2")


def test_a_gpu_that_cannot_compute_is_refused(two_gpus, monkeypatch):
    def zeros(*_, **__):
        raise RuntimeError("CUDA error: no kernel image is available\nmore")

    monkeypatch.setattr(torch, "zeros", zeros)
    with pytest.raises(DeviceError, match=f"cuda:1 of host {HOST} cannot compute: CUDA error: no"):
        own_device("cuda:1")


def test_processes_spread_over_the_gpus_of_a_host(two_gpus):
    take = device._taken_gpu.__wrapped__  # what each of several processes would do
    assert [take() for _ in range(4)] == [0, 1, 0, 1]
    device._held.pop(1).close()  # the second process ends
    assert take() == 1
    # Another order of the same cards, as CUDA_VISIBLE_DEVICES may give it.
    device._held.pop(0).close()
    two_gpus.reverse()
    assert [take() for _ in range(3)] == [1, 0, 1]


def test_a_process_keeps_its_gpu(two_gpus, monkeypatch):
    monkeypatch.setattr(torch, "zeros", lambda *_, **__: SimpleNamespace(cpu=lambda: None))
    assert own_device("cuda") == own_device("cuda") == torch.device("cuda", 0)
    assert len(device._held) == 1
    assert own_device("cuda:1") == torch.device("cuda", 1)


@pytest.mark.parametrize("why", ["one GPU", "no folder for locks"])
def test_without_locks_it_is_the_first_gpu(two_gpus, monkeypatch, tmp_path, why):
    if why == "one GPU":
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    else:
        (tmp_path / f"awqbench-gpus-{os.getuid()}").write_text("a file")
    assert device._taken_gpu() == 0 and not device._held


class Work:
    """What is known of an unfinished run."""

    def __init__(self, before, blocks=1):
        self.facts = {} if before is None else {"threads": 1, "device": before}
        self.resumed_blocks = blocks

    def amend(self, facts):
        self.facts |= facts


STAND_IN = "cuda (Stand-in)"


@pytest.mark.parametrize(
    ("asked", "before", "settled"),
    [
        ("auto", None, SearchDevice("cuda", STAND_IN)),
        ("cpu", None, SearchDevice("cpu", "cpu")),
        ("auto", "cpu", SearchDevice("cpu", "cpu")),
        ("auto", STAND_IN, SearchDevice("cuda", STAND_IN)),
        ("cuda:1", STAND_IN, SearchDevice("cuda:1", STAND_IN)),
        ("cuda", "cuda", SearchDevice("cuda", STAND_IN)),  # begun with a scheduler
    ],
)
def test_a_run_that_goes_on_keeps_its_device(two_gpus, asked, before, settled):
    assert settled_device(asked, Work(before)) == settled


@pytest.mark.parametrize(
    ("asked", "before", "now"),
    [
        ("cuda", "cpu", r"cuda \(Stand-in\)"),
        ("cpu", STAND_IN, "cpu"),
        ("auto", "cuda (Another)", r"cuda \(Stand-in\)"),
        ("cpu", "cuda", "cpu"),
    ],
)
def test_another_device_is_refused_once_blocks_are_finished(two_gpus, asked, before, now):
    with pytest.raises(ResumeError, match=rf"blocks \(1\) .* and now {now} is asked for"):
        settled_device(asked, Work(before))
    fresh = Work(before, blocks=0)
    assert fresh.facts["device"] != settled_device(asked, fresh).fact == fresh.facts["device"]


def test_a_run_begun_on_a_gpu_says_so_where_there_is_none(no_gpu, monkeypatch):
    no_driver(monkeypatch)
    with pytest.raises(DeviceError, match=r"'cuda' \(the unfinished run was begun there\)"):
        settled_device("auto", Work(STAND_IN))
    assert settled_device("auto", Work(STAND_IN), elsewhere=True).name == "cuda"


def test_a_stopped_run_is_refused_on_another_device_and_redone_on_its_own(
    folder, stats, tmp_path, monkeypatch
):
    out = tmp_path / "out"

    def stop(*_):
        raise KeyboardInterrupt

    how = {"stats": stats, "group_size": 32}
    with pytest.raises(KeyboardInterrupt):
        ab.quantize(folder, out, device="cpu", on_block=stop, **how)
    with monkeypatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: True)
        patch.setattr(torch.cuda, "device_count", lambda: 1)
        patch.setattr(torch.cuda, "get_device_name", lambda device=None: "Stand-in")
        with pytest.raises(ResumeError, match=r"searched on cpu, and now cuda \(Stand-in\)"):
            ab.quantize(folder, out, device="cuda", **how)
        assert ab.quantize(folder, out, **how)["computed_with"]["device"] == "cpu"
        record = redo(folder, out, [0], stats=stats, bits=4, rounding="gptq")
    assert record["computed_with"]["device"] == "cpu"


def test_the_command_line_takes_a_device(no_gpu, monkeypatch, folder, stats, tmp_path):
    no_driver(monkeypatch)
    words = ["quantize", folder, tmp_path / "out", "--stats", stats.path, "--group-size", 32]
    result = CliRunner().invoke(app, [*map(str, words), "--device", "cuda"])
    assert isinstance(result.exception, DeviceError) and not list(tmp_path.iterdir())
    result = CliRunner().invoke(app, [*map(str, words), "--device", "cpu", "--json"])
    assert result.exit_code == 0 and '"device": "cpu"' in result.output
