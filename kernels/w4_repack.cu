// Repack codes into tiles (the layout of tiles.cuh), of 4 or 8 bits: a thread makes one word.
//
//   source  (N, K) u8, one code a byte              where AWQ is 0, BITS 4 or 8
//           (K, N/8) u32, AWQ checkpoint words      where AWQ is 1, BITS 4
//   codes   (ceil(N/16), ceil(K/128), BITS/2, 32, 4) u32; padding becomes code 0
//
// Grid ceil(words / 256), block 256. Scales and zero points are few, and are rearranged by torch.
// Macros: BITS, AWQ. Reference: gemm.cuda_layout.pack_codes.
#include "tiles.cuh"

#ifndef AWQ
#define AWQ 0
#endif

#if AWQ
DEVICE u32 code_at(const u32 *source, int n, int k, int N, int K) {
  if (n >= N || k >= K) return 0;
  const int column = n % 8;
  return source[(size_t)k * (N / 8) + n / 8] >> 4 * (column / 2 + column % 2 * 4) & 15;
}
#else
DEVICE u32 code_at(const u8 *source, int n, int k, int N, int K) {
  return n < N && k < K ? source[(size_t)n * K + k] : 0;
}
#endif

extern "C" __global__ __launch_bounds__(256) void w4_repack(
#if AWQ
    const u32 *__restrict__ source,
#else
    const u8 *__restrict__ source,
#endif
    u32 *__restrict__ codes, int N, int K) {
  const int k_tiles = (K + TILE_K - 1) / TILE_K, n_tiles = (N + TILE_ROWS - 1) / TILE_ROWS;
  const int word = blockIdx.x * 256 + threadIdx.x;
  if (word >= n_tiles * k_tiles * TILE_WORDS) return;
  const int tile = word / TILE_WORDS, inside = word % TILE_WORDS;
  const int lane = inside / 4 % 32;
  // Of this lane's words, in order of K.
  const int index = inside / 128 * 4 + inside % 4;
  const int n = tile / k_tiles * TILE_ROWS + lane / 4;
  int k = tile % k_tiles * TILE_K + index / STEP_WORDS * 16 + 2 * (lane % 4);
  u32 made = 0;
#if BITS == 4
#pragma unroll
  for (int r = 0; r < 4; ++r) {
    const int row = n + r % 2 * 8, at = k + r / 2 * 8;
    made |= code_at(source, row, at, N, K) << 4 * r;
    made |= code_at(source, row, at + 1, N, K) << (4 * r + 16);
  }
#else
  k += index % 2 * 8;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    made |= code_at(source, n + 8 * r, k, N, K) << 16 * r;
    made |= code_at(source, n + 8 * r, k + 1, N, K) << (16 * r + 8);
  }
#endif
  codes[word] = made;
}
