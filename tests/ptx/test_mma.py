"""Fragments: mma, ldmatrix and wgmma against matrix products, places by the PTX manual."""

import re

import numpy as np
import pytest

from ptx.build import needs_nvrtc, source_program
from ptx.faults import Divergence, PtxFault
from ptx.launch import launch
from ptx.ops_wgmma import descriptor_rows

pytestmark = needs_nvrtc

MMA = r"""
extern "C" __global__ void k(const unsigned *a, const unsigned *b, float *c) {
  int lane = threadIdx.x;
  float d[4];
  for (int i = 0; i < 4; ++i) d[i] = c[4 * lane + i];
#if DEPTH == 16
  const unsigned *p = a + 4 * lane, *q = b + 2 * lane;
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32." TYPE "." TYPE ".f32 "
    "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
    : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
    : "r"(p[0]), "r"(p[1]), "r"(p[2]), "r"(p[3]), "r"(q[0]), "r"(q[1]));
#else
  const unsigned *p = a + 2 * lane, *q = b + lane;
  asm volatile("mma.sync.aligned.m16n8k8.row.col.f32." TYPE "." TYPE ".f32 "
    "{%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
    : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]) : "r"(p[0]), "r"(p[1]), "r"(q[0]));
#endif
  for (int i = 0; i < 4; ++i) c[4 * lane + i] = d[i];
}
"""


def a_place(lane, i):
    """Return row and column of the half i of A's registers, as the manual words it."""
    group, thread = lane >> 2, lane % 4
    row = group if i < 2 or 4 <= i < 6 else group + 8
    return row, thread * 2 + (i & 1) + (8 if i >= 4 else 0)


def b_place(lane, i):
    return (lane % 4) * 2 + (i & 1) + (8 if i >= 2 else 0), lane >> 2


def c_place(lane, i):
    return (lane >> 2) + (0 if i < 2 else 8), (lane % 4) * 2 + (i & 1)


def halves(values, kind):
    """Return small integers as bits of ``f16`` or ``bf16``."""
    if kind == "f16":
        return values.astype(np.float16).view(np.uint16)
    return (values.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)


def fragment(matrix, place, count):
    return np.array([[matrix[place(lane, i)] for i in range(count)] for lane in range(32)])


