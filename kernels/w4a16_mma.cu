// y = x Wᵀ for many tokens, from tiles, with mma.sync (sm_80 and up): W4A16, and W8A16 with
// BITS=8.
//
//   y[m, n] = sum over k of x[m, k] W[n, k],   W = (code - zero) * scale rounded to x's type
//
//   x  (M, K) fp16 or bf16, K a multiple of 8, 16-byte aligned
//   codes, scales, zeros   tiles.cuh
//   y  (M, N) like x, or partial (splits, M, N) fp32: chunks.cuh
//
// The weights are the A operand: every warp decodes RT tiles of its own, once, and multiplies
// them by all of the block's tokens, which ldmatrix reads from shared memory.
//
// Grid (ceil(M/BM), ceil(N/ROWS), splits), block 32 WARPS; ROWS = 16 RT WARPS.
// Macros: those of chunks.cuh; RT, WARPS. Reference: x @ grid.dequantize_groups(...).T
#ifndef RT
#define RT 2
#endif
#ifndef WARPS
#define WARPS 4
#endif
#define ROWS (16 * RT * WARPS)
#define THREADS (32 * WARPS)
#include "chunks.cuh"

#if __CUDA_ARCH__ < 800
#error "w4a16_mma needs sm_80"
#endif

extern "C" __global__ __launch_bounds__(THREADS, 1) void w4a16_mma(
    const u16 *__restrict__ x, const u32 *__restrict__ codes, const Scale *__restrict__ scales,
    const u8 *__restrict__ zeros, u16 *__restrict__ y, float *__restrict__ partial,
    int M, int N, int K) {
  __shared__ __align__(128) Shared shared;
  const Problem p = {x, codes, scales, zeros, M, N, K,
                     (N + TILE_ROWS - 1) / TILE_ROWS, (K + TILE_K - 1) / TILE_K};
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const Range range = chunks_of_split(K);
  const Fetcher fetcher = make_fetcher(p, shared);

  auto fetch = [&](int chunk, Packed *to) {
#pragma unroll
    for (int rt = 0; rt < RT; ++rt) {
      // Past the last tile or chunk: that one again, and nothing of it is kept.
      const int tile = min((int)(blockIdx.y * WARPS + warp) * RT + rt, p.n_tiles - 1);
      to[rt] = fetch_packed(p, tile, max(range.first, min(chunk, range.last - 1)), lane);
    }
  };

  float acc[RT][BM / 8][4] = {};
  Packed next[RT];
  if (range.first < range.last) fetch(range.first, next);
#pragma unroll
  for (int i = 0; i < STAGES - 1; ++i)
    fetch_tokens(p, fetcher, i, range.first + i, range.last);

  for (int chunk = range.first; chunk < range.last; ++chunk) {
    const int turn = chunk - range.first;
    copies_wait<STAGES - 2>();
    __syncthreads();  // this stage is there for all, and nobody reads the one before it
    fetch_tokens(p, fetcher, (turn + STAGES - 1) % STAGES, chunk + STAGES - 1, range.last);
    Packed now[RT];
#pragma unroll
    for (int rt = 0; rt < RT; ++rt) now[rt] = next[rt];
    fetch(chunk + 1, next);

    // Lanes 0-7, 8-15: the two halves of a step for 8 tokens; 16-31: for the 8 tokens after.
    const int token = lane % 8 + lane / 16 * 8;
    const u32 rows = shared_address(&shared.stages[turn % STAGES][token][0]);
#pragma unroll
    for (int step = 0; step < CHUNK_STEPS; ++step) {
      u32 a[RT][4];
#pragma unroll
      for (int rt = 0; rt < RT; ++rt) decode_scaled(now[rt], step, a[rt]);
      const u32 piece = (2 * step + lane / 8 % 2) ^ (lane % 8);
#pragma unroll
      for (int j = 0; j < BM / 16; ++j) {
        const Words4 b = load_matrices(rows + j * 16 * CHUNK * 2 + piece * 16);
#pragma unroll
        for (int rt = 0; rt < RT; ++rt) {
          multiply(acc[rt][2 * j], a[rt], b.v);
          multiply(acc[rt][2 * j + 1], a[rt], b.v + 2);
        }
      }
    }
  }
  copies_wait<0>();
  __syncthreads();  // y takes the place of the stages
#pragma unroll
  for (int rt = 0; rt < RT; ++rt)
    put_sums(p, shared, partial, acc[rt], (warp * RT + rt) * TILE_ROWS, lane);
  write_out(p, shared, y);
}
