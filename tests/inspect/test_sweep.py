import math
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from awqbench.errors import CalibrationTextError, ParameterError
from awqbench.formats.checkpoint import open_checkpoint
from awqbench.formats.layouts.awq import write_linear
from awqbench.formats.layouts.packing import pack_stream
from awqbench.inspect.claims import (
    describe_choice,
    loss_intervals,
    paired_table,
    smallest_within,
    summarise_claim,
)
from awqbench.inspect.evaluate import perplexity, summarise_nll
from awqbench.inspect.sizes import packed_bytes, sizes, weight_size
from awqbench.inspect.sweep import (
    BY_BLOCK_OUTPUT,
    FULL_PRECISION,
    METHODS,
    Setting,
    Sweep,
    method_changes,
    paired,
    sweep,
)
from awqbench.model_load import load_model
from awqbench.packed import quantize_weight
from awqbench.quantize.calibrate import calibrate
from awqbench.quantize.fake import fake_quantized
from awqbench.quantize.settings import Settings

BITS, GROUPS = (4, 2), (32, 16)


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    """A random model, its statistics, both texts, and a sweep of every method."""
    from tiny_models import VOCABULARY, save_tiny_model

    folder = tmp_path_factory.mktemp("sweep")
    ckpt = open_checkpoint(save_tiny_model("qwen3", folder / "model"))
    rng = np.random.default_rng(0)
    calibration, evaluation = (rng.integers(3, VOCABULARY, (n, 24)) for n in (6, 18))
    stats = calibrate(ckpt, calibration, folder / "stats")
    model = load_model(ckpt)
    result = sweep(model, ckpt, stats, evaluation, bits=BITS, group_sizes=GROUPS)
    return SimpleNamespace(
        ckpt=ckpt,
        stats=stats,
        model=model,
        calibration=calibration,
        tokens=evaluation,
        sweep=result,
    )


def made_sweep(settings, *, windows=20, full=1.0):
    """A sweep whose windows are given, without a model."""
    table = pd.DataFrame([{"bits": b, "group_size": g, "method": m} for b, g, m in settings])
    nll = {Setting(*key): np.asarray(values, float) for key, values in settings.items()}
    return Sweep(table, summarise_nll(np.full(windows, full)), nll)


def test_a_row_for_each_setting(case):
    table = case.sweep.table
    assert len(table) == len(BITS) * len(GROUPS) * len(METHODS)
    assert not table.drop(columns="search_s").isna().any().any()
    assert (table["search_s"] > 0).all()
    assert (table["ppl_low"] < table["ppl"]).all() and (table["ppl"] < table["ppl_high"]).all()


def test_a_column_for_each_method(case):
    wide = case.sweep.by_method("ppl")
    assert list(wide) == list(METHODS)
    assert list(wide.index) == [(4, 32), (4, 16), (2, 32), (2, 16)]
    row = case.sweep.table.query("bits == 2 and group_size == 16 and method == 'AWQ'")
    assert wide.loc[(2, 16), "AWQ"] == row["ppl"].item()


def test_a_row_is_what_fake_quantized_gives(case):
    row = case.sweep.table.query("bits == 2 and group_size == 16 and method == 'AWQ + clip'")
    with fake_quantized(case.model, case.ckpt, case.stats, bits=2, group_size=16, clip=True):
        expected = perplexity(case.model, case.tokens)
    assert row["ppl"].item() == pytest.approx(expected.ppl, rel=1e-6)
    full = perplexity(case.model, case.tokens)
    difference = expected.window_nll - full.window_nll
    assert row["delta_nll"].item() == pytest.approx(difference.mean(), abs=1e-7)
    assert row["delta_se"].item() == pytest.approx(
        difference.std(ddof=1) / math.sqrt(len(difference)), rel=1e-4
    )


def test_model_is_left_as_it_was(case):
    after = perplexity(case.model, case.tokens)
    np.testing.assert_array_equal(after.window_nll, case.sweep.full.window_nll)


def test_paired_differences_add_up(case):
    a, b = (2, 32, "rounding"), (2, 32, "AWQ + clip")
    both = paired(case.sweep, a, b)
    assert both.delta == pytest.approx(
        paired(case.sweep, a).delta - paired(case.sweep, b).delta, abs=1e-9
    )
    assert paired(case.sweep, b, a) == pytest.approx((-both.delta, both.se))
    assert paired(case.sweep, a, a) == (0, 0)
    assert paired(case.sweep, FULL_PRECISION).delta == 0


def test_paired_refuses_what_was_not_run(case):
    with pytest.raises(ParameterError, match=r"\(3, 32, 'AWQ'\) is not in this sweep"):
        paired(case.sweep, (3, 32, "AWQ"))


def test_methods_are_named_as_settings_name_themselves():
    assert {Settings(**changes).label(): changes for changes in METHODS.values()} == METHODS


def test_unknown_method_is_refused_before_any_work():
    with pytest.raises(ParameterError, match="no method 'AQW'; there are rounding, AWQ"):
        method_changes(Setting(4, 32, "AQW"))


def test_nothing_to_sweep_is_an_error(case):
    with pytest.raises(ParameterError, match="nothing to sweep"):
        sweep(case.model, case.ckpt, case.stats, case.tokens, bits=())


