"""The package's kernels on a `Problem`, with the grids that the package launches them with."""

import numpy as np

from awqbench.gemm.cuda_build import Program
from awqbench.gemm.cuda_choice import candidates
from ptx.build import kernel_program
from ptx.launch import launch

POISON = 0xFFFF  # a NaN in fp16 and bf16


def launches(problem, arch, n_sm=2):
    """Return every launch that the package would time for a problem with tiles."""
    return candidates(problem.m, problem.spec, arch=arch, n_sm=n_sm, is_bf16=bool(problem.bf16))


def outputs(problem, splits):
    """Return y, and partial sums where K is split; both hold NaN."""
    y = np.full((problem.m, problem.n), POISON, np.uint16)
    partial = np.full((splits, problem.m, problem.n), np.nan, np.float32)
    return y, partial if splits > 1 else None


def _run(compiled, chosen, args, y, partial, how):
    counters = launch(compiled, chosen[0], chosen[1], args, inputs=(0, 1, 2, 3), **how)
    return (y if partial is None else partial.sum(0)), counters


def run_tiles(problem, chosen, arch, compiled=None, **how):
    """Run a launch of w4a16_skinny, w4a16_mma or w4a16_wgmma.

    Returns
    -------
    y : (M, N) ndarray
        Bits, or float32 sums of the splits.
    counters : Counters or None
    """
    program = chosen.program
    compiled = compiled or kernel_program(program.kernel, arch, **dict(program.macros))
    y, partial = outputs(problem, chosen.splits)
    results = [y] if program.kernel == "w4a16_skinny" else [y, partial]
    args = [problem.x, *problem.tiles(), *results, *problem.sizes]
    return _run(compiled, (chosen.grid, chosen.block), args, y, partial, how)


def run_direct(problem, arch, compiled=None, *, splits=1, warps=8, **how):
    """Run w4a16_direct on an AWQ checkpoint's words; as `run_tiles`."""
    compiled = compiled or kernel_program("w4a16_direct", arch, **direct_macros(problem, warps))
    y, partial = outputs(problem, splits)
    grid = (-(-problem.n // 128), splits, -(-problem.m // 8))
    args = [problem.x, *problem.awq(), y, partial, *problem.sizes]
    return _run(compiled, (grid, (32 * warps,)), args, y, partial, how)


def direct_macros(problem, warps=8):
    """Return the macros of w4a16_direct."""
    wide = int(problem.n % 16 == 0)
    return {"BF16": problem.bf16, "GROUP": problem.group, "WARPS": warps, "WIDE": wide}


def run_dequantize(problem, arch, compiled=None, rows=8, **how):
    """Run w4_dequant: (K, N) bits."""
    macros = {"BF16": problem.bf16, "GROUP": problem.group, "ROWS": rows}
    compiled = compiled or kernel_program("w4_dequant", arch, **macros)
    out = np.full((problem.k, problem.n), POISON, np.uint16)
    grid = (-(-problem.n // 256), -(-problem.k // (8 * rows)))
    args = [*problem.awq(), out, *problem.sizes[1:]]
    return out, launch(compiled, grid, (32, 8), args, inputs=(0, 1, 2), **how)


def run_tile_dequantize(problem, arch, compiled=None, **how):
    """Run tile_dequant: (N, K) bits."""
    macros = {"BITS": problem.bits, "BF16": problem.bf16}
    macros |= {"GROUP": problem.group, "SCALE": problem.scale}
    compiled = compiled or kernel_program("tile_dequant", arch, **macros)
    out = np.full((problem.n, problem.k), POISON, np.uint16)
    grid = (-(-problem.k // 128), -(-problem.n // 128))
    args = [*problem.tiles(), out, *problem.sizes[1:]]
    return out, launch(compiled, grid, (32, 8), args, inputs=(0, 1, 2), **how)


def run_repack(problem, arch, compiled=None, *, awq=0, **how):
    """Run w4_repack from bytes, or from a checkpoint's words: codes of tiles."""
    compiled = compiled or kernel_program("w4_repack", arch, BITS=problem.bits, AWQ=awq)
    out = np.full(problem.spec.codes_shape, 0xDEADBEEF, np.uint32)
    source = problem.awq()[0] if awq else problem.codes
    args = [source, out, *problem.sizes[1:]]
    return out, launch(compiled, (-(-out.size // 256),), (256,), args, inputs=(0,), **how)


def run_sum(partial, bf16, compiled=None, **how):
    """Run sum_splits on (S, size) float32: bits."""
    program = Program.of("sum_splits", BF16=bf16)
    compiled = compiled or kernel_program(program.kernel, "80", **dict(program.macros))
    splits, size = partial.shape
    y = np.full(size, POISON, np.uint16)
    args = [partial, y, np.int32(splits), np.int32(size)]
    return y, launch(compiled, (-(-size // 256),), (256,), args, inputs=(0,), **how)
