"""A list of bugs to plant in the kernels' sources, and how each kernel is run with one."""

import numpy as np

from ptx import kernels
from ptx.build import planted_program
from ptx.problems import Problem, is_close, to_bits

# Tails everywhere: M no multiple of 8, N of 16, K of 128; several stretches, chunks and groups.
FEW = Problem(3, 40, 1160, 32)
BYTES = Problem(3, 40, 1160, 32, bits=8)
MANY = Problem(37, 40, 328, 32)
DIRECT = Problem(3, 40, 200, 64)
WRONG = "wrong result"


def judged(y, expected, kind="f16"):
    return "right result" if is_close(y, expected, kind) else WRONG


def same(found, expected):
    return "right result" if np.array_equal(found, expected) else WRONG


def direct(change, splits=1):
    compiled = planted_program("w4a16_direct", "80", change, **kernels.direct_macros(DIRECT, 2))
    y, _ = kernels.run_direct(DIRECT, "80", compiled, warps=2, splits=splits)
    return judged(y, DIRECT.reference())


def direct_split(change):
    return direct(change, splits=2)


def tiles(problem, arch, change, *, shape=0, n_sm=1, rounded=True):
    chosen = kernels.launches(problem, arch, n_sm)[shape]
    program = chosen.program
    compiled = planted_program(program.kernel, arch, change, **dict(program.macros))
    y, _ = kernels.run_tiles(problem, chosen, arch, compiled)
    return judged(y, problem.reference(rounded=rounded))


def skinny(change):
    # Three stretches: the last one reads the buffer that the sums take.
    return tiles(FEW, "80", change, shape=2, rounded=False)


def skinny_bytes(change):
    return tiles(BYTES, "80", change, shape=1, rounded=False)


def mma(change):
    return tiles(MANY, "80", change, shape=1)


def mma_split(change):
    return tiles(Problem(33, 40, 1032, 128), "80", change, n_sm=4)


def wgmma(change):
    return tiles(MANY, "90a", change)


def dequantize(change):
    problem = Problem(1, 40, 72, 0)
    macros = {"BF16": 0, "GROUP": 0, "ROWS": 8}
    compiled = planted_program("w4_dequant", "80", change, **macros)
    out, _ = kernels.run_dequantize(problem, "80", compiled)
    return same(out, to_bits(problem.weight, "f16").T)


def tile_dequantize(change):
    problem = Problem(1, 40, 200, 64)
    macros = {"BITS": 4, "BF16": 0, "GROUP": 64, "SCALE": 0}
    compiled = planted_program("tile_dequant", "80", change, **macros)
    out, _ = kernels.run_tile_dequantize(problem, "80", compiled)
    return same(out, to_bits(problem.weight, "f16"))


def repack(change):
    problem = Problem(1, 40, 200)
    compiled = planted_program("w4_repack", "80", change, BITS=4, AWQ=1)
    out, _ = kernels.run_repack(problem, "80", compiled, awq=1)
    return same(out, problem.tiles()[0])


def sum_splits(change):
    partial = np.random.default_rng(0).standard_normal((3, 300)).astype(np.float32)
    compiled = planted_program("sum_splits", "80", change, BF16=0)
    y, _ = kernels.run_sum(partial, 0, compiled)
    return judged(y, partial.astype(np.float64).sum(0))


