"""A run in the background: its losses come block by block, it stops and goes on."""

import asyncio

import numpy as np
import pytest
from tiny_models import VOCABULARY, save_tiny_model

import awqbench as ab
from awqbench.errors import AlignmentError, ParameterError
from awqbench.widgets import monitor

TOKENS = np.random.default_rng(0).integers(0, VOCABULARY, (12, 24))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny_model("qwen3", tmp_path_factory.mktemp("qwen3"), dtype="bfloat16")


@pytest.fixture(scope="module")
def stats(folder, tmp_path_factory):
    return ab.calibrate(folder, TOKENS, tmp_path_factory.mktemp("stats"))


def started(folder, stats, out, **changes):
    return monitor.run(folder, out, stats=stats, **({"group_size": 32} | changes))


def test_a_run_shows_every_block_and_returns_the_record(folder, stats, tmp_path):
    run = started(folder, stats, tmp_path / "out")
    record = run.wait()
    assert run.state == monitor.FINISHED and run.record is record
    assert sorted(set(run.table["block"])) == [0, 1] and len(run.table) == 14
    found = [row["output_error"] for row in record["linears"]]
    np.testing.assert_allclose(run.table["output_error"], found)
    assert run.bar.value == run.bar.max == 2
    assert "2 of 2 blocks done" in run.picture.view.text
    assert ab.open_checkpoint(tmp_path / "out").quantization.bits == 4
    with pytest.raises(ParameterError, match="nothing to resume"):
        run.resume()


def test_an_interrupted_run_keeps_its_blocks_and_goes_on(folder, stats, tmp_path):
    run = monitor.RunMonitor(folder, tmp_path / "out", stats=stats, group_size=32)
    run._stop.set()  # as by a click during the first block
    run._stop.clear = lambda: None
    assert run.resume().wait() is None
    assert run.state == monitor.INTERRUPTED and run.table["block"].nunique() == 1
    assert not (tmp_path / "out").exists() and (tmp_path / ".out.unfinished").exists()
    assert not run.resume_button.disabled and run.stop_button.disabled
    del run._stop.clear
    record = run.resume().wait()
    assert record["resumed_blocks"] == 1 and run.table["block"].nunique() == 2
    assert not (tmp_path / ".out.unfinished").exists()


def test_the_button_asks_to_stop(folder, stats, tmp_path):
    run = started(folder, stats, tmp_path / "out")
    run.stop_button.click()
    assert run.state == monitor.STOPPING and run._stop.is_set()
    assert run.wait() is None or run.state == monitor.FINISHED  # it may have been too late


def test_what_stops_a_run_is_said_and_raised(folder, stats, tmp_path):
    run = started(folder, stats, tmp_path / "out", group_size=128)
    with pytest.raises(AlignmentError, match="not a multiple of 128"):
        run.wait()
    assert run.state == monitor.FAILED and "not a multiple of 128" in run.picture.error


def test_in_a_notebook_it_is_shown_while_the_kernel_is_idle(folder, stats, tmp_path):
    async def cell():
        run = started(folder, stats, tmp_path / "out")
        while run.state in (monitor.RUNNING, monitor.STOPPING):
            await asyncio.sleep(0.02)
        return run

    run = asyncio.run(asyncio.wait_for(cell(), 60))
    assert run.state == monitor.FINISHED and len(run.table) == 14


def test_without_widgets_the_end_is_waited_for_and_shown(folder, stats, tmp_path):
    run = started(folder, stats, tmp_path / "out")
    data, _ = run._repr_mimebundle_()
    assert set(data) == {"text/plain", "image/png"} and "finished" in data["text/plain"]
