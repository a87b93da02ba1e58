"""GPTQ rounding: against a plain float64 evaluation, and against rounding to nearest."""

import numpy as np
import pytest
import torch

from awqbench.errors import StatisticsError
from awqbench.quantize.choices.gptq import inverse_factor, round_gptq
from awqbench.quantize.choices.rounding import output_error
from awqbench.quantize.settings import Settings


def case(seed=0, n=16, k=64):
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(k, k, generator=generator)
    x = torch.randn(300, k, generator=generator) @ mix
    return torch.randn(n, k, generator=generator), x.T @ x / 300


def by_columns(weight, gram, bits, group_size):
    """GPTQ as the paper states it: remove one column from H at a time, in float64."""
    w, h = weight.double().numpy().copy(), gram.double().numpy()
    inverse = np.linalg.inv(h + 0.01 * np.mean(np.diag(h)) * np.eye(len(h)))
    codes = np.zeros(w.shape, int)
    for k in range(w.shape[1]):
        if k % group_size == 0:
            group = w[:, k : k + group_size]
            low, high = np.minimum(group.min(1), 0), np.maximum(group.max(1), 0)
            step = (high - low) / (2**bits - 1)
            zero = np.clip(np.rint(-low / step), 0, 2**bits - 1)
        codes[:, k] = np.clip(np.rint(w[:, k] / step) + zero, 0, 2**bits - 1)
        error = (w[:, k] - (codes[:, k] - zero) * step) / inverse[k, k]
        w -= np.outer(error, inverse[k])
        inverse = inverse - np.outer(inverse[:, k], inverse[k]) / inverse[k, k]
        inverse[k, k] = 1.0  # this column is done; keep the matrix invertible
    return codes


@pytest.mark.parametrize(("bits", "group_size", "k"), [(4, 32, 64), (3, 64, 64), (2, 32, 160)])
def test_codes_are_those_of_the_plain_algorithm(bits, group_size, k):
    weight, gram = case(k=k)
    settings = Settings(bits=bits, group_size=group_size, scale_dtype="float32")
    got = round_gptq(weight, inverse_factor(gram), settings, group_size=group_size)
    want = by_columns(weight, gram, bits, group_size)
    # float32 against float64: a tie may fall the other way, and errors then spread.
    assert (got.codes.numpy() != want).mean() < 0.02


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("zero_point", [True, False])
def test_output_error_is_below_rounding_to_nearest(bits, zero_point):
    from awqbench.grid import fake_quantize

    weight, gram = case(n=32)
    settings = Settings(bits=bits, group_size=32, zero_point=zero_point)
    got = round_gptq(weight, inverse_factor(gram), settings, group_size=32)
    grouped = got.codes.unflatten(1, (-1, 32)).float() - got.zeros[..., None].float()
    decoded = (grouped * got.steps[..., None]).flatten(1)
    plain = torch.from_numpy(fake_quantize(weight.numpy(), bits, 32, zero_point=zero_point))
    better = output_error(decoded - weight, gram).sum()
    assert better < 0.8 * output_error(plain - weight, gram).sum()
    assert got.codes.max() < 2**bits


def test_dead_channels_do_not_stop_it():
    weight, gram = case()
    gram[:, 7] = gram[7, :] = 0.0
    got = round_gptq(weight, inverse_factor(gram), Settings(group_size=32), group_size=32)
    assert torch.isfinite(got.steps).all()


def test_no_activation_at_all_is_rounding_to_nearest():
    weight, gram = case()
    factor = inverse_factor(torch.zeros_like(gram))
    assert torch.equal(factor, torch.eye(64))


def test_a_matrix_that_is_no_gram_is_refused():
    with pytest.raises(StatisticsError, match="cannot be inverted"):
        inverse_factor(torch.diag(torch.tensor([9.0, -8.0, 1.0])))
