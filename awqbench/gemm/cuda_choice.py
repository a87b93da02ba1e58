"""Which kernel multiplies M tokens by a weight on a GPU, and how it is launched.

The rules are models, not measurements: they have not been run on a GPU. `benchmarks/gpu_all.py`
times every candidate on the machine it runs on and writes what won to a file, which is read
before the rules are asked.
"""

from __future__ import annotations

import json
from functools import cache, lru_cache
from pathlib import Path
from typing import NamedTuple

from awqbench.errors import FormatError
from awqbench.gemm.cuda_build import Program, cache_folder
from awqbench.gemm.cuda_layout import SCALE_TYPES, TILE_ROWS, TileSpec

# The first number of tokens from which decoding the weight once and multiplying by cuBLAS is
# expected to win. Modelled: decoding writes 2 bytes a weight and cuBLAS reads them, which is
# 0.8 of cuBLAS alone at 1024 tokens and 0.5 at 256; a fused mma.sync kernel reaches 0.5 to 0.8
# of it, one with wgmma more.
DENSE_FROM = {"90a": 769}
DENSE_FROM_ELSEWHERE = 257
SKINNY_TOKENS = 32
# Among measured choices: decoding the weight, and cuBLAS.
DENSE = "dense"
# Splitting K further leaves each block too little to cover its start.
_MIN_CHUNKS_OF_SPLIT, _MAX_SPLITS = 8, 8
_CHUNK = 64
# Decoding a fragment costs about what multiplying it by so many tokens does: 22 against 64
# clocks for 128 tokens, by counts of instructions.
_DECODING = 44

# Shapes of w4a16_skinny, (MT, WN, WK, DEPTH) by the most tokens of a block: more rows a block
# share the tokens that it fetches, fewer give more blocks. One token alone leaves shared memory
# for longer stretches, with more weights on their way at once.
_SKINNY = {
    1: ((1, 1, 8, 2), (1, 2, 4, 2), (1, 4, 2, 2)),
    8: ((1, 1, 8, 1), (1, 2, 4, 2), (1, 4, 2, 2)),
    16: ((2, 1, 4, 1), (2, 2, 4, 1), (2, 4, 2, 1)),
    32: ((4, 2, 2, 1), (4, 4, 2, 1), (4, 8, 1, 1)),
}
_MMA = ({"BM": 32, "RT": 2}, {"BM": 64, "RT": 2}, {"BM": 128, "RT": 2, "STAGES": 3})
_WGMMA = ({"BM": 64}, {"BM": 128, "STAGES": 3})


class Launch(NamedTuple):
    """A kernel with its launch: `splits` of K, 1 where the kernel writes y itself."""

    program: Program
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    splits: int = 1


# An eager call would spend more time on choosing than a small product takes.
@lru_cache(maxsize=4096)
def choose(tokens: int, spec: TileSpec, *, arch: str, n_sm: int, is_bf16: bool) -> Launch | None:
    """Return how to multiply, or None for decoding and cuBLAS.

    Parameters
    ----------
    tokens : int
        M, at least 1.
    spec : TileSpec
    arch : str
        Such as "90a".
    n_sm : int
        Multiprocessors of the GPU.
    is_bf16 : bool
        Whether tokens are bfloat16, else float16.
    """
    if tokens >= dense_from(arch):
        return None
    found = candidates(tokens, spec, arch=arch, n_sm=n_sm, is_bf16=is_bf16)
    return _fitting(found, n_sm) if found else None


def dense_from(arch: str) -> int:
    """Return the number of tokens from which a weight is decoded on an architecture."""
    if arch == "75":  # no kernel for many tokens
        return SKINNY_TOKENS + 1
    return DENSE_FROM.get(arch, DENSE_FROM_ELSEWHERE)


def candidates(
    tokens: int, spec: TileSpec, *, arch: str, n_sm: int, is_bf16: bool
) -> tuple[Launch, ...]:
    """Return every launch worth timing for these tokens; the parameters are `choose`'s."""
    macros = weight_macros(spec, is_bf16=is_bf16)
    if tokens <= SKINNY_TOKENS:
        most = next(most for most in _SKINNY if tokens <= most)
        return tuple(skinny(tokens, spec, macros, most, shape) for shape in _SKINNY[most])
    if arch == "75":
        return ()
    kernel, shapes = ("w4a16_wgmma", _WGMMA) if arch == "90a" else ("w4a16_mma", _MMA)
    return tuple(dense(kernel, tokens, spec, macros, shape, n_sm) for shape in shapes)


