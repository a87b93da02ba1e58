"""ldmatrix and mma.sync: fragments to matrices, a product in float64, and back.

With g = lane / 4 and t = lane % 4, register r of A (16 x 8 h) holds the elements 2t and 2t + 1
of row g + 8 (r % 2), 8 columns further on for r >= 2; of B (8 h x 8) rows 2t + 8 r and the next
of column g; of C (16 x 8) register r is row g + 8 (r / 2), column 2t + r % 2. The hardware sums
in an order and with a truncation of its own; here a product is summed in float64 and rounded.
"""

import numpy as np

from ptx.decode import TYPES, opcode
from ptx.faults import UnknownInstruction
from ptx.ops_memory import scatter
from ptx.rounding import decode

_LANE = np.arange(32)
_G, _T = _LANE // 4, _LANE % 4
SHAPES = {"m16n8k8": 8, "m16n8k16": 16}


def a_places(depth):
    """Return (registers, 32, 2) places of A's halves in a row-major 16 x depth matrix."""
    r = np.arange(depth // 4)[:, None, None]
    row = _G[None, :, None] + 8 * (r % 2)
    return row * depth + 8 * (r // 2) + 2 * _T[None, :, None] + np.arange(2)


def b_places(depth):
    """Return (registers, 32, 2) places of B's halves in a row-major depth x 8 matrix."""
    r = np.arange(depth // 8)[:, None, None]
    return (8 * r + 2 * _T[None, :, None] + np.arange(2)) * 8 + _G[None, :, None]


def c_places():
    """Return (4, 32) places of C's elements in a row-major 16 x 8 matrix."""
    r = np.arange(4)[:, None]
    return (_G + 8 * (r // 2)) * 8 + 2 * _T + r % 2


def to_matrix(registers, places, shape, kind):
    """Return (warps, *shape) float64 of pairs (registers, warps * 32) at `places`."""
    n, warps = len(registers), registers.shape[1] // 32
    halves = decode(np.ascontiguousarray(registers).view(np.uint16), kind)
    halves = halves.reshape(n, warps, 32, 2).transpose(1, 0, 2, 3).reshape(warps, -1)
    matrix = np.empty_like(halves)
    matrix[:, places.ravel()] = halves
    return matrix.reshape(warps, *shape)


def stack(reads, lanes):
    """Return (registers, lanes) of some readers."""
    return np.stack([np.broadcast_to(read(lanes), (lanes.count,)) for read in reads])


@opcode("mma")
def _mma(decoder, ins):
    form, (to, a, b, c) = ins.parts[1:], ins.operands
    kind = form[6] if len(form) == 9 else ""
    wanted = ("sync", "aligned", form[2], "row", "col", "f32", kind, kind, "f32")
    if form != wanted or form[2] not in SHAPES or kind not in ("f16", "bf16"):
        raise UnknownInstruction("this form of mma")
    depth = SHAPES[form[2]]
    places = a_places(depth), b_places(depth), c_places()
    a, b = decoder.read_all(a, "b32"), decoder.read_all(b, "b32")
    c, writes = decoder.read_all(c, "f32"), decoder.write_all(to, "f32")
    if [len(x) for x in (a, b, c, writes)] != [depth // 4, depth // 8, 4, 4]:
        raise UnknownInstruction("the number of registers")

    def step(lanes, mask):
        lanes.whole_warps(mask)
        left = to_matrix(stack(a, lanes), places[0], (16, depth), kind)
        right = to_matrix(stack(b, lanes), places[1], (depth, 8), kind)
        product = (left @ right).reshape(len(left), -1)[:, places[2]]  # (warps, 4, 32)
        total = stack(c, lanes) + product.transpose(1, 0, 2).reshape(4, -1)
        for write, value in zip(writes, total.astype(np.float32), strict=True):
            write(lanes, value, mask)

    return step


@opcode("ldmatrix")
def _ldmatrix(decoder, ins):
    words = set(ins.parts[1:]) - {"sync", "aligned", "m8n8", "shared", "shared::cta", "b16"}
    count = int(next(word[1:] for word in words if word.startswith("x")))
    transposed = "trans" in words
    if words - {f"x{count}", "trans"} or "m8n8" not in ins.parts or "b16" not in ins.parts:
        raise UnknownInstruction("this form of ldmatrix")
    address, writes = decoder.address(ins.operands[1]), decoder.write_all(ins.operands[0], "b32")

    def step(lanes, mask):
        warps = lanes.whole_warps(mask)
        active = (warps[:, None] * 32 + np.arange(8 * count)).ravel()
        rows = lanes.machine.shared.load(
            lanes, active, address(lanes)[active], 2, 8, phase="matrix"
        )
        tiles = rows.reshape(len(warps), count, 8, 8)
        if transposed:
            tiles = tiles.transpose(0, 1, 3, 2)
        pairs = np.ascontiguousarray(tiles).view(TYPES["b32"])  # (warps, count, 8, 4)
        values = pairs.reshape(len(warps), count, 32).transpose(0, 2, 1).reshape(-1, count)
        scatter(lanes, mask, lanes.active(mask), values, writes)

    return step
