"""Moves, choices, comparisons, and what lanes of a warp tell one another."""

import numpy as np

from ptx.decode import TYPES, lanewise, opcode
from ptx.faults import Divergence, UnknownInstruction
from ptx.parse import Vector

_COMPARE = {
    "eq": np.equal,
    "ne": np.not_equal,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
    "lo": np.less,
    "ls": np.less_equal,
    "hi": np.greater,
    "hs": np.greater_equal,
}
_COMBINE = {"and": np.logical_and, "or": np.logical_or, "xor": np.logical_xor}


@opcode("mov")
def _mov(decoder, ins):
    kind = ins.parts[1]
    to, source = ins.operands
    if isinstance(source, Vector):
        return _join(decoder, to, source.items, TYPES[kind])
    if isinstance(to, Vector):
        return _separate(decoder, to.items, source, kind)
    write, read = decoder.write(to, kind), decoder.read(source, kind)
    return lambda lanes, mask: write(lanes, read(lanes), mask)


def _join(decoder, to, items, dtype):
    bits = 8 * dtype.itemsize // len(items)
    kind = f"b{8 * dtype.itemsize}"
    write, reads = decoder.write(to, kind), [decoder.read(item, f"b{bits}") for item in items]

    def step(lanes, mask):
        value = sum(
            read(lanes).astype(dtype) << np.array(i * bits, dtype) for i, read in enumerate(reads)
        )
        write(lanes, value.astype(TYPES[kind]), mask)

    return step


def _separate(decoder, items, source, kind):
    bits = 8 * TYPES[kind].itemsize // len(items)
    read, writes = decoder.read(source, kind), [decoder.write(item, f"b{bits}") for item in items]
    part = TYPES[f"b{bits}"]

    def step(lanes, mask):
        value = read(lanes)
        for i, write in enumerate(writes):
            write(lanes, (value >> value.dtype.type(i * bits)).astype(part), mask)

    return step


@opcode("cvta")
def _cvta(decoder, ins):
    # Shared and global addresses are what they are in every space: they never overlap.
    return lanewise(decoder, ins.parts[-1], ins.operands, lambda a: a)


@opcode("selp")
def _selp(decoder, ins):
    kind = ins.parts[1]
    write = decoder.write(ins.operands[0], kind)
    a, b = (decoder.read(operand, kind) for operand in ins.operands[1:3])
    choose = decoder.read(ins.operands[3], "pred")
    return lambda lanes, mask: write(lanes, np.where(choose(lanes), a(lanes), b(lanes)), mask)


def _comparison(name, kind):
    if kind[0] != "f" or name in _COMPARE and name != "ne":
        return _COMPARE[name]
    if name == "ne":  # ordered: false for NaN
        return lambda a, b: (a != b) & ~np.isnan(a) & ~np.isnan(b)
    if name == "nan":
        return lambda a, b: np.isnan(a) | np.isnan(b)
    if name == "num":
        return lambda a, b: ~np.isnan(a) & ~np.isnan(b)
    ordered = _COMPARE[name.removesuffix("u")]
    return lambda a, b: ordered(a, b) | np.isnan(a) | np.isnan(b)


@opcode("setp")
def _setp(decoder, ins):
    _, comparison, *rest, kind = ins.parts
    rest = [word for word in rest if word != "ftz"]
    if (
        kind in ("f16", "bf16", "f16x2", "bf16x2")
        or len(rest) > 1
        or rest
        and len(ins.operands) != 4
    ):
        raise UnknownInstruction("this form of setp")
    compare = _comparison(comparison, kind)
    writes = decoder.write_all(ins.operands[0], "pred")
    a, b = (decoder.read(operand, kind) for operand in ins.operands[1:3])
    other = decoder.read(ins.operands[3], "pred") if rest else None

    def step(lanes, mask):
        found = compare(a(lanes), b(lanes))
        outcomes = (found, ~found)
        if other is not None:
            combine = _COMBINE[rest[0]]
            outcomes = [combine(outcome, other(lanes)) for outcome in outcomes]
        for write, outcome in zip(writes, outcomes, strict=False):
            write(lanes, outcome, mask)

    return step


def shuffle_source(mode, lane, by, clamp):
    """Return which lane to read from and whether it is in range, for `shfl.sync`."""
    top, segment = clamp & np.uint32(31), (clamp >> np.uint32(8)) & np.uint32(31)
    low = lane & segment
    high = low | (top & ~segment)
    by = by & np.uint32(31)
    if mode == "up":
        source = lane.astype(np.int64) - by
        return source, source >= high
    if mode == "down":
        source = lane.astype(np.int64) + by
    elif mode == "bfly":
        source = (lane ^ by).astype(np.int64)
    else:
        source = (low | (by & ~segment)).astype(np.int64)
    return source, source <= high


@opcode("shfl")
def _shfl(decoder, ins):
    _, sync, mode, kind = ins.parts
    if sync != "sync":
        raise UnknownInstruction("shfl without .sync")
    value, by, clamp, members = (decoder.read(operand, kind) for operand in ins.operands[1:5])
    writes = decoder.write_all(ins.operands[0], kind)[:1]
    to = ins.operands[0]
    in_range = decoder.write(to.items[1], "pred") if isinstance(to, Vector) else None

    def step(lanes, mask):
        lane = (lanes.thread % 32).astype(np.uint32)
        source, ok = shuffle_source(mode, lane, by(lanes), clamp(lanes))
        source = np.where(ok, source, lane).astype(np.int64)
        first = np.arange(lanes.count) // 32 * 32
        _require_members(lanes, mask, members(lanes), first + source)
        writes[0](lanes, np.broadcast_to(value(lanes), (lanes.count,))[first + source], mask)
        if in_range is not None:
            in_range(lanes, np.broadcast_to(ok, (lanes.count,)), mask)

    return step


def _require_members(lanes, mask, members, source):
    """Every named lane must be here, and so must the one that is read."""
    here = np.ones(lanes.count, bool) if mask is None else mask
    bit = np.uint32(1) << (lanes.thread % 32).astype(np.uint32)
    members = np.broadcast_to(members, (lanes.count,))
    per_warp = np.where(here, bit, 0).reshape(-1, 32).sum(1, dtype=np.uint64).astype(np.uint32)
    if (members[here] & ~np.repeat(per_warp, 32)[here]).any():
        raise Divergence("lanes of the member mask are elsewhere")
    if not here[source[here]].all():
        raise Divergence("a lane that is read is elsewhere")
