"""Small CUDA programs: right ones give their answers, wrong ones the fault and its line."""

import numpy as np
import pytest

from ptx import faults
from ptx.build import needs_nvrtc, source_program
from ptx.launch import SCHEDULES, launch

pytestmark = needs_nvrtc

KERNEL = 'extern "C" __global__ void k(const float *x, float *y, int n) {\n%s\n}'

REDUCE = r"""
  __shared__ float part[4];
  float sum = 0;
  for (int i = blockIdx.x * 128 + threadIdx.x; i < n; i += gridDim.x * 128) sum += x[i];
  for (int by = 16; by; by /= 2) sum += __shfl_xor_sync(~0u, sum, by);
  if (threadIdx.x % 32 == 0) part[threadIdx.x / 32] = sum;
  __syncthreads();
  if (threadIdx.x == 0) atomicAdd(y, part[0] + part[1] + part[2] + part[3]);
"""


def run(body, n=1000, *, n_out=1024, threads=128, blocks=3, arch="80", **how):
    x = np.arange(n, dtype=np.float32)
    y = np.zeros(n_out, np.float32)
    program = source_program(KERNEL % body, arch)
    launch(program, (blocks,), (threads,), [x, y, np.int32(n)], inputs=(0,), **how)
    return x, y


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_reduction_is_right_in_every_order(schedule):
    x, y = run(REDUCE, schedule=schedule)
    assert y[0] == x.sum()


