"""The peers' formulas break where they are said to, and ours do not."""

import numpy as np
import pytest
import torch

from awqbench.errors import AlignmentError, ParameterError
from awqbench.grid import fake_quantize
from awqbench.inspect.peers import (
    OURS,
    PEER,
    compare_normalisers,
    compare_quantizers,
    peer_candidate_scales,
    peer_normalise,
    peer_quantize,
    peer_weight_magnitude,
)


def gaussian(rows=16, columns=64, seed=0):
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) / 16


def peer_in_numpy(weight, bits, group_size, dtype):
    """The same formula, written once more, each operation in a NumPy dtype."""
    grouped = weight.astype(dtype).reshape(len(weight), -1, group_size)
    top = dtype(2**bits - 1)
    low, high = grouped.min(-1, keepdims=True), grouped.max(-1, keepdims=True)
    scales = np.maximum(high - low, dtype(1e-5)) / top
    zeros = np.clip(-np.rint(low / scales), 0, top)
    return ((np.clip(np.rint(grouped / scales) + zeros, 0, top) - zeros) * scales).reshape(
        weight.shape
    )


@pytest.mark.parametrize("bits", [3, 4])
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_peer_formula_is_the_same_in_numpy(bits, dtype):
    weight = gaussian().numpy()
    decoded = peer_quantize(
        torch.from_numpy(weight), bits, 32, dtype=np.dtype(dtype).name
    ).decoded.numpy()
    np.testing.assert_array_equal(decoded, peer_in_numpy(weight, bits, 32, dtype))


def test_ordinary_groups_decode_as_ours_do():
    weight = gaussian()
    decoded = peer_quantize(weight, 4, 32, dtype="float32").decoded.numpy()
    np.testing.assert_allclose(decoded, fake_quantize(weight.numpy(), 4, 32), atol=1e-7)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_the_absolute_clamp_wipes_out_tiny_rows_in_every_dtype(dtype):
    table = compare_quantizers({"tiny": gaussian() * 2.0**-30}, group_size=32, dtypes=[dtype])
    errors = table.set_index("formula")["relative_error"]
    assert errors[PEER] == pytest.approx(1.0, abs=1e-2)
    if dtype == "float16":
        assert table.set_index("formula")["outcome"][OURS] == "OverflowCastError"
        assert np.isnan(errors[OURS])
    else:
        assert errors[OURS] < 0.12


@pytest.mark.parametrize("value", [3.7, 100.0])
def test_a_constant_group_decodes_to_the_clamp(value):
    weight = torch.full((2, 32), value)
    decoded = peer_quantize(weight, 4, 32, dtype="float32").decoded
    assert float(decoded.max()) == pytest.approx(1e-5, rel=1e-3)
    table = compare_quantizers({"constant": weight}, group_size=32, dtypes=["float32"])
    assert table.set_index("formula")["relative_error"][OURS] < 1e-6


def test_a_narrow_one_signed_group():
    weight = torch.linspace(1.0, 1.1, 128)[None]
    table = compare_quantizers({"narrow": weight}, dtypes=["float32"])
    errors = table.set_index("formula")["relative_error"]
    assert errors[PEER] == pytest.approx(0.905, abs=0.003)
    assert errors[OURS] == pytest.approx(0.0188, abs=0.001)


def test_a_vanished_group_is_zero_over_zero():
    weight = gaussian()
    weight[0, :32] *= 2.0**-30
    nan = peer_weight_magnitude(weight, 32).isnan()
    assert nan[:32].all() and not nan[32:].any()
    assert not peer_weight_magnitude(weight, 32, dtype="bfloat16").isnan().any()


@pytest.mark.parametrize(("level", "survives"), [(100.0, True), (400.0, False)])
def test_normaliser_in_float16_ends_at_256(level, survives):
    scales = torch.linspace(0.9, 1.1, 64) * level
    assert bool((peer_normalise(scales) > 0).all()) == survives
    assert (peer_normalise(scales, dtype="float32") > 0).all()


def test_the_repair_keeps_only_the_bad_channel():
    scales = torch.ones(256)
    scales[7] = torch.inf
    assert peer_normalise(scales, repair=False).isnan().sum() == 1
    repaired = peer_normalise(scales)
    assert repaired[7] == 1 and (repaired == 0).sum() == 255


def test_candidates_stay_in_their_dtype():
    scales = peer_candidate_scales(torch.full((4,), 1e5), torch.full((4,), 0.25), 0.5)
    assert scales.dtype == torch.float16 and scales.isinf().all()


def test_levels_do_not_move_our_scales():
    mean_abs, magnitude = gaussian().abs().mean(0) + 0.1, torch.full((64,), 0.25)
    table = compare_normalisers(mean_abs, magnitude, levels=[1.0, 300.0, 1e4, 1e5])
    assert len(table) == 4 * 3 * 20
    assert (table["zero"] + table["nonfinite"] + table["usable"] == table["channels"]).all()
    usable = table.assign(share=table["usable"] / table["channels"]).pivot_table(
        index="level", columns=["formula", "dtype"], values="share"
    )
    assert (usable[OURS, "float32"] == 1).all() and (usable[PEER, "float32"] == 1).all()
    half = usable[PEER, "float16"]
    assert half[1.0] == 1 and half.is_monotonic_decreasing and half[1e5] < 0.1


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_one_infinite_channel_costs_the_peers_all_others(dtype):
    mean_abs = torch.ones(64)
    mean_abs[0] = torch.inf
    table = compare_normalisers(mean_abs, torch.full((64,), 0.25), n_grid=2, dtypes=[dtype])
    at_half = table[table["alpha"] == 0.5].set_index("formula")
    assert (at_half["zero"][PEER], at_half["nonfinite"][PEER]) == (63, 1)
    assert at_half["usable"][OURS] == 64


def test_wrong_settings_are_named():
    with pytest.raises(AlignmentError, match="not a multiple"):
        peer_quantize(gaussian(), group_size=48)
    with pytest.raises(ParameterError, match="float8"):
        peer_quantize(gaussian(), group_size=32, dtype="float8")
