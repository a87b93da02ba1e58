// Dequantize, AWQ checkpoint layout to a dense matrix: W[k, n] = (code - zero) * scale, computed
// in fp32 and rounded once to the activations' type.
//
//   qweight (K, N/8) u32   nibble i of a word: column 8j + 2i, nibble i + 4: column 8j + 2i + 1
//   qzeros  (G, N/8) u32   likewise
//   scales  (G, N) fp16
//   out     (K, N) fp16 or bf16
//
// Grid (ceil(N/8 / 32), ceil(K / (8 ROWS))), block (32, 8). A thread takes a word in each of ROWS
// rows of one group and writes 16 bytes a row: loads and stores of a warp are contiguous.
// Macros: BF16, GROUP (0: whole rows), ROWS (divides 32). Reference: grid.dequantize_groups.
#include "codes.cuh"

#ifndef GROUP
#define GROUP 128
#endif
#ifndef ROWS
#define ROWS 8
#endif

extern "C" __global__ __launch_bounds__(256) void w4_dequant(
    const u32 *__restrict__ qweight, const u32 *__restrict__ qzeros,
    const u16 *__restrict__ scales, u16 *__restrict__ out, int N, int K) {
  const int n_words = N / 8;
  const int j = blockIdx.x * 32 + threadIdx.x;
  const int first = (blockIdx.y * 8 + threadIdx.y) * ROWS;
  if (j >= n_words || first >= K) return;

  u32 words[ROWS];
#pragma unroll
  for (int r = 0; r < ROWS; ++r)
    words[r] = first + r < K ? load_once4(qweight + (size_t)(first + r) * n_words + j) : 0;

  const int group = GROUP ? first / (GROUP ? GROUP : 1) : 0;
  const u32 zero_word = qzeros[(size_t)group * n_words + j];
  const Words4 scale_words = load16(scales + ((size_t)group * n_words + j) * 8);
  float scale[8], zero[8];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    scale[2 * i] = fp16_to_float((u16)scale_words.v[i]);
    scale[2 * i + 1] = fp16_to_float((u16)(scale_words.v[i] >> 16));
    // 2**23 + zero, from which 2**23 + code is taken exactly
    zero[2 * i] = __uint_as_float(0x4b000000u | (zero_word >> 4 * i & 15));
    zero[2 * i + 1] = __uint_as_float(0x4b000000u | (zero_word >> (4 * i + 16) & 15));
  }
#pragma unroll
  for (int r = 0; r < ROWS; ++r) {
    if (first + r >= K) break;
    Words4 row;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float low = __uint_as_float(0x4b000000u | (words[r] >> 4 * i & 15));
      const float high = __uint_as_float(0x4b000000u | (words[r] >> (4 * i + 16) & 15));
      row.v[i] = pair_of((low - zero[2 * i]) * scale[2 * i],
                         (high - zero[2 * i + 1]) * scale[2 * i + 1]);
    }
    store16(out + ((size_t)(first + r) * n_words + j) * 8, row);
  }
}
