"""PTX text to instructions: registers numbered, labels resolved, source lines attached."""

import re
from typing import NamedTuple

from ptx.faults import UnknownInstruction


class Reg(NamedTuple):
    """A register: its place in the register file and its width in bits, 1 for a predicate."""

    index: int
    width: int


class Imm(NamedTuple):
    """A constant: an int, or the bits of a float of `size` bytes."""

    value: int
    size: int = 0


class Name(NamedTuple):
    """A special register (``%tid.x``), a symbol in shared memory, or a label."""

    text: str


class Address(NamedTuple):
    """``[base + offset]``."""

    base: object
    offset: int


class Vector(NamedTuple):
    """``{a, b, ...}``."""

    items: tuple


class Instruction(NamedTuple):
    """One instruction.

    `parts` is the opcode split at its points. `guard` is a register and whether it is negated,
    or None. `line` counts in the PTX, `source` is a file name and a line of CUDA C.
    """

    parts: tuple
    operands: tuple
    guard: tuple | None
    line: int
    source: str
    text: str


class Kernel:
    """One ``.entry``."""

    def __init__(self, name):
        self.name = name
        self.params = {}  # name: (offset, size in bytes)
        self.param_bytes = 0
        self.widths = []  # of each register
        self.instructions = []
        self.labels = {}  # name: index of the instruction that follows
        self.shared = {}  # name: (size, alignment)


_TYPE_BITS = {"pred": 1, **{t + n: int(n) for t in "busf" for n in ("8", "16", "32", "64")}}
_ENTRY = re.compile(r"\.entry\s+([\w$]+)\s*\(([^)]*)\)([^{]*)\{")
_PARAM = re.compile(
    r"\.param\s+(?:\.align\s+(\d+)\s+)?\.(\w+)\s+(?:\.\w+\s+|\d+\s+)*([A-Za-z_$][\w$]*)(?:\[(\d+)\])?"
)
_SHARED = re.compile(r"\.shared\s+(?:\.align\s+(\d+)\s+)?\.(\w+)\s+([\w$]+)(?:\[(\d*)\])?")
_LOC = re.compile(r"\s*\.loc\s+(\d+)\s+(\d+)")
_FILE = re.compile(r'^\s*\.file\s+(\d+)\s+"([^"]*)"', re.MULTILINE)
_FLOAT = re.compile(r"0[fF][0-9A-Fa-f]{8}$|0[dD][0-9A-Fa-f]{16}$")
_INTEGER = re.compile(r"-?(0[xX][0-9A-Fa-f]+|\d+)U?$")
_ADDRESS = re.compile(r"(.*?)\s*([+-]\s*-?\d+)?$")
_LABEL = re.compile(r"\s*([\w$%]+)\s*:(?!:)")
_GUARD = re.compile(r"@(!?)(\S+)\s+")


def parse(text):
    """Read a PTX module and return its kernels by name.

    Raises
    ------
    UnknownInstruction
        For what is not understood, device functions among it.
    """
    if re.search(r"\.func\b", text):
        raise UnknownInstruction("a device function that was not inlined")
    files = {int(number): name.rsplit("/", 1)[-1] for number, name in _FILE.findall(text)}
    common = {found[3]: _shared(found) for found in _SHARED.finditer(_before_kernels(text))}
    kernels = {}
    for entry in _ENTRY.finditer(text):
        kernel = Kernel(entry[1])
        kernel.shared.update(common)
        _read_params(kernel, entry[2])
        first_line = text.count("\n", 0, entry.end()) + 1
        _Body(kernel, files).read(_body(text, entry.end()), first_line)
        kernels[kernel.name] = kernel
    return kernels


def _before_kernels(text):
    first = _ENTRY.search(text)
    return text[: first.start()] if first else text


def _body(text, start):
    depth = 1
    for brace in re.compile("[{}]").finditer(text, start):
        depth += 1 if brace[0] == "{" else -1
        if not depth:
            return text[start : brace.start()]
    raise UnknownInstruction("a kernel's last brace is missing")


def _shared(found):
    size = int(found[4] or 0) if found[4] is not None else 1
    return size * _TYPE_BITS[found[2]] // 8, int(found[1] or 1)


