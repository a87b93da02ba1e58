"""Integer and bit instructions against Python's integers."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ptx.faults import UnknownInstruction
from ptx.one_instruction import evaluate

EDGES32 = [0, 1, 2, 31, 32, 33, 63, 255, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 2, 2**32 - 1]
words = st.lists(
    st.one_of(st.sampled_from(EDGES32), st.integers(0, 2**32 - 1)), min_size=3, max_size=3
)
triples = st.lists(words, min_size=1, max_size=32)

# An example is a list of cases: a few make hundreds.
few = settings(max_examples=20, deadline=None)


def signed(value, bits=32):
    return value - (value >> bits - 1 << bits)


def truncated(a, b):
    """Divide as C does; by zero gives all ones."""
    return -1 if b == 0 else abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)


def field(a, at, count):
    return a >> min(at & 255, 32) & (1 << min(count & 255, 32)) - 1


def signed_field(a, at, count):
    at, count = at & 255, count & 255
    if not count:
        return 0
    top = a >> min(at + count - 1, 31) & 1
    value = (a >> at if at < 32 else 0) & (1 << min(count, 32)) - 1
    for bit in range(32):
        if at + bit > 31 or bit >= count:
            value = value & ~(1 << bit) | top << bit
    return value


def inserted(a, b, at, count):
    at, count = min(at & 255, 32), min(count & 255, 32)
    mask = (1 << count) - 1 << at & 2**32 - 1
    return b & ~mask | a << at & mask


def permuted(a, b, selector):
    source = [*a.to_bytes(4, "little"), *b.to_bytes(4, "little")]
    picked = []
    for i in range(4):
        pick = selector >> 4 * i & 15
        byte = source[pick & 7]
        picked.append((255 if byte & 128 else 0) if pick & 8 else byte)
    return int.from_bytes(bytes(picked), "little")


BINARY = {
    "add.u32 %v0, %v1, %v2": lambda a, b: a + b,
    "sub.s32 %v0, %v1, %v2": lambda a, b: a - b,
    "mul.lo.s32 %v0, %v1, %v2": lambda a, b: a * b,
    "mul.hi.u32 %v0, %v1, %v2": lambda a, b: a * b >> 32,
    "mul.hi.s32 %v0, %v1, %v2": lambda a, b: signed(a) * signed(b) >> 32,
    "min.s32 %v0, %v1, %v2": lambda a, b: min(signed(a), signed(b)),
    "max.u32 %v0, %v1, %v2": max,
    "div.u32 %v0, %v1, %v2": truncated,
    "div.s32 %v0, %v1, %v2": lambda a, b: truncated(signed(a), signed(b)),
    "rem.s32 %v0, %v1, %v2": lambda a, b: signed(a) - truncated(signed(a), signed(b)) * signed(b),
    "and.b32 %v0, %v1, %v2": lambda a, b: a & b,
    "xor.b32 %v0, %v1, 0x64006400": lambda a, b: a ^ 0x64006400,
    "not.b32 %v0, %v1": lambda a, b: ~a,
    "neg.s32 %v0, %v1": lambda a, b: -a,
    "shl.b32 %v0, %v1, %v2": lambda a, b: a << min(b, 32),
    "shr.u32 %v0, %v1, %v2": lambda a, b: a >> min(b, 32),
    "shr.s32 %v0, %v1, %v2": lambda a, b: signed(a) >> min(b, 32),
    "prmt.b32 %v0, %v1, %v2, 0x5410": lambda a, b: permuted(a, b, 0x5410),
    "prmt.b32 %v0, %v1, %v2, 0x9bd3": lambda a, b: permuted(a, b, 0x9BD3),
    "bfe.u32 %v0, %v1, 8, 4": lambda a, b: field(a, 8, 4),
    "cvt.s16.s32 %v0, %v1": lambda a, b: signed(a & 0xFFFF, 16),
    "cvt.u8.u32 %v0, %v1": lambda a, b: a & 255,
}
TERNARY = {
    "mad.lo.s32 %v0, %v1, %v2, %v3": lambda a, b, c: a * b + c,
    "lop3.b32 %v0, %v1, %v2, %v3, 0xEA": lambda a, b, c: a & b | c,
    "lop3.b32 %v0, %v1, %v2, %v3, 0x96": lambda a, b, c: a ^ b ^ c,
    "lop3.b32 %v0, %v1, %v2, %v3, 0xE2": lambda a, b, c: b & a | ~b & c,
    "prmt.b32 %v0, %v1, %v2, %v3": permuted,
    "bfe.u32 %v0, %v1, %v2, %v3": field,
    "bfe.s32 %v0, %v1, %v2, %v3": signed_field,
    "bfi.b32 %v0, %v1, %v2, %v3, 5": lambda a, b, c: inserted(a, b, c, 5),
    "bfi.b32 %v0, %v1, %v2, 7, %v3": lambda a, b, c: inserted(a, b, 7, c),
    "shf.l.wrap.b32 %v0, %v1, %v2, %v3": lambda a, b, c: (b << 32 | a) << (c & 31) >> 32,
    "shf.r.wrap.b32 %v0, %v1, %v2, %v3": lambda a, b, c: (b << 32 | a) >> (c & 31),
    "shf.l.clamp.b32 %v0, %v1, %v2, %v3": lambda a, b, c: (b << 32 | a) << min(c, 32) >> 32,
    "shf.r.clamp.b32 %v0, %v1, %v2, %v3": lambda a, b, c: (b << 32 | a) >> min(c, 32),
    "setp.lt.s32 %p0, %v1, %v2; selp.b32 %v0, %v1, %v3, %p0": lambda a, b, c: (
        a if signed(a) < signed(b) else c
    ),
    "setp.hs.u32 %p0|%p1, %v1, %v2; @%p1 mov.u32 %v0, %v3; @%p0 mov.u32 %v0, 7": lambda a, b, c: (
        7 if a >= b else c
    ),
    "setp.eq.u32 %p1, %v1, %v2; setp.ne.or.u32 %p0, %v3, 0, %p1; selp.u32 %v0, 1, 0, !%p0": (
        lambda a, b, c: int(not (c != 0 or a == b))
    ),
}


def check(instruction, expected, values, arguments):
    columns = np.array(values, np.uint32).T
    found = evaluate(instruction, "u4", *columns[:arguments])
    wanted = [expected(*row[:arguments]) & 2**32 - 1 for row in values]
    assert found.tolist() == wanted


@pytest.mark.parametrize("instruction", BINARY)
@few
@given(values=triples)
def test_two_operands(instruction, values):
    check(instruction, BINARY[instruction], values, 2)


@pytest.mark.parametrize("instruction", TERNARY)
@few
@given(values=triples)
def test_three_operands(instruction, values):
    check(instruction, TERNARY[instruction], values, 3)


@few
@given(values=triples)
def test_wide_products_have_64_bits(values):
    a, b, c = np.array(values, np.uint32).T
    unsigned = evaluate("mul.wide.u32 %v0, %v1, %v2", "u8", a, b)
    assert unsigned.tolist() == [x * y for x, y, _ in values]
    added = evaluate("mad.wide.s32 %v0, %v1, %v2, %v3", "i8", a, b, c.astype(np.uint64))
    assert added.tolist() == [signed(x) * signed(y) + z for x, y, z in values]


@few
@given(values=triples)
def test_widening_keeps_the_sign_of_signed_types_alone(values):
    a = np.array(values, np.uint32).T[0]
    assert evaluate("cvt.s64.s32 %v0, %v1", "i8", a).tolist() == [signed(x) for x, *_ in values]
    assert evaluate("cvt.u64.u32 %v0, %v1", "u8", a).tolist() == a.tolist()
    assert evaluate("mov.b64 %v0, {%v1, %v2}", "u8", a, a[::-1]).tolist() == [
        int(low) | int(high) << 32 for low, high in zip(a, a[::-1], strict=True)
    ]


@few
@given(st.lists(st.tuples(st.integers(0, 2**16 - 1), st.integers(0, 20)), min_size=1))
def test_halves_are_16_bits_wide(values):
    a, b = np.array(values, np.uint16).T

    def found(instruction, dtype="u2"):
        return evaluate(instruction, dtype, a, b).tolist()

    both = [(int(x), int(y)) for x, y in zip(a, b, strict=True)]
    half = 2**16 - 1
    assert found("add.s16 %v0, %v1, %v2") == [x + y & half for x, y in both]
    assert found("sub.s16 %v0, %v2, %v1") == [y - x & half for x, y in both]
    assert found("and.b16 %v0, %v1, %v2") == [x & y for x, y in both]
    assert found("mul.wide.s16 %v0, %v1, %v2", "i4") == [signed(x, 16) * y for x, y in both]
    assert found("shl.b16 %v0, %v1, 3") == [x << 3 & half for x, _ in both]
    assert found("shr.s16 %v0, %v1, 3", "i2") == [signed(x, 16) >> 3 for x, _ in both]
    assert found("shr.u16 %v0, %v1, 17") == [0] * len(both)


def test_bytes_and_halves_are_loaded_by_their_sign():
    values = np.array([0, 1, 127, 128, 200, 255], np.uint8)
    assert evaluate("cvt.s32.s8 %v0, %v1", "i4", values).tolist() == [0, 1, 127, -128, -56, -1]
    assert evaluate("cvt.u32.u8 %v0, %v1", "u4", values).tolist() == values.tolist()


@pytest.mark.parametrize(
    "instruction", ["dp4a.u32.u32 %v0, %v1, %v1, %v1", "prmt.b32.f4e %v0, %v1, %v1, %v1"]
)
def test_an_unknown_instruction_is_named_with_its_line(instruction):
    with pytest.raises(UnknownInstruction, match=r"PTX line \d+\) (dp4a|prmt)"):
        evaluate(instruction, "u4", np.zeros(1, np.uint32))
