"""Floating-point instructions and conversions against exact fractions.

The reference rounds an exact rational number by comparing it with the neighbouring numbers of
the type, so that it shares nothing with the interpreter's own rounding.
"""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ptx.one_instruction import evaluate

# An example is a list of cases: a few make hundreds.
few = settings(max_examples=20, deadline=None)
WIDTH = {"f16": 16, "bf16": 16, "f32": 32}


def values_of(kind):
    """Return every finite value of a 16-bit type, sorted, with its code; without -0."""
    codes = np.arange(2**16, dtype=np.uint16)
    if kind == "f16":
        values = codes.view(np.float16).astype(np.float64)
    else:
        values = (codes.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    keep = np.isfinite(values) & (codes != 0x8000)
    order = np.argsort(values[keep])
    return values[keep][order], codes[keep][order]


TABLES = {}
with np.errstate(invalid="ignore"):
    for _kind in ("f16", "bf16"):
        TABLES[_kind] = values_of(_kind)


def decoded(bits, kind):
    if kind == "f32":
        return float(np.uint32(bits).view(np.float32))
    if kind == "f16":
        return float(np.uint16(bits).view(np.float16))
    return float(np.uint32(int(bits) << 16).view(np.float32))


def rounded(exact, kind):
    """Return the code of the value nearest to a Fraction; ties to the even code."""
    if kind == "f32":
        near = np.float32(float(exact))
        with np.errstate(over="ignore"):
            around = [np.nextafter(near, np.float32(s)) for s in (-np.inf, np.inf)]
        candidates = [(value, int(value.view(np.uint32))) for value in (near, *around)]
        candidates = [pair for pair in candidates if np.isfinite(pair[0])]
        limit = Fraction(2) ** 128 - Fraction(2) ** 103
        infinity = 0x7F800000
    else:
        values, codes = TABLES[kind]
        at = int(np.searchsorted(values, float(exact)))
        nearby = range(max(at - 2, 0), min(at + 3, len(values)))
        candidates = [(values[i], int(codes[i])) for i in nearby]
        top = Fraction(float(values[-1]))
        limit = top + (top - Fraction(float(values[-2]))) / 2
        infinity = {"f16": 0x7C00, "bf16": 0x7F80}[kind]
    if abs(exact) >= limit:
        return infinity | (1 << WIDTH[kind] - 1 if exact < 0 else 0)
    return min(candidates, key=lambda c: (abs(Fraction(float(c[0])) - exact), c[1] & 1))[1]


def same(found, wanted, kind):
    """Codes agree, or both are zeros."""
    sign = 1 << WIDTH[kind] - 1
    return found == wanted or {found, wanted} == {0, sign}


def is_finite(code, kind):
    exponent = {"f16": 0x7C00, "bf16": 0x7F80, "f32": 0x7F800000}[kind]
    return code & exponent != exponent


def codes(kind):
    near_one = {"f16": 0x3C00, "bf16": 0x3F80, "f32": 0x3F800000}[kind]
    width = WIDTH[kind]
    return st.one_of(
        st.integers(0, 2**width - 1),
        st.integers(near_one - 40, near_one + 40),
        st.integers(0, 40),  # subnormal
    ).filter(lambda code: is_finite(code, kind))


def dtype_of(kind):
    return np.uint32 if kind == "f32" else np.uint16


EXACT = {"add": lambda a, b: a + b, "sub": lambda a, b: a - b, "mul": lambda a, b: a * b}


@pytest.mark.parametrize("kind", WIDTH)
@few
@given(data=st.data())
def test_fma_rounds_once(kind, data):
    rows = data.draw(
        st.lists(st.tuples(codes(kind), codes(kind), codes(kind)), min_size=1, max_size=32)
    )
    columns = np.array(rows, dtype_of(kind)).T
    found = evaluate(f"fma.rn.{kind} %v0, %v1, %v2, %v3", dtype_of(kind), *columns)
    for row, code in zip(rows, found.tolist(), strict=True):
        a, b, c = (Fraction(decoded(x, kind)) for x in row)
        assert same(code, rounded(a * b + c, kind), kind), [hex(x) for x in row]


@pytest.mark.parametrize("kind", WIDTH)
@pytest.mark.parametrize("name", EXACT)
@few
@given(data=st.data())
def test_sums_and_products(kind, name, data):
    rows = data.draw(st.lists(st.tuples(codes(kind), codes(kind)), min_size=1, max_size=32))
    columns = np.array(rows, dtype_of(kind)).T
    found = evaluate(f"{name}.{kind} %v0, %v1, %v2", dtype_of(kind), *columns)
    for row, code in zip(rows, found.tolist(), strict=True):
        exact = EXACT[name](*(Fraction(decoded(x, kind)) for x in row))
        assert same(code, rounded(exact, kind), kind), [hex(x) for x in row]


@pytest.mark.parametrize("kind", ["f16", "bf16"])
def test_pairs_are_two_single_operations(kind):
    rng = np.random.default_rng(0)
    a, b, c = (rng.integers(0, 2**32, 4096, dtype=np.uint32) for _ in range(3))
    pair = evaluate(f"fma.rn.{kind}x2 %v0, %v1, %v2, %v3", "u4", a, b, c)
    halves = [np.ascontiguousarray(x).view(np.uint16) for x in (a, b, c)]
    single = evaluate(f"fma.rn.{kind} %v0, %v1, %v2, %v3", "u2", *halves)
    assert (pair.view(np.uint16) == single).all()


@few
@given(st.lists(codes("f32"), min_size=1, max_size=64))
def test_float32_narrows_to_nearest_even(values):
    bits = np.array(values, np.uint32)
    for kind in ("f16", "bf16"):
        found = evaluate(f"cvt.rn.{kind}.f32 %v0, %v1", "u2", bits).tolist()
        packed = evaluate(f"cvt.rn.{kind}x2.f32 %v0, %v1, %v2", "u4", bits, bits[::-1]).tolist()
        for i, code in enumerate(values):
            assert same(found[i], rounded(Fraction(decoded(code, "f32")), kind), kind), hex(code)
            assert packed[i] >> 16 == found[i]  # the first source is the upper half
            assert packed[i] & 0xFFFF == found[-1 - i]


def test_rounding_to_bf16_towards_zero_cuts_off():
    bits = np.array([0x3F80FFFF, 0xBF80FFFF, 0x7F7FFFFF], np.uint32)
    found = evaluate("cvt.rz.bf16.f32 %v0, %v1", "u2", bits)
    assert found.tolist() == [0x3F80, 0xBF80, 0x7F7F]


@pytest.mark.parametrize("kind", ["f16", "bf16"])
def test_every_half_widens_exactly(kind):
    every = np.arange(2**16, dtype=np.uint16)
    found = evaluate(f"cvt.f32.{kind} %v0, %v1", "f4", every)
    with np.errstate(invalid="ignore"):
        wanted = np.array([decoded(code, kind) for code in every])
    assert np.array_equal(found.astype(np.float64), wanted, equal_nan=True)


def test_nan_stays_nan_and_never_becomes_infinity():
    nans = np.array([0x7F800001, 0x7FFFFFFF, 0xFF800001], np.uint32)
    assert (evaluate("cvt.rn.bf16.f32 %v0, %v1", "u2", nans) & 0x7FFF > 0x7F80).all()
    assert (evaluate("cvt.rn.f16.f32 %v0, %v1", "u2", nans) & 0x7FFF > 0x7C00).all()
    one = np.full(3, 1, np.float32)
    assert np.isnan(evaluate("fma.rn.f32 %v0, %v1, %v2, %v2", "f4", nans, one)).all()
    # min and max take the number, unless asked for NaN
    assert evaluate("max.f32 %v0, %v1, %v2", "f4", nans, one).tolist() == [1, 1, 1]
    assert np.isnan(evaluate("max.NaN.f32 %v0, %v1, %v2", "f4", nans, one)).all()


def test_ftz_flushes_operands_and_results_and_plain_does_not():
    tiny = np.array([1, 0x80000001, 0x007FFFFF], np.uint32)
    one = np.full(3, 1, np.float32)
    assert evaluate("mul.ftz.f32 %v0, %v1, %v2", "u4", tiny, one).tolist() == [0, 2**31, 0]
    assert evaluate("mul.f32 %v0, %v1, %v2", "u4", tiny, one).tolist() == tiny.tolist()
    small, half = np.full(3, 2.0**-126, np.float32), np.full(3, 0.5, np.float32)
    assert evaluate("mul.ftz.f32 %v0, %v1, %v2", "f4", small, half).tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    ("mode", "wanted"),
    [
        ("rni", [-2, 0, 0, 2, 2, 4, 2**31 - 1, -(2**31), 0]),
        ("rzi", [-1, 0, 0, 1, 2, 3, 2**31 - 1, -(2**31), 0]),
        ("rmi", [-2, -1, 0, 1, 2, 3, 2**31 - 1, -(2**31), 0]),
        ("rpi", [-1, 0, 1, 2, 3, 4, 2**31 - 1, -(2**31), 0]),
    ],
)
def test_rounding_to_integers_saturates(mode, wanted):
    values = np.array([-1.5, -0.5, 0.5, 1.5, 2.5, 3.5, 1e20, -np.inf, np.nan], np.float32)
    assert evaluate(f"cvt.{mode}.s32.f32 %v0, %v1", "i4", values).tolist() == wanted


