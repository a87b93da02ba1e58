"""Floating point: f32, f64, f16 and bf16, alone and in pairs; every operation rounds once."""

import numpy as np

from ptx.decode import lanewise, opcode
from ptx.faults import UnknownInstruction
from ptx.rounding import decode, encode, flush, fused_multiply_add

_EXACT = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "fma": fused_multiply_add,
    "min": np.fmin,
    "max": np.fmax,
    "neg": np.negative,
    "abs": np.abs,
}
_MODIFIERS = {"rn", "ftz", "NaN"}


@opcode("fma")
def float_builder(decoder, ins):
    """Build an operation on floats."""
    name, *modifiers, kind = ins.parts
    name = "fma" if name == "mad" else name
    odd = set(modifiers) - _MODIFIERS
    if odd or name not in _EXACT:
        raise UnknownInstruction(f"{name} with {sorted(odd)} of {kind}")
    compute = _float_function(name, kind, "ftz" in modifiers, "NaN" in modifiers)
    return lanewise(decoder, kind, ins.operands, compute)


def _float_function(name, kind, ftz, keeps_nan):
    exact = {"min": np.minimum, "max": np.maximum}[name] if keeps_nan else _EXACT[name]
    if kind == "f32":
        return _float32_function(name, exact, ftz)
    base = kind.removesuffix("x2")
    if base not in ("f16", "bf16"):
        raise UnknownInstruction(f"floats of type {kind}")
    if name in ("neg", "abs"):
        return _sign_function(name, kind)

    def compute(*bits):
        bits = np.broadcast_arrays(*bits)
        halves = [np.ascontiguousarray(value).view(np.uint16) for value in bits]
        result = encode(exact(*(decode(half, base) for half in halves)), base)
        return result.view(bits[0].dtype)

    return compute


def _float32_function(name, exact, ftz):
    def compute(*values):
        if ftz:
            values = [flush(value) for value in values]
        if name == "fma":
            result = encode(exact(*(value.astype(np.float64) for value in values)), "f32")
        else:
            result = exact(*values)
        return flush(result) if ftz else result

    return compute


def _sign_function(name, kind):
    if kind.endswith("x2"):
        sign = np.uint32(0x80008000)
    else:
        sign = np.uint16(0x8000)
    return (lambda a: a ^ sign) if name == "neg" else (lambda a: a & ~sign)
