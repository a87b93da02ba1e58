"""From a folder to a quantized folder, on small random models; and everything that stops it."""

import json
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import VOCABULARY, save_tiny_model

import awqbench as ab
from awqbench.errors import (
    AlignmentError,
    AlreadyQuantizedError,
    CalibrationTextError,
    FormatError,
    NonFiniteError,
    OutputError,
    ParameterError,
    ResumeError,
    StatisticsError,
)
from awqbench.quantize.statistics.stats import merge_stats

TOKENS = np.random.default_rng(0).integers(0, VOCABULARY, (12, 24))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny_model("qwen3", tmp_path_factory.mktemp("qwen3"), dtype="bfloat16")


@pytest.fixture(scope="module")
def stats(folder, tmp_path_factory):
    return ab.calibrate(folder, TOKENS, tmp_path_factory.mktemp("stats"))


def logits(model):
    with torch.no_grad():
        return model(torch.from_numpy(TOKENS[:2])).logits.float()


def test_statistics_are_those_of_the_full_precision_model(folder, stats):
    model = ab.load_model(folder, dtype="bfloat16")
    seen = []
    linear = model.model.layers[1].mlp.down_proj
    linear.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    logits_all = model(torch.from_numpy(TOKENS))
    del logits_all
    x = seen[0].detach().float().flatten(0, 1)
    record = {r.site.name: r for r in stats.block(1)}["mlp.down_proj"]
    error = (record.moments.gram() - x.T @ x).norm() / (x.T @ x).norm()
    assert error < 1e-4
    assert record.moments.n_tokens == TOKENS.size


def test_statistics_survive_loading_and_add_up(folder, stats, tmp_path):
    again = ab.load_stats(stats.path)
    halves = [
        ab.calibrate(folder, part, tmp_path / str(i)) for i, part in enumerate(np.split(TOKENS, 2))
    ]
    both = merge_stats(halves, tmp_path / "both")
    assert both.n_tokens == again.n_tokens == TOKENS.size
    for i in range(again.n_blocks):
        for one, two in zip(again.block(i), both.block(i), strict=True):
            assert one.site.name == two.site.name
            torch.testing.assert_close(one.moments.gram(), two.moments.gram(), rtol=1e-4, atol=1e-3)


def test_statistics_of_another_model_are_refused(stats, tmp_path):
    other = save_tiny_model("qwen2", tmp_path / "other")
    with pytest.raises(StatisticsError, match="another model"):
        ab.search(other, stats, group_size=32)


def test_incomplete_statistics_are_refused(stats, tmp_path):
    with pytest.raises(StatisticsError, match="no complete statistics"):
        ab.load_stats(tmp_path)


def test_search_reports_every_linear_and_never_ends_worse_than_rounding(folder, stats):
    found = ab.search(folder, stats, bits=3, group_size=32)
    assert len(found.table) == 2 * 7
    assert (found.table.output_error < 1.05 * found.table.rounding_error).all()
    assert found.table.output_error.mean() < 0.9 * found.table.rounding_error.mean()
    assert set(found.curves.columns) == {"block", "site", "alpha", "loss"}
    scales = found.channel_scales()[("model.layers.0", "mlp.gate_proj")]
    assert scales.shape == (64,) and (scales > 0).all()


def test_gptq_rounding_is_better_still(folder, stats):
    nearest = ab.search(folder, stats, bits=3, group_size=32).table.output_error.mean()
    gptq = ab.search(folder, stats, bits=3, group_size=32, rounding="gptq").table.output_error
    assert gptq.mean() < 0.9 * nearest


def test_plain_rounding_has_the_rounding_error(folder, stats):
    table = ab.search(folder, stats, group_size=32, scales="none", clip=False).table
    np.testing.assert_allclose(table.output_error, table.rounding_error, rtol=1e-3)


def test_block_objective_is_the_change_of_the_parents_output(folder, stats):
    ours = ab.search(folder, stats, bits=3, group_size=32, clip=False)
    theirs = ab.search(
        folder, stats, bits=3, group_size=32, clip=False, objective="block", tokens=TOKENS
    )
    down = ours.table.linear == "mlp.down_proj"
    assert ours.table.alpha[down].tolist() == theirs.table.alpha[down].tolist()
    assert theirs.table.output_error.mean() < theirs.table.rounding_error.mean()
    with pytest.raises(CalibrationTextError, match="same"):
        ab.search(folder, stats, group_size=32, objective="block", tokens=TOKENS[:3])


