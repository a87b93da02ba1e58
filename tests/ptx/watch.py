"""Registers and shared memory that products (`wgmma`) under way hold."""

import numpy as np

from ptx.faults import InFlight
from ptx.parse import Reg, Vector

THREADS = 128  # of a warpgroup, which executes a wgmma together


class Watch:
    """Registers of products under way, lane by lane.

    `locked` accumulators may be neither read nor written, `held` A registers not written;
    `unfenced` ones were written since the last ``wgmma.fence``. `results` holds for each
    accumulator which lanes are owed a value, and the values.
    """

    def __init__(self, count):
        self.committed = np.zeros(count // THREADS, np.int64)
        self.batches = []
        self.locked, self.held, self.unfenced, self.results = {}, {}, {}, {}

    def release(self, lanes, mask, left):
        """Deliver the groups that a wait asks for."""
        groups = np.zeros(lanes.count // THREADS, bool)
        groups[lanes.whole_warps(mask, THREADS)] = True
        done = []
        for batch in self.batches:
            ready = groups & batch.present & (batch.group < self.committed - left)
            if ready.any():
                chosen = np.repeat(ready[batch.groups], batch.rows_per_group)
                lanes.machine.shared.end_product_read(
                    lanes, batch.readers[chosen], batch.grains[chosen]
                )
                batch.drop(ready)
                done += batch.d
        self.batches = [batch for batch in self.batches if batch.present.any()]
        self.lock(lanes.count)
        for index in set(done):
            owed, result = self.results[index]
            free = owed & ~self.locked.get(index, np.zeros(lanes.count, bool))
            lanes.registers[index] = np.where(free, result, lanes.registers[index])
            self.results[index] = owed & ~free, result

    def lock(self, count):
        """Note which registers the products under way hold."""
        self.locked, self.held = {}, {}
        for batch in self.batches:
            here = np.repeat(batch.present, THREADS)
            for table, indexes in ((self.locked, batch.d), (self.held, batch.a)):
                for index in indexes:
                    table[index] = table.get(index, np.zeros(count, bool)) | here


class Batch:
    """One wgmma of some warpgroups, from its issue to the wait."""

    def __init__(self, registers, group, groups, readers, grains):
        self.a, self.d = registers
        self.group, self.groups = group, groups
        self.present = np.zeros(len(group), bool)
        self.present[groups] = True
        self.readers, self.grains = readers, grains
        self.rows_per_group = len(readers) // len(groups)

    def drop(self, ready):
        """Forget the warpgroups that have waited."""
        keep = np.repeat(~ready[self.groups], self.rows_per_group)
        self.readers, self.grains = self.readers[keep], self.grains[keep]
        self.groups = self.groups[~ready[self.groups]]
        self.present &= ~ready


def watch(lanes):
    """Return the products under way of some lanes."""
    if lanes.pending_products is None:
        lanes.pending_products = Watch(lanes.count)
    return lanes.pending_products


def watched_registers(kernel):
    """Return the registers that any wgmma of a kernel takes or gives."""
    found = set()
    for ins in kernel.instructions:
        if ins.parts[:2] == ("wgmma", "mma_async"):
            for operand in ins.operands[:2]:
                items = operand.items if isinstance(operand, Vector) else ()
                found |= {item.index for item in items if isinstance(item, Reg)}
    return found


def check_read(lanes, index):
    """Refuse to read an accumulator under way."""
    _refuse(lanes, watch(lanes).locked.get(index), "read")


def check_write(lanes, index, mask):
    """Refuse to write a register under way, and note that it needs a fence."""
    seen = watch(lanes)
    _refuse(lanes, seen.locked.get(index), "written", mask)
    _refuse(lanes, seen.held.get(index), "written", mask)
    before = seen.unfenced.get(index, np.zeros(lanes.count, bool))
    seen.unfenced[index] = before | (True if mask is None else mask)


def _refuse(lanes, table, text, mask=None):
    if table is None:
        return
    mask = lanes.mask if mask is None else mask
    if (table if mask is None else table & mask).any():
        raise InFlight(f"a register of a wgmma under way is {text}")
