"""Loads and stores: parameters, global and shared memory, alone and in vectors."""

import numpy as np

from ptx.decode import TYPES, opcode
from ptx.faults import UnknownInstruction
from ptx.global_memory import is_global

# What changes caching only, and orders that hold anyway where steps follow one another.
_HINTS = {"weak", "volatile", "relaxed", "acquire", "release", "gpu", "cta", "sys", "cluster"}
_HINTS |= {"ca", "cg", "cs", "cv", "lu", "wb", "wt", "L1", "L2"}
_SPACES = {"global", "shared", "shared::cta", "param", "local", "const"}


def split_opcode(ins):
    """Return the state space, the type, the vector length and the remaining words.

    Raises
    ------
    UnknownInstruction
        For a space or a word that is not known.
    """
    space, length, words = "", 1, set()
    *middle, kind = ins.parts[1:]
    for word in middle:
        if word in _SPACES:
            space = word.removesuffix("::cta")
        elif word in ("v2", "v4", "v8"):
            length = int(word[1:])
        elif word.split("::")[0] not in _HINTS:
            words.add(word)
    if space in ("local", "const"):
        raise UnknownInstruction(f"state space {space}: registers were spilled or indexed")
    return space, kind, length, words


def as_bits(kind):
    """Return the unsigned NumPy type of a PTX type's width."""
    return np.dtype(f"u{TYPES[kind].itemsize}")


@opcode("ld", "ldu")
def _load(decoder, ins):
    space, kind, length, words = split_opcode(ins)
    if words - {"nc"}:
        raise UnknownInstruction(f"ld with {sorted(words)}")
    writes = decoder.write_all(ins.operands[0], kind)
    dtype, bits = TYPES[kind], as_bits(kind)
    if space == "param":
        return _load_parameter(decoder, ins, writes, dtype)
    address, constant = decoder.address(ins.operands[1]), "nc" in words

    def step(lanes, mask):
        active = lanes.active(mask)
        where = address(lanes)[active]
        machine = lanes.machine
        if space == "shared" or (not space and not is_global(where)):
            loaded = machine.shared.load(lanes, active, where, bits.itemsize, length)
        else:
            loaded = machine.memory.load(
                lanes, active, where, bits.itemsize, length, constant=constant
            )
        scatter(lanes, mask, active, loaded.view(dtype), writes)

    return step


def scatter(lanes, mask, active, values, writes):
    """Write column i of `values`, which has a row for each active lane, by ``writes[i]``."""
    for i, write in enumerate(writes):
        if mask is None:
            write(lanes, np.ascontiguousarray(values[:, i]), None)
        else:
            spread = np.zeros(lanes.count, values.dtype)
            spread[active] = values[:, i]
            write(lanes, spread, mask)


def _load_parameter(decoder, ins, writes, dtype):
    base, offset = ins.operands[1]
    start = decoder.kernel.params[base.text][0] + offset

    def step(lanes, mask):
        for i, write in enumerate(writes):
            at = start + i * dtype.itemsize
            write(lanes, lanes.machine.params[at : at + dtype.itemsize].view(dtype), mask)

    return step


@opcode("st")
def _store(decoder, ins):
    space, kind, length, words = split_opcode(ins)
    if words:
        raise UnknownInstruction(f"st with {sorted(words)}")
    bits = as_bits(kind)
    reads = decoder.read_all(ins.operands[1], f"b{8 * bits.itemsize}")
    if len(reads) != length:
        raise UnknownInstruction(f"{len(reads)} values for a vector of {length}")
    address = decoder.address(ins.operands[0])

    def step(lanes, mask):
        active = lanes.active(mask)
        where = address(lanes)[active]
        columns = [np.broadcast_to(read(lanes), (lanes.count,))[active] for read in reads]
        machine = lanes.machine
        in_shared = space == "shared" or (not space and not is_global(where))
        memory = machine.shared if in_shared else machine.memory
        memory.store(lanes, active, where, np.stack(columns, axis=1))

    return step


def access_bytes(ins):
    """Return how many bytes of shared memory a lane touches at once, None if it is no access."""
    name, parts = ins.parts[0], ins.parts
    if name == "ldmatrix" or parts[:2] == ("wgmma", "mma_async"):
        return 16
    if parts[:2] == ("cp", "async"):
        return ins.operands[2].value if len(ins.operands) > 2 else None
    if name in ("ld", "ldu", "st", "atom", "red") and not {"global", "param"} & set(parts):
        length = next((int(word[1:]) for word in parts if word in ("v2", "v4", "v8")), 1)
        return length * TYPES[parts[-1]].itemsize
    return None
