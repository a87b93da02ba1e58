"""Predictions from sampled rows against the search itself; one linear as the search sees it."""

import numpy as np
import pytest
import torch
from tiny_models import VOCABULARY, save_tiny_model

import awqbench as ab
from awqbench.errors import AlignmentError, ParameterError, StatisticsError
from awqbench.inspect.layer_look import Layers, magnitude_histogram
from awqbench.inspect.sizes import weight_size
from awqbench.inspect.what_if import WhatIf, blocks_within
from awqbench.quantize.settings import Settings

TOKENS = np.random.default_rng(0).integers(0, VOCABULARY, (12, 24))
# Multiples of every N of the small model: 64, 32 and 96.
ALL_ROWS = 192


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny_model("qwen3", tmp_path_factory.mktemp("qwen3"), dtype="bfloat16")


@pytest.fixture(scope="module")
def stats(folder, tmp_path_factory):
    return ab.calibrate(folder, TOKENS, tmp_path_factory.mktemp("stats"))


@pytest.fixture(scope="module")
def all_rows(folder, stats):
    return WhatIf(folder, stats, rows=ALL_ROWS)


def plain(**changes):
    return Settings(**({"bits": 4, "group_size": 32, "scales": "none", "clip": False} | changes))


def exact(folder, stats, settings):
    return ab.search(folder, stats, settings).table.set_index(["block", "linear"])["output_error"]


def predicted(what_if, settings):
    return what_if.errors(settings).set_index(["block", "linear"])["output_error"]


@pytest.mark.parametrize("group_size", [32, 16, -1])
@pytest.mark.parametrize("zero_point", [True, False])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_with_every_row_rounding_is_predicted_exactly(
    folder, stats, all_rows, bits, zero_point, group_size
):
    settings = plain(bits=bits, zero_point=zero_point, group_size=group_size)
    found, truth = predicted(all_rows, settings), exact(folder, stats, settings)
    assert list(found.index) == list(truth.index)
    # Both multiply by H in bfloat16 where the processor has it: 4e-4 of a loss each.
    np.testing.assert_allclose(found, truth, rtol=1e-3)


@pytest.mark.parametrize("bits", [3, 4])
def test_clip_is_predicted_closely(folder, stats, all_rows, bits):
    settings = plain(bits=bits, clip=True)
    ratio = predicted(all_rows, settings) / exact(folder, stats, settings)
    assert abs(ratio.mean() - 1) < 0.05 and ratio.between(0.7, 1.4).all()
    assert predicted(all_rows, settings).mean() < predicted(all_rows, plain(bits=bits)).mean()


@pytest.mark.parametrize("bits", [3, 4])
def test_gptq_is_estimated(folder, stats, all_rows, bits):
    settings = plain(bits=bits, rounding="gptq")
    ratio = predicted(all_rows, settings) / exact(folder, stats, settings)
    assert 0.8 < ratio.median() < 1.25
    assert predicted(all_rows, settings).mean() < predicted(all_rows, plain(bits=bits)).mean()


def test_few_rows_tell_the_mean(folder, stats, all_rows):
    some = WhatIf(folder, stats, rows=16)
    ratio = predicted(some, plain()).mean() / predicted(all_rows, plain()).mean()
    assert ratio != 1 and abs(ratio - 1) < 0.2


def test_an_outlook_has_size_speed_and_ranks(folder, stats, all_rows):
    settings = plain(bits=4)
    outlook = all_rows.outlook(settings, bandwidth_gb_s=10.0, context=0)
    size = weight_size(all_rows.ckpt, all_rows.stats, 4, 32)
    assert outlook.weight_bytes == size.weight_bytes
    assert outlook.share == pytest.approx(size.weight_bytes / all_rows.ckpt.nbytes)
    assert outlook.fits["tp_size"].tolist() == [1, 2, 4, 8] and outlook.fits["fits"][0]
    assert outlook.bound.tok_per_s == pytest.approx(10e9 / outlook.bound.weight_bytes)


def test_a_group_that_does_not_divide_is_refused_by_name(all_rows):
    with pytest.raises(AlignmentError, match=r"down_proj: in_features is 96, not a multiple of 64"):
        all_rows.errors(plain(group_size=64))


def test_what_does_not_belong_is_refused(folder, stats):
    with pytest.raises(StatisticsError, match="another model"):
        WhatIf("tiny", stats)
    with pytest.raises(ParameterError, match="1 or more"):
        WhatIf(folder, stats, rows=0)


def test_of_a_large_model_evenly_spaced_blocks_are_looked_at(stats):
    assert blocks_within(stats) == [0, 1]
    assert blocks_within(stats, nbytes=1) == [0]


@pytest.mark.parametrize("linear", ["self_attn.k_proj", "mlp.up_proj", "mlp.down_proj"])
@pytest.mark.parametrize("rounding", ["nearest", "gptq"])
def test_a_layer_is_seen_as_the_search_sees_it(folder, stats, linear, rounding):
    settings = Settings(bits=3, group_size=32, rounding=rounding)
    seen = Layers(folder, stats).look(f"model.layers.1.{linear}", settings)
    result = ab.search(folder, stats, settings)
    whole = result.table.set_index(["block", "linear"]).loc[("model.layers.1", linear)]
    for column in ("alpha", "output_error", "rounding_error", "clip_gain"):
        assert seen.row[column] == pytest.approx(whole[column], rel=1e-5, nan_ok=True), column
    curves = result.curves
    mine = curves[(curves["block"] == "model.layers.1") & (curves["site"] == seen.row["site"])]
    np.testing.assert_allclose(seen.curve["loss"], mine["loss"], rtol=1e-5)


def test_channels_and_histogram_are_those_of_the_tensors(folder, stats):
    layers = Layers(folder, stats)
    name = "model.layers.0.mlp.down_proj"
    seen = layers.look(name, Settings(group_size=32))
    weight = layers.ckpt.read(f"{name}.weight").float()
    moments = next(r for r in layers.stats.block(0) if "mlp.down_proj" in r.site.linears).moments
    np.testing.assert_array_equal(seen.channels["weight_absmax"], weight.abs().amax(dim=0))
    np.testing.assert_array_equal(seen.channels["input_absmax"], moments.absmax)
    assert seen.histogram["weights"].sum() + seen.zeros == weight.numel()


def test_the_histogram_counts_magnitudes_in_half_octaves():
    table, zeros = magnitude_histogram(torch.tensor([0.0, -1.0, 1.2, 1.5, 3.9, float("inf")]))
    assert zeros == 1 and table["low"].iloc[0] == 1.0
    assert table["weights"].tolist() == [2, 1, 0, 1]
    empty, zeros = magnitude_histogram(torch.zeros(3))
    assert empty.empty and zeros == 3


def test_a_linear_that_is_not_there_is_refused_with_the_nearest(folder, stats):
    with pytest.raises(ParameterError, match=r"layers\.0\.mlp\.up_proj"):
        Layers(folder, stats).look("model.layers.0.mlp.upproj", Settings(group_size=32))
