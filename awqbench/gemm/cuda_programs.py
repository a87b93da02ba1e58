"""Every program worth compiling: the kernels' shapes times kinds of weights and tokens.

This is what is checked for spills and registers where there is no GPU; a GPU machine compiles
only what it launches.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from awqbench.gemm import cuda_choice
from awqbench.gemm.cuda_build import ARCHITECTURES, Program, expand_source
from awqbench.gemm.cuda_layout import TileSpec

KERNELS = (
    "sum_splits",
    "tile_dequant",
    "w4_dequant",
    "w4_repack",
    "w4a16_direct",
    "w4a16_mma",
    "w4a16_skinny",
    "w4a16_wgmma",
)
# Registers of a multiprocessor, and of a thread at most.
_REGISTERS, _MOST = 65536, 255
# Threads that are to be resident on a multiprocessor together; none of them may spill.
_RESIDENT = {
    "sum_splits": 2048,
    "tile_dequant": 3 * 256,
    "w4_dequant": 4 * 256,
    "w4_repack": 2048,
    "w4a16_direct": 256 + 128,  # a block of 256, with room to spare
    "w4a16_mma": 2 * 128,
    "w4a16_wgmma": 256,
}


class Kind(NamedTuple):
    """A kind of weight and tokens; `group_size` 0 means whole rows."""

    bits: int
    is_bf16: bool
    group_size: int
    scale_type: str


KINDS = (
    Kind(4, False, 128, "float16"),
    Kind(4, True, 128, "bfloat16"),
    Kind(4, True, 64, "float16"),
    Kind(4, False, 32, "float32"),
    Kind(4, False, 0, "float16"),
    Kind(8, False, 128, "float16"),
    Kind(8, True, 32, "float32"),
)


def programs(arch: str, kinds: Iterable[Kind] = KINDS) -> Iterator[Program]:
    """Yield the programs of an architecture, each once."""
    for bits, is_awq in ((4, 0), (4, 1), (8, 0)):
        yield Program.of("w4_repack", BITS=bits, AWQ=is_awq)
    for is_bf16 in (0,) if arch == "75" else (0, 1):
        yield Program.of("sum_splits", BF16=is_bf16)
        for group in (128, 32, 0):
            yield Program.of("w4_dequant", BF16=is_bf16, GROUP=group, ROWS=8)
            yield Program.of(
                "w4a16_direct", BF16=is_bf16, GROUP=group, WARPS=8, WIDE=int(group != 32)
            )
    for kind in kinds:
        if not (arch == "75" and kind.is_bf16):
            yield from _of_kind(kind, arch)


def _of_kind(kind: Kind, arch: str) -> Iterator[Program]:
    spec = TileSpec(4096, 4096, kind.bits, kind.group_size, kind.scale_type)
    macros = cuda_choice.weight_macros(spec, is_bf16=kind.is_bf16)
    yield Program.of("tile_dequant", **macros)
    # (The number of multiprocessors changes grids, not programs.)
    settings = {"arch": arch, "n_sm": 1, "is_bf16": kind.is_bf16}
    for tokens in (1, 8, 16, 32, 64):
        for found in cuda_choice.candidates(tokens, spec, **settings):
            yield found.program


def register_limit(program: Program) -> int:
    """Return the most registers a program may take for its threads to be resident together."""
    if program.kernel == "w4a16_skinny":
        threads = 32 * program["WN"] * program["WK"] * program["BLOCKS"]
    else:
        threads = _RESIDENT[program.kernel]
    return min(_MOST, _REGISTERS // threads // 8 * 8)


def matrix() -> list[tuple[Program, str]]:
    """Return every program with every architecture it is for."""
    return [(program, arch) for arch in ARCHITECTURES for program in programs(arch)]


def sources_digest() -> str:
    """Return a digest of the kernels' sources: says what a record was made from."""
    text = "".join(expand_source(f"{kernel}.cu") for kernel in KERNELS)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
