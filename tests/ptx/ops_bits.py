"""Bits: logic, lop3, prmt, fields, funnel shifts."""

import numpy as np

from ptx.decode import lanewise, opcode
from ptx.faults import UnknownInstruction
from ptx.parse import Imm

_LOGIC = {"and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor}


@opcode("and", "or", "xor")
def _logic(decoder, ins):
    return lanewise(decoder, ins.parts[1], ins.operands, _LOGIC[ins.parts[0]])


@opcode("not")
def _not(decoder, ins):
    return lanewise(decoder, ins.parts[1], ins.operands, np.invert)


def lop3(a, b, c, table):
    """Return the bitwise function of three whose truth table is `table`.

    Bit ``4 a + 2 b + c`` of the table is the result.
    """
    result = np.zeros(np.broadcast_shapes(a.shape, b.shape, c.shape), a.dtype)
    for row in range(8):
        if table >> row & 1:
            result |= (a if row & 4 else ~a) & (b if row & 2 else ~b) & (c if row & 1 else ~c)
    return result


@opcode("lop3")
def _lop3(decoder, ins):
    *operands, table = ins.operands
    if ins.parts != ("lop3", "b32") or not isinstance(table, Imm):
        raise UnknownInstruction("this form of lop3")
    return lanewise(decoder, "b32", operands, lambda a, b, c: lop3(a, b, c, table.value))


def prmt(a, b, selector):
    """Pick four of the eight bytes of ``b:a``; bit 3 of a selector repeats the byte's sign."""
    pool = a.astype(np.uint64) | b.astype(np.uint64) << np.uint64(32)
    result = np.uint32(0)
    for byte in range(4):
        pick = (selector >> np.uint32(4 * byte)) & np.uint32(15)
        found = (pool >> ((pick & np.uint32(7)) * np.uint32(8)).astype(np.uint64)).astype(np.uint32)
        found = found & np.uint32(255)
        sign = np.where(found & np.uint32(128), np.uint32(255), np.uint32(0))
        result = result | np.where(pick & np.uint32(8), sign, found) << np.uint32(8 * byte)
    return result


def prmt_constant(selector):
    """Return ``f(a, b)``, `prmt` for a selector without sign bits: bytes are copied."""
    picks = [selector >> 4 * i & 15 for i in range(4)]

    def pick_bytes(a, b):
        a, b = np.broadcast_arrays(a, b)
        sources = [np.ascontiguousarray(word).view(np.uint8).reshape(-1, 4) for word in (a, b)]
        result = np.empty((len(a), 4), np.uint8)
        for i, pick in enumerate(picks):
            result[:, i] = sources[pick >> 2][:, pick & 3]
        return result.view(np.uint32)[:, 0]

    return pick_bytes


@opcode("prmt")
def _prmt(decoder, ins):
    if ins.parts != ("prmt", "b32"):
        raise UnknownInstruction("modes of prmt")
    *operands, selector = ins.operands
    if isinstance(selector, Imm) and not selector.value & 0x8888:
        return lanewise(decoder, "b32", operands, prmt_constant(selector.value))
    return lanewise(decoder, "b32", ins.operands, prmt)


def extract_field(a, start, length):
    """Return `length` bits from `start` of 32, sign extended if `a` is signed.

    Of a signed value, bits beyond the highest are its sign.
    """
    start, length = (np.minimum(x & np.uint32(255), np.uint32(32)) for x in (start, length))
    wide = np.int64
    field = a.astype(wide) >> start.astype(wide)
    unused = (np.uint32(64) - length).astype(np.uint64)
    unused_bits = np.minimum(unused, np.uint64(63))
    if a.dtype.kind == "i":
        field = field << unused_bits.astype(wide) >> unused_bits.astype(wide)
    else:
        field = (field.view(np.uint64) << unused_bits >> unused_bits).view(wide)
    return np.where(length == 0, 0, field).astype(a.dtype)


@opcode("bfe")
def _bfe(decoder, ins):
    kind = ins.parts[1]
    if kind not in ("u32", "s32"):
        raise UnknownInstruction("bfe of 64 bits")
    write, value = decoder.write(ins.operands[0], kind), decoder.read(ins.operands[1], kind)
    start, length = (decoder.read(operand, "u32") for operand in ins.operands[2:])
    if kind == "u32" and all(isinstance(operand, Imm) for operand in ins.operands[2:]):
        at, count = (min(operand.value & 255, 32) for operand in ins.operands[2:])
        field = np.uint64((1 << count) - 1)

        def quick(lanes, mask):
            wide = value(lanes).astype(np.uint64) >> np.uint64(at)
            write(lanes, (wide & field).astype(np.uint32), mask)

        return quick

    def step(lanes, mask):
        write(lanes, extract_field(value(lanes), start(lanes), length(lanes)), mask)

    return step


def insert_field(a, b, start, length):
    """Return `b` with the low `length` bits of `a` put at `start`."""
    start, length = (np.minimum(x & np.uint32(255), np.uint32(32)) for x in (start, length))
    wide = np.uint64
    ones = (wide(1) << length.astype(wide)) - wide(1)
    field = (ones << start.astype(wide)).astype(np.uint32)
    moved = (a.astype(wide) << start.astype(wide)).astype(np.uint32)
    return (b & ~field) | (moved & field)


@opcode("bfi")
def _bfi(decoder, ins):
    if ins.parts[1] != "b32":
        raise UnknownInstruction("bfi of 64 bits")
    write = decoder.write(ins.operands[0], "b32")
    a, b, start, length = (decoder.read(operand, "b32") for operand in ins.operands[1:])

    def step(lanes, mask):
        write(lanes, insert_field(a(lanes), b(lanes), start(lanes), length(lanes)), mask)

    return step


def funnel_shift(low, high, amount, *, left, wrap):
    """Return 32 bits of ``high:low`` shifted."""
    amount = amount & np.uint32(31) if wrap else np.minimum(amount, np.uint32(32))
    pool = low.astype(np.uint64) | high.astype(np.uint64) << np.uint64(32)
    by = (np.uint32(32) - amount if left else amount).astype(np.uint64)
    return (pool >> by).astype(np.uint32)


@opcode("shf")
def _shf(decoder, ins):
    _, direction, mode, kind = ins.parts
    left, wrap = {"l": True, "r": False}[direction], {"wrap": True, "clamp": False}[mode]
    return lanewise(
        decoder,
        kind,
        ins.operands,
        lambda a, b, c: funnel_shift(a, b, c, left=left, wrap=wrap),
    )
