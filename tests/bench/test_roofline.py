"""The model of threads: recovered, held out, and carried to tokens a second."""

import numpy as np
import pytest
from record_cases import made_up

from awqbench.bench import overhead as overheads
from awqbench.bench.literature import published_rows, published_sweeps, read_literature
from awqbench.bench.model_bench import Workload
from awqbench.bench.model_worker import Generation
from awqbench.bench.overhead import Overhead, _overhead, measure_overhead
from awqbench.bench.predict import NO_OVERHEAD, Rate, predict, rate_of, rate_of_sweep
from awqbench.bench.roofline import (
    FACTOR_UNKNOWN,
    FITTED_ERROR,
    FORM_ERROR,
    ThreadModel,
    fit_threads,
    sweep_errors,
)
from awqbench.bench.token_bytes import TokenBytes, token_bytes
from awqbench.errors import FormatError, ParameterError
from awqbench.formats.checkpoint import open_checkpoint
from awqbench.inspect.decode_bound import KNOWN_MODELS, bytes_read
from awqbench.inspect.placement.kv_cache import kv_cache_bytes
from awqbench.inspect.placement.module_bytes import predicted_model, stored_model
from awqbench.quantize.settings import Settings


def test_the_fit_gives_back_a_planted_machine():
    planted = ThreadModel(0.05, 0.004, 0.002)
    counts = (1, 2, 8, 16)
    found = fit_threads(counts, [planted.seconds(t) for t in counts], fixed_s=0.002)
    assert found.seconds(4) == pytest.approx(planted.seconds(4), rel=1e-9)
    assert (found.one_s, found.full_s) == pytest.approx((0.05, 0.004))
    assert planted.seconds(10**6) == pytest.approx(0.006)


def test_one_count_knows_no_end_and_threads_may_not_help():
    alone = fit_threads([2], [0.1])
    assert alone.seconds(4) == pytest.approx(0.05) and alone.full_s == 0
    useless = fit_threads([1, 2, 4], [0.1, 0.1, 0.11])
    assert 0.1 <= useless.seconds(8) <= 0.11
    faster_than_linear = fit_threads([1, 2], [0.1, 0.04])
    assert faster_than_linear.full_s == 0


@pytest.mark.parametrize(
    ("threads", "seconds", "fixed"),
    [([], [], 0), ([1, 2], [1.0], 0), ([0], [1.0], 0), ([1], [1.0], 1.0)],
)
def test_what_cannot_be_fitted_is_refused(threads, seconds, fixed):
    with pytest.raises(ParameterError, match="every time above what is fixed"):
        fit_threads(threads, seconds, fixed_s=fixed)


def test_published_sweeps_are_within_what_is_promised():
    table = sweep_errors(published_sweeps())
    assert len(table) == 4 and set(table["arch"]) == {"aarch64", "x86_64"}
    assert table["in_sample"].max() <= FITTED_ERROR
    held_out = table[["without_largest", "up_to_4"]].abs().to_numpy()
    assert np.nanmax(held_out) <= FORM_ERROR
    # Two counts do not tell where memory ends, and a factor of two covers them.
    assert FORM_ERROR < table["up_to_2"].abs().max() <= 1 - 1 / FACTOR_UNKNOWN
    assert table["linear"].min() > 0.9


def test_the_interval_grows_with_what_is_not_known():
    model = fit_threads([1, 2, 4], [1.0, 0.6, 0.4])
    errors = [model.relative_error(t) for t in (4, 16, 17)]
    assert errors == [FITTED_ERROR, FORM_ERROR, FACTOR_UNKNOWN - 1]
    assert fit_threads([1, 2], [1.0, 0.6]).relative_error(4) == FACTOR_UNKNOWN - 1


def test_literature_has_sources_and_agrees_with_itself(tmp_path):
    table = read_literature()
    assert len(table) == 109 and table["isa"].str.startswith(("aarch64", "x86-64")).all()
    known = table[table["eff_GBps"].notna()]
    # One decimal in the file, of sizes with more digits than are in it.
    assert (known["file_GB"] * known["tok_s"] - known["eff_GBps"]).abs().max() < 0.1
    rows = published_rows()
    assert rows["source"].notna().all() and rows["arch"].notna().all()
    assert not rows["tok_per_s"].eq(72.31).any()  # of a prompt
    (tmp_path / "a.csv").write_text("chip,source\nA,\n")
    with pytest.raises(FormatError, match=r"rows \[2\] have no source"):
        read_literature(tmp_path / "a.csv")
    with pytest.raises(FormatError, match="give its path"):
        read_literature(tmp_path / "none.csv")


@pytest.mark.parametrize("tied", [True, False])
def test_a_token_reads_its_row_the_head_and_the_cache(tied):
    config = KNOWN_MODELS["Qwen2-7B"] | {"tie_word_embeddings": tied}
    model = predicted_model(config, Settings(bits=4))
    parts = token_bytes(model, context=1000)
    row = 2 * config["hidden_size"]
    assert parts.head == row * config["vocab_size"]
    assert parts.embedding_row == (0 if tied else row)
    assert parts.kv == sum(kv_cache_bytes(config, context=1000))
    assert parts.packed + parts.dense + parts.head == bytes_read(model)
    weights = 28 * (2 * 3584 * 3584 + 2 * 3584 * 512 + 3 * 3584 * 18944)
    # 4 bits, and for each group of 128 a scale of 2 bytes and half a byte of zero point.
    assert parts.packed == weights // 2 + weights // 128 * 5 // 2
    assert parts.dense < parts.packed / 1000
    full = token_bytes(predicted_model(config), context=0)
    assert full.packed == 0 and full.dense > 2 * weights


