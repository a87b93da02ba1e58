"""The search of channel scales: safe normalisation, tied channels, and a judge that is right."""

import numpy as np
import pytest
import torch

from awqbench.quantize.choices.scales import (
    candidate_scales,
    normalise,
    sample_rows,
    scaled_loss,
    search_scales,
    weight_magnitude,
)
from awqbench.quantize.settings import Settings
from awqbench.quantize.statistics.moments import Moments, SiteMoments

K = 64


def site(*, outlier=None, seed=0, n_rows=48):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(400, K, generator=generator)
    weight = torch.randn(n_rows, K, generator=generator) / 8
    if outlier:
        x[:, :2] *= outlier
    moments = Moments(K)
    moments.add(x)
    return x, weight, SiteMoments(moments.tensors())


@pytest.mark.parametrize("level", [1e-30, 1.0, 300.0, 1e5, 1e30])
def test_normalisation_does_not_depend_on_the_activation_level(level):
    logs = torch.linspace(-1, 1, 8)
    reference = normalise(logs, None)
    shifted = normalise(logs + float(np.log(level)), None)
    torch.testing.assert_close(shifted, reference, rtol=1e-4, atol=0)
    assert float(reference.max() * reference.min()) == pytest.approx(1.0, rel=1e-5)


def test_a_bad_channel_keeps_scale_one_and_leaves_the_others_alone():
    logs = torch.linspace(-1, 1, 8)
    spoilt = logs.clone()
    spoilt[3] = torch.nan
    scales = normalise(spoilt, None)
    assert scales[3] == 1.0
    keep = [0, 1, 2, 4, 5, 6, 7]
    torch.testing.assert_close(scales[keep], normalise(logs, None)[keep])


def test_channels_with_one_source_share_a_scale():
    scales = normalise(torch.tensor([0.0, 1.0, 2.0, 5.0]), np.array([0, 1, 0, 1]))
    assert scales[0] == scales[2] and scales[1] == scales[3]
    assert scales[0] < scales[1]


def test_channels_without_a_source_keep_scale_one():
    scales = normalise(torch.tensor([-3.0, 1.0, 2.0]), np.array([-1, 0, 1]))
    assert scales[0] == 1.0
    assert float(scales[1] * scales[2]) == pytest.approx(1.0)


def test_all_channels_bad_is_identity():
    assert torch.equal(normalise(torch.full((4,), torch.nan), None), torch.ones(4))


def test_a_dead_channel_does_not_drive_the_scales_away():
    mean_abs = torch.ones(K)
    mean_abs[0] = 0.0
    scales = candidate_scales(mean_abs, torch.ones(K), 0.5, None)
    assert torch.isfinite(scales).all() and float(scales.max() / scales.min()) < 2e3


def test_weight_magnitude_is_relative_to_the_group():
    weight = torch.tensor([[1.0, 2.0, 100.0, 50.0], [0.0, 0.0, 1.0, 1.0]])
    assert weight_magnitude(weight, 2).tolist() == [0.25, 0.5, 1.0, 0.75]


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_loss_is_the_output_error_of_the_effective_weight(bits):
    from awqbench.grid import fake_quantize

    x, weight, moments = site()
    settings = Settings(bits=bits, group_size=32, scale_dtype="float32")
    scales = torch.linspace(0.5, 2, K)
    effective = torch.from_numpy(fake_quantize((weight * scales).numpy(), bits, 32)) / scales
    direct = (x.double() @ (effective - weight).double().T).square().sum()
    assert scaled_loss(weight, moments.gram(), scales, settings, 32) == pytest.approx(
        float(direct), rel=5e-3
    )


def test_outlier_channels_are_scaled_up_and_the_loss_falls():
    _, weight, moments = site(outlier=40.0)
    settings = Settings(bits=4, group_size=32)
    choice = search_scales(weight, moments.gram(), moments.mean_abs(), settings)
    assert choice.losses.min() < 0.5 * choice.losses[0]
    assert np.isfinite(choice.alpha)
    assert choice.channel_scales[:2].min() > 2 * choice.channel_scales[2:].median()


def test_identity_wins_where_scaling_only_harms():
    weight = torch.eye(32, 32).repeat(2, 2)[:, :32] * 15  # on the grid already: no error
    moments = Moments(32)
    moments.add(torch.randn(50, 32, generator=torch.Generator().manual_seed(0)))
    saved = SiteMoments(moments.tensors())
    choice = search_scales(weight, saved.gram(), saved.mean_abs(), Settings(group_size=32))
    assert np.isnan(choice.alpha)
    assert torch.equal(choice.channel_scales, torch.ones(32))


def test_rows_are_sampled_evenly_with_both_ends():
    rows = sample_rows(torch.arange(100.0)[:, None], 4)
    assert rows[:, 0].tolist() == [0, 33, 66, 99]


def test_padding_channels_keep_scale_one_and_move_no_other():
    _, weight, moments = site()
    alone = candidate_scales(moments.mean_abs(), weight_magnitude(weight, 32), 0.3, None)
    padded = torch.cat([weight, torch.zeros(len(weight), 32)], dim=1)
    mean_abs = torch.cat([moments.mean_abs(), moments.mean_abs()[:32]])
    found = candidate_scales(mean_abs, weight_magnitude(padded, 32), 0.3, None)
    assert torch.equal(found[K:], torch.ones(32))
    torch.testing.assert_close(found[:K], alone)