def test_lanes_part_and_meet_again():
    body = """
  int i = threadIdx.x, steps = 0;
  for (int v = i; v > 1; v = v % 2 ? 3 * v + 1 : v / 2) ++steps;
  if (i & 1) steps = -steps; else steps *= 2;
  y[i] = steps + __shfl_xor_sync(~0u, steps, 1);"""
    _, y = run(body, blocks=1)

    def collatz(v):
        return 0 if v <= 1 else 1 + collatz(3 * v + 1 if v % 2 else v // 2)

    own = [collatz(i) * (-1 if i % 2 else 2) for i in range(128)]
    assert y[:128].tolist() == [own[i] + own[i ^ 1] for i in range(128)]


def test_cp_async_delivers_what_is_waited_for():
    body = r"""
  __shared__ __align__(16) float s[2][128];
  unsigned to = (unsigned)__cvta_generic_to_shared(&s[0][threadIdx.x * 4]);
  if (threadIdx.x < 32) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" :: "r"(to), "l"(x + threadIdx.x * 4));
    asm volatile("cp.async.commit_group;");
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, 0;" :: "r"(to + 512), "l"(x));
    asm volatile("cp.async.commit_group;");
    asm volatile("cp.async.wait_group 0;" ::: "memory");  // wait
  }
  __syncthreads();
  y[threadIdx.x] = s[0][threadIdx.x] + s[1][threadIdx.x];"""
    x, y = run(body, blocks=1)
    assert np.array_equal(y[:128], x[:128])  # the second copy is 16 zeros
    with pytest.raises(faults.InFlight, match="read while it is copied"):
        run(body.replace("wait_group 0", "wait_group 1"), blocks=1)
    with pytest.raises(faults.Race, match="written and read"):
        run(body.replace("__syncthreads();", ""), blocks=1)


WRONG = {
    "beyond the end": (
        "  y[blockIdx.x * 512 + threadIdx.x] = 1;",
        faults.OutOfBounds,
        r"source.cu:2 .*: bytes 4096 to 4099 of argument 1, which has 4096, by thread 0 of block",
    ),
    "before the start": ("  y[-1 - (int)threadIdx.x] = 1;", faults.OutOfBounds, "before argument"),
    "null": ("  *(float *)4 = 1;", faults.OutOfBounds, "in no array"),
    "misaligned": (
        "  *(float2_ *)(y + 1 + 2 * threadIdx.x) = {1, 2};",
        faults.Misaligned,
        "no multiple of 8",
    ),
    "a store to an input": ("  ((float *)x)[threadIdx.x] = 1;", faults.ReadOnly, "an input"),
    "shared memory's end": (
        "  __shared__ float s[32]; s[threadIdx.x] = 1; y[0] = s[31 - threadIdx.x % 32];",
        faults.OutOfBounds,
        "bytes 128 to 131 of 128",
    ),
    "unwritten": (
        "  __shared__ float s[128]; if (threadIdx.x < 64) s[threadIdx.x] = 1; __syncthreads();\n"
        "  y[threadIdx.x] = s[threadIdx.x];",
        faults.Uninitialised,
        "source.cu:3 .*byte 256 ",
    ),
    "write, then read": (
        "  __shared__ float s[128]; s[threadIdx.x] = 1;\n  y[threadIdx.x] = s[127 - threadIdx.x];",
        faults.Race,
        "source.cu:3 .*written and read with no barrier",
    ),
    "read, then write": (
        "  __shared__ float s[128]; s[threadIdx.x] = 1; __syncthreads();\n"
        "  float v = s[127 - threadIdx.x]; s[threadIdx.x] = v + 1; y[threadIdx.x] = v;",
        faults.Race,
        "read and written with no barrier",
    ),
    "many readers, one writer": (
        "  __shared__ float s; s_init; __syncthreads();\n"
        "  y[threadIdx.x] = s; if (threadIdx.x == 5) s = 2;",
        faults.Race,
        "read and written",
    ),
    "two writers at once": (
        "  __shared__ float s[2]; s[threadIdx.x % 2] = threadIdx.x; __syncthreads(); y[0] = s[1];",
        faults.Race,
        "two threads at once|written and written",
    ),
    "a barrier that some skip": (
        "  if (threadIdx.x > 99) return; __syncthreads(); y[0] = 1;",
        faults.Deadlock,
        "28 threads have ended",
    ),
    "two barriers at once": (
        "  if (threadIdx.x < 32) { __syncthreads(); y[0] = 1; }\n"
        "  else { __syncthreads(); y[1] = 2; }",
        faults.Deadlock,
        "a different barrier",
    ),
    "no end, and lanes that part": (
        "  volatile float *p = y; int i = threadIdx.x;\n"
        "  while (p[0] == 0) { if (i++ & 1) p[1] = i; }",
        faults.Deadlock,
        "no end after",
    ),
    "no end": (
        "  volatile float *p = y; while (p[0] == 0) {}",
        faults.Deadlock,
        "no end after",
    ),
    "a shuffle without its lanes": (
        "  if (threadIdx.x & 1) y[0] = __shfl_xor_sync(~0u, x[threadIdx.x], 2);",
        faults.Divergence,
        "elsewhere",
    ),
    "ld.global.nc of what is written": (
        '  y[threadIdx.x] = 1; float v; asm volatile("ld.global.nc.f32 %0, [%1];" : "=f"(v)\n'
        '  : "l"(y)); y[1] = v;',
        faults.ReadOnly,
        "which this launch writes",
    ),
}


@pytest.mark.parametrize("name", WRONG)
@pytest.mark.parametrize("schedule", ["together", "shuffled"])
def test_a_fault_is_found_and_placed(name, schedule):
    body, kind, text = WRONG[name]
    if schedule == "shuffled":  # another thread may be the first to go wrong
        kind, text = (kind, faults.Uninitialised), "source.cu:[23] "
    body = body.replace("s_init", "if (threadIdx.x == 0) s = 1")
    source = "struct alignas(8) float2_ { float a, b; };" if "float2_" in body else ""
    with pytest.raises(kind, match=text):
        program = source_program(source + KERNEL % body, "80")
        arrays = [np.ones(1024, np.float32), np.zeros(1024, np.float32), np.int32(1024)]
        how = {"schedule": schedule, "step_limit": 3000}
        launch(program, (3,), (128,), arrays, inputs=(0,), **how)


def test_warps_may_talk_after_syncwarp_alone():
    body = """  __shared__ float s[128]; s[threadIdx.x] = threadIdx.x; __syncwarp();
  y[threadIdx.x] = s[threadIdx.x ^ 1];"""
    _, y = run(body, blocks=1)
    assert y[:128].tolist() == [i ^ 1 for i in range(128)]
    with pytest.raises(faults.Race):
        run(body.replace("__syncwarp();", ""), blocks=1)
    with pytest.raises(faults.Race):
        run(body.replace("^ 1", "^ 32"), blocks=1)


def test_dynamic_shared_memory_follows_the_static_one():
    body = """  extern __shared__ float more[]; __shared__ float s[128];
  s[threadIdx.x] = threadIdx.x; more[127 - threadIdx.x] = 2; __syncthreads();
  y[threadIdx.x] = s[127 - threadIdx.x] + more[threadIdx.x];"""
    _, y = run(body, blocks=1, shared_bytes=512)
    assert y[:128].tolist() == [129 - i for i in range(128)]
    with pytest.raises(faults.OutOfBounds, match="of 1020 bytes"):
        run(body, blocks=1, shared_bytes=508)


def test_atomics_return_each_old_value_once():
    body = """
  int *p = (int *)y, i = blockIdx.x * 128 + threadIdx.x;
  p[4 + i] = atomicAdd(p, 1);
  atomicMax(p + 1, i); atomicMin(p + 2, -i);
  atomicInc((unsigned *)p + 3, 99);"""
    _, y = run(body)
    y = y.view(np.int32)
    assert sorted(y[4:388].tolist()) == list(range(384))
    assert y[:4].tolist() == [384, 383, -383, 384 % 100]
