"""From an instruction to a function of `Lanes`: operands become readers and writers.

A builder is registered for an opcode's first word. It takes the decoder and the instruction
and returns ``step(lanes, mask)``, where `mask` is None if all lanes take part. Values are
arrays with one element a lane, or with one element for all. An array in the register file is
never changed in place.
"""

import importlib

import numpy as np

from ptx.faults import PtxFault, UnknownInstruction
from ptx.parse import Imm, Name, Reg, Vector
from ptx.watch import check_read, check_write

BUILDERS = {}
NATIVE = {1: np.dtype(bool), 16: np.dtype("u2"), 32: np.dtype("u4"), 64: np.dtype("u8")}
INTEGERS = {
    **{f"{kind}{bits}": np.dtype(f"u{bits // 8}") for kind in "ub" for bits in (8, 16, 32, 64)},
    **{f"s{bits}": np.dtype(f"i{bits // 8}") for bits in (8, 16, 32, 64)},
}
# Packed and 16-bit floats are read as their bits.
TYPES = {
    **INTEGERS,
    "f32": np.dtype("f4"),
    "f64": np.dtype("f8"),
    "f16": np.dtype("u2"),
    "bf16": np.dtype("u2"),
    "f16x2": np.dtype("u4"),
    "bf16x2": np.dtype("u4"),
    "pred": np.dtype(bool),
}
_MODULES = "integer bits floats convert move control memory atomic copies mma wgmma".split()


def opcode(*names):
    """Register a builder."""

    def register(build):
        for name in names:
            BUILDERS[name] = build
        return build

    return register


class Decoder:
    """Makes the steps of one kernel.

    Parameters
    ----------
    kernel : ptx.parse.Kernel
    symbols : dict
        Addresses of shared memory's symbols.
    watched : set of int
        Registers that `wgmma` takes or gives: every use of them is checked.
    """

    def __init__(self, kernel, symbols, watched=frozenset()):
        self.kernel, self.symbols, self._watched = kernel, symbols, watched

    def steps(self):
        """Return one function for each instruction."""
        for module in _MODULES:
            importlib.import_module(f"ptx.ops_{module}")
        return [self._step(instruction) for instruction in self.kernel.instructions]

    def _step(self, instruction):
        build = BUILDERS.get(instruction.parts[0])
        try:
            if build is None:
                raise UnknownInstruction("no such opcode here")
            step = build(self, instruction)
        except (PtxFault, KeyError, IndexError, TypeError, ValueError) as fault:
            kind = type(fault) if isinstance(fault, PtxFault) else UnknownInstruction
            raise kind(f"{place(instruction)}: {fault}") from fault
        if instruction.guard is None or instruction.parts[0] == "bra":
            return step
        return _guarded(step, self.predicate(instruction))

    def predicate(self, instruction):
        """Return a reader of the guard."""
        register, negated = instruction.guard
        index = register.index
        if negated:
            return lambda lanes: ~lanes.registers[index]
        return lambda lanes: lanes.registers[index]

    def label(self, operand):
        """Return the index of the instruction at a label."""
        return self.kernel.labels[operand.text]

    def read(self, operand, kind):
        """Return ``read(lanes)``, an array of the type `kind`."""
        dtype = TYPES[kind]
        if isinstance(operand, Reg):
            plain = _register_reader(operand, dtype)
            return _watched_reader(operand, plain) if operand.index in self._watched else plain
        if isinstance(operand, tuple) and operand and operand[0] == "!":
            inner = self.read(operand[1], kind)
            return lambda lanes: ~inner(lanes)
        if isinstance(operand, Imm):
            constant = _constant(operand, dtype)
            return lambda lanes: constant
        if isinstance(operand, Name):
            if operand.text.startswith("%"):
                return _special_reader(operand.text, dtype)
            constant = np.array([self.symbols[operand.text]], dtype)
            return lambda lanes: constant
        raise UnknownInstruction(f"operand {operand}")

    def write(self, operand, kind):
        """Return ``write(lanes, value, mask)`` for values of the type `kind`."""
        if isinstance(operand, Name) and operand.text == "_":
            return lambda lanes, value, mask: None
        if not isinstance(operand, Reg):
            raise UnknownInstruction(f"destination {operand}")
        index, native, dtype = operand.index, NATIVE[operand.width], TYPES[kind]
        widen, watched = native.itemsize != dtype.itemsize, index in self._watched

        def write(lanes, value, mask):
            if watched:
                check_write(lanes, index, mask)
            if widen:  # a signed value keeps its sign
                value = value.astype(native)
            elif value.dtype != native:
                value = value.view(native)
            if value.shape[0] != lanes.count:
                value = np.broadcast_to(value, (lanes.count,))
            if mask is not None:
                value = np.where(mask, value, lanes.registers[index])
            lanes.registers[index] = value

        return write

    def read_all(self, operand, kind):
        """Return readers of a vector operand's items, or of the one operand."""
        items = operand.items if isinstance(operand, Vector) else (operand,)
        return [self.read(item, kind) for item in items]

    def write_all(self, operand, kind):
        """Return writers of a vector operand's items, or of the one operand."""
        items = operand.items if isinstance(operand, Vector) else (operand,)
        return [self.write(item, kind) for item in items]

    def address(self, operand):
        """Return ``read(lanes)``, addresses as uint64."""
        base, offset = operand.base, np.uint64(operand.offset % 2**64)
        narrow = isinstance(base, Reg) and base.width == 32
        read = self.read(base, "u32" if narrow else "u64")
        limit = np.uint64(0xFFFFFFFF)

        def address(lanes):
            value = read(lanes)
            if narrow:
                value = (value.astype(np.uint64) + offset) & limit
            elif offset:
                value = value + offset
            return np.broadcast_to(value, (lanes.count,)) if value.shape[0] == 1 else value

        return address