def test_fake_quantized_model_is_put_back(folder, stats):
    model = ab.load_model(folder)
    before = logits(model)
    with ab.fake_quantized(model, folder, stats, bits=2, group_size=32):
        assert (logits(model) - before).abs().max() > 0.01
    assert torch.equal(logits(model), before)


@pytest.mark.parametrize("architecture", ["qwen3", "llama", "phi3", "gemma", "olmo2"])
@pytest.mark.parametrize("rounding", ["nearest", "gptq"])
def test_written_folder_computes_what_the_search_promised(architecture, rounding, tmp_path):
    source = save_tiny_model(architecture, tmp_path / "model")
    record = ab.quantize(source, tmp_path / "out", tokens=TOKENS, group_size=32, rounding=rounding)
    model, full = ab.load_quantized(tmp_path / "out", dtype=torch.float32), ab.load_model(source)
    stats = ab.calibrate(source, TOKENS, tmp_path / "stats")
    reference = logits(full)
    got = (logits(model) - reference).norm() / reference.norm()
    with ab.fake_quantized(full, source, stats, group_size=32, rounding=rounding):
        promised = (logits(full) - reference).norm() / reference.norm()
    # Folded into float32 norms and rows, codes differ only where a tie falls otherwise.
    assert got == pytest.approx(float(promised), rel=0.15)
    assert record["repaired"] == {"masked_channels": 0, "flushed_groups": 0, "alarms": 0} or (
        record["repaired"]["alarms"] > 0
    )


