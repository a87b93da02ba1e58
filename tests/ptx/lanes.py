"""Threads in lock step: the lanes with the lowest program counter go first.

All warps of some thread blocks, or one warp, may be run as one vector; what they may and may
not see of one another is judged by `SharedMemory`, not by the order in which they run.
"""

import numpy as np

from ptx.decode import NATIVE, place
from ptx.faults import Deadlock, Divergence, PtxFault

RUNNING, WAITING, EXITED = 0, 1, 2
# What a step returns when lanes began to wait or ended.
STOP = object()
_NOWHERE = np.iinfo(np.int64).max


class Lanes:
    """Some threads, their registers and program counters.

    Parameters
    ----------
    program : ptx.launch.Program
        Steps, targets of branches, instructions.
    block : (n,) ndarray of int64
        Which thread block, of those that run at once, a lane belongs to.
    thread : (n,) ndarray of int64
        Thread number in its block.
    specials : dict
        ``tid.x`` and the like.
    machine : ptx.launch.Machine
        Memories, counters and parameters.
    """

    def __init__(self, program, block, thread, specials, machine):
        self.program, self.machine, self.specials = program, machine, specials
        self.block, self.thread = block, thread
        self.count = len(block)
        self.counters = np.zeros(self.count, np.int64)  # program counters
        self.state = np.zeros(self.count, np.int8)
        poison = {w: np.full(self.count, _poison(dtype), dtype) for w, dtype in NATIVE.items()}
        self.registers = [poison[width] for width in program.widths]
        self.mask = None  # of the group that runs
        self.left = machine.step_limit
        self.pending_copies = None  # owned by ops_copies
        self.pending_products = None  # owned by ops_wgmma

    def run(self):
        """Run until every lane waits at a barrier or has ended."""
        while True:
            runnable = self.state == RUNNING
            if not runnable.any():
                return
            at = np.where(runnable, self.counters, _NOWHERE)
            pc = int(at.min())
            mask = at == pc
            others = at[~mask]
            stop = int(others.min()) if len(others) else _NOWHERE
            self._run_group(pc, None if mask.all() else mask, stop)

    def _run_group(self, pc, mask, stop):
        """Run the lanes of `mask` from `pc` until they meet others, part, wait or end."""
        program, profile = self.program, self.machine.counters
        steps, targets = program.steps, program.targets
        self.mask = mask
        try:
            while pc < stop:
                if profile is not None:
                    profile.executed(self, pc, mask)
                target = targets[pc]
                outcome = steps[pc](self, mask)
                if target is None or outcome is False:
                    pc += 1
                    if outcome is STOP:
                        break
                elif outcome is True:
                    pc = target
                else:
                    self._settle(pc + 1, mask)
                    self.counters[outcome] = target
                    return
                self.left -= 1
                if self.left < 0:
                    raise Deadlock(f"no end after {self.machine.step_limit} instructions")
        except PtxFault as fault:
            raise type(fault)(f"{place(program.instructions[pc])}: {fault}") from None
        self._settle(pc, mask)

    def _settle(self, pc, mask):
        self.counters[slice(None) if mask is None else mask] = pc

    def active(self, mask):
        """Return the numbers of the lanes that take part."""
        return np.arange(self.count) if mask is None else np.flatnonzero(mask)

    def whole_warps(self, mask, size=32):
        """Return the numbers of the warps that take part.

        Raises
        ------
        Divergence
            If a part of a warp does; `size` 128 asks for whole warpgroups.
        """
        if mask is None:
            return np.arange(self.count // size)
        lanes = mask.reshape(-1, size)
        some = lanes.any(1)
        if not lanes[some].all():
            raise Divergence(f"only some of {size} threads that must act together are here")
        return np.flatnonzero(some)


def _poison(dtype):
    return True if dtype.kind == "b" else np.iinfo(dtype).max
