"""Atomic operations on global memory, one lane after another."""

import numpy as np

from ptx.decode import INTEGERS, TYPES, opcode
from ptx.faults import UnknownInstruction
from ptx.ops_memory import as_bits

_ORDERS = {"relaxed", "acquire", "release", "acq_rel", "gpu", "cta", "sys", "global"}
_CHANGES = {
    "add": np.add,
    "min": np.minimum,
    "max": np.maximum,
    "exch": lambda old, new: new,
    "inc": lambda old, top: np.where(old >= top, 0, old + 1).astype(old.dtype),
}


def _change(operation, kind):
    """Return ``f(old, new)`` on arrays of one element's bits."""
    dtype, bits, compute = TYPES[kind], as_bits(kind), _CHANGES[operation]
    if kind not in INTEGERS and kind != "f32":
        raise UnknownInstruction(f"atomic operations of {kind}")
    return lambda old, new: compute(old.view(dtype), new.view(dtype)).view(bits)


@opcode("atom", "red")
def _atomic(decoder, ins):
    words = [word for word in ins.parts[1:-1] if word not in _ORDERS]
    kind, bits = ins.parts[-1], as_bits(ins.parts[-1])
    if "global" not in ins.parts or len(words) != 1 or words[0] not in _CHANGES:
        raise UnknownInstruction("this atomic operation")
    returns = ins.parts[0] == "atom"
    change = _change(words[0], kind)
    operands = ins.operands[1:] if returns else ins.operands
    address = decoder.address(operands[0])
    read = decoder.read(operands[1], f"b{8 * bits.itemsize}")
    write = decoder.write(ins.operands[0], kind) if returns else None

    def step(lanes, mask):
        active = lanes.active(mask)
        new = np.broadcast_to(read(lanes), (lanes.count,))[active]
        old = lanes.machine.memory.update(
            lanes,
            active,
            address(lanes)[active],
            bits.itemsize,
            lambda held, i: change(held, new[i : i + 1])[0],
        )
        if write is not None:
            spread = np.zeros(lanes.count, bits)
            spread[active] = old
            write(lanes, spread.view(TYPES[kind]), mask)

    return step