def _read_params(kernel, text):
    for align, kind, name, count in _PARAM.findall(text):
        size = _TYPE_BITS[kind] // 8
        align = int(align or size)
        offset = -(-kernel.param_bytes // align) * align
        kernel.params[name] = offset, size * int(count or 1)
        kernel.param_bytes = offset + size * int(count or 1)


class _Body:
    """The statements of one kernel; braces open scopes with registers of their own."""

    def __init__(self, kernel, files):
        self.kernel, self.files = kernel, files
        self.scopes = [{}]
        self.source = "?"

    def read(self, text, first_line):
        pending = ""
        for number, line in enumerate(text.split("\n"), first_line):
            line = line.split("//")[0]
            if ".loc" in line:
                loc = _LOC.match(line)
                self.source = f"{self.files.get(int(loc[1]), '?')}:{loc[2]}"
                continue
            label = _LABEL.match(line) if ":" in line and not pending else None
            if label:
                self._add_label(label[1])
                line = line[label.end() :]
            if not pending and line.count(";") == 1 and line.rstrip()[-1] == ";":
                if line.lstrip()[0] not in "{}":  # most lines are one statement
                    self._statement(line.strip()[:-1].strip(), number)
                    continue
            for char in line + " ":
                if char == ";":
                    self._statement(pending.strip(), number)
                    pending = ""
                elif char in "{}" and not pending.strip():
                    self.scopes.append({}) if char == "{" else self.scopes.pop()
                    pending = ""
                else:
                    pending += char
            pending = pending.lstrip()
        if pending.strip():
            raise UnknownInstruction(f"PTX line {first_line}: not a statement: {pending.strip()}")

    def _add_label(self, name):
        if name in self.kernel.labels:
            raise UnknownInstruction(f"label {name} stands twice")
        self.kernel.labels[name] = len(self.kernel.instructions)

    def _statement(self, text, line):
        if not text or text.startswith(".pragma"):
            return
        if text.startswith(".reg"):
            self._declare(text)
        elif text.startswith(".shared"):
            found = _SHARED.match(text)
            self.kernel.shared[found[3]] = _shared(found)
        elif text.startswith("."):
            raise UnknownInstruction(f"PTX line {line}: {text}")
        else:
            self.kernel.instructions.append(self._instruction(text, line))

    def _declare(self, text):
        kind, names = re.match(r"\.reg\s+\.(\w+)\s+(.*)", text).groups()
        for name in names.split(","):
            name, _, count = name.strip().partition("<")
            if count:
                for number in range(int(count.rstrip(">"))):
                    self._add_register(f"{name}{number}", kind)
            else:
                self._add_register(name, kind)

    def _add_register(self, name, kind):
        self.scopes[-1][name] = Reg(len(self.kernel.widths), _TYPE_BITS[kind])
        self.kernel.widths.append(_TYPE_BITS[kind])

    def _instruction(self, text, line):
        guard, rest = None, text
        if text[0] == "@":
            found = _GUARD.match(text)
            guard, rest = (self._operand(found[2]), bool(found[1])), text[found.end() :]
        opcode, _, operands = rest.replace("\t", " ").strip().partition(" ")
        operands = tuple(self._operand(part) for part in _split(operands))
        text = " ".join(text.split())
        return Instruction(tuple(opcode.split(".")), operands, guard, line, self.source, text)

    def _operand(self, text):
        text = text.strip()
        for scope in reversed(self.scopes):
            if text in scope:
                return scope[text]
        if text.startswith("{"):
            return Vector(tuple(self._operand(part) for part in _split(text[1:-1])))
        if text.startswith("["):
            return self._address(text[1:-1])
        if text.startswith("!"):
            return "!", self._operand(text[1:])
        if "|" in text:
            return Vector(tuple(self._operand(part) for part in text.split("|")))
        if _FLOAT.match(text):
            return Imm(int(text[2:], 16), (len(text) - 2) // 2)
        if _INTEGER.match(text):
            return Imm(int(text.rstrip("U"), 0))
        return Name(text)

    def _address(self, text):
        found = _ADDRESS.match(text.strip())
        offset = int((found[2] or "0").replace(" ", "").replace("+-", "-"))
        return Address(self._operand(found[1]), offset)


def _split(text):
    """Split at commas outside of brackets."""
    if "{" not in text:
        return text.split(",") if text.strip() else []
    parts, depth, last = [], 0, ""
    for char in text:
        depth += {"{": 1, "[": 1, "(": 1, "}": -1, "]": -1, ")": -1}.get(char, 0)
        if char == "," and depth == 0:
            parts.append(last)
            last = ""
        else:
            last += char
    return [*parts, last] if last.strip() else parts