# name: (how it is run, pattern, replacement, what it is found as)
BUGS = {
    "direct: nibbles shifted by 4 instead of 8": (
        direct,
        r"i < 2 \? word : word >> 8",
        "i < 2 ? word : word >> 4",
        WRONG,
    ),
    "direct: zero points in the wrong order": (
        direct,
        r"zero_words\.v\[v\], 0, 0x1010",
        "zero_words.v[v], 0, 0x3232",
        WRONG,
    ),
    "direct: no bound on columns": (
        direct,
        r"if \(j < n_words\) r\.v\[0\] =",
        "r.v[0] =",
        "OutOfBounds",
    ),
    "direct: no bound on tokens": (
        direct,
        r"if \(token < M && is_inside\)",
        "if (is_inside)",
        "OutOfBounds",
    ),
    "direct: no bound on input channels": (
        direct,
        r"\(is_inside \? k \+ r : 0\)",
        "(k + r)",
        "OutOfBounds",
    ),
    "direct: fragments swapped": (
        direct,
        r"tokens\.v \+ 2 \* step",
        "tokens.v + 2 - 2 * step",
        WRONG,
    ),
    "direct: no barrier before the sum": (direct, r"__syncthreads\(\);", "", "Race|Uninitialised"),
    "direct: splits written over one another": (
        direct_split,
        r"\(size_t\)blockIdx\.y \* M \* N",
        "(size_t)blockIdx.y * N",
        WRONG,
    ),
    "direct: splits walk K by the wrong stride": (
        direct_split,
        r"unit \+= WARPS \* gridDim\.y",
        "unit += WARPS",
        WRONG,
    ),
    "skinny: cp.async waited for one too late": (
        skinny,
        r"copies_wait<0>\(\)",
        "copies_wait<1>()",
        "InFlight",
    ),
    "skinny: no barrier after the wait": (
        skinny,
        r"__syncthreads\(\);  // tokens of this.*",
        "",
        "Race|InFlight|Uninitialised",
    ),
    "skinny: one buffer for two stretches": (
        skinny,
        r"fetch_tokens\(stretch \+ 1, 1 - half\)",
        "fetch_tokens(stretch + 1, half)",
        "Race|InFlight|Uninitialised",
    ),
    "skinny: tokens read that are not there": (
        skinny,
        r"min\(8 \* mt \+ lane % 8, n_tokens - 1\)",
        "8 * mt + lane % 8",
        "Uninitialised",
    ),
    "skinny: sums overtake the tokens": (
        skinny,
        r"__syncthreads\(\);  // sums take.*",
        "",
        "Race",
    ),
    "skinny: no bound on rows": (skinny, r"if \(n >= N\) continue;", "", "OutOfBounds|wrong.*"),
    "skinny: one group for a tile": (
        skinny,
        r"group_of\(kt \* TILE_K \+ unit \* UNIT\)",
        "group_of(kt * TILE_K)",
        WRONG,
    ),
    "skinny: bytes of rows exchanged": (
        skinny_bytes,
        r"r % 2 \? 0x4342u : 0x4140u",
        "r % 2 ? 0x4140u : 0x4342u",
        WRONG,
    ),
    "skinny: tokens past K not zeroed": (
        skinny,
        r"const bool is_inside = my_k \+ k < K;",
        "const bool is_inside = true;",
        "OutOfBounds",
    ),
    "mma: waits for one stage too few": (
        mma,
        r"copies_wait<STAGES - 2>\(\)",
        "copies_wait<STAGES - 1>()",
        "InFlight|Race",
    ),
    "mma: no barrier after the wait": (
        mma,
        r"__syncthreads\(\);  // this stage is.*",
        "",
        "Race|InFlight|Uninitialised",
    ),
    "mma: no swizzle on the way in": (
        mma,
        r"\(piece \^ token % 8\) \* 8",
        "piece * 8",
        WRONG,
    ),
    "mma: scales of the wrong row": (
        mma,
        r"scale_pair\(meta, r % 2\)",
        "scale_pair(meta, r / 2)",
        WRONG,
    ),
    "mma: y overtakes the stages": (
        mma,
        r"__syncthreads\(\);  // y takes the place.*",
        "",
        "Race|InFlight",
    ),
    "mma: splits overlap": (
        mma_split,
        r"min\(first \+ each, n_chunks\)",
        "min(first + each + 1, n_chunks)",
        WRONG,
    ),
    "wgmma: no proxy fence": (wgmma, r"    proxy_fence\(\);", "", "MissingFence"),
    "wgmma: no swizzle on the way in": (
        wgmma,
        r"\(piece \^ token % 8\) \* 8",
        "piece * 8",
        WRONG,
    ),
    "wgmma: wrong descriptor step": (wgmma, r"b \+ 2 \* step", "b + step", WRONG),
    "wgmma: wrong descriptor stride": (wgmma, r"\(1024 >> 4\) << 32", "(512 >> 4) << 32", WRONG),
    "wgmma: swizzle not asked for": (
        wgmma,
        r"\(u64\)1 << 62",
        "(u64)0 << 62",
        "wrong.*|Uninitialised|OutOfBounds",
    ),
    "wgmma: accumulators not waited for": (
        wgmma,
        r"wait_group\.sync\.aligned 0",
        "wait_group.sync.aligned 1",
        "InFlight",
    ),
    "wgmma: no fence for registers": (wgmma, r"    wgmma_fence\(\);", "", "MissingFence"),
    "wgmma: decodes into fragments in use": (
        wgmma,
        r"turn\(chunk, even, odd, odd_packed\)",
        "turn(chunk, even, even, odd_packed)",
        "InFlight|wrong.*",
    ),
    "wgmma: fetches into the stage in use": (
        wgmma,
        r"\(count \+ STAGES - 1\) % STAGES, chunk",
        "count % STAGES, chunk",
        "InFlight|Race",
    ),
    "dequant: no bound on columns": (
        dequantize,
        r"if \(j >= n_words \|\| first >= K\) return;",
        "if (first >= K) return;",
        "OutOfBounds",
    ),
    "dequant: nibbles in plain order": (
        dequantize,
        r"zero_word >> \(4 \* i \+ 16\)",
        "zero_word >> (4 * i + 4)",
        WRONG,
    ),
    "tile dequant: no __syncwarp": (tile_dequantize, r"__syncwarp\(\);", "", "Race"),
    "tile dequant: unit of a tile ignored": (
        tile_dequantize,
        r"group_of\(blockIdx\.x \* TILE_K \+ unit \* UNIT\)",
        "group_of(blockIdx.x * TILE_K)",
        WRONG,
    ),
    "repack: columns in plain order": (
        repack,
        r"column / 2 \+ column % 2 \* 4",
        "column",
        WRONG,
    ),
    "repack: no bound on rows": (
        repack,
        r"if \(n >= N \|\| k >= K\) return 0;",
        "if (n >= N) return 0;",
        "OutOfBounds",
    ),
    "sum: no bound": (sum_splits, r"if \(i >= size\) return;", "", "OutOfBounds"),
}
