"""Second moments: exact, masked, sketched, merged; and what they say of output errors."""

import pytest
import torch

from awqbench.errors import StatisticsError
from awqbench.quantize.choices.rounding import output_error
from awqbench.quantize.statistics.moments import Moments, SiteMoments, bfloat16_products


def saved(x, **options):
    moments = Moments(x.shape[-1], **options)
    for chunk in x.split(7):
        moments.add(chunk)
    return SiteMoments(moments.tensors())


def test_moments_are_those_of_all_rows_together():
    x = torch.randn(50, 24, generator=torch.Generator().manual_seed(0))
    moments = saved(x)
    wide = x.double()
    torch.testing.assert_close(moments.gram().double(), wide.T @ wide, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(moments.mean_abs().double(), wide.abs().mean(0), rtol=1e-6, atol=0)
    assert torch.equal(moments.absmax, x.abs().amax(0))
    assert (moments.n_tokens, moments.masked_tokens) == (50, 0)


def test_gram_of_bfloat16_input_loses_nothing_to_bfloat16_products():
    x = torch.randn(600, 64, generator=torch.Generator().manual_seed(1)).bfloat16()
    exact = x.double().T @ x.double()
    error = (saved(x).gram().double() - exact).norm() / exact.norm()
    assert error < 2e-6


def test_bfloat16_products_leave_the_setting_as_it_was():
    settings = torch.backends.mkldnn.matmul
    before = settings.fp32_precision
    with pytest.raises(ZeroDivisionError), bfloat16_products():
        raise ZeroDivisionError
    assert settings.fp32_precision == before


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_bad_token_is_left_out_and_counted(bad):
    x = torch.randn(20, 8, generator=torch.Generator().manual_seed(2))
    spoilt = x.clone()
    spoilt[3, 5] = bad
    moments = saved(spoilt)
    kept = torch.cat([x[:3], x[4:]])
    assert (moments.n_tokens, moments.masked_tokens) == (19, 1)
    assert moments.nonfinite.tolist() == [0, 0, 0, 0, 0, 1, 0, 0]
    torch.testing.assert_close(moments.gram(), kept.T @ kept, rtol=1e-5, atol=1e-5)


def test_only_bad_tokens_give_empty_moments_not_nan():
    moments = saved(torch.full((3, 4), float("nan")))
    assert moments.n_tokens == 0
    assert torch.equal(moments.gram(), torch.zeros(4, 4))
    assert torch.isfinite(moments.mean_abs()).all()


def test_magnitudes_whose_sum_overflows_float32_are_kept():
    x = torch.full((4, 2), 3e38)
    assert saved(x).masked_tokens == 0


def test_diagonal_blocks_are_those_of_the_gram():
    x = torch.randn(40, 32, generator=torch.Generator().manual_seed(3))
    moments = saved(x)
    blocks = moments.diagonal_blocks(8)
    for g in range(4):
        part = slice(8 * g, 8 * g + 8)
        assert torch.equal(blocks[g], moments.gram()[part, part])


def test_a_sketch_estimates_output_errors_and_keeps_exact_blocks():
    generator = torch.Generator().manual_seed(4)
    mix = torch.randn(256, 256, generator=generator) / 16
    x = torch.randn(4000, 256, generator=generator) @ mix
    error = torch.randn(64, 256, generator=generator)
    exact, sketch = saved(x), saved(x, sketch_rows=128, block=32)
    assert not sketch.is_exact
    truth = output_error(error, exact.gram()).sum()
    assert abs(output_error(error, sketch.gram()).sum() / truth - 1) < 0.1
    torch.testing.assert_close(
        sketch.diagonal_blocks(16), exact.diagonal_blocks(16), rtol=1e-4, atol=1e-2
    )


def test_output_error_is_the_squared_error_of_the_output():
    generator = torch.Generator().manual_seed(5)
    x, d = torch.randn(30, 12, generator=generator), torch.randn(5, 12, generator=generator)
    direct = (x.double() @ d.double().T).square().sum(0)
    torch.testing.assert_close(output_error(d, saved(x).gram()).double(), direct, rtol=1e-5, atol=0)


def test_wrong_width_is_refused_with_numbers():
    with pytest.raises(StatisticsError, match="5 channels, expected 4"):
        Moments(4).add(torch.zeros(2, 5))
