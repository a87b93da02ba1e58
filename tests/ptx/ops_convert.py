"""Conversions: cvt in the forms that kernels use."""

import numpy as np

from ptx.decode import INTEGERS, TYPES, opcode
from ptx.faults import UnknownInstruction
from ptx.rounding import bf16_bits, decode, encode, flush

_TO_INTEGER = {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}
_FLOATS = ("f16", "bf16", "f32", "f64")


@opcode("cvt")
def _cvt(decoder, ins):
    target, source = ins.parts[-2:]
    modifiers = set(ins.parts[1:-2])
    if target in ("f16x2", "bf16x2"):
        return _pack(decoder, ins, target.removesuffix("x2"), modifiers)
    write = decoder.write(ins.operands[0], target)
    read = decoder.read(ins.operands[1], source)
    convert = _converter(target, source, modifiers)
    return lambda lanes, mask: write(lanes, convert(read(lanes)), mask)


def _converter(target, source, modifiers):
    if target in INTEGERS and source in INTEGERS:
        _only(modifiers, set())
        return lambda a: a.astype(TYPES[target])
    if target in INTEGERS and source in _FLOATS:
        return _to_integer(TYPES[target], source, modifiers)
    if target in _FLOATS and source in INTEGERS:
        _only(modifiers, {"rn"})
        return lambda a: _round(a.astype(np.float64), target)
    if target in _FLOATS and source in _FLOATS:
        return _between_floats(target, source, modifiers)
    raise UnknownInstruction(f"cvt from {source} to {target}")


def _only(modifiers, known):
    if modifiers - known:
        raise UnknownInstruction(f"cvt with {sorted(modifiers - known)}")


def _exact(a, kind):
    return a if kind == "f64" else decode(a, kind)


def _round(value, kind):
    return value if kind == "f64" else encode(value, kind)


def _to_integer(dtype, source, modifiers):
    _only(modifiers, {*_TO_INTEGER, "ftz", "sat"})
    (mode,) = modifiers & set(_TO_INTEGER)
    limits = np.iinfo(dtype)
    # The largest float64 that the type holds: 2**63 - 1 and 2**64 - 1 are no float64.
    top = float(limits.max) if dtype.itemsize < 8 else float(limits.max - 2047)

    def convert(a):
        value = np.clip(_TO_INTEGER[mode](_exact(a, source)), float(limits.min), top)
        return np.where(np.isnan(value), 0, value).astype(dtype)

    return convert


def _between_floats(target, source, modifiers):
    _only(modifiers, {"rn", "rz", "ftz", "rni", "rzi", "rmi", "rpi"})
    whole = modifiers & set(_TO_INTEGER)
    ftz = "ftz" in modifiers
    if "rz" in modifiers:
        if (target, source) != ("bf16", "f32"):
            raise UnknownInstruction(f"cvt.rz from {source} to {target}")
        return lambda a: bf16_bits(a, towards_zero=True)

    def convert(a):
        if ftz and source == "f32":
            a = flush(a)
        value = _exact(a, source)
        result = _round(_TO_INTEGER[next(iter(whole))](value) if whole else value, target)
        return flush(result) if ftz and target == "f32" else result

    return convert


def _pack(decoder, ins, kind, modifiers):
    """Two float32 to a pair: the first source goes to the upper half."""
    _only(modifiers, {"rn"})
    if ins.parts[-1] != "f32" or len(ins.operands) != 3:
        raise UnknownInstruction("this form of a packed cvt")
    write = decoder.write(ins.operands[0], "b32")
    high, low = (decoder.read(operand, "f32") for operand in ins.operands[1:])

    def half(value):
        return encode(value.astype(np.float64), kind).astype(np.uint32)

    def step(lanes, mask):
        write(lanes, half(high(lanes)) << np.uint32(16) | half(low(lanes)), mask)

    return step
