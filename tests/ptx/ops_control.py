"""Branches, ends, barriers and fences."""

from ptx.decode import opcode
from ptx.faults import UnknownInstruction
from ptx.lanes import EXITED, STOP, WAITING
from ptx.parse import Imm


@opcode("bra")
def _bra(decoder, ins):
    decoder.label(ins.operands[0])
    if ins.guard is None:
        return lambda lanes, mask: True
    predicate = decoder.predicate(ins)

    def step(lanes, mask):
        taken = predicate(lanes)
        if mask is not None:
            taken = taken & mask
            if not taken.any():
                return False
            return True if (taken == mask).all() else taken
        if taken.all():
            return True
        return taken if taken.any() else False

    return step


@opcode("ret", "exit")
def _ret(decoder, ins):
    def step(lanes, mask):
        lanes.state[lanes.active(mask)] = EXITED
        return STOP

    return step


@opcode("bar", "barrier")
def _bar(decoder, ins):
    words = [word for word in ins.parts[1:] if word not in ("cta", "aligned")]
    if words == ["warp", "sync"]:
        return _warp_sync
    number = ins.operands[0]
    if words != ["sync"] or len(ins.operands) > 1 or number != Imm(0):
        raise UnknownInstruction("a barrier other than the whole block's number 0")

    def step(lanes, mask):
        lanes.state[lanes.active(mask)] = WAITING
        return STOP

    return step


def _warp_sync(lanes, mask):
    lanes.whole_warps(mask)
    active = lanes.active(mask)
    lanes.machine.shared.warp_epoch[lanes.block[active], lanes.thread[active]] += 1


@opcode("fence", "membar")
def _fence(decoder, ins):
    if ins.parts[1:3] == ("proxy", "async"):
        return lambda lanes, mask: lanes.machine.shared.fence(lanes, lanes.active(mask))
    if "proxy" in ins.parts:
        raise UnknownInstruction("this proxy fence")
    return _nothing  # steps are taken one after another: memory is always in order


def _nothing(lanes, mask):
    return None