def test_of_experts_the_chosen_ones_are_counted():
    config = KNOWN_MODELS["Mixtral-8x7B"]
    two, four = (
        token_bytes(predicted_model(config | {"num_experts_per_tok": n}, Settings(bits=4))).packed
        for n in (2, 4)
    )
    expert = 32 * 3 * config["hidden_size"] * config["intermediate_size"]
    assert four - two == 2 * (expert // 2 + expert // 128 * 5 // 2)


def test_the_embedded_model_is_counted_from_its_headers():
    ckpt = open_checkpoint("tiny")
    parts = token_bytes(stored_model(ckpt))
    assert parts.total == ckpt.nbytes and parts.head == 4096 * 256 * 2 and parts.packed == 0


def rate(gb_s, noise=0.0):
    measured = {count: 1 / speed for count, speed in gb_s.items()}
    return Rate(measured, fit_threads(list(measured), list(measured.values())), noise)


def test_a_prediction_adds_its_parts_and_their_errors():
    parts = TokenBytes(packed=10**9, dense=0, head=5 * 10**8, embedding_row=0, kv=0)
    packed, dense = rate({1: 10.0, 2: 20.0}, 0.1), rate({1: 5.0, 2: 10.0}, 0.2)
    overhead = Overhead(layer_s=0.001, step_s=0.01, relative_error=0.0)
    found = predict(parts, layers=10, threads=1, packed=packed, dense=dense, overhead=overhead)
    assert found.tok_per_s == pytest.approx(1 / (0.1 + 0.1 + 0.02))
    error = np.hypot(0.1 * 0.1, 0.1 * 0.2) / 0.22
    assert found.high == pytest.approx(found.tok_per_s * (1 + error))
    assert found.low == pytest.approx(found.tok_per_s / (1 + error))
    tiny = predict(
        TokenBytes(10**6, 0, 0, 0, 0), layers=10, threads=1, packed=packed, dense=dense,
        overhead=overhead,
    )  # fmt: skip
    assert tiny.bound == "overhead" and found.bound in ("packed", "dense")


def test_without_overhead_or_saturation_the_interval_is_a_factor_of_two():
    parts = TokenBytes(10**9, 0, 0, 0, 0)
    known = rate({1: 10.0})
    bare = predict(parts, layers=10, threads=1, packed=known, dense=known)
    assert bare.low == pytest.approx(bare.tok_per_s / 2) and bare.high == bare.tok_per_s
    overhead = Overhead(0.0, 0.0, 0.0)
    far = predict(parts, layers=10, threads=64, packed=known, dense=known, overhead=overhead)
    assert far.high / far.tok_per_s == far.tok_per_s / far.low == FACTOR_UNKNOWN


def test_rates_come_from_records():
    found = rate_of(made_up(bandwidth=10.0), "read")
    assert found.seconds(10**9, 1) == pytest.approx(0.1, rel=0.15)
    assert 0.05 < found.noise < 0.4  # blocks vary by 10 %
    with pytest.raises(ParameterError, match="no record of gemm native"):
        rate_of(made_up(), "gemm", backend="native")


def test_overhead_is_the_line_through_two_depths():
    found = _overhead({2: [0.010, 0.012, 0.011], 8: [0.023, 0.023, 0.023]})
    assert found.layer_s == pytest.approx(0.002) and found.step_s == pytest.approx(0.007)
    assert found.seconds(28) == pytest.approx(0.063) and found.relative_error > 0.1


def test_thin_models_take_turns_and_are_closed(monkeypatch):
    class Process:
        log = []

        def __init__(self, folder, backend, *, dtype, threads):
            self.layers = open_checkpoint(folder).config["num_hidden_layers"]
            assert (backend, threads) == ("native", 3)

        def __enter__(self):
            return self

        def __exit__(self, *error):
            self.log.append(-self.layers)

        def generate(self, prompt_tokens, new_tokens):
            self.log.append(self.layers)
            return Generation(prompt_tokens, 2, 0.0, 0.5 + 0.25 * self.layers)

    monkeypatch.setattr(overheads, "ModelProcess", Process)
    config = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64}
    found = measure_overhead(config, threads=3, workload=Workload(4, 2, 2))
    assert Process.log == [2, 8] * 3 + [-8, -2]
    assert found.layer_s == pytest.approx(0.25) and found.step_s == pytest.approx(0.5)


def test_a_published_sweep_predicts_another_model_of_its_machine():
    sweeps = published_sweeps()
    sweep = next(s for name, s in sweeps.items() if "SVE" in name and "w/o" not in name)
    found = rate_of_sweep(sweep)
    twice = TokenBytes(2 * 763_000_000, 0, 0, 0, 0)
    at = {"layers": 16, "packed": found, "dense": found, "overhead": NO_OVERHEAD}
    known = predict(twice, threads=16, **at)
    assert known.tok_per_s == pytest.approx(136.51 / 2) and known.low < known.tok_per_s < known.high
    far = predict(twice, threads=65, **at)
    assert far.high / far.low > 4 > known.high / known.low
    unknown = next(s for name, s in sweeps.items() if "13900K" in name)
    with pytest.raises(ParameterError, match="file_gb is not known"):
        rate_of_sweep(unknown)
