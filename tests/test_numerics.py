"""Limits, rounding and casts against torch and against exact neighbours."""

import numpy as np
import pytest
import torch

from awqbench.errors import NonFiniteError, OverflowCastError, ParameterError
from awqbench.numerics import (
    LIMITS,
    cast_figures,
    check_finite,
    checked_cast,
    limits_of,
    round_to,
)

pytestmark = pytest.mark.filterwarnings("error::RuntimeWarning")

HALVES = ("float16", "bfloat16")


def all_numbers(dtype):
    """Return every finite number of a 16-bit dtype from 0 up, (n,) float64."""
    patterns = torch.arange(1 << 15, dtype=torch.int16).view(getattr(torch, dtype))
    numbers = patterns.double().numpy()
    return numbers[np.isfinite(numbers)]


def midpoints(dtype):
    """Return the points half-way between neighbours, and the neighbour that is even."""
    numbers = all_numbers(dtype)
    beyond = 2 * numbers[-1] - numbers[-2]
    below, above = numbers, np.append(numbers[1:], beyond)
    is_even = np.arange(len(numbers)) % 2 == 0
    above_or_inf = np.append(numbers[1:], np.inf)
    return (below + above) / 2, np.where(is_even, below, above_or_inf), below, above_or_inf


@pytest.mark.parametrize("dtype", LIMITS)
def test_limits_are_torch_s(dtype):
    limits, info = limits_of(dtype), torch.finfo(getattr(torch, dtype))
    assert limits.largest == info.max
    assert limits.smallest_normal == info.tiny
    assert 2.0 ** (1 - limits.significand_bits) == info.eps
    assert limits.smallest_subnormal == info.tiny * info.eps


@pytest.mark.parametrize("name", ["float8", "fp16", "torch.float16", ""])
def test_unknown_dtype_is_refused_by_name(name):
    for use in (limits_of, lambda d: round_to(np.zeros(1), d), lambda d: cast_figures([1.0], d)):
        with pytest.raises(ParameterError, match=f"{name!r}.*float16, bfloat16, float32"):
            use(name)


@pytest.mark.parametrize("source", ["float32", "float64"])
@pytest.mark.parametrize("dtype", HALVES)
def test_round_keeps_every_number_of_the_dtype(dtype, source):
    numbers = all_numbers(dtype).astype(source)
    for sign in (1, -1):
        rounded = round_to(sign * numbers, dtype)
        assert rounded.dtype == np.float32
        np.testing.assert_array_equal(rounded, sign * numbers)
        np.testing.assert_array_equal(np.signbit(rounded), np.signbit(sign * numbers))


@pytest.mark.parametrize("dtype", HALVES)
def test_round_agrees_with_torch_on_patterns_midpoints_and_neighbours(dtype):
    middle = midpoints(dtype)[0].astype(np.float32)
    values = np.concatenate(
        [
            all_numbers(dtype).astype(np.float32),
            middle,
            np.nextafter(middle, np.float32(0)),
            np.nextafter(middle[:-1], np.float32(np.inf)),
            np.float32([np.inf, np.nan, 3.4028235e38, 1e-45]),
        ]
    )
    values = np.concatenate([values, -values])
    expected = torch.from_numpy(values).to(getattr(torch, dtype)).float().numpy()
    np.testing.assert_array_equal(round_to(values, dtype), expected)


@pytest.mark.parametrize("dtype", HALVES)
def test_round_from_float64_rounds_once(dtype):
    # A nudge that float32 cannot see decides: rounding by way of float32 would round the
    # midpoint to even instead.
    middle, to_even, below, above = midpoints(dtype)
    np.testing.assert_array_equal(round_to(middle, dtype), to_even)
    np.testing.assert_array_equal(round_to(np.nextafter(middle, np.inf), dtype), above)
    np.testing.assert_array_equal(round_to(np.nextafter(middle, 0), dtype), below)


def test_round_to_float32_from_float64():
    assert round_to(np.array([0.1]), "float32")[0] == np.float32(0.1)
    assert round_to(np.array([1e300, -1e-300]), "float32").tolist() == [np.inf, 0.0]


