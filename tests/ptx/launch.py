"""A grid of thread blocks, some at once, with shared and global memory."""

import numpy as np

from ptx.counters import Counters
from ptx.decode import Decoder, place
from ptx.faults import Deadlock
from ptx.global_memory import GlobalMemory
from ptx.lanes import RUNNING, WAITING, Lanes
from ptx.ops_memory import access_bytes
from ptx.parse import parse
from ptx.shared_memory import BASE, SharedMemory
from ptx.watch import watched_registers

# Lanes that are run as one vector where nothing else is asked for: wide enough that NumPy's
# cost of a call is shared, narrow enough to stay in the cache.
_VECTOR_LANES = 4096
SCHEDULES = ("together", "warps", "shuffled")


class Program:
    """A kernel made ready to run.

    Parameters
    ----------
    ptx : str
    name : str, optional
        Of the kernel, where there are several.
    """

    def __init__(self, ptx, name=None):
        kernels = parse(ptx)
        self.kernel = kernel = kernels[name or next(iter(kernels))]
        self.instructions, self.widths = kernel.instructions, kernel.widths
        self.symbols, self.static_bytes = _lay_out(kernel.shared)
        self.uses_warpgroups = any(ins.parts[0] == "wgmma" for ins in self.instructions)
        watched = watched_registers(kernel) if self.uses_warpgroups else frozenset()
        self.steps = Decoder(kernel, self.symbols, watched).steps()
        self.targets = [
            kernel.labels[ins.operands[0].text] if ins.parts[0] == "bra" else None
            for ins in self.instructions
        ]
        sizes = [access_bytes(ins) for ins in self.instructions]
        self.grain = min([size for size in sizes if size] + [16])


class Machine:
    """What the lanes of a launch share."""

    def __init__(self, params, memory, counters, step_limit):
        self.params, self.memory, self.counters = params, memory, counters
        self.step_limit = step_limit
        self.shared, self.block_ids = None, None


