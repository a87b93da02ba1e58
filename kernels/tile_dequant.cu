// Dequantize, tiles to a dense matrix: W[n, k] = (code - zero) * scale, computed in fp32 and
// rounded once to the activations' type.
//
//   codes, scales, zeros   tiles.cuh
//   out (N, K) fp16 or bf16, K a multiple of 8
//
// Grid (ceil(K/128), ceil(N/16 / 8)), block (32, 8): a warp takes a tile. Its pairs go through
// shared memory, so that every store is 16 bytes and a warp's fill 256 bytes of two rows.
// Macros: BITS, BF16, GROUP, SCALE. Reference: grid.dequantize_groups.
#include "tiles.cuh"

#define WARPS 8
// Halves of a row in shared memory; 8 more than the tile has, so that rows g fall in
// different banks.
#define PITCH (TILE_K + 8)

extern "C" __global__ __launch_bounds__(32 * WARPS, 3) void tile_dequant(
    const u32 *__restrict__ codes, const Scale *__restrict__ scales,
    const u8 *__restrict__ zeros, u16 *__restrict__ out, int N, int K) {
  __shared__ __align__(16) u16 rows[WARPS][TILE_ROWS][PITCH];
  const int lane = threadIdx.x, g = lane / 4, t = lane % 4;
  const int k_tiles = gridDim.x, n_tiles = (N + TILE_ROWS - 1) / TILE_ROWS;
  const int tile = blockIdx.y * WARPS + threadIdx.y;
  if (tile >= n_tiles) return;
  const u32 *source = codes + ((size_t)tile * k_tiles + blockIdx.x) * TILE_WORDS + lane * 4;
  u32 words[2 * BITS];
#pragma unroll
  for (int i = 0; i < BITS / 2; ++i) {
    const Words4 four = load_once16(source + 128 * i);
#pragma unroll
    for (int v = 0; v < 4; ++v) words[4 * i + v] = four.v[v];
  }
  u16(*const mine)[PITCH] = rows[threadIdx.y];
#pragma unroll
  for (int unit = 0; unit < TILE_K / UNIT; ++unit) {
    const int group = group_of(blockIdx.x * TILE_K + unit * UNIT);
    const Meta meta = load_meta(scales, zeros, group * n_tiles + tile, lane);
    const Zeros zero = negative_zeros(meta.zeros);
    const float scale[2] = {scale_of(meta, 0), scale_of(meta, 1)};
#pragma unroll
    for (int s = 0; s < UNIT / 16; ++s) {
      const int step = unit * (UNIT / 16) + s;
      u32 a[4];
      decode_step(words + step * STEP_WORDS, zero, a);
#pragma unroll
      for (int r = 0; r < 4; ++r) {
#if BF16
        const float low = bf16_to_float((u16)a[r]), high = bf16_to_float((u16)(a[r] >> 16));
#else
        const float low = fp16_to_float((u16)a[r]), high = fp16_to_float((u16)(a[r] >> 16));
#endif
        *(u32 *)&mine[g + r % 2 * 8][16 * step + r / 2 * 8 + 2 * t] =
            pair_of(low * scale[r % 2], high * scale[r % 2]);
      }
    }
  }
  __syncwarp();
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const int row = 2 * i + lane / 16, at = lane % 16 * 8;
    const int n = tile * TILE_ROWS + row, k = blockIdx.x * TILE_K + at;
    if (n < N && k < K)
      store16(out + (size_t)n * K + k, *(const Words4 *)&mine[row][at]);
  }
}
