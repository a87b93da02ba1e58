"""wgmma: a product of 64 x N x 16 by 128 threads, with A in registers and B in shared memory.

The result is computed when the instruction is issued and given to the registers at the wait,
so that whatever is touched in between is a fault: accumulators read or written, A's registers
written, B's bytes written. Before, B must have been made visible by ``fence.proxy.async`` and
registers by ``wgmma.fence``.

A's registers are those of mma.m16n8k16, warp w of four holding rows 16 w to 16 w + 15.
Accumulator i of lane (g, t) is row 16 w + g + 8 (i / 2 % 2), column 8 (i / 4) + 2 t + i % 2.
"""

import numpy as np

from ptx.decode import opcode
from ptx.faults import MissingFence, UnknownInstruction
from ptx.ops_mma import a_places, stack, to_matrix
from ptx.parse import Imm, Vector
from ptx.rounding import decode
from ptx.watch import THREADS, Batch, watch

# Bytes of a row of a swizzle's pattern, by the descriptor's two highest bits.
_SWIZZLE_ROW = {1: 128, 2: 64, 3: 32}


def descriptor_rows(descriptor, n_rows):
    """Return (n_rows, 2) shared addresses of the 16-byte halves of B's rows, K-major.

    Bits 0 to 13 are the start, 16 to 29 the leading and 32 to 45 the stride offset, all in
    units of 16 bytes, bits 62 and 63 the swizzle. A swizzle exchanges 16-byte pieces: address
    bits 4 and up are xored with bits 7 and up, as many as the row has pieces.
    """
    start, leading, stride = ((descriptor >> at & 0x3FFF) << 4 for at in (0, 16, 32))
    if descriptor >> 49 & 7 or descriptor >> 46 & 3:
        raise UnknownInstruction(f"descriptor {descriptor:#x}: base offset or unknown bits")
    row, piece = np.arange(n_rows)[:, None], np.arange(2)
    swizzle = descriptor >> 62
    if not swizzle:
        return start + row // 8 * stride + piece * leading + row % 8 * 16
    width = _SWIZZLE_ROW[swizzle]
    address = start + row // 8 * stride + row % 8 * width + 16 * piece
    return address ^ (address >> 7 & (width // 16 - 1)) << 4


def d_places(n):
    """Return (128, n / 2) places of a warpgroup's accumulators in a row-major 64 x n matrix."""
    thread, i = np.arange(THREADS)[:, None], np.arange(n // 2)
    warp, g, t = thread // 32, thread % 32 // 4, thread % 4
    return (16 * warp + g + 8 * (i // 2 % 2)) * n + 8 * (i // 4) + 2 * t + i % 2


@opcode("wgmma")
def _wgmma(decoder, ins):
    words = ins.parts[1:]
    if words == ("fence", "sync", "aligned"):
        return _fence
    if words == ("commit_group", "sync", "aligned"):
        return _commit
    if words == ("wait_group", "sync", "aligned"):
        left = ins.operands[0].value
        return lambda lanes, mask: watch(lanes).release(lanes, mask, left)
    return _product(decoder, ins)


def _fence(lanes, mask):
    lanes.whole_warps(mask, THREADS)
    for index, unfenced in watch(lanes).unfenced.items():
        watch(lanes).unfenced[index] = unfenced & (False if mask is None else ~mask)


def _commit(lanes, mask):
    watch(lanes).committed[lanes.whole_warps(mask, THREADS)] += 1


def _product(decoder, ins):
    name, *sync, shape, accumulator, kind, other = ins.parts[1:]
    d, a, descriptor, scale_d, *flags = ins.operands
    n = int(shape.removeprefix("m64n").removesuffix("k16"))
    if (name, sync, accumulator, other) != ("mma_async", ["sync", "aligned"], "f32", kind):
        raise UnknownInstruction("this form of wgmma")
    if not isinstance(a, Vector) or flags != [Imm(1), Imm(1), Imm(0)]:
        raise UnknownInstruction("wgmma with A in shared memory, a negative sign, or B transposed")
    if len(a.items) != 4 or len(d.items) != n // 2:
        raise UnknownInstruction("the number of registers")
    indexes = [item.index for item in a.items], [item.index for item in d.items]
    descriptor, keeps = decoder.read(descriptor, "b64"), decoder.read(scale_d, "pred")
    a_reads = decoder.read_all(a, "b32")
    places = a_places(16), d_places(n)

    def step(lanes, mask):
        groups, seen = lanes.whole_warps(mask, THREADS), watch(lanes)
        _require_fenced(seen, indexes, mask)
        described = np.broadcast_to(descriptor(lanes), (lanes.count,)).reshape(-1, THREADS)
        if (described[groups] != described[groups][:, :1]).any():
            raise UnknownInstruction("a descriptor that differs between threads")
        rows = np.stack([descriptor_rows(int(d[0]), n) for d in described[groups]])
        readers = np.repeat(groups * THREADS, 2 * n)
        halves, grains = lanes.machine.shared.begin_product_read(
            lanes, readers, rows.ravel().astype(np.uint64)
        )
        right = decode(halves, kind).reshape(len(groups), n, 16)
        left = to_matrix(stack(a_reads, lanes), places[0], (16, 16), kind)
        left = left.reshape(-1, 64, 16)[groups]
        product = (left @ right.transpose(0, 2, 1)).reshape(len(groups), -1)[:, places[1]]
        _accumulate(lanes, seen, groups, product, (indexes[1], keeps(lanes)))
        seen.batches.append(Batch(indexes, seen.committed.copy(), groups, readers, grains))
        seen.lock(lanes.count)

    return step


def _require_fenced(seen, indexes, mask):
    for index in (*indexes[0], *indexes[1]):
        unfenced = seen.unfenced.get(index)
        if unfenced is not None and (unfenced if mask is None else unfenced & mask).any():
            raise MissingFence("a register was written after the last wgmma.fence")


def _accumulate(lanes, seen, groups, product, target):
    """Add (groups, 128, n / 2) to the accumulators; the registers hold poison until the wait."""
    registers, keeps = target
    here = np.zeros(lanes.count, bool)
    here.reshape(-1, THREADS)[groups] = True
    keeps = np.broadcast_to(keeps, (lanes.count,))
    poison = np.uint32(0xFFFFFFFF)
    for i, index in enumerate(registers):
        old = lanes.registers[index]
        locked = seen.locked.get(index)
        if locked is not None:
            old = np.where(locked, seen.results[index][1], old)
        total = np.where(keeps, old.view(np.float32), np.float32(0)).astype(np.float64)
        added = np.zeros(lanes.count)
        added.reshape(-1, THREADS)[groups] = product[:, :, i]
        result = np.where(here, (total + added).astype(np.float32).view(np.uint32), old)
        seen.results[index] = here | (locked if locked is not None else False), result
        lanes.registers[index] = np.where(here, poison, lanes.registers[index])
