// Add up the partial sums of a product whose K was split over blocks:
//   y[i] = sum over s of partial[s, i], in fp32, rounded once to the activations' type.
//
//   partial (S, size) fp32    y (size,) fp16 or bf16, size = M N
//
// Grid ceil(size / 256), block 256. Always in the order of s: results repeat.
// Macros: BF16. Reference: partial.sum(axis=0).
#include "prims.cuh"

extern "C" __global__ __launch_bounds__(256) void sum_splits(
    const float *__restrict__ partial, u16 *__restrict__ y, int n_splits, int size) {
  const int i = blockIdx.x * 256 + threadIdx.x;
  if (i >= size) return;
  float sum = 0;
#pragma unroll 4
  for (int s = 0; s < n_splits; ++s) sum += partial[(size_t)s * size + i];
  y[i] = half_of(sum);
}
