// y = x Wᵀ for many tokens, from tiles, with wgmma (sm_90a alone): W4A16, and W8A16 with
// BITS=8.
//
//   y[m, n] = sum over k of x[m, k] W[n, k],   W = (code - zero) * scale rounded to x's type
//
//   x  (M, K) fp16 or bf16, K a multiple of 8, 16-byte aligned
//   codes, scales, zeros   tiles.cuh
//   y  (M, N) like x, or partial (splits, M, N) fp32: chunks.cuh
//
// wgmma takes its A operand, 64 output channels x 16 input channels, from the registers of four
// warps, and a warp's quarter of it is the A fragment of mma.m16n8k16: the same tiles serve. B is
// the tokens, read from shared memory by the tensor core itself. While it works on a chunk the
// warps decode the next one.
//
// Grid (ceil(M/BM), ceil(N/ROWS), splits), block 128 GROUPS_4; ROWS = 64 GROUPS_4.
// Macros: those of chunks.cuh (BM 64 or 128), GROUPS_4 (groups of four warps).
// Reference: x @ grid.dequantize_groups(...).T
#ifndef GROUPS_4
#define GROUPS_4 2
#endif
#define ROWS (64 * GROUPS_4)
#define THREADS (128 * GROUPS_4)
#include "chunks.cuh"

#if BF16
#define TYPE "bf16"
#else
#define TYPE "f16"
#endif
#define OUT4(c) "+f"((c)[0]), "+f"((c)[1]), "+f"((c)[2]), "+f"((c)[3])

// Registers written before (accumulators, A) are seen by the wgmma after it.
DEVICE void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
DEVICE void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
// Waits for every wgmma of this thread, whose sums no instruction may read or move before.
DEVICE void wgmma_wait(float c[BM / 8][4]) {
  asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
#pragma unroll
  for (int i = 0; i < BM / 2; ++i) asm volatile("" : "+f"(c[i / 4][i % 4])::"memory");
}
// Shared memory written by this thread (cp.async too) is seen by the tensor core.
DEVICE void proxy_fence() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// Where B lies: a K-major matrix with rows of 128 bytes, swizzled by 128 bytes, eight rows to
// 1024 bytes; addresses are in units of 16 bytes. 16 input channels further on is + 2.
DEVICE u64 descriptor_of(const void *stage) {
  return (u64)(shared_address(stage) >> 4 & 0x3fff) | (u64)1 << 16 | (u64)(1024 >> 4) << 32 |
         (u64)1 << 62;
}

// c += A B for 64 output channels, 16 input channels and BM tokens; returns before it is done.
DEVICE void multiply_async(float c[BM / 8][4], const u32 a[4], u64 b) {
#if BM == 64
  asm volatile(
      "{.reg .pred p; setp.ne.b32 p, %37, 0; "
      "wgmma.mma_async.sync.aligned.m64n64k16.f32." TYPE "." TYPE " "
        "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15, "
        "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31}, "
        "{%32,%33,%34,%35}, %36, p, 1, 1, 0;}"
      : OUT4(c[0]), OUT4(c[1]), OUT4(c[2]), OUT4(c[3]), OUT4(c[4]), OUT4(c[5]),
          OUT4(c[6]), OUT4(c[7])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(1));
#elif BM == 128
  asm volatile(
      "{.reg .pred p; setp.ne.b32 p, %69, 0; "
      "wgmma.mma_async.sync.aligned.m64n128k16.f32." TYPE "." TYPE " "
        "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15, "
        "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31, "
        "%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47, "
        "%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63}, "
        "{%64,%65,%66,%67}, %68, p, 1, 1, 0;}"
      : OUT4(c[0]), OUT4(c[1]), OUT4(c[2]), OUT4(c[3]), OUT4(c[4]), OUT4(c[5]),
          OUT4(c[6]), OUT4(c[7]), OUT4(c[8]), OUT4(c[9]), OUT4(c[10]), OUT4(c[11]),
          OUT4(c[12]), OUT4(c[13]), OUT4(c[14]), OUT4(c[15])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(1));
#else
#error "BM is 64 or 128"
#endif
}

struct Fragments { u32 a[CHUNK_STEPS][4]; };
DEVICE void decode_chunk(const Packed &packed, Fragments &to) {
#pragma unroll
  for (int step = 0; step < CHUNK_STEPS; ++step) decode_scaled(packed, step, to.a[step]);
}

extern "C" __global__ __launch_bounds__(THREADS, 1) void w4a16_wgmma(
    const u16 *__restrict__ x, const u32 *__restrict__ codes, const Scale *__restrict__ scales,
    const u8 *__restrict__ zeros, u16 *__restrict__ y, float *__restrict__ partial,
    int M, int N, int K) {
  __shared__ __align__(1024) Shared shared;
  const Problem p = {x, codes, scales, zeros, M, N, K,
                     (N + TILE_ROWS - 1) / TILE_ROWS, (K + TILE_K - 1) / TILE_K};
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  // A warp past the last tile repeats it, and nothing of it is kept.
  const int tile = min((int)blockIdx.y * (ROWS / TILE_ROWS) + warp, p.n_tiles - 1);
  const Range range = chunks_of_split(K);
  const Fetcher fetcher = make_fetcher(p, shared);

  auto fetch = [&](int chunk) {
    return fetch_packed(p, tile, max(range.first, min(chunk, range.last - 1)), lane);
  };
  float acc[BM / 8][4] = {};
  // Multiplies chunk by `use`; meanwhile decodes the next one from `packed` into `make`, and
  // sends for the one two after that.
  auto turn = [&](int chunk, const Fragments &use, Fragments &make, Packed &packed) {
    const int count = chunk - range.first;
    copies_wait<STAGES - 2>();
    proxy_fence();
    __syncthreads();  // this stage is there for all, and nobody reads the one before it
    fetch_tokens(p, fetcher, (count + STAGES - 1) % STAGES, chunk + STAGES - 1, range.last);
    const u64 b = descriptor_of(shared.stages[count % STAGES]);
    wgmma_fence();
#pragma unroll
    for (int step = 0; step < CHUNK_STEPS; ++step)
      multiply_async(acc, use.a[step], b + 2 * step);
    wgmma_commit();
    decode_chunk(packed, make);
    packed = fetch(chunk + 3);
    wgmma_wait(acc);
  };

  if (range.first < range.last) {
#pragma unroll
    for (int i = 0; i < STAGES - 1; ++i)
      fetch_tokens(p, fetcher, i, range.first + i, range.last);
    Fragments even, odd;
    Packed even_packed = fetch(range.first), odd_packed = fetch(range.first + 1);
    decode_chunk(even_packed, even);
    even_packed = fetch(range.first + 2);
    for (int chunk = range.first; chunk < range.last; chunk += 2) {
      turn(chunk, even, odd, odd_packed);
      if (chunk + 1 < range.last) turn(chunk + 1, odd, even, even_packed);
    }
    copies_wait<0>();
    __syncthreads();  // y takes the place of the stages
  }
  put_sums(p, shared, partial, acc, warp * TILE_ROWS, lane);
  write_out(p, shared, y);
}
