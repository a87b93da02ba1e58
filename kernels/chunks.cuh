// What the kernels for many tokens share: stages of tokens, chunks of weights, and the way out.
//
// A block multiplies BM tokens by ROWS output channels. K is walked in chunks of 64: tokens of
// STAGES chunks are in shared memory or on the way there, weights go from memory to registers
// and are scaled in the activations' type, (code - zero) * scale rounded once. With fp16 scales
// and fp16 activations that is what AWQ decodes, bit for bit.
//
// A stage is (BM, 64) with rows of 128 bytes whose 16-byte pieces p lie at p ^ (token % 8):
// wgmma's 128-byte swizzle, and free of bank conflicts for ldmatrix.
//
// Blocks are (ceil(M/BM), ceil(N/ROWS), splits of K). With one split y is written; with more,
// partial (splits, M, N) fp32, which sum_splits.cu adds up.
//
// Macros: those of tiles.cuh; BM (tokens), STAGES, and of the kernel ROWS, THREADS.
#pragma once
#include "tiles.cuh"

#ifndef BM
#define BM 64
#endif
#ifndef STAGES
#define STAGES 4
#endif

#define CHUNK 64
#define CHUNK_STEPS (CHUNK / 16)
#define CHUNK_LOADS (BITS / 4)
#define CHUNK_UNITS (UNIT < CHUNK ? CHUNK / UNIT : 1)
// Halves of a row of y in shared memory: 8 more, so that tokens fall in different banks.
#define OUT_PITCH (ROWS + 8)

union Shared {
  u16 stages[STAGES][BM][CHUNK];
  u16 out[BM][OUT_PITCH];
};

struct Problem {
  const u16 *x;
  const u32 *codes;
  const Scale *scales;
  const u8 *zeros;
  int M, N, K, n_tiles, k_tiles;
};

// The chunks of this block's split of K: [first, last).
struct Range { int first, last; };
DEVICE Range chunks_of_split(int K) {
  const int n_chunks = (K + CHUNK - 1) / CHUNK;
  const int each = (n_chunks + gridDim.z - 1) / gridDim.z;
  const int first = blockIdx.z * each;
  return {first, min(first + each, n_chunks)};
}

// A thread fetches the same 16-byte piece of every TOKENS_AT_ONCE-th token, which all lie at the
// same place of the swizzle: eight divides TOKENS_AT_ONCE.
#define PIECES (CHUNK / 8)
#define TOKENS_AT_ONCE (THREADS / PIECES)
struct Fetcher {
  const u16 *from;  // of its first token, in chunk 0
  u32 to;           // in stage 0
  int m, k;
};
DEVICE Fetcher make_fetcher(const Problem &p, const Shared &shared) {
  const int token = threadIdx.x / PIECES, piece = threadIdx.x % PIECES;
  const int m = blockIdx.x * BM + token;
  return {p.x + (size_t)m * p.K + piece * 8,
          shared_address(&shared.stages[0][token][(piece ^ token % 8) * 8]), m, piece * 8};
}
// Sends a chunk of tokens on its way; a group is committed even past the end, so that waiting
// can count them.
DEVICE void fetch_tokens(const Problem &p, const Fetcher &f, int stage, int chunk, int last) {
  if (chunk < last) {
    const bool is_inside = f.k + chunk * CHUNK < p.K;
    const u16 *const from = f.from + chunk * CHUNK;
    const u32 to = f.to + stage * (BM * CHUNK * 2);
#pragma unroll
    for (int i = 0; i < BM; i += TOKENS_AT_ONCE) {
      const bool is_real = is_inside && f.m + i < p.M;
      copy16_async(to + i * (CHUNK * 2), is_real ? from + (size_t)i * p.K : p.x, is_real);
    }
  }
  copies_commit();
}

// A tile's part in a chunk, as stored.
struct Packed {
  Words4 codes[CHUNK_LOADS];
  Meta meta[CHUNK_UNITS];
};
DEVICE Packed fetch_packed(const Problem &p, int tile, int chunk, int lane) {
  Packed r;
  const u32 *from = p.codes + ((size_t)tile * p.k_tiles + chunk / 2) * TILE_WORDS;
#pragma unroll
  for (int i = 0; i < CHUNK_LOADS; ++i)
    r.codes[i] = load_once16(from + (chunk % 2 * CHUNK_LOADS + i) * 128 + lane * 4);
#pragma unroll
  for (int unit = 0; unit < CHUNK_UNITS; ++unit)
    r.meta[unit] = load_meta(p.scales, p.zeros,
                             group_of(chunk * CHUNK + unit * UNIT) * p.n_tiles + tile, lane);
  return r;
}
// The A fragment of a step (16 input channels), scaled.
DEVICE void decode_scaled(const Packed &packed, int step, u32 a[4]) {
  const Meta meta = packed.meta[step * 16 / UNIT % CHUNK_UNITS];
  const int word = step * STEP_WORDS;
  decode_step(packed.codes[word / 4].v + word % 4, negative_zeros(meta.zeros), a);
#pragma unroll
  for (int r = 0; r < 4; ++r) a[r] = multiply_pair(a[r], scale_pair(meta, r % 2));
}

// Writes a warp's accumulators, [8-token column][4] of 16 rows from `row` on, to y's rows in
// shared memory, or to `partial`.
DEVICE void put_sums(const Problem &p, Shared &shared, float *partial, const float c[][4],
                     int row, int lane) {
  const int g = lane / 4, t = lane % 4;
#pragma unroll
  for (int j = 0; j < BM / 8; ++j)
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int token = 8 * j + 2 * t + i % 2, at = row + g + i / 2 * 8;
      if (gridDim.z == 1) {
        shared.out[token][at] = half_of(c[j][i]);
        continue;
      }
      const int m = blockIdx.x * BM + token, n = blockIdx.y * ROWS + at;
      if (m < p.M && n < p.N)
        partial[((size_t)blockIdx.z * p.M + m) * p.N + n] = c[j][i];
    }
}
// Copies shared.out to y, 16 bytes at a time where N allows.
DEVICE void write_out(const Problem &p, const Shared &shared, u16 *y) {
  if (gridDim.z != 1) return;
  __syncthreads();
  for (int i = threadIdx.x; i < BM * (ROWS / 8); i += THREADS) {
    const int token = i / (ROWS / 8), at = i % (ROWS / 8) * 8;
    const int m = blockIdx.x * BM + token, n = blockIdx.y * ROWS + at;
    if (m >= p.M || n >= p.N) continue;
    const u16 *from = &shared.out[token][at];
    u16 *to = y + (size_t)m * p.N + n;
    if (p.N % 8 == 0)
      store16(to, *(const Words4 *)from);
    else
      for (int e = 0; e < min(8, p.N - n); ++e) to[e] = from[e];
  }
}
