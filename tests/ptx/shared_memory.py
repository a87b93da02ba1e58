"""Shared memory of the thread blocks that run at once, with all that can go wrong there.

Time is counted in barriers of a block: two threads of different warps are ordered only by a
barrier between them, two threads of one warp by that or by ``bar.warp.sync``. What no thread
has written is poison, and reading it is a fault. Bytes of an asynchronous copy may not be
touched before its thread waits for it, bytes that a `wgmma` under way reads may not be written.

Marks are kept for grains: as many bytes as the kernel's narrowest access, at most 16.
"""

import numpy as np

from ptx.faults import InFlight, Misaligned, MissingFence, OutOfBounds, Race, Uninitialised
from ptx.global_memory import NULL_END

# Where a block's shared memory begins; a multiple of 1024, as the 128-byte swizzle asks for.
BASE = NULL_END
_NEVER, _MANY = -1, -2


class SharedMemory:
    """Bytes and marks for `n_blocks` thread blocks of `n_threads` threads.

    Parameters
    ----------
    nbytes : int
        Of each block.
    grain : int
        Bytes that share a mark: a power of two that divides every access.
    """

    def __init__(self, nbytes, grain, n_blocks, n_threads, *, counters=None):
        self.nbytes, self.grain = nbytes, grain
        self._stride = -(-max(nbytes, 16) // 16) * 16
        self._bytes = np.full(n_blocks * self._stride, 0xFF, np.uint8)
        self._views = {size: self._bytes.view(f"u{size}") for size in (1, 2, 4, 8)}
        grains = n_blocks * self._stride // grain
        self._counters = counters
        self.epoch = np.zeros(n_blocks, np.int32)  # barriers passed
        self.warp_epoch = np.zeros((n_blocks, n_threads), np.int32)  # bar.warp.sync passed
        # The last write and the last reads of each grain: when and by whom.
        self._write_epoch = np.full(grains, _NEVER, np.int32)
        self._write_thread = np.full(grains, _NEVER, np.int32)
        self._write_sync = np.zeros(grains, np.int32)
        self._read_epoch = np.full(grains, _NEVER, np.int32)
        self._read_thread = np.full(grains, _NEVER, np.int32)
        self._read_warp = np.full(grains, _NEVER, np.int32)
        self._read_sync = np.zeros(grains, np.int32)
        self._copying = np.zeros(grains, bool)
        self._product_reads = np.zeros(grains, np.int16)  # wgmma under way
        # Written, and not yet seen by the asynchronous proxy; when a fence made it visible.
        self._unfenced = np.zeros(grains, bool)
        self.fence_epoch = np.full((n_blocks, n_threads), _NEVER, np.int32)

    def _offsets(self, lanes, active, addresses, size):
        offsets = addresses.astype(np.int64) - BASE
        beyond = (offsets < 0) | (offsets + size > self.nbytes)
        if beyond.any():
            i = int(beyond.argmax())
            raise OutOfBounds(
                f"bytes {offsets[i]} to {offsets[i] + size - 1} of {self.nbytes} bytes of shared "
                f"memory, by thread {lanes.thread[active[i]]}"
            )
        odd = offsets % size != 0
        if odd.any():
            i = int(odd.argmax())
            raise Misaligned(
                f"shared address {offsets[i]} of thread {lanes.thread[active[i]]} is no multiple "
                f"of {size}"
            )
        return offsets + lanes.block[active] * self._stride

    def grains(self, offsets, size):
        """Return (n, k) numbers of the grains that bytes from `offsets` lie in."""
        return (offsets // self.grain)[:, None] + np.arange(max(size // self.grain, 1))

    def load(self, lanes, active, addresses, item, count, phase=None):
        """Return (n, count) unsigned integers; `active` are the lanes that read, in order."""
        offsets = self._offsets(lanes, active, addresses, item * count)
        self.note_read(lanes, active, self.grains(offsets, item * count))
        if self._counters is not None:
            self._counters.shared_access("load", lanes, active, offsets, item * count, phase)
        return self._views[item][(offsets // item)[:, None] + np.arange(count)]

    def store(self, lanes, active, addresses, values):
        """Store (n, count) unsigned integers."""
        item, count = values.dtype.itemsize, values.shape[1]
        offsets = self._offsets(lanes, active, addresses, item * count)
        self.note_write(lanes, active, self.grains(offsets, item * count))
        if self._counters is not None:
            self._counters.shared_access("store", lanes, active, offsets, item * count)
        self._views[item][(offsets // item)[:, None] + np.arange(count)] = values

    def begin_copy(self, lanes, active, addresses, size):
        """Reserve bytes for an asynchronous copy: poison until `end_copy`."""
        offsets = self._offsets(lanes, active, addresses, size)
        grains = self.grains(offsets, size)
        self.note_write(lanes, active, grains)
        self._copying[grains] = True
        self._bytes[offsets[:, None] + np.arange(size)] = 0xFF
        if self._counters is not None:
            self._counters.shared_access("copy", lanes, active, offsets, size)
        return offsets

    def end_copy(self, lanes, active, offsets, values):
        """Deliver (n, size) bytes of an asynchronous copy."""
        size = values.shape[1]
        grains = self.grains(offsets, size)
        self._copying[grains] = False
        self.note_write(lanes, active, grains)
        self._bytes[offsets[:, None] + np.arange(size)] = values

    def note_read(self, lanes, active, grains):
        """Check and mark reads of grains (n, k) by the lanes `active` (n,)."""
        block, thread = lanes.block[active], lanes.thread[active]
        epoch, thread = self.epoch[block][:, None], thread[:, None].astype(np.int32)
        sync = self.warp_epoch[block, thread[:, 0]][:, None]
        written = self._write_epoch[grains]
        if self._copying[grains].any():
            self._fail(InFlight, lanes, grains, self._copying[grains], "read while it is copied")
        if (written == _NEVER).any():
            self._fail(Uninitialised, lanes, grains, written == _NEVER, "read, never written")
        now = written == epoch
        if now.any():
            writer = self._write_thread[grains]
            ordered = (writer >> 5 == thread >> 5) & (self._write_sync[grains] < sync)
            bad = now & (writer != thread) & ~ordered
            if bad.any():
                self._fail(Race, lanes, grains, bad, _BETWEEN.format("read"), thread, writer)
        self._mark_read(grains, epoch, thread, sync)

    def _mark_read(self, grains, epoch, thread, sync):
        known = self._read_epoch[grains] == epoch
        before = np.where(known, self._read_thread[grains], thread)
        warp_before = np.where(known, self._read_warp[grains], thread >> 5)
        self._read_thread[grains] = thread
        self._read_warp[grains] = thread >> 5
        self._read_epoch[grains] = epoch
        self._read_sync[grains] = sync
        several = (before != thread) | (self._read_thread[grains] != thread)
        if several.any():
            self._read_thread[grains[several]] = _MANY
            warps = (warp_before != thread >> 5) | (self._read_warp[grains] != thread >> 5)
            self._read_warp[grains[warps]] = _MANY

    def note_write(self, lanes, active, grains):
        """Check and mark writes of grains (n, k) by the lanes `active` (n,)."""
        block, thread = lanes.block[active], lanes.thread[active]
        epoch, thread = self.epoch[block][:, None], thread[:, None].astype(np.int32)
        sync = self.warp_epoch[block, thread[:, 0]][:, None]
        if self._product_reads[grains].any():
            bad = self._product_reads[grains] > 0
            self._fail(InFlight, lanes, grains, bad, "written while a wgmma may still read it")
        if self._copying[grains].any():
            self._fail(InFlight, lanes, grains, self._copying[grains], "written while it is copied")
        for kind, when, who, whose, since in (
            ("written", self._write_epoch, self._write_thread, None, self._write_sync),
            ("read", self._read_epoch, self._read_thread, self._read_warp, self._read_sync),
        ):
            now = when[grains] == epoch
            if now.any():
                other = who[grains]
                warp = other >> 5 if whose is None else whose[grains]
                bad = now & (other != thread) & ~((warp == thread >> 5) & (since[grains] < sync))
                if bad.any():
                    text = f"{kind} and written with no barrier between"
                    self._fail(Race, lanes, grains, bad, text, thread, other)
        self._write_thread[grains] = thread
        self._write_epoch[grains] = epoch
        self._write_sync[grains] = sync
        self._unfenced[grains] = True
        twice = self._write_thread[grains] != thread
        if twice.any():
            self._fail(Race, lanes, grains, twice, "written by two threads at once", thread)

    def _fail(self, kind, lanes, grains, bad, text, thread=None, other=None):
        row, column = np.argwhere(bad)[0]
        byte = int(grains[row, column]) * self.grain % self._stride
        who = ""
        if thread is not None:
            who = f", by thread {thread[row, 0]}"
        if other is not None and other[row, column] >= 0:
            who += f" and thread {other[row, column]}"
        raise kind(f"byte {byte} of shared memory is {text}{who}")

    def fence(self, lanes, active):
        """``fence.proxy.async``: what these threads wrote becomes visible to `wgmma`."""
        block, thread = lanes.block[active], lanes.thread[active]
        self.fence_epoch[block, thread] = self.epoch[block]
        fenced = np.zeros(self.fence_epoch.shape, bool)
        fenced[block, thread] = True
        dirty = np.flatnonzero(self._unfenced & ~self._copying)
        if len(dirty):
            owner = dirty * self.grain // self._stride
            self._unfenced[dirty[fenced[owner, self._write_thread[dirty]]]] = False

    def begin_product_read(self, lanes, active, addresses):
        """Return (n, 8) halves at 16-byte rows that a `wgmma` under way reads, and their grains.

        Raises
        ------
        MissingFence
            If the writer has not fenced, nor this reader since a barrier after the write.
        """
        offsets = self._offsets(lanes, active, addresses, 16)
        grains = self.grains(offsets, 16)
        self.note_read(lanes, active, grains)
        hidden = self._unfenced[grains]
        if hidden.any():
            fence = self.fence_epoch[lanes.block[active], lanes.thread[active]][:, None]
            hidden &= fence <= self._write_epoch[grains]
            if hidden.any():
                self._fail(
                    MissingFence, lanes, grains, hidden, "read by wgmma with no fence.proxy.async"
                )
        self._product_reads += self._count(grains)
        return self._views[2][(offsets // 2)[:, None] + np.arange(8)], grains

    def end_product_read(self, lanes, active, grains):
        """Let go of what `begin_product_read` gave, and mark it as read now."""
        self._product_reads -= self._count(grains)
        self.note_read(lanes, active, grains)

    def _count(self, grains):
        return np.bincount(grains.ravel(), minlength=len(self._product_reads)).astype(np.int16)


_BETWEEN = "written and {} with no barrier between"