@pytest.mark.parametrize("kind", ["f16", "bf16"])
@pytest.mark.parametrize("depth", [8, 16])
def test_mma_is_a_matrix_product(kind, depth):
    rng = np.random.default_rng(depth)
    a, b = rng.integers(-9, 10, (16, depth)), rng.integers(-9, 10, (depth, 8))
    c = rng.integers(-99, 100, (16, 8)).astype(np.float32)
    program = source_program(MMA, "80", (f"-DDEPTH={depth}", f'-DTYPE="{kind}"'))
    registers = [
        halves(fragment(a, a_place, depth // 2), kind).view(np.uint32),
        halves(fragment(b, b_place, depth // 4), kind).view(np.uint32),
        fragment(c, c_place, 4).astype(np.float32),
    ]
    launch(program, (1,), (32,), registers)
    assert np.array_equal(registers[2], fragment(a @ b + c, c_place, 4))


def test_an_mma_needs_its_whole_warp():
    source = MMA.replace(
        "int lane = threadIdx.x;", "int lane = threadIdx.x; if (lane > 20) return;"
    )
    program = source_program(source, "80", ("-DDEPTH=8", '-DTYPE="f16"'))
    arrays = [np.zeros(64, np.uint32), np.zeros(32, np.uint32), np.zeros(128, np.float32)]
    with pytest.raises(Divergence, match="source.cu:1. .* mma.sync"):
        launch(program, (1,), (32,), arrays)


LDMATRIX = r"""
extern "C" __global__ void k(const unsigned short *in, unsigned *out) {
  __shared__ __align__(16) unsigned short tile[4][8][8];
  for (int i = threadIdx.x; i < 256; i += 32) tile[0][0][i] = in[i];
  __syncthreads();
  unsigned at = (unsigned)__cvta_generic_to_shared(tile[threadIdx.x / 8][threadIdx.x % 8]), r[4];
  asm volatile("ldmatrix.sync.aligned.m8n8.x4" TRANS ".shared.b16 {%0,%1,%2,%3}, [%4];"
    : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(at));
  for (int i = 0; i < 4; ++i) out[threadIdx.x * 4 + i] = r[i];
}
"""


@pytest.mark.parametrize("trans", ["", ".trans"])
def test_ldmatrix_gives_each_lane_two_elements_of_a_row(trans):
    tiles = np.arange(256, dtype=np.uint16).reshape(4, 8, 8)
    out = np.zeros((32, 4), np.uint32)
    program = source_program(LDMATRIX, "75", (f'-DTRANS="{trans}"',))
    launch(program, (1,), (32,), [tiles, out])
    found = out.view(np.uint16).reshape(32, 4, 2)
    for lane in range(32):
        for i in range(4):
            tile = tiles[i].T if trans else tiles[i]
            row, column = lane // 4, lane % 4 * 2
            assert found[lane, i].tolist() == tile[row, column : column + 2].tolist()


# 64 x N = 8 times 32 x 8: two steps of 16. B is written with the 128-byte swizzle.
WGMMA = r"""
extern "C" __global__ void k(const unsigned *a, const unsigned short *b, float *out) {
  __shared__ __align__(1024) unsigned short tile[8][64];
  for (int i = threadIdx.x; i < 8 * 32; i += 128) {
    int n = i / 32, kk = i % 32;
    tile[n][((kk / 8) ^ n) * 8 + kk % 8] = b[i];  // swizzle
  }
  asm volatile("fence.proxy.async;" ::: "memory");  // proxy
  __syncthreads();  // barrier
  float d[4] = {};
  unsigned f[2][4];
  for (int s = 0; s < 2; ++s)
    for (int r = 0; r < 4; ++r) f[s][r] = a[(threadIdx.x * 2 + s) * 4 + r];
  unsigned long long at = (unsigned)__cvta_generic_to_shared(tile);
  at = at >> 4 | 1ull << 16 | 64ull << 32 | 1ull << 62;
  asm volatile("wgmma.fence.sync.aligned;"  // registers
    : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]) :: "memory");
  for (int s = 0; s < 2; ++s)
    asm volatile("wgmma.mma_async.sync.aligned.m64n8k16.f32.f16.f16 "
      "{%0,%1,%2,%3}, {%4,%5,%6,%7}, %8, 1, 1, 1, 0;"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(f[s][0]), "r"(f[s][1]), "r"(f[s][2]), "r"(f[s][3]), "l"(at + 2 * s));
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
  // between
  asm volatile("wgmma.wait_group.sync.aligned 0;"  // wait
    : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]) :: "memory");
  for (int i = 0; i < 4; ++i) out[threadIdx.x * 4 + i] = d[i];
}
"""


def run_wgmma(source=WGMMA, *, threads=128, first=0):
    """Return the 64 x 8 product of 128 threads from `first` on, and the expected one."""
    rng = np.random.default_rng(0)
    a, b = rng.integers(-9, 10, (64, 32)), rng.integers(-9, 10, (8, 32))
    fragments = np.array(
        [
            [[a[16 * warp + row, 16 * s + column] for row, column in places] for s in range(2)]
            for warp in range(4)
            for places in ([a_place(lane, i) for i in range(8)] for lane in range(32))
        ]
    )
    out = np.full((threads, 4), np.nan, np.float32)
    args = [halves(fragments, "f16").view(np.uint32), halves(b, "f16"), out]
    launch(source_program(source, "90a"), (1,), (threads,), args)
    found = np.zeros((64, 8))
    for thread in range(128):
        for i in range(4):
            row, column = c_place(thread % 32, i)
            found[16 * (thread // 32) + row, column] = out[first + thread, i]
    return found, a @ b.T


def test_wgmma_is_a_matrix_product():
    found, expected = run_wgmma()
    assert np.array_equal(found, expected)


def test_warpgroups_wait_apart():
    """The second warpgroup waits, doubles its sums, and only then does the first one wait."""
    start, end = WGMMA.index("  // between"), WGMMA.index("  for (int i = 0; i < 4; ++i) out")
    wait = WGMMA[start:end]
    twice = f"{wait} for (int i = 0; i < 4; ++i) d[i] *= 2;"
    apart = f"if (threadIdx.x >= 128) {{ {twice} }}\nif (threadIdx.x < 128) {{ {wait} }}\n"
    source = WGMMA.replace(wait, apart).replace("i += 128", "i += 256")
    source = source.replace("(threadIdx.x * 2 + s)", "(threadIdx.x % 128 * 2 + s)")
    found, expected = run_wgmma(source, threads=256)
    assert np.array_equal(found, expected)
    found, _ = run_wgmma(source, threads=256, first=128)
    assert np.array_equal(found, 2 * expected)


PLANTED = {
    "no swizzle": ("((kk / 8) ^ n) * 8", "(kk / 8) * 8", "Uninitialised|wrong"),
    "no proxy fence": (r'asm volatile\("fence.proxy.async;" ::: "memory"\);', "", "MissingFence"),
    "no barrier": (r"__syncthreads\(\);", "", "Race|Uninitialised"),
    "no register fence": (
        "wgmma.fence.sync.aligned;",
        "",
        "MissingFence",
    ),
    "no wait": (r"wgmma.wait_group.sync.aligned 0;", "", "InFlight"),
    "wait leaves one": (r"wait_group.sync.aligned 0", "wait_group.sync.aligned 1", "InFlight"),
    "wrong step": (r"at \+ 2 \* s", "at + 3 * s", "Uninitialised|wrong"),
    "B overwritten": (
        "// between",
        "if (threadIdx.x == 0) tile[0][0] = 1;",
        "InFlight",
    ),
    "half a warpgroup": ("// between", "if (threadIdx.x < 64)", "Divergence"),
}


@pytest.mark.parametrize("name", PLANTED)
def test_wgmma_catches(name):
    pattern, replacement, kinds = PLANTED[name]
    source, count = re.subn(pattern if "\\" in pattern else re.escape(pattern), replacement, WGMMA)
    assert count == 1
    try:
        found, expected = run_wgmma(source)
        seen = "right" if np.array_equal(found, expected) else "wrong"
    except PtxFault as fault:
        seen = type(fault).__name__
    assert re.fullmatch(kinds, seen), seen


@pytest.mark.parametrize("mode", [0, 1, 2, 3])
def test_descriptors_reach_every_piece_once(mode):
    width = {0: 16, 1: 128, 2: 64, 3: 32}[mode]
    seen = set()
    for step in range(max(width // 32, 1)):
        start = 2048 + 32 * step
        leading, stride = (128, 256) if mode == 0 else (16, 8 * width)
        rows = descriptor_rows(start >> 4 | leading >> 4 << 16 | stride >> 4 << 32 | mode << 62, 32)
        seen |= set(rows.ravel().tolist())
    assert seen == set(range(2048, 2048 + 32 * max(width, 32), 16))
