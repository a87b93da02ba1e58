"""Counts of known programs, and a row of the traffic table."""

import numpy as np
import pytest

from ptx.build import needs_nvrtc, source_program
from ptx.kernels import launches, run_tiles
from ptx.launch import launch
from ptx.problems import Problem
from ptx.traffic import cases, row_of, traffic_table

pytestmark = needs_nvrtc

KERNEL = """
extern "C" __global__ void k(const float *x, float *y) {
  __shared__ volatile float s[32 * 33];
  float v = x[threadIdx.x * %d];
  s[threadIdx.x * %d] = v;
  y[threadIdx.x] = v;
}"""


def counted(stride, shared_stride):
    arrays = [np.zeros(32 * 32, np.float32), np.zeros(32, np.float32)]
    program = source_program(KERNEL % (stride, shared_stride), "80")
    return launch(program, (1,), (32,), arrays, count=True)


@pytest.mark.parametrize(("stride", "sectors"), [(0, 1), (1, 4), (2, 8), (8, 32), (32, 32)])
def test_sectors_of_strided_loads(stride, sectors):
    loads = counted(stride, 1).traffic["argument 0", "load"]
    assert loads["sectors"] == sectors
    assert loads["requests"] == 1 and loads["bytes"] == 128
    assert loads["ideal_sectors"] == (1 if stride == 0 else 4)
    assert loads["unique_bytes"] == (4 if stride == 0 else 128)


@pytest.mark.parametrize(("stride", "wavefronts"), [(1, 1), (2, 2), (4, 4), (32, 32), (33, 1)])
def test_bank_conflicts_of_strided_stores(stride, wavefronts):
    stores = counted(1, stride).shared["store"]
    assert stores["wavefronts"] == wavefronts and stores["ideal_wavefronts"] == 1


def test_wide_accesses_take_several_wavefronts_and_rows_of_128_bytes_conflict():
    source = r"""
struct alignas(16) Four { float v[4]; };
extern "C" __global__ void k(Four *y) {
  __shared__ Four s[256];
  s[threadIdx.x * STRIDE] = y[threadIdx.x];
  __syncthreads();
  y[threadIdx.x] = s[threadIdx.x * STRIDE];
}"""
    for stride, wavefronts in ((1, 4), (8, 32)):
        program = source_program(source, "80", (f"-DSTRIDE={stride}",))
        counters = launch(program, (1,), (32,), [np.zeros(128, np.float32)], count=True)
        for kind in ("load", "store"):
            assert counters.shared[kind]["wavefronts"] == wavefronts
            assert counters.shared[kind]["ideal_wavefronts"] == 4


def test_instructions_count_once_a_warp():
    counters = counted(1, 1)
    names = [name for name in counters.instructions if name.startswith("ld.global")]
    assert [counters.instructions[name] for name in names] == [1]
    assert counters.classes["memory"] == sum(
        count for name, count in counters.instructions.items() if name[:2] in ("ld", "st")
    )


def test_a_row_of_the_table_is_what_arithmetic_says():
    problem = Problem(8, 32, 1024, 128)
    chosen = launches(problem, "80")[2]  # four tiles of rows a block: one block here
    _, counters = run_tiles(problem, chosen, "80", count=True)
    row = row_of(
        "w4a16_skinny", problem, "80", {0: "x", 1: "codes", 2: "meta", 3: "meta", 4: "y"}, counters
    )
    assert row["codes_sector_ratio"] == row["y_sector_ratio"] == row["bank_conflict_ratio"] == 1
    assert row["x_bytes"] == 2 * 8 * 1024 and row["y_bytes"] == 2 * 8 * 32
    # Two warps of the four have rows of their own and two repeat the last tile.
    assert row["codes_bytes"] == 2 * 32 * 1024 / 2
    parts = [row[name] for name in row if name.endswith("_per_word")]
    assert row["instructions_per_word"] == pytest.approx(sum(parts) / 2)


def test_the_table_holds_the_kernels():
    names = {name.split()[0] for name, *_ in cases()}
    assert names == {
        "w4a16_skinny",
        "w4a16_mma",
        "w4a16_wgmma",
        "w4a16_direct",
        "w4_dequant",
        "tile_dequant",
    }
    small = [case for case in cases(n=32, k=256) if case[0].startswith("tile_dequant")]
    table = traffic_table(small)
    assert table.codes_bytes.tolist() == [32 * 256 / 2]
