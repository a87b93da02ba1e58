"""What can be wrong with a kernel: one class each, and the text says where."""


class PtxFault(Exception):
    """A kernel did what it must not; the text names the line of the source and of the PTX."""


class UnknownInstruction(PtxFault):
    """The interpreter lacks this instruction or this form of it."""


class OutOfBounds(PtxFault):
    """An access outside every array, beyond an array's end, or outside shared memory."""


class Misaligned(PtxFault):
    """An address that is no multiple of the access's size."""


class ReadOnly(PtxFault):
    """A store to an array of inputs, or `ld.global.nc` of what the launch writes."""


class Race(PtxFault):
    """Two threads touch shared memory, one writing, with no barrier between them."""


class Uninitialised(PtxFault):
    """Shared memory is read before anything was written there."""


class InFlight(PtxFault):
    """Something of an asynchronous operation is touched before the wait for it."""


class MissingFence(PtxFault):
    """`wgmma` reads what no `fence.proxy.async` or `wgmma.fence` has made visible to it."""


class Divergence(PtxFault):
    """An instruction for whole warps met a part of a warp."""


class Deadlock(PtxFault):
    """A barrier that cannot be reached by all, or a loop that does not end."""
