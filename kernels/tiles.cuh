// The repacked layout ("tiles"): one for mma.sync and for wgmma, whose A fragments are the same.
//
//   codes   (N/16, K/128, BITS/2, 32, 4) u32   a tile is 16 output x 128 input channels; a lane's
//           four words are its A fragments of 64 (4 bits) or 32 (8 bits) input channels, in order
//   scales  (G, N/16, 8, 2) fp16, bf16 or fp32   [g, tile, i] holds those of rows i and i + 8
//   zeros   (G, N/16, 8, 2) u8                   likewise
//
// N is padded to 16, K to 128, G to the groups of the padded K; padding holds zeros and x is read
// as 0 there. The definition is awqbench/gemm/cuda_layout.py.
//
// Macros: BITS, BF16, GROUP (input channels of a group, a multiple of 32; 0: the whole row),
// SCALE (0: scales are fp16, 1: bf16, 2: fp32).
#pragma once
#include "codes.cuh"

#ifndef GROUP
#define GROUP 128
#endif
#ifndef SCALE
#define SCALE 0
#endif
#if GROUP % 32
#error "GROUP is not a multiple of 32"
#endif

// The longest stretch of a tile that has one scale.
#if GROUP % 128 == 0
#define UNIT 128
#elif GROUP % 64 == 0
#define UNIT 64
#else
#define UNIT 32
#endif

#define TILE_ROWS 16
#define TILE_K 128
#define TILE_WORDS (TILE_ROWS * TILE_K * BITS / 32)

#if SCALE == 2
typedef float Scale;
#else
typedef u16 Scale;
#endif

DEVICE int group_of(int k) { return GROUP ? k / (GROUP ? GROUP : 1) : 0; }

// Scales and zero points of the rows g and g+8 of a tile, as stored: kept so while on the way.
struct Meta {
#if SCALE == 2
  Float2 scales;
#else
  u32 scales;
#endif
  u32 zeros;
};
// `at` = group * (N/16) + tile.
DEVICE Meta load_meta(const Scale *scales, const u8 *zeros, int at, int lane) {
  const size_t pair = (size_t)at * 8 + lane / 4;
  Meta m;
#if SCALE == 2
  m.scales = ((const Float2 *)scales)[pair];
#else
  m.scales = ((const u32 *)scales)[pair];
#endif
  m.zeros = ((const u16 *)zeros)[pair];
  return m;
}
DEVICE float scale_of(Meta m, int row) {
#if SCALE == 2
  return m.scales.v[row];
#elif SCALE == 1
  return bf16_to_float((u16)(row ? m.scales >> 16 : m.scales));
#else
  return fp16_to_float((u16)(row ? m.scales >> 16 : m.scales));
#endif
}
// The scale of a row in both halves of a pair, in the activations' type.
DEVICE u32 scale_pair(Meta m, int row) {
#if SCALE == BF16
  return permute(m.scales, 0, row ? 0x3232u : 0x1010u);
#else
  const float s = scale_of(m, row);
  return pair_of(s, s);
#endif
}
