"""One block at a time: what is kept, what is dropped, and what memory decides."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny_models import VOCABULARY, save_tiny_model

import awqbench as ab
from awqbench.errors import MemoryLimitError, ParameterError
from awqbench.quantize.run.memory import MemoryPlan, statistics_bytes
from awqbench.quantize.run.queue import SerialQueue
from awqbench.quantize.run.task import run_block
from awqbench.quantize.statistics import collect
from awqbench.quantize.statistics.activations import Activations
from awqbench.quantize.statistics.chunk import Sketching, add_sums
from awqbench.quantize.statistics.collect import Calibration
from awqbench.quantize.statistics.moments import Moments
from awqbench.quantize.stopwatch import Stopwatch

TOKENS = np.random.default_rng(0).integers(0, VOCABULARY, (12, 24))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny_model("qwen3", tmp_path_factory.mktemp("qwen3"), dtype="bfloat16")


@pytest.fixture(scope="module")
def weights(folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "out"
    ab.quantize(folder, out, tokens=TOKENS, group_size=32)
    return (out / "model.safetensors").read_bytes()


def test_statistics_of_a_finished_block_are_dropped(folder, weights, tmp_path):
    seen = []

    def look(i, n_blocks, rows):
        stats = (tmp_path / ".out.unfinished").glob("run-*/stats/*.safetensors")
        seen.append(sorted(p.name for p in stats))

    ab.quantize(folder, tmp_path / "out", tokens=TOKENS, group_size=32, on_block=look)
    assert seen == [[], []]
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == weights


def test_statistics_can_be_kept_and_used_again(folder, weights, tmp_path):
    kept = tmp_path / "stats"
    ab.quantize(folder, tmp_path / "one", tokens=TOKENS, group_size=32, keep_stats=kept)
    ab.quantize(folder, tmp_path / "two", stats=kept, group_size=32)
    alone = ab.calibrate(folder, TOKENS, tmp_path / "alone")
    for name in ("block-00000.safetensors", "block-00001.safetensors"):
        assert (kept / name).read_bytes() == (alone.path / name).read_bytes()
    for name in ("one", "two"):
        assert (tmp_path / name / "model.safetensors").read_bytes() == weights


def test_a_folder_with_statistics_of_another_text_is_not_taken_for_this_one(
    folder, weights, tmp_path
):
    kept = tmp_path / "stats"
    ab.quantize(folder, tmp_path / "a", tokens=TOKENS % 7, group_size=32, keep_stats=kept)
    ab.quantize(folder, tmp_path / "b", tokens=TOKENS, group_size=32, keep_stats=kept)
    assert (tmp_path / "b" / "model.safetensors").read_bytes() == weights


def test_statistics_with_another_sketch_are_collected_anew(folder, tmp_path):
    out = tmp_path / "stats"
    ab.calibrate(folder, TOKENS, out)
    again = ab.calibrate(folder, TOKENS, out, sketch=Sketching(above=0, rows=16))
    assert not any(record.moments.is_exact for record in again.block(0))


def test_activations_on_disk_give_the_same_bytes(folder, weights, tmp_path, monkeypatch):
    monkeypatch.setattr(MemoryPlan, "keeps_activations", False, raising=False)
    record = ab.quantize(folder, tmp_path / "out", tokens=TOKENS, group_size=32)
    assert record["memory"]["activations_in_memory"] is False
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == weights


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float16])
def test_spilled_activations_come_back_as_they_were(tmp_path, dtype):
    hidden = torch.randn(10, 3, 4, generator=torch.Generator().manual_seed(0)).to(dtype)
    hidden[0, 0] = torch.tensor([float("nan"), float("inf"), -0.0, 1e-40]).to(dtype)
    store = Activations(tmp_path, in_memory=False)
    for chunk, windows in enumerate(hidden.split(6)):
        store.start(5, chunk, len(windows))
        for batch in windows.split(4):
            store.put(batch)
        store.end()
    store.finish(5)
    later = Activations(tmp_path, in_memory=False)
    assert later.saved_blocks(2) == [5]
    later.take_up(5)
    for chunk, j, batch in ((0, 0, hidden[:4]), (0, 1, hidden[4:6]), (1, 0, hidden[6:])):
        found = later.batch(chunk, j, 4 * j, 4 * j + 4)
        assert found.dtype == dtype
        assert torch.equal(found.view(torch.uint8), batch.contiguous().view(torch.uint8))


def test_only_the_inputs_of_one_block_lie_on_disk(tmp_path):
    store = Activations(tmp_path)
    for block in range(3):
        for chunk in range(2):
            store.start(block, chunk, 2)
            store.put(torch.full((2, 1, 4), float(block)))
            store.end()
        store.finish(block)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "enters-00002-00000.json",
        "enters-00002-00000.safetensors",
        "enters-00002-00001.json",
        "enters-00002-00001.safetensors",
    ]


def test_inputs_of_which_a_chunk_is_missing_or_damaged_are_not_taken_up(tmp_path):
    store = Activations(tmp_path)
    for block in range(4):
        for chunk in range(2 if block != 1 else 1):
            store.start(block, chunk, 2)
            store.put(torch.full((2, 1, 4), float(block)))
            store.end()
    damaged = tmp_path / "enters-00002-00001.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"x")
    assert Activations(tmp_path).saved_blocks(2) == [0, 3]
    assert sorted({p.name[:12] for p in tmp_path.iterdir()}) == ["enters-00000", "enters-00003"]


def test_blocks_become_shards_without_a_second_copy(folder, weights, tmp_path, monkeypatch):
    monkeypatch.setattr("awqbench.quantize.run.publish.SINGLE_FILE_BYTES", 1000)
    links = []

    def look(i, n_blocks, rows):
        links.extend((tmp_path / ".out.unfinished").glob(f"run-*/block-{i:05d}.safetensors"))

    inodes = []
    real = SerialQueue.close
    monkeypatch.setattr(
        SerialQueue,
        "close",
        lambda self: inodes.extend(p.stat().st_ino for p in links) or real(self),
    )
    ab.quantize(folder, tmp_path / "out", tokens=TOKENS, group_size=32, on_block=look)
    shards = sorted((tmp_path / "out").glob("model-*-of-*.safetensors"))
    assert set(inodes) <= {p.stat().st_ino for p in shards}
    assert {p.stat().st_mode & 0o777 for p in shards} == {(tmp_path / "out").stat().st_mode & 0o666}
    together = {name: t for shard in shards for name, t in load_file(shard).items()}
    whole = tmp_path / "whole.safetensors"
    whole.write_bytes(weights)
    expected = load_file(whole)
    assert together.keys() == expected.keys()
    assert all(torch.equal(t, expected[name]) for name, t in together.items())
    assert torch.isfinite(
        ab.load_quantized(tmp_path / "out")(torch.tensor(TOKENS[:1])).logits
    ).all()


def test_the_task_gives_the_same_whoever_runs_it(folder, weights, tmp_path):
    """In another order, in processes that know only plain arguments, and more than once."""
    import pickle

    class Backwards:
        def __init__(self, arguments):
            self.arguments, self.waiting = arguments, []

        def spread(self):
            return None

        def status(self):
            return ""

        def submit(self, i):
            self.waiting.append(pickle.dumps((i, self.arguments(i))))

        def finished(self):
            return []

        def drain(self):
            done = []
            for message in reversed(self.waiting):
                i, arguments = pickle.loads(message)
                for _ in range(2):
                    done = [*done, run_block(i, **arguments)]
            return done[::2]

        def close(self):
            pass

    order = []
    ab.quantize(
        folder,
        tmp_path / "out",
        tokens=TOKENS,
        group_size=32,
        make_queue=Backwards,
        on_block=lambda i, n, rows: order.append(i),
    )
    assert order == [1, 0]
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == weights


def test_sums_do_not_depend_on_who_makes_them(folder, tmp_path, monkeypatch):
    """Runs of windows summed alone and added in their order give the bytes of one process."""
    from awqbench.model import BlockRunner
    from awqbench.quantize.folds.find import trace_sites
    from awqbench.quantize.statistics.stats import read_block

    monkeypatch.setattr(collect, "SUM_WINDOWS", 4)
    runner = BlockRunner(ab.open_checkpoint(folder))
    sites_of = trace_sites(runner)

    def sums(tokens, name):
        (tmp_path / name).mkdir()
        run = Calibration(runner, sites_of, tokens, tmp_path / name, batch_size=2)
        assert list(run.blocks([0])) == [0]
        return [record.moments.tensors for record in read_block(tmp_path / name, 0)]

    whole = sums(TOKENS, "whole")
    parts = [sums(part, str(i)) for i, part in enumerate(np.split(TOKENS, 3))]
    for k, tensors in enumerate(whole):
        total = (parts[0][k]["gram"] + parts[1][k]["gram"]) + parts[2][k]["gram"]
        assert torch.equal(tensors["gram"], total)


def test_the_sums_of_two_chunks_add_up_to_those_of_both():
    x = torch.randn(30, 8, generator=torch.Generator().manual_seed(0))
    x[3, 2] = float("nan")
    first, second, whole = Moments(8), Moments(8), Moments(8)
    first.add(x[:13])
    second.add(x[13:])
    whole.add(x)
    total = add_sums(add_sums([], [first.tensors()]), [second.tensors()])
    for name, tensor in whole.tensors().items():
        torch.testing.assert_close(total[0][name], tensor)
    assert total[0]["counts"].tolist() == [29, 1]


@pytest.mark.parametrize("max_memory", ["10MiB", 1000])
def test_a_budget_that_cannot_hold_a_block_is_refused(folder, tmp_path, max_memory):
    with pytest.raises(MemoryLimitError, match=r"takes \d+\.\d+ GiB .* max_memory is 0\.\d+ GiB"):
        ab.quantize(folder, tmp_path / "out", tokens=TOKENS, group_size=32, max_memory=max_memory)
    assert not (tmp_path / "out").exists()


def test_a_budget_that_is_no_size_is_refused(folder, tmp_path):
    with pytest.raises(ParameterError, match="max_memory is 'lots'"):
        ab.quantize(folder, tmp_path / "out", tokens=TOKENS, group_size=32, max_memory="lots")


def test_a_tight_budget_takes_fewer_windows_then_sketches(folder, monkeypatch):
    """A plan gives way in this order, and keeps activations only where there is room."""
    from awqbench.model import BlockRunner
    from awqbench.quantize.folds.find import trace_sites
    from awqbench.quantize.run import memory
    from awqbench.quantize.search import make_settings

    runner = BlockRunner(ab.open_checkpoint(folder))
    sites_of = trace_sites(runner)
    shape = (8, 4096)

    def plan(budget):
        return memory.plan_memory(runner, sites_of, shape, make_settings(None), budget_bytes=budget)

    wide = plan(10**12)
    assert (wide.batch_size, wide.keeps_activations) == (8, True)
    tight = plan(wide.peak_bytes - wide.activation_bytes)
    assert tight.batch_size < 8 or not tight.keeps_activations
    assert tight.peak_bytes <= tight.budget_bytes
    monkeypatch.setattr(memory, "_stages", lambda *a: {"x": 10 if a[3].above < 96 else 100})
    assert plan(50).sketch == Sketching(above=95)


def test_statistics_take_the_bytes_that_are_told(folder, tmp_path):
    moments = Moments(64)
    moments.add(torch.ones(3, 64))
    nbytes = sum(t.nbytes for t in moments.tensors().values())
    assert statistics_bytes(64, Sketching()) == pytest.approx(nbytes, rel=0.02)


def test_stages_inside_stages_count_once():
    import time

    watch = Stopwatch()
    with watch("outer"):
        time.sleep(0.02)
        with watch("inner"):
            time.sleep(0.03)
    assert watch.seconds["inner"] >= 0.03
    assert 0.02 <= watch.seconds["outer"]
    assert watch.seconds.keys() == {"outer", "inner"}
    outer = watch.seconds["outer"]
    with watch("outer"), watch("inner"):
        time.sleep(0.03)
    assert watch.seconds["outer"] - outer < 0.03
