// y = x Wᵀ for few tokens (1 to 32), from tiles: W4A16, and W8A16 with BITS=8.
//
//   y[m, n] = sum over groups g of scale[g, n] * (sum over k of x[m, k] (code[n, k] - zero[g, n]))
//
//   x  (M, K) fp16 or bf16, K a multiple of 8, 16-byte aligned
//   codes, scales, zeros   tiles.cuh
//   y  (M, N) like x
//
// The weights are the A operand of mma, so that 8 tokens cost what 1 does. Differences
// code - zero are exact and products are summed in fp32, so nothing is rounded but x and y.
// A block has WN x WK warps: WN tiles of output channels beside one another, and WK slices of
// each stretch of K, whose sums meet in shared memory at the end. Tokens of a stretch are
// fetched for all warps while the stretch before is multiplied, and so are each warp's weights,
// into registers.
//
// Grid (ceil(N/16 / WN), ceil(M / TOKENS)), block 32 WN WK.
// Macros: BITS, BF16, GROUP, SCALE; MT (8-token columns, 1, 2 or 4), TOKENS (of a block, at most
// 8 MT: fewer take less shared memory), WN, WK, DEPTH (tiles of a warp in a stretch), BLOCKS
// (blocks to fit on a multiprocessor: limits registers).
// Reference: x @ grid.dequantize_groups(...).T
#include "tiles.cuh"

#ifndef MT
#define MT 1
#endif
#ifndef WN
#define WN 1
#endif
#ifndef WK
#define WK 8
#endif
#ifndef DEPTH
#define DEPTH 1
#endif
#ifndef BLOCKS
#define BLOCKS 2
#endif

#ifndef TOKENS
#define TOKENS (8 * MT)
#endif
#define THREADS (32 * WN * WK)
#define STRETCH (WK * DEPTH * TILE_K)
// Halves of a token in shared memory; 8 more, so that ldmatrix meets no bank twice.
#define PITCH (STRETCH + 8)
#define UNITS (TILE_K / UNIT)
// 16-byte pieces of a token in a stretch, and tokens that the block fetches at once.
#define PIECES (STRETCH / 8)
#define TOKENS_AT_ONCE (THREADS / PIECES)
#if THREADS % PIECES
#error "a stretch is not a whole part of the threads"
#endif
// Bytes of a stretch's tokens in shared memory.
#define HALF (TOKENS * PITCH * 2)
#define OUT_ROWS (TILE_ROWS * WN)
#define OUT_PITCH (OUT_ROWS + 4)

// A warp's part of a stretch, on its way from memory.
struct Tiles {
  Words4 codes[DEPTH][BITS / 2];
  Meta meta[DEPTH][UNITS];
};