@lru_cache(maxsize=4096)
def named(
    program: str, tokens: int, spec: TileSpec, *, arch: str, n_sm: int, is_bf16: bool
) -> Launch | None:
    """Return the candidate whose program reads so, None if there is none any more."""
    found = candidates(tokens, spec, arch=arch, n_sm=n_sm, is_bf16=is_bf16)
    return next((launch for launch in found if str(launch.program) == program), None)


def _fitting(found: tuple[Launch, ...], n_sm: int) -> Launch:
    """Choose among shapes, from small blocks to large: the largest that still fill the GPU."""
    if found[0].program.kernel == "w4a16_skinny":
        filling = [launch for launch in found if launch.grid[0] * launch.grid[1] >= 2 * n_sm]
        return filling[-1] if filling else found[0]
    return min(found, key=lambda launch: launch.grid[0] * (launch.program["BM"] + _DECODING))


def weight_macros(spec: TileSpec, *, is_bf16: bool) -> dict[str, int]:
    """Return the macros that follow from a weight and the type of the tokens."""
    return {
        "BITS": spec.bits,
        "BF16": int(is_bf16),
        "GROUP": spec.group_size,
        "SCALE": SCALE_TYPES.index(spec.scale_type),
    }


def skinny(
    tokens: int,
    spec: TileSpec,
    macros: dict[str, int],
    most: int,
    shape: tuple[int, int, int, int],
) -> Launch:
    """Return a launch of w4a16_skinny for at most `most` tokens a block."""
    columns, wn, wk, depth = shape
    # Scales of short groups take registers that two blocks of 256 threads do not leave, where
    # they are floats or accumulators are many.
    is_wide = spec.group_size % 128 != 0 and (spec.scale_type == "float32" or columns == 4)
    macros = macros | {"MT": columns, "WN": wn, "WK": wk, "DEPTH": depth, "TOKENS": most}
    program = Program.of("w4a16_skinny", **macros, BLOCKS=1 if is_wide else 2)
    grid = (-(-spec.n_tiles // wn), -(-tokens // most), 1)
    return Launch(program, grid, (32 * wn * wk, 1, 1))


def dense(
    kernel: str,
    tokens: int,
    spec: TileSpec,
    macros: dict[str, int],
    shape: dict[str, int],
    n_sm: int,
) -> Launch:
    """Return a launch of w4a16_mma or w4a16_wgmma; K is split until blocks fill the GPU."""
    warps = 8 if kernel == "w4a16_wgmma" else 4
    rows = TILE_ROWS * warps * shape.get("RT", 1)
    across, down = -(-tokens // shape["BM"]), -(-spec.out_features // rows)
    n_chunks = -(-spec.in_features // _CHUNK)
    splits = min(n_sm // (across * down), n_chunks // _MIN_CHUNKS_OF_SPLIT, _MAX_SPLITS)
    program = Program.of(kernel, **macros, **shape)
    splits = max(splits, 1)
    return Launch(program, (across, down, splits), (32 * warps, 1, 1), splits)


def key_of(device_name: str, tokens: int, spec: TileSpec, *, is_bf16: bool) -> str:
    """Return the name under which a measured choice is kept; tokens by powers of two."""
    bucket = 1 << max(tokens - 1, 0).bit_length()
    dtype = "bfloat16" if is_bf16 else "float16"
    return (
        f"{device_name} | {spec.out_features}x{spec.in_features} w{spec.bits} "
        f"g{spec.group_size or 'row'} {spec.scale_type} | {dtype} M<={bucket}"
    )


def measured_file() -> Path:
    """Return where measured choices are kept: a folder of the user's cache."""
    return cache_folder() / "cuda_choices.json"


@cache
def measured() -> dict[str, str]:
    """Return measured choices: `key_of` to the program's text, or "dense"; read once.

    Raises
    ------
    FormatError
        If the file is damaged.
    """
    file = measured_file()
    try:
        known = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise FormatError(f"{file} is not JSON ({error}); delete it.") from error
    if not isinstance(known, dict):
        raise FormatError(f"{file} is not a JSON object; delete it.")
    return known