def test_checkpoint_is_laid_out_as_autoawq_lays_it_out(folder, stats, tmp_path):
    record = ab.quantize(folder, tmp_path / "out", stats=stats, group_size=32)
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["quantization_config"] == {
        "bits": 4,
        "group_size": 32,
        "modules_to_not_convert": None,
        "quant_method": "awq",
        "version": "gemm",
        "zero_point": True,
    }
    up = "model.layers.0.mlp.up_proj"
    assert f"{up}.weight" not in tensors
    assert tensors[f"{up}.qweight"].shape == (64, 96 // 8)
    assert tensors[f"{up}.qweight"].dtype == torch.int32
    assert tensors[f"{up}.qzeros"].shape == (2, 96 // 8)
    assert (tensors[f"{up}.scales"].shape, tensors[f"{up}.scales"].dtype) == (
        (2, 96),
        torch.float16,
    )
    assert tensors["model.layers.0.input_layernorm.weight"].dtype == torch.bfloat16
    assert not list(tmp_path.glob(".out*"))
    saved = json.loads((tmp_path / "out" / "awqbench_run.json").read_text())
    assert saved["model_digest"] == record["model_digest"]
    assert len(saved["linears"]) == 14


def test_skipped_linears_stay_dense_and_the_model_right(folder, tmp_path):
    ab.quantize(
        folder,
        tmp_path / "out",
        tokens=TOKENS,
        group_size=32,
        modules_to_not_convert=("v_proj", "layers.1.mlp"),
    )
    ckpt = ab.open_checkpoint(tmp_path / "out")
    assert "model.layers.0.self_attn.v_proj.weight" in ckpt.tensors
    assert "model.layers.1.mlp.up_proj.weight" in ckpt.tensors
    reference = logits(ab.load_model(folder))
    got = logits(ab.load_quantized(tmp_path / "out", dtype=torch.float32))
    assert (got - reference).norm() / reference.norm() < 0.2


def test_a_quantized_folder_is_not_quantized_again(folder, stats, tmp_path):
    ab.quantize(folder, tmp_path / "out", stats=stats, group_size=32)
    with pytest.raises(AlreadyQuantizedError, match="awq-gemm, 4 bits, group size 32"):
        ab.quantize(tmp_path / "out", tmp_path / "twice", tokens=TOKENS)
    assert not (tmp_path / "twice").exists()


@pytest.mark.parametrize(
    ("changes", "error", "text"),
    [
        ({"group_size": 128}, AlignmentError, "in_features is 64, not a multiple of 128"),
        ({"bits": 3, "group_size": 32}, FormatError, "bits=3"),
        ({"group_sise": 32}, ParameterError, "did you mean 'group_size'"),
        ({"rounding": "up"}, ParameterError, "nearest, gptq"),
        ({"group_size": 0}, ParameterError, "group_size is 0"),
    ],
)
def test_bad_settings_are_refused_before_any_work(folder, tmp_path, changes, error, text):
    with pytest.raises(error, match=text):
        ab.quantize(folder, tmp_path / "out", tokens=TOKENS, **changes)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("tokens", [np.zeros((0, 8), int), np.zeros(8, int), np.zeros((2, 8))])
def test_bad_tokens_are_refused(folder, tmp_path, tokens):
    with pytest.raises(CalibrationTextError):
        ab.quantize(folder, tmp_path / "out", tokens=tokens, group_size=32)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_with_files_is_left_alone(folder, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    with pytest.raises(OutputError, match="not empty"):
        ab.quantize(folder, tmp_path / "out", tokens=TOKENS, group_size=32)
    assert [p.name for p in tmp_path.rglob("*")] == ["out", "mine.txt"]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nonfinite_weights_are_named_and_nothing_is_published(folder, tmp_path, bad):
    spoilt = tmp_path / "model"
    spoilt.mkdir()
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][3, 4] = bad
    save_file(tensors, spoilt / "model.safetensors", metadata={"format": "pt"})
    (spoilt / "config.json").write_text((folder / "config.json").read_text())
    with pytest.raises(NonFiniteError, match=r"model\.layers\.1\.mlp\.up_proj\.weight"):
        ab.quantize(spoilt, tmp_path / "out", tokens=TOKENS, group_size=32)
    assert not (tmp_path / "out").exists()


def stop_after(monkeypatch, blocks):
    """Let quantization stop, as by Ctrl-C, when `blocks` blocks are finished."""
    from awqbench.quantize.run import task

    real, count = task.quantize_block, []

    def quantize_block(*args, **kwargs):
        if len(count) == blocks:
            raise KeyboardInterrupt
        count.append(1)
        return real(*args, **kwargs)

    monkeypatch.setattr(task, "quantize_block", quantize_block)


def test_an_interrupted_run_goes_on_and_ends_the_same(folder, tmp_path, monkeypatch):
    ab.quantize(folder, tmp_path / "straight", tokens=TOKENS, group_size=32)
    with monkeypatch.context() as patch:
        stop_after(patch, 1)
        with pytest.raises(KeyboardInterrupt):
            ab.quantize(folder, tmp_path / "out", tokens=TOKENS, group_size=32)
    assert not (tmp_path / "out").exists()
    with pytest.raises(ResumeError, match="group_size"):
        ab.quantize(folder, tmp_path / "out", tokens=TOKENS, group_size=16)
    record = ab.quantize(folder, tmp_path / "out", tokens=TOKENS, group_size=32)
    assert record["resumed_blocks"] == 1
    one, two = (tmp_path / n / "model.safetensors" for n in ("straight", "out"))
    assert one.read_bytes() == two.read_bytes()


def test_without_resume_an_unfinished_run_is_discarded(folder, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        stop_after(patch, 1)
        with pytest.raises(KeyboardInterrupt):
            ab.quantize(folder, tmp_path / "out", tokens=TOKENS, group_size=32)
    record = ab.quantize(folder, tmp_path / "out", tokens=TOKENS, group_size=16, resume=False)
    assert record["resumed_blocks"] == 0


def test_two_runs_on_one_folder_are_refused(folder, tmp_path):
    from awqbench.quantize.run.work import WorkFolder

    with WorkFolder(tmp_path / "out", {}), pytest.raises(OutputError, match="another run"):
        WorkFolder(tmp_path / "out", {}).__enter__()


def test_a_real_interrupt_leaves_a_run_that_goes_on(folder, tmp_path):
    code = (
        "import sys, numpy as np, awqbench as ab, awqbench.quantize.run.task as task\n"
        "real = task.quantize_block\n"
        "def slow(*a, **k):\n"
        "    done = real(*a, **k); print('block', flush=True)\n"
        "    import time; time.sleep(1); return done\n"
        "task.quantize_block = slow\n"
        "t = np.random.default_rng(0).integers(0, 128, (12, 24))\n"
        "ab.quantize(sys.argv[1], sys.argv[2], tokens=t, group_size=32)\n"
    )
    out = tmp_path / "out"
    with subprocess.Popen(
        [sys.executable, "-c", code, str(folder), str(out)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline().strip() == "block"
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=120)
    assert process.returncode != 0 and not out.exists()
    ab.quantize(folder, out, tokens=TOKENS, group_size=32)
    assert ab.open_checkpoint(out).quantization.group_size == 32