def lanewise(decoder, kind, operands, compute, result=None):
    """Return a step that writes ``compute(*sources)`` of the type `kind` to operand 0."""
    write = decoder.write(operands[0], result or kind)
    reads = [decoder.read(operand, kind) for operand in operands[1:]]
    if len(reads) == 1:
        (a,) = reads
        return lambda lanes, mask: write(lanes, compute(a(lanes)), mask)
    if len(reads) == 2:
        a, b = reads
        return lambda lanes, mask: write(lanes, compute(a(lanes), b(lanes)), mask)
    a, b, c = reads
    return lambda lanes, mask: write(lanes, compute(a(lanes), b(lanes), c(lanes)), mask)


def place(instruction):
    """Return where an instruction stands, in the source and in the PTX, and its text."""
    return f"{instruction.source} (PTX line {instruction.line}) {instruction.text}"


def _guarded(step, predicate):
    def guarded(lanes, mask):
        taken = predicate(lanes)
        if mask is not None:
            taken = taken & mask
        if taken.all():
            return step(lanes, None)
        return step(lanes, taken) if taken.any() else None

    return guarded


def _watched_reader(register, read):
    def checked(lanes):
        check_read(lanes, register.index)
        return read(lanes)

    return checked


def _register_reader(register, dtype):
    index, native = register.index, NATIVE[register.width]
    if native == dtype:
        return lambda lanes: lanes.registers[index]
    if native.itemsize == dtype.itemsize:
        return lambda lanes: lanes.registers[index].view(dtype)
    if native.itemsize > dtype.itemsize:  # the low part
        return lambda lanes: lanes.registers[index].astype(dtype)
    raise UnknownInstruction(f"a register of {register.width} bits read as {dtype}")


def _constant(operand, dtype):
    if operand.size:  # the bits of a float
        bits = np.array([operand.value], f"u{operand.size}")
        value = bits.view(f"f{operand.size}")
        return value.astype(dtype) if dtype.kind == "f" else bits.astype(f"u{dtype.itemsize}")
    if dtype.kind == "b":
        return np.array([operand.value != 0])
    bits = np.array([operand.value % 2 ** (8 * dtype.itemsize)], f"u{dtype.itemsize}")
    return bits.view(dtype)


def _special_reader(name, dtype):
    name = name[1:]
    return lambda lanes: lanes.specials[name].astype(dtype)
