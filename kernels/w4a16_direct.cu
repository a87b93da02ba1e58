// y = x Wᵀ for few tokens, straight from an AWQ checkpoint: no repacking, no second copy.
//
//   y[m, n] = sum over groups g of scale[g, n] * (sum over k of x[m, k] (code[k, n] - zero[g, n]))
//
//   x       (M, K) fp16 or bf16, K a multiple of 8, 16-byte aligned
//   qweight (K, N/8) u32   nibble i of a word: column 8j + 2i, nibble i + 4: column 8j + 2i + 1
//   qzeros  (G, N/8) u32   likewise
//   scales  (G, N) fp16
//   y       (M, N) like x, written where gridDim.y is 1
//   partial (gridDim.y, M, N) fp32, written where it is not; sum_splits.cu adds them up
//
// The weights are the A operand of mma (16 output channels x 16 input channels), so that 8 tokens
// cost what 1 does. In a stretch of 32 input channels lane (g, t) owns channels 8t to 8t + 7 and
// the 16 output channels of two words: two prmt join a word with that of the next channel, which
// makes pairs along K. Differences code - zero are exact, products are summed in fp32.
//
// Grid (ceil(N/128), splits of K, ceil(M/8)), block 32 * WARPS; a warp covers 128 output channels
// and every (WARPS * splits)-th stretch of UNIT input channels.
// Macros: BF16, GROUP (a multiple of 32; 0: whole rows), WARPS, WIDE (1: N is a multiple of 16,
// words are loaded in twos). Reference: x @ grid.dequantize_groups(...).T
#include "codes.cuh"

#ifndef GROUP
#define GROUP 128
#endif
#ifndef WARPS
#define WARPS 8
#endif
#ifndef WIDE
#define WIDE 1
#endif
#if GROUP % 128 == 0
#define UNIT 128
#elif GROUP % 64 == 0
#define UNIT 64
#else
#define UNIT 32
#endif

DEVICE Words2 load_words(const u32 *row, int j, int n_words) {
  Words2 r = {{0, 0}};
#if WIDE
  if (j < n_words) r = load_once8(row + j);
#else
  if (j < n_words) r.v[0] = load_once4(row + j);
  if (j + 1 < n_words) r.v[1] = load_once4(row + j + 1);
#endif
  return r;
}

extern "C" __global__ __launch_bounds__(32 * WARPS) void w4a16_direct(
    const u16 *__restrict__ x, const u32 *__restrict__ qweight, const u32 *__restrict__ qzeros,
    const u16 *__restrict__ scales, u16 *__restrict__ y, float *__restrict__ partial,
    int M, int N, int K) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int g = lane / 4, t = lane % 4;
  const int n_words = N / 8;
  const int j = blockIdx.x * 16 + 2 * g;  // this lane's words of a row: j and j + 1
  const int token = blockIdx.z * 8 + g;

  // [word][nibble]: rows g and g+8 of the tile are output channels 8(j + v) + 2i and + 2i + 1
  float total[2][4][4] = {};
  const int n_units = (K + UNIT - 1) / UNIT;
  for (int unit = blockIdx.y * WARPS + warp; unit < n_units; unit += WARPS * gridDim.y) {
    const int group = GROUP ? unit * UNIT / (GROUP ? GROUP : 1) : 0;
    const Words2 zero_words = load_words(qzeros + (size_t)group * n_words, j, n_words);
    float acc[2][4][4] = {};
#pragma unroll 2
    for (int at = 0; at < UNIT; at += 32) {
      const int k = unit * UNIT + at + 8 * t;
      if (unit * UNIT + at >= K) break;
      const bool is_inside = k < K;
      Words2 words[8];
#pragma unroll
      for (int r = 0; r < 8; ++r)
        words[r] = load_words(qweight + (size_t)(is_inside ? k + r : 0) * n_words, j, n_words);
      Words4 tokens = {{0, 0, 0, 0}};
      if (token < M && is_inside) tokens = load16(x + (size_t)token * K + k);
#pragma unroll
      for (int step = 0; step < 2; ++step)
#pragma unroll
        for (int v = 0; v < 2; ++v) {
          const u32 w0 = words[4 * step].v[v], w1 = words[4 * step + 1].v[v];
          const u32 w2 = words[4 * step + 2].v[v], w3 = words[4 * step + 3].v[v];
          const u32 even[2] = {permute(w0, w1, 0x5410), permute(w2, w3, 0x5410)};
          const u32 odd[2] = {permute(w0, w1, 0x7632), permute(w2, w3, 0x7632)};
          const u32 even_zero = permute(zero_words.v[v], 0, 0x1010);
          const u32 odd_zero = permute(zero_words.v[v], 0, 0x3232);
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            const u32 z0 = negative_pair(nibble_pair(even_zero, i));
            const u32 z1 = negative_pair(nibble_pair(odd_zero, i));
            const u32 a[4] = {
                add_pair(nibble_pair(even[0], i), z0), add_pair(nibble_pair(odd[0], i), z1),
                add_pair(nibble_pair(even[1], i), z0), add_pair(nibble_pair(odd[1], i), z1)};
            multiply(acc[v][i], a, tokens.v + 2 * step);
          }
        }
    }
#pragma unroll
    for (int v = 0; v < 2; ++v) {
      if (j + v >= n_words) continue;
      const Words4 s = load16(scales + ((size_t)group * n_words + j + v) * 8);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float low = fp16_to_float((u16)s.v[i]), high = fp16_to_float((u16)(s.v[i] >> 16));
        total[v][i][0] += low * acc[v][i][0];
        total[v][i][1] += low * acc[v][i][1];
        total[v][i][2] += high * acc[v][i][2];
        total[v][i][3] += high * acc[v][i][3];
      }
    }
  }

  // Sum over warps. A pair of neighbouring output channels is one place; its number is folded
  // with bit 1 of g, and a row of tokens padded to 65 places, so that no two lanes of a half warp
  // meet in a bank.
  __shared__ Float2 sums[WARPS][8][65];
#pragma unroll
  for (int v = 0; v < 2; ++v)
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int place = 8 * g + ((4 * v + i) ^ (g >> 1 & 1));
      sums[warp][2 * t][place] = {{total[v][i][0], total[v][i][2]}};
      sums[warp][2 * t + 1][place] = {{total[v][i][1], total[v][i][3]}};
    }
  __syncthreads();
  for (int at = threadIdx.x; at < 8 * 64; at += 32 * WARPS) {
    const int row = at / 64, column = at % 64;
    const int m = blockIdx.z * 8 + row, n = blockIdx.x * 128 + 2 * column;
    if (m >= M || n >= N) continue;
    const int place = column ^ (column >> 4 & 1);
    Float2 sum = {{0, 0}};
#pragma unroll
    for (int w = 0; w < WARPS; ++w) {
      sum.v[0] += sums[w][row][place].v[0];
      sum.v[1] += sums[w][row][place].v[1];
    }
    const size_t to = (size_t)m * N + n;
    if (gridDim.y == 1)
      *(u32 *)(y + to) = pair_of(sum.v[0], sum.v[1]);
    else
      *(Float2 *)(partial + (size_t)blockIdx.y * M * N + to) = sum;
  }
}
