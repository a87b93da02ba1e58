"""Peak memory and disk of quantizing here, told from sizes; each term says what it is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from awqbench.inspect.doctor.findings import CARE, NO, Finding, gigabytes
from awqbench.inspect.sizes import packed_bytes
from awqbench.quantize.run.memory import block_statistics
from awqbench.quantize.statistics.chunk import BATCH_SIZE, SKETCH_ABOVE, Sketching

if TYPE_CHECKING:
    from awqbench.formats.checkpoint import Checkpoint
    from awqbench.inspect.doctor.architecture import Anatomy

# The defaults of `awqbench quantize`.
N_SAMPLES, SEQ_LEN = 128, 512
# Python with torch and transformers, before any weight: 460 MB measured on Linux.
PROCESS_BYTES = 500_000_000
# Above these shares of what is free the verdict is no, or with care.
_ALL, _MOST = 1.0, 0.8


class Needs(NamedTuple):
    """What quantizing takes.

    Parameters
    ----------
    memory : dict of str to int
        Peak bytes of each stage; the stages follow one another.
    disk : dict of str to int
        Bytes of each thing that lies on disk when most does.
    """

    memory: dict[str, int]
    disk: dict[str, int]

    @property
    def memory_bytes(self) -> int:
        """Peak of the whole run."""
        return max(self.memory.values())

    @property
    def disk_bytes(self) -> int:
        """Most that lies on disk, beside the model itself."""
        return sum(self.disk.values())

    @property
    def largest_stage(self) -> str:
        """Stage with the highest peak."""
        return max(self.memory, key=lambda stage: self.memory[stage])


def needs_of(ckpt: Checkpoint, anatomy: Anatomy, group_size: int) -> Needs:
    """Predict the peaks of `quantize` at its defaults from the sizes of one block.

    A block is searched with its weights in float32, once as they were and once folded; H of
    all its sites is there; a batch of activations is in flight.

    Parameters
    ----------
    ckpt : Checkpoint
    anatomy : Anatomy
        With a runner.
    group_size : int
        -1 stands for whole rows.
    """
    runner = anatomy.runner
    blocks = [_block_sizes(ckpt, anatomy, i) for i in range(runner.n_blocks)]
    largest = max(block["elements"] for block in blocks)
    stats = max(block["statistics"] for block in blocks)
    widest = max(block["widest"] for block in blocks)
    row = max(block["largest_linear"] for block in blocks)
    itemsize = runner.dtype.itemsize
    hidden = next(iter(anatomy.linears.values()))[1]  # first linears read the stream
    stream = N_SAMPLES * SEQ_LEN * hidden * itemsize
    # In a batch: what the MLP holds (gate, up, their product), and of the widest input a
    # float32 copy with its magnitudes.
    batch = BATCH_SIZE * SEQ_LEN * (3 * widest * itemsize + 8 * widest)
    exact = min(widest, SKETCH_ABOVE)
    tables = runner.vocabulary * hidden * itemsize
    memory = {
        "tracing one block (float32, and a copy)": 8 * largest + tables,
        "calibration": itemsize * largest + stats + stream + batch + exact**2 + tables,
        "search": 8 * largest + itemsize * largest + stats + 4 * exact**2 + 12 * row,
    }
    packed = sum(
        packed_bytes(*shape, bits=4, group_size=group_size)
        for shape in anatomy.linears.values()
        if shape[1] % max(group_size, 1) == 0
    )
    linear_bytes = sum(block["linear_bytes"] for block in blocks)
    disk = {
        "statistics": 2 * stats,  # of two blocks at most
        "hidden states": 2 * stream,
        "result": packed + ckpt.nbytes - linear_bytes,
    }
    return Needs({stage: PROCESS_BYTES + size for stage, size in memory.items()}, disk)


def _block_sizes(ckpt: Checkpoint, anatomy: Anatomy, i: int) -> dict[str, int]:
    runner, linears = anatomy.runner, anatomy.block_linears(i)
    stored = [ckpt.tensors[n] for n in runner.stored_names(i).values() if n in ckpt.tensors]
    names = {runner.stored_name(f"{name}.weight") or f"{name}.weight" for name in linears}
    return {
        "elements": sum(info.size for info in stored),
        "linear_bytes": sum(info.nbytes for info in stored if info.name in names),
        "largest_linear": max((out * into for out, into in linears.values()), default=0),
        "widest": max((max(shape) for shape in linears.values()), default=0),
        "statistics": block_statistics(
            {names[0]: linears[names[0]][1] for names in site_groups(linears)}, Sketching()
        )[0],
    }


def site_groups(linears: Mapping[str, tuple[int, int]]) -> Iterator[list[str]]:
    """Yield the linears that share an input, guessed: those of one module with the same K.

    Tracing knows; without weights this overstates nothing but o_proj, which is told apart by
    its name: it reads what attention gives.
    """
    groups: dict[tuple, list[str]] = {}
    for name, (_, into) in linears.items():
        module, _, leaf = name.rpartition(".")
        reads_inside = any(word in leaf for word in ("o_proj", "out_proj", "dense", "down", "wo"))
        groups.setdefault((module, into, leaf if reads_inside else ""), []).append(name)
    yield from groups.values()


class Room(NamedTuple):
    """What is free here, bytes."""

    memory_bytes: int
    disk_bytes: int


def room_here(folder: Path) -> Room:
    """Measure free memory, and free disk at a folder."""
    import psutil

    free_disk = psutil.disk_usage(str(folder)).free
    return Room(psutil.virtual_memory().available, free_disk)


def resource_findings(needs: Needs, room: Room) -> Iterator[Finding]:
    """Compare what is needed with what is free."""
    largest = needs.largest_stage
    yield from _compared(
        "memory",
        needs.memory_bytes,
        room.memory_bytes,
        f"the largest stage is {largest}",
        "close other programs, or quantize on a machine with more memory; fewer --n-samples help "
        "where calibration is the largest stage",
    )
    parts = ", ".join(f"{what} {gigabytes(size)}" for what, size in needs.disk.items())
    yield from _compared(
        "disk",
        needs.disk_bytes,
        room.disk_bytes,
        parts,
        "run where more is free: the folder of OUT decides; `awqbench calibrate` into another disk "
        "moves the statistics",
    )


def _compared(what: str, needed: int, free: int, detail: str, fix: str) -> Iterator[Finding]:
    share = needed / max(free, 1)
    if share > _MOST:
        yield Finding(
            NO if share > _ALL else CARE,
            what,
            f"quantizing takes about {gigabytes(needed)} of {what} ({detail}), and "
            f"{gigabytes(free)} are free",
            fix,
        )