@few
@given(st.lists(st.integers(-(2**31), 2**31 - 1), min_size=1, max_size=32))
def test_integers_become_the_nearest_float(values):
    numbers = np.array(values, np.int32)
    found = evaluate("cvt.rn.f32.s32 %v0, %v1", "u4", numbers).tolist()
    for value, code in zip(values, found, strict=True):
        assert same(code, rounded(Fraction(value), "f32"), "f32")


@pytest.mark.parametrize(
    ("comparison", "wanted"),
    [
        ("lt", [1, 0, 0]),
        ("ltu", [1, 0, 1]),
        ("ne", [1, 0, 0]),
        ("neu", [1, 0, 1]),
        ("nan", [0, 0, 1]),
        ("num", [1, 1, 0]),
    ],
)
def test_comparisons_with_nan(comparison, wanted):
    a, b = np.array([1, 2, np.nan], np.float32), np.array([2, 2, 2], np.float32)
    text = f"setp.{comparison}.f32 %p0, %v1, %v2; selp.u32 %v0, 1, 0, %p0"
    assert evaluate(text, "u4", a, b).tolist() == wanted


@pytest.mark.parametrize("kind", ["f16", "bf16"])
def test_signs_of_pairs(kind):
    pairs = np.array([0x3C00BC00, 0x80000001, 0x7FFF0000], np.uint32)
    negated = evaluate(f"neg.{kind}x2 %v0, %v1", "u4", pairs)
    assert negated.tolist() == [0xBC003C00, 0x00008001, 0xFFFF8000]
    positive = evaluate(f"abs.{kind}x2 %v0, %v1", "u4", pairs)
    assert positive.tolist() == [0x3C003C00, 0x00000001, 0x7FFF0000]