def test_block_output_is_a_method(case):
    method = "AWQ + clip" + BY_BLOCK_OUTPUT
    given = dict(bits=[4], group_sizes=[32], methods=[method])
    other = sweep(
        case.model, case.ckpt, case.stats, case.tokens, calib_tokens=case.calibration, **given
    )
    both = case.sweep.join(other)
    assert len(both.table) == len(case.sweep.table) + 1
    assert math.isfinite(paired(both, (4, 32, "AWQ + clip"), (4, 32, method)).delta)
    with pytest.raises(CalibrationTextError, match="same tokens"):
        sweep(case.model, case.ckpt, case.stats, case.tokens, **given)


def test_join_refuses_other_windows(case):
    with pytest.raises(ParameterError, match="different models or windows"):
        case.sweep.join(made_sweep({(4, 32, "AWQ"): np.ones(20)}))


@pytest.mark.parametrize("group_size", [16, 32, -1])
def test_packed_bytes_are_those_of_the_written_tensors(group_size):
    packed = quantize_weight(
        np.random.default_rng(0).normal(size=(24, 64)), 4, group_size, scale_dtype="float16"
    )
    written = sum(tensor.nbytes for tensor in write_linear(packed).values())
    assert packed_bytes(24, 64, bits=4, group_size=group_size) == written


@pytest.mark.parametrize("bits", [2, 3])
def test_packed_bytes_of_dense_streams(bits):
    packed = quantize_weight(np.random.default_rng(0).normal(size=(24, 64)), bits, 16)
    words = pack_stream(packed.codes.T, bits).nbytes + pack_stream(packed.zeros.T, bits).nbytes
    assert packed_bytes(24, 64, bits=bits, group_size=16) == words + 2 * packed.scales.size


def test_weight_size_counts_the_rest_as_stored(case):
    linears = set(case.stats.manifest["in_features"])
    rest = sum(
        info.nbytes
        for name, info in case.ckpt.tensors.items()
        if name.removesuffix(".weight") not in linears
    )
    size = weight_size(case.ckpt, case.stats, 4, 32)
    assert size.weight_bytes == size.linear_bytes + rest
    assert size.bits_per_weight == pytest.approx(4 + 16 / 32 + 4 / 32)


def test_sizes_fall_with_bits_and_grow_with_smaller_groups(case):
    table = sizes(case.ckpt, case.stats, (4, 3), (32, 16)).set_index(["bits", "group_size"])
    share = table["share"]
    assert share[3, 32] < share[4, 32] < share[4, 16] < 1


def test_verdicts():
    noise = np.tile([0.1, -0.1], 10)
    result = made_sweep(
        {
            (3, 32, "a"): 1 - 0.01 + noise / 100,
            (3, 16, "a"): 1 + 0.01 + noise / 100,
            (4, 32, "a"): 1 + noise,
            **{(bits, group, "b"): np.ones(20) for bits, group in ((3, 32), (3, 16), (4, 32))},
        }
    )
    table = paired_table(result, "a", "b")
    assert table["verdict"].tolist() == ["better", "worse", "noise"]
    assert table["significance"].iloc[0] < -2 < 2 < table["significance"].iloc[1]
    expected = "it helps: 1 of 3 settings, by more than two standard errors"
    assert summarise_claim(table, "it helps") == expected


def test_few_windows_decide_nothing():
    result = made_sweep({(3, 32, "a"): np.zeros(8), (3, 32, "b"): np.ones(8)}, windows=8)
    table = paired_table(result, "a", "b")
    assert table["verdict"].tolist() == ["undecided"]
    assert "not decided" in summarise_claim(table, "it helps")


def test_claim_about_methods_that_were_not_run():
    table = paired_table(made_sweep({(3, 32, "a"): np.zeros(20)}), "a", "b")
    assert table.empty
    assert summarise_claim(table, "it helps") == "it helps: not run"


@pytest.fixture
def losses():
    """Three settings of falling size and growing loss."""
    columns = ["bits", "group_size", "method", "bits_per_weight", "delta_nll", "delta_se"]
    rows = [
        (4, 32, "rounding", 4.625, 0.004, 0.001),
        (3, 32, "rounding", 3.6, 0.04, 0.001),
        (3, 32, "AWQ + clip", 3.6, 0.008, 0.0005),
        (2, 32, "AWQ + clip", 2.5, 0.2, 0.01),
    ]
    return pd.DataFrame(rows, columns=columns)


def test_the_smallest_setting_counts_its_whole_interval(losses):
    assert smallest_within(losses, 1.0)["bits_per_weight"] == 3.6
    assert smallest_within(losses, 1.0)["method"] == "AWQ + clip"
    assert smallest_within(losses, 0.85)["bits"] == 4
    assert smallest_within(losses, 0.1) is None


def test_the_choice_in_words(losses):
    result = Sweep(losses, summarise_nll(np.ones(20)), {})
    assert describe_choice(result, 1.0) == (
        "The smallest setting within 1 % of perplexity, interval included, is AWQ + clip at 3 bits "
        "with groups of 32: 3.60 bits per weight, +0.80 %, where plain rounding loses 4.08 %."
    )
    assert describe_choice(result, 0.1).startswith("No setting stays within 0.1 %")


def test_losses_in_per_cent_with_their_interval(losses):
    table = loss_intervals(Sweep(losses, summarise_nll(np.ones(20)), {}), 2)
    row = table.iloc[0]
    assert (row["group_size"], row["method"]) == (32, "AWQ + clip")
    expected = 100 * np.expm1([0.2, 0.2 - 0.0196, 0.2 + 0.0196])
    np.testing.assert_allclose(row[["loss_percent", "low", "high"]].astype(float), expected)