@pytest.mark.parametrize("dtype", LIMITS)
def test_round_of_empty_scalar_and_integers(dtype):
    assert round_to(np.zeros((0, 3)), dtype).shape == (0, 3)
    assert round_to(np.array(3), dtype) == 3
    assert round_to(np.array([257]), dtype)[0] == (256 if dtype == "bfloat16" else 257)


def test_cast_figures_count_each_fate_once():
    values = np.array([0.0, -0.0, 2.0**-26, -(2.0**-25), 2.0**-24, -(2.0**-15), 2.0**-14, 65504.0])
    values = np.append(values, [65519.9, 65520.0, -1e300, np.nan, np.inf, -np.inf])
    figures = cast_figures(values.reshape(2, 7), "float16")
    assert figures.size == 14
    assert figures.nonfinite == 3
    assert figures.overflow == 2  # 65520 is the midpoint to 65536, and rounds to even: inf
    assert figures.flushed_to_zero == 2  # 2**-25 is the midpoint to zero, which is even
    assert figures.subnormal == 2
    assert figures.absmax == 1e300


@pytest.mark.parametrize("dtype", LIMITS)
def test_cast_figures_of_nothing_and_of_all_bad(dtype):
    assert cast_figures(np.zeros(0), dtype) == (0, 0, 0, 0, 0, 0.0)
    assert cast_figures(np.full(3, np.nan), dtype) == (3, 3, 0, 0, 0, 0.0)


@pytest.mark.parametrize("dtype", HALVES)
def test_cast_figures_agree_with_torch(dtype):
    rng = np.random.default_rng(0)
    values = (rng.standard_normal(4000) * 2.0 ** rng.integers(-149, 127, 4000)).astype(np.float32)
    cast = torch.from_numpy(values).to(getattr(torch, dtype)).double().abs().numpy()
    figures = cast_figures(values, dtype)
    tiny = torch.finfo(getattr(torch, dtype)).tiny
    assert figures.overflow == np.isinf(cast).sum()
    assert figures.flushed_to_zero == ((cast == 0) & (values != 0)).sum() > 0
    assert figures.subnormal == ((cast > 0) & (cast < tiny)).sum() > 0


def test_checked_cast_returns_the_rounded_array_and_its_figures():
    values = np.array([1.0009765, 1e-9])
    rounded, figures = checked_cast(values, "float16", name="scales")
    assert rounded.tolist() == [1.0009765625, 0.0] and rounded.dtype == np.float32
    assert figures == cast_figures(values, "float16")


def test_checked_cast_refuses_overflow_with_its_numbers():
    with pytest.raises(OverflowCastError, match=r"up_proj reaches 70000.*65504.*1 of 2 elements"):
        checked_cast(np.array([1.0, -7e4]), "float16", name="up_proj")
    checked_cast(np.array([1.0, -7e4]), "bfloat16", name="up_proj")


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_checked_cast_refuses_nonfinite_values(bad):
    with pytest.raises(NonFiniteError, match=r"up_proj .*1 of 2"):
        checked_cast(np.array([bad, 7e4]), "float16", name="up_proj")


def test_check_finite_names_the_first_place():
    values = np.ones((3, 4), np.float32)
    check_finite(values, name="w")
    values[1, 2] = values[2, 0] = np.nan
    with pytest.raises(NonFiniteError, match=r"^w holds .*2 of 12 elements, first at \[1, 2\]"):
        check_finite(values, name="w")


@pytest.mark.parametrize("bad", [[np.inf, 1], [-np.inf, np.inf], [np.nan, np.inf]])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_check_finite_sees_every_kind(bad, dtype):
    with pytest.raises(NonFiniteError):
        check_finite(np.array(bad, dtype), name="w")


@pytest.mark.parametrize(
    "fine", [np.full(9, 1.7e308), np.zeros((0, 4)), np.arange(4), np.full(99, 65504, np.float16)]
)
def test_check_finite_accepts_finite_values_whose_sum_overflows(fine):
    check_finite(fine, name="w")
