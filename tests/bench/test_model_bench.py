import json

import numpy as np
import pytest
import torch
from tiny_models import save_tiny_model
from typer.testing import CliRunner

import awqbench.bench.model_bench as model_bench
from awqbench.bench.model_bench import (
    Workload,
    bench_model,
    bytes_per_token,
    measure_model,
    model_figures,
    rounded_folder,
    synthetic_folder,
)
from awqbench.bench.model_process import ModelProcess
from awqbench.bench.model_worker import Generation, generate, load, peak_bytes
from awqbench.bench.probes import read_probe
from awqbench.bench.synthetic import linear_shapes
from awqbench.bench.tables import model_lines
from awqbench.bench.timing import Timing
from awqbench.cli import bench as _commands  # noqa: F401  registers itself
from awqbench.cli.app import INTERRUPTED, app
from awqbench.errors import (
    AlignmentError,
    AlreadyQuantizedError,
    BackendError,
    FormatError,
    OutputError,
    ParameterError,
)
from awqbench.formats.checkpoint import open_checkpoint

SMALL = dict(
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    vocab_size=200,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("made") / "small"
    return synthetic_folder(out, "qwen3-0.6b", group_size=32, **SMALL)


class FakeProcess:
    """A process whose generations take made-up times."""

    facts = {"load_s": 1.5, "dtype": "bfloat16", "parameter_bytes": 1000}
    peak_bytes = 5_000
    log: list[tuple[str, int]] = []
    stop_at = None

    def __init__(self, folder, backend, *, dtype, threads):
        self.backend = backend

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.log.append((self.backend, -1))

    def generate(self, prompt_tokens, new_tokens):
        self.log.append((self.backend, new_tokens))
        if len(self.log) == self.stop_at:
            raise KeyboardInterrupt
        return Generation(prompt_tokens, new_tokens, 0.5, 2.0 * (new_tokens - 1))


@pytest.fixture
def fake(monkeypatch):
    monkeypatch.setattr(model_bench, "ModelProcess", FakeProcess)
    monkeypatch.setattr(model_bench, "read_probe", lambda: read_probe(100_000))
    monkeypatch.setattr(FakeProcess, "log", [])
    return monkeypatch


def quiet(line):
    pass


def test_a_synthetic_folder_has_the_shape_and_loads(folder):
    ckpt = open_checkpoint(folder)
    assert ckpt.quantization.summary()
    assert len(ckpt.quantized_linears()) == 14
    packed = ckpt.linear("model.layers.1.mlp.down_proj")
    assert (packed.out_features, packed.in_features, packed.group_size) == (64, 96, 32)
    assert set(np.unique(packed.zeros)) == {8} and packed.codes.std() > 4
    weight = packed.dequantize()
    assert 0.8 < weight.std() * 96**0.5 < 1.25
    model, facts = load(str(folder), "auto", "float32")
    logits = model(input_ids=torch.arange(5)[None]).logits
    assert logits.shape == (1, 5, 200) and bool(logits.isfinite().all())
    assert facts["dtype"] == "float32" and facts["load_s"] > 0


def test_known_models_have_their_published_sizes():
    for name, billions in (("qwen3-0.6b", 0.596), ("qwen3-1.7b", 1.721)):
        config = model_bench.MODELS[name]
        linears = linear_shapes(config)
        count = config["num_hidden_layers"] * sum(k * n for k, n in linears.values())
        count += config["vocab_size"] * config["hidden_size"]
        assert count / 1e9 == pytest.approx(billions, abs=0.001)


def test_synthetic_folders_refuse_what_they_cannot_make(tmp_path, folder):
    with pytest.raises(ParameterError, match="no model 'llama'"):
        synthetic_folder(tmp_path / "a", "llama")
    with pytest.raises(AlignmentError, match=r"mlp\.down_proj: in_features is 96"):
        synthetic_folder(tmp_path / "b", group_size=64, **SMALL)
    with pytest.raises(OutputError, match="not empty"):
        synthetic_folder(folder, group_size=32, **SMALL)
    assert list(tmp_path.iterdir()) == []


def test_rounding_a_model_packs_its_blocks_and_keeps_the_rest(tmp_path):
    source = open_checkpoint(save_tiny_model("qwen3", tmp_path / "dense"))
    ckpt = open_checkpoint(rounded_folder(source, tmp_path / "w4", group_size=16))
    assert len(ckpt.quantized_linears()) == 14
    name = "model.embed_tokens.weight"
    assert torch.equal(ckpt.read(name), source.read(name))
    dense = source.read("model.layers.0.mlp.up_proj.weight").numpy()
    packed = ckpt.linear("model.layers.0.mlp.up_proj")
    steps = np.repeat(packed.scales, 16, axis=1)
    assert (np.abs(packed.dequantize() - dense) <= 0.51 * steps).all()
    with pytest.raises(AlreadyQuantizedError):
        rounded_folder(ckpt, tmp_path / "again")


def test_bytes_of_a_token_are_those_of_the_headers(folder):
    ckpt = open_checkpoint(folder)
    # The embedding is the output layer too: every byte of the folder is read.
    assert bytes_per_token(ckpt, "bfloat16") == ckpt.nbytes
    dense = sum(i.nbytes for i in ckpt.tensors.values() if i.dtype == "bfloat16")
    assert bytes_per_token(ckpt, "float32") == ckpt.nbytes + dense


def test_an_embedding_of_its_own_is_not_read_whole(tmp_path):
    from awqbench.formats.writer import CheckpointWriter

    with CheckpointWriter(tmp_path / "m") as writer:
        writer.add("model.embed_tokens.weight", torch.zeros(100, 8))
        writer.add("lm_head.weight", torch.zeros(100, 8))
        writer.add("model.norm.weight", torch.zeros(8))
        writer.finish({"model_type": "llama"})
    assert bytes_per_token(open_checkpoint(tmp_path / "m"), "float16") == 2 * (800 + 8)


def test_rates_and_shares_of_made_up_times():
    samples = [
        Generation(100, 11, 0.5, 10.0),
        Generation(100, 11, 1.0, 20.0),
        Generation(100, 11, 2.0, 12.0),
    ]
    # A gigabyte in 0.1 s is 10 GB/s; 6 GB in 1.2 s a token are 5.
    row = model_figures(samples, Timing((0.1, 0.1, 0.12)), bytes_per_token=6 * 10**9)
    assert row["prefill_tok_per_s"] == 100 and row["ttft_s"] == 1 and row["prefill_spread"] == 4
    assert row["tok_per_s"] == pytest.approx(1 / 1.2) and row["best_tok_per_s"] == 1
    assert row["spread"] == 2 and row["is_noisy"]
    assert row["gb_s"] == pytest.approx(5) and row["read_gb_s"] == pytest.approx(10)
    assert row["fraction_of_read"] == pytest.approx(0.5)
    assert (row["prompt_tokens"], row["new_tokens"]) == (100, 11)


@pytest.mark.parametrize(
    ("decode", "read", "noisy"),
    [((1.0, 1.4), (1.0, 1.4), False), ((1.0, 1.6), (1.0, 1.0), True), ((1, 1), (1, 2), True)],
)
def test_noisy_runs_are_flagged(decode, read, noisy):
    samples = [Generation(1, 2, 1.0, seconds) for seconds in decode]
    assert model_figures(samples, Timing(read), bytes_per_token=1)["is_noisy"] == noisy


def test_generation_feeds_back_its_tokens_through_the_cache():
    class Model:
        seen = []

        def forward(self, input_ids, past_key_values=None, use_cache=True, logits_to_keep=0): ...

        def __call__(self, input_ids, past_key_values=0, use_cache=True, **more):
            self.seen.append((input_ids.tolist(), past_key_values, use_cache, more))
            logits = torch.zeros(1, input_ids.shape[1], 50)
            logits[0, -1, int(input_ids[0, -1]) + 1] = 1

            class Out:
                pass

            out = Out()
            out.logits, out.past_key_values = logits, past_key_values + input_ids.shape[1]
            return out

    times = generate(Model(), torch.tensor([[3, 4]]), 4)
    assert Model.seen == [
        ([[3, 4]], 0, True, {"logits_to_keep": 1}),
        ([[5]], 2, True, {}),
        ([[6]], 3, True, {}),
        ([[7]], 4, True, {}),
    ]
    assert times.prompt_tokens == 2 and times.new_tokens == 4
    assert Generation(2, 5, 1.0, 8.0).token_s == 2


def test_backends_take_turns(fake, folder):
    work = Workload(4, 3, rounds=2)
    (table,) = measure_model(folder, work, backends=["auto", "dense"], progress=quiet)
    turns = [("auto", 2), ("dense", 2)] + [("auto", 3), ("dense", 3)] * 2
    assert FakeProcess.log == turns + [("dense", -1), ("auto", -1)]
    assert table["is_interleaved"].all() and table["backend"].tolist() == ["auto", "dense"]
    assert table["tok_per_s"].tolist() == [0.5, 0.5]
    assert table["bytes_per_token"].tolist() == [open_checkpoint(folder).nbytes, 1000]


def test_without_the_memory_they_run_one_after_the_other(fake, folder):
    fake.setattr(model_bench, "available_bytes", lambda: 10**9)
    table = bench_model(folder, backends=["auto", "dense"], new_tokens=2, rounds=1)
    assert [name for name, _ in FakeProcess.log] == ["auto"] * 3 + ["dense"] * 3
    assert not table["is_interleaved"].any() and table["vs dense"].tolist() == [1, 1]
    assert "one after the other, for want of memory" in model_lines(table)


def test_ctrl_c_gives_what_was_measured_and_ends_every_process(fake, folder):
    fake.setattr(FakeProcess, "stop_at", 4)  # in the first turn of the second
    tables = []
    with pytest.raises(KeyboardInterrupt):
        for table in measure_model(folder, backends=["auto", "dense"], progress=quiet):
            tables.append(table)
    assert [table["backend"].tolist() for table in tables] == [["auto"]]
    assert FakeProcess.log[-2:] == [("dense", -1), ("auto", -1)]


def test_mistakes_are_told_before_a_process_starts(fake, folder, tmp_path):
    for work, backends in ((Workload(0), ["auto"]), (Workload(1, 1), ["auto"]), (Workload(), [])):
        with pytest.raises(ParameterError, match="the first comes with the prompt"):
            list(measure_model(folder, work, backends=backends))
    with pytest.raises(FormatError, match="is in full precision"):
        bench_model(save_tiny_model("llama", tmp_path / "dense"))
    assert FakeProcess.log == []


def test_a_process_of_its_own_loads_generates_and_reports(folder):
    with ModelProcess(str(folder), "numpy", dtype="float32", threads=1) as process:
        times = process.generate(3, 2)
        assert times.prompt_tokens == 3 and times.prefill_s > 0 and times.decode_s > 0
        assert process.peak_bytes > process.facts["imported_bytes"] > 10**6
        assert process.facts["dtype"] == "float32"
        process._process.kill()
        with pytest.raises(BackendError, match="'numpy' ended with status -9.*out of memory"):
            process.generate(3, 2)
    assert process._process.poll() is not None


def test_errors_of_loading_come_back_as_themselves(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(FormatError, match=r"holds no model\.safetensors"):
        ModelProcess(str(tmp_path), "auto", dtype=None, threads=1)


def test_peak_memory_is_that_of_this_process():
    before = peak_bytes()
    assert before > 10**7
    kept = np.ones(before // 8 + 10**6)
    assert peak_bytes() > before and kept[-1] == 1


def test_the_command_makes_a_folder_and_prints_a_line_a_backend(fake, tmp_path):
    out = tmp_path / "model.jsonl"
    fake.setitem(model_bench.MODELS, "qwen3-0.6b", model_bench.MODELS["qwen3-0.6b"] | SMALL)
    words = ["bench", "model", "qwen3-0.6b", "--quick", "--group-size", "32", "--out", str(out)]
    result = CliRunner().invoke(app, [*words, "--backend", "auto", "--backend", "dense"])
    assert result.exit_code == 0, result.output
    assert "qwen3-0.6b-random-w4" in result.stdout and "vs dense" in result.stdout
    record = json.loads(out.read_text())
    assert [row["backend"] for row in record["rows"]] == ["auto", "dense"]
    assert record["settings"]["new_tokens"] == 8 and record["is_complete"]


def test_the_command_tells_that_it_was_stopped(fake, folder):
    fake.setattr(FakeProcess, "stop_at", 1)
    result = CliRunner().invoke(app, ["bench", "model", str(folder)])
    assert result.exit_code == INTERRUPTED and "stopped with 0 of 1" in result.stderr
