"""The maths of groups against exact arithmetic, on groups chosen to hurt."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from awqbench.errors import AlignmentError, NonFiniteError, OverflowCastError, ParameterError
from awqbench.grid import (
    check_settings,
    dequantize_groups,
    encode,
    fake_quantize,
    group_range,
    quantize_groups,
    scale_and_zero,
)
from awqbench.numerics import LIMITS, round_to
from awqbench.packed import quantize_weight
from awqbench.quantize.choices.rounding import grid_of, group_ranges, quantization_error
from awqbench.quantize.settings import Settings

pytestmark = pytest.mark.filterwarnings("error::RuntimeWarning")

ROWS, K, GROUP = 3, 32, 8
# float32 divides w by the scale: a quotient this near to a half may round either way.
TIE = 1e-4


def _random(seed=0):
    return np.random.default_rng(seed).standard_normal((ROWS, K)).astype(np.float32)


def _outlier():
    weight = 0.01 * _random()
    weight[:, 5] = 300
    return weight


def _mixture():
    weight = _random()
    weight[0, :GROUP] = 0
    weight[0, GROUP : 2 * GROUP] = 0.0125
    weight[1, :GROUP] = np.abs(weight[1, :GROUP])
    weight[1, GROUP : 2 * GROUP] *= 1e-4
    weight[2, :GROUP] = -np.abs(weight[2, :GROUP])
    weight[2, GROUP + 1] = 1000
    return weight


CASES = {
    "normal": _random(),
    "positive": 1 + 0.1 * np.abs(_random()),
    "negative": -1 - 0.1 * np.abs(_random()),
    "zero": np.zeros((ROWS, K), np.float32),
    "minus zero": -np.zeros((ROWS, K), np.float32),
    "constant": np.full((ROWS, K), 3.7, np.float32),
    "one outlier": _outlier(),
    "mixture": _mixture(),
    "float16 subnormal": 2.0**-18 * _random(),
    "flushes in float16": 1e-8 * _random(),
    "float32 subnormal": (1e-41 * _random().astype(np.float64)).astype(np.float32),
    "least float32": np.sign(_random()) * np.float32(2.0**-149),
    "largest float16": np.sign(_random()) * np.float32(65504),
    "beyond float16": 1e6 * _random(),
    "huge": 1e30 * _random(),
    "largest float32": np.sign(_random()) * np.finfo(np.float32).max,
}
every_case = pytest.mark.parametrize("weight", CASES.values(), ids=CASES)
every_scale = pytest.mark.parametrize("scale_dtype", LIMITS)
with_and_without_zero = pytest.mark.parametrize("zero_point", [True, False])


def stored(value, dtype):
    """Round an exact number to a storage dtype, ties to even."""
    limits = LIMITS[dtype]
    exponent = math.floor(math.log2(value)) if value else 0
    quantum = Fraction(2) ** max(
        exponent + 1 - limits.significand_bits, round(math.log2(limits.smallest_subnormal))
    )
    return round(value / quantum) * quantum


class ExactGroup:
    """One group quantized in exact arithmetic, value by value."""

    def __init__(self, values, bits, zero_point, scale_dtype, shrink=1):
        values = [Fraction(float(v)) for v in values]
        shrink = Fraction(float(shrink))
        self.low, self.high = min(0, *values) * shrink, max(0, *values) * shrink
        self.top = 2**bits - 1
        if zero_point:
            self.exact = (self.high - self.low) / self.top
        else:
            self.exact = max(self.high, -self.low) / (2 ** (bits - 1) - 1)
        self.is_zero = self.exact == 0
        self.scale = Fraction(1) if self.is_zero else stored(self.exact, scale_dtype)
        if self.scale < self.exact * (1 - Fraction(1, 128)):
            self.scale += Fraction(LIMITS[scale_dtype].smallest_subnormal)
        self.overflows = self.scale > LIMITS[scale_dtype].largest
        self.zero = min(round(-self.low / self.scale), self.top) if zero_point else 2 ** (bits - 1)
        reach = self.scale * max(self.zero, self.top - self.zero)
        self.decodes_to_inf = reach > LIMITS["float32"].largest
        self.quotients = [v / self.scale for v in values]
        self.codes = [min(max(round(q) + self.zero, 0), self.top) for q in self.quotients]
        self.vanishes = not self.is_zero and all(c == self.zero for c in self.codes)
        if self.vanishes:
            self.scale, self.zero = Fraction(1), 0 if zero_point else 2 ** (bits - 1)
            self.codes = [self.zero] * len(values)
        # How far the stored scale falls short of the exact one, in steps at the range's end.
        self.short = self.top * max(self.exact / self.scale - 1, 0)


def exact_groups(weight, group_size, *args):
    size = group_size or weight.shape[1]
    return [
        [ExactGroup(row[k : k + size], *args) for k in range(0, len(row), size)] for row in weight
    ]


def assert_is_exact(quant, groups, scale_dtype):
    """Compare with exact groups; a code may differ by one where a quotient is near a half."""
    for n, row in enumerate(groups):
        for g, group in enumerate(row):
            assert float(group.scale) == quant.scales[n, g]
            assert group.zero == quant.zeros[n, g]
            size = len(group.codes)
            codes = quant.codes[n, g * size : (g + 1) * size]
            for code, expected, quotient in zip(codes, group.codes, group.quotients, strict=True):
                # An exact half is a float32, and goes to even: no doubt there.
                is_tie = 0 < abs(quotient % 1 - Fraction(1, 2)) < TIE
                assert code == expected or (is_tie and abs(int(code) - expected) == 1)
    np.testing.assert_array_equal(round_to(quant.scales, scale_dtype), quant.scales)
    flat = [group for row in groups for group in row]
    assert quant.zero_groups == sum(group.is_zero for group in flat)
    assert quant.flushed_groups == sum(group.vanishes for group in flat)


TOO_LARGE = ("needs a scale of", "beyond float32")


def expected_error(groups):
    """Return which error the definition asks for with underflow='raise', or None."""
    flat = [group for row in groups for group in row]
    if any(group.overflows for group in flat):
        return "needs a scale of"
    if any(group.decodes_to_inf for group in flat):
        return "beyond float32"
    return "too small" if any(group.vanishes for group in flat) else None


@every_case
@every_scale
@with_and_without_zero
@pytest.mark.parametrize("bits", range(2, 9))
def test_groups_are_the_exact_ones(weight, bits, zero_point, scale_dtype):
    groups = exact_groups(weight, GROUP, bits, zero_point, scale_dtype)
    kwargs = dict(zero_point=zero_point, scale_dtype=scale_dtype, name="q_proj")
    problem = expected_error(groups)
    if problem:
        with pytest.raises(OverflowCastError, match=f"^q_proj .*{problem}") as caught:
            quantize_groups(weight, bits, GROUP, **kwargs)
        assert scale_dtype in str(caught.value) or problem == "beyond float32"
    if problem in TOO_LARGE:
        return
    quant = quantize_groups(weight, bits, GROUP, underflow="flush", **kwargs)
    assert quant.codes.dtype == quant.zeros.dtype == np.uint8
    assert quant.scales.dtype == np.float32
    assert_is_exact(quant, groups, scale_dtype)


@every_case
@every_scale
@with_and_without_zero
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_error_is_half_a_step(weight, bits, zero_point, scale_dtype):
    groups = exact_groups(weight, GROUP, bits, zero_point, scale_dtype)
    if expected_error(groups) in TOO_LARGE:
        return
    decoded = fake_quantize(weight, bits, GROUP, zero_point=zero_point, scale_dtype=scale_dtype)
    assert decoded.shape == weight.shape and decoded.dtype == np.float32
    for n, row in enumerate(groups):
        for g, group in enumerate(row):
            of_group = slice(g * GROUP, (g + 1) * GROUP)
            for w, d in zip(weight[n, of_group], decoded[n, of_group], strict=True):
                if group.vanishes or group.is_zero:
                    assert d == 0
                    continue
                error = abs(Fraction(float(w)) - Fraction(float(d)))
                # The second term is the rounding of the product to float32.
                slack = abs(Fraction(float(w))) / 2**23 + Fraction(2) ** -149
                half = Fraction(1, 2) + Fraction(TIE)
                assert error <= group.scale * (half + group.short) + slack
                reach = group.top - group.zero
                if -group.zero <= Fraction(float(w)) / group.scale <= reach:
                    assert error <= group.scale * half + slack


@pytest.mark.parametrize("group_size", [1, 2, 4, 8, 16, 32, None, -1])
@with_and_without_zero
def test_any_group_size_that_divides_k(group_size, zero_point):
    weight = _mixture()
    size = K if group_size in (None, -1) else group_size
    quant = quantize_groups(weight, 3, group_size, zero_point=zero_point)
    assert quant.scales.shape == quant.zeros.shape == (ROWS, K // size)
    assert_is_exact(quant, exact_groups(weight, size, 3, zero_point, "float32"), "float32")
    decoded = fake_quantize(weight, 3, group_size, zero_point=zero_point)
    steps = quant.codes.astype(float) - np.repeat(quant.zeros, size, axis=1)
    np.testing.assert_array_equal(decoded, (steps * quant.scales.repeat(size, 1)).astype("f4"))


def test_one_signed_groups_keep_their_values():
    # A range that does not hold zero decodes a constant group of 3.7 to nonsense.
    for name in ("positive", "negative", "constant"):
        np.testing.assert_allclose(fake_quantize(CASES[name], 4, GROUP), CASES[name], rtol=0.06)


def test_exact_halves_go_to_even():
    weight = np.array([[-7, 8, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5]], np.float32)
    expected = [[-7, 8, 0, 2, 2, 0, -2, -2]]
    np.testing.assert_array_equal(fake_quantize(weight, 4, 8), expected)
    tensor = torch.from_numpy(weight)
    grid = grid_of(*group_ranges(tensor, 8), Settings(group_size=8))
    np.testing.assert_array_equal(tensor + quantization_error(tensor, grid, 4), expected)


def test_more_rows_than_a_block():
    weight = np.random.default_rng(1).standard_normal((1100, 16)).astype(np.float32)
    shrink = np.random.default_rng(2).uniform(0.5, 1, (1100, 2)).astype(np.float32)
    whole = quantize_groups(weight, 5, 8, shrink=shrink)
    for rows in (slice(0, 512), slice(500, 530), slice(1024, 1100)):
        part = quantize_groups(weight[rows], 5, 8, shrink=shrink[rows])
        for a, b in zip(whole[:3], part[:3], strict=True):
            np.testing.assert_array_equal(a[rows], b)
    weight[[700, 1050], 9] = np.nan
    with pytest.raises(NonFiniteError, match="row 700, group 1 "):
        quantize_groups(weight, 5, 8)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_nonfinite_weights_are_refused_by_row_and_group(bad, dtype):
    weight = _random().astype(dtype)
    weight[1, 2 * GROUP + 3] = bad
    for use in (quantize_groups, quantize_weight):
        with pytest.raises(NonFiniteError, match=r"^o_proj row 1, group 2 .*\(1 groups of 12\)"):
            use(weight, 4, GROUP, name="o_proj")
    with pytest.raises(NonFiniteError):
        fake_quantize(weight, 4, GROUP)


def test_float64_beyond_float32_is_refused():
    with pytest.raises(NonFiniteError, match="row 0, group 0"):
        quantize_groups(np.full((1, 8), 1e300), 4, 8)


@pytest.mark.parametrize("dtype", ["float16", "float64", "int8"])
def test_any_real_dtype_is_computed_in_float32(dtype):
    weight = (10 * _random()).astype(dtype)
    for a, b in zip(
        quantize_groups(weight, 4, GROUP),
        quantize_groups(weight.astype("f4"), 4, GROUP),
        strict=True,
    ):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("shape", [(0, 16), (4, 0), (0, 0)])
@pytest.mark.parametrize("group_size", [8, None])
@with_and_without_zero
def test_empty_weights(shape, group_size, zero_point):
    quant = quantize_groups(np.zeros(shape, np.float32), 4, group_size, zero_point=zero_point)
    assert quant.codes.shape == shape and quant.scales.shape[0] == shape[0]
    assert fake_quantize(np.zeros(shape), 4, group_size, zero_point=zero_point).shape == shape


def test_underflow_names_the_group_and_the_ways_out():
    weight = _random()
    weight[2, GROUP : 2 * GROUP] *= 1e-9
    with pytest.raises(OverflowCastError, match=r"^w row 2, group 1 has absmax .*\(1 groups\)"):
        quantize_groups(weight, 4, GROUP, scale_dtype="float16", name="w")
    quant = quantize_groups(weight, 4, GROUP, scale_dtype="float16", underflow="flush")
    assert (quant.flushed_groups, quant.zero_groups) == (1, 0)
    assert (quant.scales[2, 1], quant.zeros[2, 1]) == (1, 0)
    assert not quant.codes[2, GROUP : 2 * GROUP].any()
    assert quantize_groups(weight, 4, GROUP, scale_dtype="bfloat16").flushed_groups == 0


@with_and_without_zero
def test_shrink_narrows_each_group_s_range(zero_point):
    weight = _random()
    shrink = np.random.default_rng(2).uniform(0.4, 1, (ROWS, K // GROUP)).astype(np.float32)
    shrink[:, 0] = 1
    shrunk = quantize_groups(weight, 4, GROUP, zero_point=zero_point, shrink=shrink)
    whole = quantize_groups(weight, 4, GROUP, zero_point=zero_point)
    np.testing.assert_allclose(shrunk.scales, whole.scales * shrink, rtol=1e-6)
    np.testing.assert_array_equal(shrunk.codes[:, :GROUP], whole.codes[:, :GROUP])
    # Everything beyond the narrower range sits at its ends.
    low, high = (end * shrink for end in group_range(weight.reshape(ROWS, -1, GROUP)))
    if not zero_point:
        high = np.maximum(-low, high)
        low = -high - shrunk.scales  # one code more below zero than above
    decoded = dequantize_groups(*shrunk[:3], group_size=GROUP).reshape(ROWS, -1, GROUP)
    assert (decoded <= (high + 0.51 * shrunk.scales)[..., None]).all()
    assert (decoded >= (low - 0.51 * shrunk.scales)[..., None]).all()
    assert np.abs(decoded).max() < np.abs(weight).max()


def test_group_index_of_activation_order():
    rng = np.random.default_rng(3)
    codes = rng.integers(0, 16, (ROWS, K), dtype=np.uint8)
    scales = rng.uniform(0.1, 1, (ROWS, 4)).astype(np.float32)
    zeros = rng.integers(0, 16, (ROWS, 4), dtype=np.uint8)
    g_idx = rng.integers(0, 4, K)
    decoded = dequantize_groups(codes, scales, zeros, group_size=8, g_idx=g_idx)
    for n in range(ROWS):
        for k in range(K):
            step = np.float32(int(codes[n, k]) - int(zeros[n, g_idx[k]]))
            assert decoded[n, k] == step * scales[n, g_idx[k]]


def test_short_last_group_is_decoded():
    codes = np.arange(20, dtype=np.uint8).reshape(2, 10)
    scales = np.array([[1, 2, 4], [8, 16, 32]], np.float32)
    decoded = dequantize_groups(codes, scales, np.ones((2, 3), np.uint8), group_size=4)
    assert decoded[0].tolist() == [-1, 0, 1, 2, 6, 8, 10, 12, 28, 32]


@pytest.mark.parametrize("bits", [1, 9, 0, -4, 4.0, "4", None, True])
def test_bits_out_of_range(bits):
    with pytest.raises(ParameterError, match="choose 2 to 8"):
        quantize_groups(_random(), bits, GROUP)


@pytest.mark.parametrize("group_size", [0, -2, 8.0, "8"])
def test_group_size_out_of_range(group_size):
    with pytest.raises(ParameterError, match="positive int, or -1"):
        quantize_groups(_random(), 4, group_size)


def test_misaligned_group_size_gives_remainder_and_fixes():
    with pytest.raises(AlignmentError) as caught:
        check_settings(4, 128, 3696, name="down_proj")
    for part in ("down_proj", "3696", "remainder 112", "pad by 16 to 3712", "group_size 16"):
        assert part in str(caught.value)
    with pytest.raises(AlignmentError, match="that divides it"):
        check_settings(4, 128, 129)


@pytest.mark.parametrize("shape", [(8,), (2, 2, 8), ()])
def test_weight_has_two_dimensions(shape):
    with pytest.raises(ParameterError, match="2 dimensions"):
        quantize_groups(np.zeros(shape), 4, 8)


def test_input_is_left_alone():
    weight = _random()
    before = weight.copy()
    quantize_groups(weight, 4, GROUP, shrink=np.full((ROWS, 4), 0.5, np.float32))
    np.testing.assert_array_equal(weight, before)


finite = st.floats(width=32, allow_nan=False, allow_infinity=False)
weights = arrays.arrays(np.float32, st.tuples(st.integers(1, 3), st.just(8)), elements=finite)


@settings(max_examples=150, deadline=None)
@given(weights, st.integers(2, 8), st.sampled_from([1, 2, 4, 8]), st.booleans())
def test_property_any_finite_weight(weight, bits, group_size, zero_point):
    groups = exact_groups(weight, group_size, bits, zero_point, "float32")
    if expected_error(groups):
        with pytest.raises(OverflowCastError, match=expected_error(groups)):
            quantize_groups(weight, bits, group_size, zero_point=zero_point)
        return
    quant = quantize_groups(weight, bits, group_size, zero_point=zero_point)
    assert_is_exact(quant, groups, "float32")
    decoded = fake_quantize(weight, bits, group_size, zero_point=zero_point)
    assert np.isfinite(decoded).all()
    assert (np.sign(decoded) * np.sign(weight) >= 0).all()
    assert (decoded[weight == 0] == 0).all()


@settings(max_examples=100, deadline=None)
@given(weights, st.integers(2, 8), st.sampled_from(["float16", "bfloat16"]), st.booleans())
def test_property_decoded_weights_are_a_fixed_point_of_their_grid(weight, bits, dtype, zero_point):
    try:
        quant = quantize_groups(
            weight, bits, 8, zero_point=zero_point, scale_dtype=dtype, underflow="flush"
        )
    except OverflowCastError:
        return
    decoded = dequantize_groups(*quant[:3], group_size=8)
    again = encode(decoded.reshape(-1, 1, 8), quant.scales, quant.zeros, bits)
    np.testing.assert_array_equal(again.reshape(weight.shape), quant.codes)


@settings(max_examples=100, deadline=None)
@given(weights, st.integers(2, 8), st.sampled_from(list(LIMITS)), st.booleans())
def test_property_scale_and_zero_hold_the_range(weight, bits, dtype, zero_point):
    low, high = group_range(weight[:, None])
    assert (low <= 0).all() and (high >= 0).all()
    try:
        scales, zeros = scale_and_zero(low, high, bits, zero_point=zero_point, scale_dtype=dtype)
    except OverflowCastError:
        assert np.abs(weight).max() > (65504 if dtype == "float16" else 1e38)
        return
    assert (scales > 0).all() and (zeros < 2**bits).all()
    np.testing.assert_array_equal(round_to(scales, dtype), scales)


@pytest.mark.parametrize("case", CASES)
@every_scale
@with_and_without_zero
@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("group_size", [GROUP, K])
def test_torch_twin_decodes_the_same(case, bits, group_size, zero_point, scale_dtype):
    weight = CASES[case]
    groups = exact_groups(weight, group_size, bits, zero_point, scale_dtype)
    kwargs = dict(zero_point=zero_point, scale_dtype=scale_dtype)
    tensor = torch.from_numpy(weight.copy())
    choice = Settings(bits=bits, group_size=group_size, **kwargs)
    grid = grid_of(*group_ranges(tensor, group_size), choice)
    if expected_error(groups) in TOO_LARGE:
        # An infinite step makes an error that no search chooses.
        if expected_error(groups) == "needs a scale of":
            assert not quantization_error(tensor, grid, bits).isfinite().all()
        return
    twin = (tensor + quantization_error(tensor, grid, bits)).numpy()
    decoded = fake_quantize(weight, bits, group_size, **kwargs)
    for n, row in enumerate(groups):
        for g, group in enumerate(row):
            of_group = slice(g * group_size, (g + 1) * group_size)
            near_tie = np.array([abs(q % 1 - Fraction(1, 2)) < TIE for q in group.quotients])
            differs = np.abs(twin - decoded)[n, of_group]
            if scale_dtype == "float32" and group.exact < Fraction(2) ** -126:
                # The twin divides in float32, whose subnormal steps have few bits or none.
                assert (differs <= np.abs(weight[n]).max()).all()
                continue
            allowed = np.where(near_tie, 1.01, 1e-4) * float(group.scale)
            allowed += 2.0**-22 * np.abs(weight[n, of_group])
            assert (differs <= allowed).all()