def _lay_out(shared):
    """Return addresses of shared memory's symbols and the bytes of those with a size.

    The array without a size, of which the launch says how long it is, comes last.
    """
    symbols, at = {}, BASE
    for name, (size, align) in sorted(shared.items(), key=lambda item: item[1][0] == 0):
        # 1024: the start of dynamic memory is as aligned as the 128-byte swizzle wants it.
        align = align if size else max(align, 16)
        at = -(-at // align) * align
        symbols[name] = at
        at += size
    return symbols, at - BASE


def launch(
    program,
    grid,
    block,
    args,
    *,
    shared_bytes=0,
    inputs=(),
    schedule="together",
    seed=0,
    count=False,
    step_limit=2_000_000,
):
    """Run a kernel; arrays it writes are changed in place.

    Parameters
    ----------
    program : Program
    grid, block : tuple of int
        Up to three sizes each.
    args : list
        Arrays, NumPy scalars of the parameters' sizes, or None for a null pointer.
    shared_bytes : int
        Dynamic shared memory.
    inputs : tuple of int
        Which arguments are arrays that must not be written.
    schedule : {"together", "warps", "shuffled"}
        All warps in lock step; one after another between barriers; in a new order, drawn with
        `seed`, at each barrier.
    count : bool
        Whether to return what was counted.
    step_limit : int
        Instructions of lanes that run together, after which a loop is called endless.

    Returns
    -------
    Counters or None

    Raises
    ------
    PtxFault
        By its kind and place.
    """
    grid, block = ((*sizes, 1, 1)[:3] for sizes in (grid, block))
    counters = Counters() if count else None
    memory = GlobalMemory(counters)
    params = _parameters(program.kernel, args, memory, inputs)
    machine = Machine(params, memory, counters, step_limit)
    n_threads = int(np.prod(block))
    if n_threads % 32 or program.uses_warpgroups and n_threads % 128:
        raise ValueError(f"{n_threads} threads are no whole number of warps or warpgroups")
    n_blocks = int(np.prod(grid))
    at_once = max(_VECTOR_LANES // n_threads, 1)
    rng = np.random.default_rng(seed)
    order = rng.permutation(n_blocks) if schedule == "shuffled" else np.arange(n_blocks)
    with np.errstate(all="ignore"):
        for first in range(0, n_blocks, at_once):
            chosen = order[first : first + at_once]
            _run_blocks(program, machine, chosen, (grid, block), shared_bytes, schedule, rng)
    memory.copy_back()
    return counters


def _parameters(kernel, args, memory, inputs):
    if len(args) != len(kernel.params):
        raise ValueError(f"{len(args)} arguments for the {len(kernel.params)} of {kernel.name}")
    params = np.zeros(kernel.param_bytes + 8, np.uint8)
    for i, (name, (offset, size)) in enumerate(kernel.params.items()):
        value = args[i]
        if isinstance(value, np.ndarray):
            value = np.uint64(memory.add(value, f"argument {i}", writable=i not in inputs))
        elif value is None:
            value = np.uint64(0)
        if value.nbytes != size:
            raise ValueError(f"argument {i} has {value.nbytes} bytes, {name} has {size}")
        params[offset : offset + size] = np.frombuffer(value.tobytes(), np.uint8)
    return params


def _coordinates(numbers, sizes):
    x, y, _ = sizes
    return numbers % x, numbers // x % y, numbers // (x * y)


def _run_blocks(program, machine, chosen, sizes, shared_bytes, schedule, rng):
    """Run some thread blocks at once to their end."""
    grid, block = sizes
    n_threads = int(np.prod(block))
    machine.block_ids = np.stack(_coordinates(chosen, grid), axis=1).tolist()
    machine.shared = SharedMemory(
        program.static_bytes + shared_bytes,
        program.grain,
        len(chosen),
        n_threads,
        counters=machine.counters,
    )
    units = _make_lanes(program, machine, chosen, sizes, schedule)
    while True:
        order = rng.permutation(len(units)) if schedule == "shuffled" else range(len(units))
        for number in order:
            units[number].run()
        if not _release(units, machine.shared, len(chosen)):
            return


def _make_lanes(program, machine, chosen, sizes, schedule):
    grid, block = sizes
    n_threads = int(np.prod(block))
    which = np.repeat(np.arange(len(chosen)), n_threads)
    thread = np.tile(np.arange(n_threads), len(chosen))
    specials = {"laneid": thread % 32, "warpid": thread // 32}
    for axis, tid, ctaid in zip(
        "xyz", _coordinates(thread, block), _coordinates(chosen[which], grid), strict=True
    ):
        specials |= {f"tid.{axis}": tid, f"ctaid.{axis}": ctaid}
    for axis, ntid, nctaid in zip("xyz", block, grid, strict=True):
        specials |= {f"ntid.{axis}": np.array([ntid]), f"nctaid.{axis}": np.array([nctaid])}
    size = len(which)
    if schedule != "together":
        size = 128 if program.uses_warpgroups else 32
    units = []
    for first in range(0, len(which), size):
        part = slice(first, first + size)
        own = {name: v[part] if len(v) == len(which) else v for name, v in specials.items()}
        units.append(Lanes(program, which[part], thread[part], own, machine))
    return units


def _release(units, shared, n_blocks):
    """Open the barriers that all threads of a block have reached; tell whether any go on."""
    block, state, counters = (
        np.concatenate([getattr(lanes, name) for lanes in units])
        for name in ("block", "state", "counters")
    )
    at_barrier = state == WAITING
    if not at_barrier.any():
        return False
    waiting, total = (
        np.bincount(lanes, minlength=n_blocks) for lanes in (block[at_barrier], block)
    )
    first = np.full(n_blocks, np.iinfo(np.int64).max)
    np.minimum.at(first, block[at_barrier], counters[at_barrier])
    places = [place(units[0].program.instructions[pc - 1]) for pc in set(first[waiting > 0])]
    stuck = (waiting > 0) & (waiting < total)
    if stuck.any():
        here, ended = waiting[stuck][0], (total - waiting)[stuck][0]
        raise Deadlock(f"{places[0]}: {here} threads of a block wait, {ended} threads have ended")
    if (counters != first[block])[at_barrier].any():
        raise Deadlock(f"{places[0]}: other threads of the block wait at a different barrier")
    for lanes in units:
        lanes.state[lanes.state == WAITING] = RUNNING
    shared.epoch += waiting > 0
    return True
