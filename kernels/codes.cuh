// From packed codes to exact differences (code - zero) in fp16 or bf16, pair by pair.
//
// A code is placed in the mantissa of a constant (w & mask | magic), which gives base + code;
// adding -(base + zero) is exact. So no integer is converted, and zero points cost nothing.
//
//             fp16, nibbles 0 and 2   fp16, nibbles 1 and 3   bf16, every nibble   fp16, bytes
//   magic     0x6400                  0x5400                  0x4300               0x6400
//   base      1024                    64                      128                  1024
//
// Bytes do not fit the 8 bits of a bf16 mantissa: they go through fp32, 2**23 + code.
// Every product here is checked against grid.dequantize_groups.
//
// Macros: BITS (4 or 8: width of a stored code), BF16.
#pragma once
#include "prims.cuh"

#ifndef BITS
#define BITS 4
#endif

// Words of codes that make a lane's A fragment of 16 x 16 weights.
#define STEP_WORDS (BITS / 4)

// base + code for nibble i (0 to 3) of both halves of a word; i is a constant where it is called.
DEVICE u32 nibble_pair(u32 word, int i) {
#if BF16
  return word >> 4 * i & 0x000f000fu | 0x43004300u;
#else
  const u32 w = i < 2 ? word : word >> 8;
  return i % 2 ? w & 0x00f000f0u | 0x54005400u : w & 0x000f000fu | 0x64006400u;
#endif
}
DEVICE u32 negative_pair(u32 pair) { return pair ^ 0x80008000u; }

// -(base + zero) for the rows g and g+8 of a tile, from a 16-bit word of two zero points.
struct Zeros { u32 row[2]; };
DEVICE Zeros negative_zeros(u32 two) {
  Zeros z;
  const u32 low = two & 255, high = two >> 8 & 255;
#if BITS == 4 && BF16
  z.row[0] = (0xc300u + low) * 0x00010001u;
  z.row[1] = (0xc300u + high) * 0x00010001u;
#elif BITS == 4
  z.row[0] = (0xe400u + low) * 0x00010001u;
  z.row[1] = (0xd400u + 16 * high) * 0x00010001u;
#elif BF16
  z.row[0] = 0xcb000000u + low;
  z.row[1] = 0xcb000000u + high;
#else
  z.row[0] = (0xe400u + low) * 0x00010001u;
  z.row[1] = (0xe400u + high) * 0x00010001u;
#endif
  return z;
}

// A lane's A fragment (16 rows x 16 input channels) of code - zero.
//
// 4 bits: nibble r of the low half of words[0] is the first weight of pair a[r], of the high half
// the second. 8 bits: the bytes of words[0] are a[0] and a[1], of words[1] a[2] and a[3].
DEVICE void decode_step(const u32 *words, Zeros zeros, u32 a[4]) {
#pragma unroll
  for (int r = 0; r < 4; ++r) {
    const u32 zero = zeros.row[r % 2];
#if BITS == 4
    a[r] = add_pair(nibble_pair(words[0], r), zero);
#elif BF16
    const u32 at = r % 2 * 2;
    const float low = __uint_as_float(permute(words[r / 2], 0x4b000000u, 0x7440u + at));
    const float high = __uint_as_float(permute(words[r / 2], 0x4b000000u, 0x7441u + at));
    a[r] = pair_of(low + __uint_as_float(zero), high + __uint_as_float(zero));
#else
    a[r] = add_pair(permute(words[r / 2], 0x64646464u, r % 2 ? 0x4342u : 0x4140u), zero);
#endif
  }
}
