"""Integer arithmetic. Sums and products wrap; division truncates; shifts stop at the width."""

import numpy as np

from ptx.decode import INTEGERS, TYPES, lanewise, opcode
from ptx.faults import UnknownInstruction
from ptx.ops_floats import float_builder

_COMPUTE = {"add": np.add, "sub": np.subtract, "min": np.minimum, "max": np.maximum}


@opcode("add", "sub", "min", "max", "neg", "abs")
def _arithmetic(decoder, ins):
    name, kind = ins.parts[0], ins.parts[-1]
    if kind not in INTEGERS:
        return float_builder(decoder, ins)
    _only(ins, {name, kind})
    compute = _COMPUTE.get(name) or {"neg": np.negative, "abs": np.abs}[name]
    return lanewise(decoder, kind, ins.operands, compute)


def _only(ins, known):
    odd = set(ins.parts) - known
    if odd:
        raise UnknownInstruction(f"modifiers {sorted(odd)}")


def _wide(dtype):
    return np.dtype(f"{dtype.kind}{dtype.itemsize * 2}")


def high_product(a, b):
    """Return the upper half of the double-width product."""
    if a.dtype.itemsize < 8:
        wide = _wide(a.dtype)
        shift = wide.type(8 * a.dtype.itemsize)
        return ((a.astype(wide) * b.astype(wide)) >> shift).astype(a.dtype)
    product = a.astype(object) * b.astype(object) >> 64
    return np.array([int(p) % 2**64 for p in product], np.uint64).view(a.dtype)


@opcode("mul", "mad")
def _multiply(decoder, ins):
    kind = ins.parts[-1]
    if kind not in INTEGERS:
        return float_builder(decoder, ins)
    part = ins.parts[1]
    _only(ins, {ins.parts[0], part, kind})
    dtype, operands = TYPES[kind], ins.operands
    if part == "lo":
        product, result = np.multiply, kind
    elif part == "hi":
        product, result = high_product, kind
    elif part == "wide":
        wide = _wide(dtype)
        result = f"{kind[0]}{2 * int(kind[1:])}"

        def product(a, b):
            return a.astype(wide) * b.astype(wide)
    else:
        raise UnknownInstruction(f"part {part} of a product")
    write = decoder.write(operands[0], result)
    a, b = (decoder.read(operand, kind) for operand in operands[1:3])
    if ins.parts[0] == "mul":
        return lambda lanes, mask: write(lanes, product(a(lanes), b(lanes)), mask)
    c = decoder.read(operands[3], result)
    return lambda lanes, mask: write(lanes, product(a(lanes), b(lanes)) + c(lanes), mask)


def quotient(a, b):
    """Divide integers and round towards zero; by zero gives all ones, as on the hardware."""
    divisor = np.where(b == 0, b.dtype.type(1), b)
    if a.dtype.kind == "u":
        found = a // divisor
    else:
        a, divisor = np.broadcast_arrays(a, divisor)
        found = a // divisor
        found = found + ((a % divisor != 0) & ((a < 0) != (divisor < 0)))
    return np.where(b == 0, np.array(-1).astype(a.dtype), found).astype(a.dtype)


@opcode("div", "rem")
def _divide(decoder, ins):
    name, kind = ins.parts[0], ins.parts[-1]
    if kind not in INTEGERS:
        return float_builder(decoder, ins)
    _only(ins, {name, kind})

    def compute(a, b):
        whole = quotient(a, b)
        return whole if name == "div" else a - whole * b

    return lanewise(decoder, kind, ins.operands, compute)


@opcode("shl", "shr")
def _shift(decoder, ins):
    name, kind = ins.parts
    dtype = TYPES[kind]
    bits = 8 * dtype.itemsize
    value, amount = decoder.read(ins.operands[1], kind), decoder.read(ins.operands[2], "u32")
    write = decoder.write(ins.operands[0], kind)

    def step(lanes, mask):
        a, by = value(lanes), amount(lanes)
        near = np.minimum(by, np.uint32(bits - 1)).astype(dtype)
        shifted = np.left_shift(a, near) if name == "shl" else np.right_shift(a, near)
        if (by >= bits).any():
            rest = a >> dtype.type(bits - 1) if dtype.kind == "i" and name == "shr" else a * 0
            shifted = np.where(by >= bits, rest, shifted).astype(dtype)
        write(lanes, shifted, mask)

    return step
