"""cp.async: bytes arrive no earlier than the thread's wait for their group.

The source is read when the copy is issued; until the wait the destination is poison that may
not be touched. After it the bytes count as written by that thread at that moment, so that other
threads need a barrier.
"""

import numpy as np

from ptx.decode import opcode
from ptx.faults import UnknownInstruction
from ptx.parse import Imm


class _Pending:
    """Copies under way of some lanes: groups are numbered lane by lane."""

    def __init__(self, count):
        self.committed = np.zeros(count, np.int64)
        self.batches = []  # (lanes, group, offsets, bytes)

    def deliver(self, lanes, mask, left):
        active = np.ones(lanes.count, bool) if mask is None else mask
        kept = []
        for who, group, offsets, values in self.batches:
            arrived = active[who] & (group < self.committed[who] - left)
            if arrived.any():
                lanes.machine.shared.end_copy(
                    lanes, who[arrived], offsets[arrived], values[arrived]
                )
            if not arrived.all():
                rest = ~arrived
                kept.append((who[rest], group[rest], offsets[rest], values[rest]))
        self.batches = kept


def _pending(lanes):
    if lanes.pending_copies is None:
        lanes.pending_copies = _Pending(lanes.count)
    return lanes.pending_copies


@opcode("cp")
def _cp(decoder, ins):
    if ins.parts[1] != "async":
        raise UnknownInstruction("this cp")
    words = ins.parts[2:]
    if words[0] in ("ca", "cg"):
        return _issue(decoder, ins)
    if words == ("commit_group",):
        return _commit
    if words == ("wait_all",):
        return _wait_all
    if words == ("wait_group",) and isinstance(ins.operands[0], Imm):
        left = ins.operands[0].value
        return lambda lanes, mask: _pending(lanes).deliver(lanes, mask, left)
    raise UnknownInstruction("this cp.async")


def _commit(lanes, mask):
    _pending(lanes).committed[lanes.active(mask)] += 1


def _wait_all(lanes, mask):
    _commit(lanes, mask)
    _pending(lanes).deliver(lanes, mask, 0)


def _issue(decoder, ins):
    words = [word for word in ins.parts[3:] if not word.startswith("L2")]
    size = ins.operands[2].value
    cached = ins.parts[2] == "ca"
    if words not in (["shared", "global"], ["shared::cta", "global"]):
        raise UnknownInstruction("spaces of cp.async")
    if size != 16 and not (cached and size in (4, 8)):
        raise UnknownInstruction(f"cp.async of {size} bytes")
    to, source = (decoder.address(operand) for operand in ins.operands[:2])
    has_source_size = len(ins.operands) > 3 and "L2::cache_hint" not in ins.parts
    wanted = decoder.read(ins.operands[3] if has_source_size else Imm(size), "u32")

    def step(lanes, mask):
        active = lanes.active(mask)
        nbytes = np.broadcast_to(wanted(lanes), (lanes.count,))[active]
        if not np.isin(nbytes, (0, size)).all():
            raise UnknownInstruction(f"cp.async of {nbytes.max()} bytes padded to {size}")
        values = np.zeros((len(active), size), np.uint8)
        inside = nbytes > 0
        found = lanes.machine.memory.load(
            lanes, active[inside], source(lanes)[active][inside], 4, size // 4
        )
        values[inside] = found.view(np.uint8)
        offsets = lanes.machine.shared.begin_copy(lanes, active, to(lanes)[active], size)
        pending = _pending(lanes)
        pending.batches.append((active, pending.committed[active].copy(), offsets, values))

    return step
