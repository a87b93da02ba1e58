"""Global memory: NumPy arrays at made-up addresses, far from one another."""

import numpy as np

from ptx.faults import Misaligned, OutOfBounds, ReadOnly, UnknownInstruction

# Addresses below this one belong to no memory: a null pointer and what is near it.
NULL_END = 1024
_SPAN_BITS = 36  # distance of two arrays, as a power of two
# In bytes; what cudaMalloc gives. Lower bits of an array's address are zero.
_PADDING = 256


class _Array:
    def __init__(self, name, array, writable):
        self.name, self.array, self.writable = name, array, writable
        self.nbytes = array.nbytes
        self.bytes = np.zeros(-(-self.nbytes // _PADDING) * _PADDING + _PADDING, np.uint8)
        self.bytes[: self.nbytes] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        self.views = {size: self.bytes.view(f"u{size}") for size in (1, 2, 4, 8)}
        self.was_written = False


class GlobalMemory:
    """The arrays of one launch.

    Parameters
    ----------
    counters : ptx.counters.Counters, optional
        Told of every access.
    """

    def __init__(self, counters=None):
        self._arrays = {}
        self._counters = counters
        self._read_only = set()

    def add(self, array, name, *, writable=True):
        """Lay a copy of an array into memory and return its address."""
        if isinstance(array, np.ndarray) and array.dtype.hasobject:
            raise TypeError(f"{name}: an array of objects")
        number = len(self._arrays) + 1
        self._arrays[number] = _Array(name, array, writable)
        return number << _SPAN_BITS

    def copy_back(self):
        """Write what the kernel stored into the arrays given to `add`."""
        for held in self._arrays.values():
            if held.was_written:
                flat = held.bytes[: held.nbytes].view(held.array.dtype)
                held.array[...] = flat.reshape(held.array.shape)

    def name_at(self, address):
        """Return the name of the array at an address, for messages and counters."""
        return self._arrays[int(address) >> _SPAN_BITS].name

    def _locate(self, lanes, active, addresses, size):
        """Yield each array with the lanes that go there and their byte offsets."""
        if not len(addresses):
            return
        odd = addresses % np.uint64(size) != 0
        if odd.any():
            lane = int(active[odd.argmax()])
            raise Misaligned(
                f"address {int(addresses[odd.argmax()]):#x} of {_who(lanes, lane)} is no multiple "
                f"of {size}"
            )
        numbers = addresses >> np.uint64(_SPAN_BITS)
        if (numbers == numbers[0]).all():
            groups = [(int(numbers[0]), None)]
        else:
            groups = [(int(number), numbers == number) for number in np.unique(numbers)]
        for number, here in groups:
            chosen = addresses if here is None else addresses[here]
            held = self._arrays.get(number)
            offsets = (chosen & np.uint64((1 << _SPAN_BITS) - 1)).astype(np.int64)
            limit = held.nbytes if held else 0
            beyond = offsets + size > limit
            if beyond.any():
                worst = int(beyond.argmax())
                lane = int((active if here is None else active[here])[worst])
                self._report(held, int(chosen[worst]), int(offsets[worst]), size, lanes, lane)
            yield held, here, offsets

    def _report(self, held, address, offset, size, lanes, lane):
        if held is None:
            raise OutOfBounds(f"address {address:#x} of {_who(lanes, lane)} is in no array")
        before = self._arrays.get((address >> _SPAN_BITS) + 1)
        distance = (1 << _SPAN_BITS) - offset
        if before is not None and distance < 1 << 30:
            raise OutOfBounds(f"{distance} bytes before {before.name}, by {_who(lanes, lane)}")
        raise OutOfBounds(
            f"bytes {offset} to {offset + size - 1} of {held.name}, which has {held.nbytes}, by "
            f"{_who(lanes, lane)}"
        )

    def load(self, lanes, active, addresses, item, count, *, constant=False):
        """Return (n, count) unsigned integers of `item` bytes.

        Parameters
        ----------
        active : (n,) ndarray
            Lane numbers, for messages.
        addresses : (n,) ndarray of uint64
        constant : bool
            Whether by the path that demands that nobody writes there during the launch.
        """
        values = np.empty((len(addresses), count), f"u{item}")
        for held, here, offsets in self._locate(lanes, active, addresses, item * count):
            if constant:
                self._read_only.add(held.name)
                if held.was_written:
                    raise ReadOnly(f"ld.global.nc of {held.name}, which this launch writes")
            rows = (offsets // item)[:, None] + np.arange(count)
            values[slice(None) if here is None else here] = held.views[item][rows]
        if self._counters is not None:
            self._counters.global_access("load", lanes, active, addresses, item * count, self)
        return values

    def store(self, lanes, active, addresses, values):
        """Store (n, count) unsigned integers."""
        item, count = values.dtype.itemsize, values.shape[1]
        for held, here, offsets in self._locate(lanes, active, addresses, item * count):
            self._require_writable(held)
            rows = (offsets // item)[:, None] + np.arange(count)
            held.views[item][rows] = values if here is None else values[here]
        if self._counters is not None:
            self._counters.global_access("store", lanes, active, addresses, item * count, self)

    def update(self, lanes, active, addresses, size, change):
        """Run ``change(old, i)`` for the i-th address, one after another; return the old bits."""
        old = np.zeros(len(addresses), f"u{size}")
        for held, here, offsets in self._locate(lanes, active, addresses, size):
            self._require_writable(held)
            view = held.views[size]
            which = range(len(addresses)) if here is None else np.flatnonzero(here)
            for i, at in zip(which, offsets // size, strict=True):
                old[i] = view[at]
                view[at] = change(old[i : i + 1], i)
        if self._counters is not None:
            self._counters.global_access("atomic", lanes, active, addresses, size, self)
        return old

    def _require_writable(self, held):
        if not held.writable:
            raise ReadOnly(f"a store to {held.name}, which is an input")
        if held.name in self._read_only:
            raise ReadOnly(f"a store to {held.name}, which was read by ld.global.nc")
        held.was_written = True


def is_global(addresses):
    """Tell whether generic addresses are global memory's, or null; others are shared memory's."""
    if not len(addresses):
        return True
    if int(addresses.max()) >> 62:
        raise UnknownInstruction(f"a generic address {int(addresses.max()):#x}")
    return int(addresses.min()) >> _SPAN_BITS > 0 or int(addresses.max()) < NULL_END


def _who(lanes, lane):
    return (
        f"thread {lanes.thread[lane]} of block {tuple(lanes.machine.block_ids[lanes.block[lane]])}"
    )