extern "C" __global__ __launch_bounds__(THREADS, BLOCKS) void w4a16_skinny(
    const u16 *__restrict__ x, const u32 *__restrict__ codes, const Scale *__restrict__ scales,
    const u8 *__restrict__ zeros, u16 *__restrict__ y, int M, int N, int K) {
  __shared__ union {
    __align__(16) u16 tokens[2][TOKENS][PITCH];
    float sums[WK][TOKENS][OUT_PITCH];
  } shared;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int wn = warp % WN, wk = warp / WN;
  const int k_tiles = (K + TILE_K - 1) / TILE_K, n_tiles = (N + TILE_ROWS - 1) / TILE_ROWS;
  const int n_stretches = (k_tiles + WK * DEPTH - 1) / (WK * DEPTH);
  const int first_token = blockIdx.y * TOKENS;
  const int n_tokens = min(TOKENS, M - first_token);
  // A warp past the last tile repeats it and stores nothing: barriers are for all.
  const int tile = min((int)blockIdx.x * WN + wn, n_tiles - 1);
  const u32 *const my_codes = codes + (size_t)tile * k_tiles * TILE_WORDS + lane * 4;

  // A thread fetches the same piece of every TOKENS_AT_ONCE-th token.
  const int my_token = threadIdx.x / PIECES, my_k = threadIdx.x % PIECES * 8;
  const u16 *const my_x = x + (size_t)(first_token + my_token) * K + my_k;
  const u32 my_place = shared_address(&shared.tokens[0][my_token][my_k]);
  auto fetch_tokens = [&](int stretch, int half) {
    const int k = stretch * STRETCH;
    const bool is_inside = my_k + k < K;
    const u16 *from = is_inside ? my_x + k : x;
    const size_t step = is_inside ? (size_t)TOKENS_AT_ONCE * K : 0;
    u32 to = my_place + half * HALF;
#pragma unroll 1
    for (int token = my_token; token < n_tokens; token += TOKENS_AT_ONCE) {
      copy16_async(to, from, is_inside);
      from += step;
      to += TOKENS_AT_ONCE * PITCH * 2;
    }
    copies_commit();
  };
  auto fetch_tiles = [&](int stretch, Tiles &to) {
#pragma unroll
    for (int d = 0; d < DEPTH; ++d) {
      // Past the end: the last tile again; its tokens are zeros.
      const int kt = min((stretch * DEPTH + d) * WK + wk, k_tiles - 1);
#pragma unroll
      for (int i = 0; i < BITS / 2; ++i)
        to.codes[d][i] = load_once16(my_codes + (size_t)kt * TILE_WORDS + 128 * i);
#pragma unroll
      for (int unit = 0; unit < UNITS; ++unit)
        to.meta[d][unit] = load_meta(
            scales, zeros, group_of(kt * TILE_K + unit * UNIT) * n_tiles + tile, lane);
    }
  };

  // A lane's row of ldmatrix. In place of a token that is not there the last one is read again:
  // its sums are a column of their own, which is not stored.
  u32 rows[MT];
#pragma unroll
  for (int mt = 0; mt < MT; ++mt)
    rows[mt] = shared_address(
        &shared.tokens[0][min(8 * mt + lane % 8, n_tokens - 1)][wk * TILE_K + lane / 8 * 8]);

  float total[MT][4] = {};
  // Multiplies a stretch, held in `now` and in one half of the tokens' memory, while the next
  // one is on its way to `next` and to the other half.
  auto turn = [&](int stretch, int half, const Tiles &now, Tiles &next) {
    copies_wait<0>();
    __syncthreads();  // tokens of this stretch are there, and nobody reads those before
    if (stretch + 1 < n_stretches) {
      fetch_tokens(stretch + 1, 1 - half);
      fetch_tiles(stretch + 1, next);
    }
#pragma unroll
    for (int d = 0; d < DEPTH; ++d) {
#pragma unroll
      for (int unit = 0; unit < UNITS; ++unit) {
        const Meta meta = now.meta[d][unit];
        const Zeros zero = negative_zeros(meta.zeros);
        float acc[MT][4] = {};
#pragma unroll
        for (int part = 0; part < UNIT / 32; ++part) {
          const int at = unit * UNIT + part * 32;
          u32 a[2][4];
#pragma unroll
          for (int s = 0; s < 2; ++s) {
            const int word = (at / 16 + s) * STEP_WORDS;
            decode_step(now.codes[d][word / 4].v + word % 4, zero, a[s]);
          }
#pragma unroll
          for (int mt = 0; mt < MT; ++mt) {
            const Words4 b = load_matrices(rows[mt] + half * HALF + 2 * (d * WK * TILE_K + at));
            multiply(acc[mt], a[0], b.v);
            multiply(acc[mt], a[1], b.v + 2);
          }
        }
        const float scale[2] = {scale_of(meta, 0), scale_of(meta, 1)};
#pragma unroll
        for (int mt = 0; mt < MT; ++mt)
#pragma unroll
          for (int i = 0; i < 4; ++i) total[mt][i] += scale[i / 2] * acc[mt][i];
      }
    }
  };

  Tiles even, odd;
  fetch_tokens(0, 0);
  fetch_tiles(0, even);
  for (int stretch = 0; stretch < n_stretches; stretch += 2) {
    turn(stretch, 0, even, odd);
    if (stretch + 1 < n_stretches) turn(stretch + 1, 1, odd, even);
  }

  __syncthreads();  // sums take the place of the tokens
#pragma unroll
  for (int mt = 0; mt < MT; ++mt)
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int token = 8 * mt + 2 * (lane % 4) + i % 2;
      if (token < TOKENS)
        shared.sums[wk][token][TILE_ROWS * wn + lane / 4 + i / 2 * 8] = total[mt][i];
    }
  __syncthreads();
  for (int i = threadIdx.x; i < n_tokens * OUT_ROWS; i += THREADS) {
    const int token = i / OUT_ROWS, row = i % OUT_ROWS, n = blockIdx.x * OUT_ROWS + row;
    if (n >= N) continue;
    float sum = 0;
#pragma unroll
    for (int w = 0; w < WK; ++w) sum += shared.sums[w][token][row];
    y[(size_t)(first_token + token) * N + n] = half_of(sum);
  }
}
