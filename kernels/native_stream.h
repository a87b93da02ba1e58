// The packed stream of a quantized weight, and what the compute levels share.
//
// Formula:  y[m, n] = sum_k x[m, k] (codes[n, k] - zeros[n, g(k)]) scales[n, g(k)]
// Reference: awqbench.gemm.numpy_ and PackedWeight.dequantize (NumPy); the stream is written
// and read back by awqbench/gemm/native_layout.py.
//
// Input channels lie in C chunks of `unit` channels (a multiple of 8, at most 128), each of one
// group, padded; output channels in panels of 64, of at most four blocks of 16. For each panel,
// for each chunk, one after the other:
//     codes   (rows, blocks, 64) uint8
//             4 bits: rows = unit / 8; byte 4 c + j of a row holds column c, channel
//                     8 row + j in its low nibble and 8 row + 4 + j in its high one.
//             8 bits: rows = unit / 4; byte 4 c + j is column c, channel 4 row + j.
//     scales  (blocks, 16) float16, bfloat16 or float32
//     zeros   (blocks, 16) uint8
//     padding to a multiple of 64 bytes
// 64 bytes of codes are one register of AVX-512 and a row of AMX's B; halves and quarters of
// them serve AVX2 and NEON: the same bytes feed every level. One thread reads a panel from its
// first byte to its last.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

constexpr int kBlock = 16;   // columns of a block
constexpr int kPanel = 64;   // columns of a panel
constexpr int kMaxUnit = 128;

enum ScaleType : int32_t { kFloat16 = 0, kBfloat16 = 1, kFloat32 = 2 };
enum Activations : int32_t { kInt16 = 0, kExact = 1, kInt8 = 2 };
enum InputType : int32_t { kInputFloat32 = 0, kInputBfloat16 = 1 };

// What awqbench/gemm/native.py passes; fields in this order, no padding between them.
struct Weight {
    const uint8_t* stream;
    const int32_t* order;  // (C * unit) input channel at each place, -1 for padding; or null
    int64_t out_features;  // N
    int64_t in_features;   // K
    int64_t n_chunks;      // C
    int32_t unit;
    int32_t code_bits;     // 4 or 8: the width in the stream
    int32_t scale_type;    // ScaleType
    int32_t reserved;
};

inline int64_t scale_bytes(const Weight& w) { return w.scale_type == kFloat32 ? 4 : 2; }

inline int64_t code_bytes(const Weight& w) {  // of one block in one chunk
    return int64_t(kBlock) * w.unit * w.code_bits / 8;
}

inline int64_t chunk_bytes(const Weight& w, int64_t blocks) {
    const int64_t raw = blocks * (code_bytes(w) + kBlock * (scale_bytes(w) + 1));
    return (raw + 63) / 64 * 64;
}

inline int64_t panel_count(const Weight& w) { return (w.out_features + kPanel - 1) / kPanel; }

inline int64_t blocks_of_panel(const Weight& w, int64_t panel) {
    const int64_t left = w.out_features - panel * kPanel;
    return left >= kPanel ? 4 : (left + kBlock - 1) / kBlock;
}

inline float half_to_float(uint16_t half) {
    const uint32_t sign = uint32_t(half & 0x8000) << 16, rest = half & 0x7fff;
    float value;
    uint32_t word;
    if (rest >= 0x7c00) {  // infinity, NaN
        word = sign | 0x7f800000 | (rest & 0x3ff) << 13;
    } else if (rest < 0x400) {  // zero, subnormal: exact in float32
        value = float(rest) * (1.0f / 16777216.0f);
        std::memcpy(&word, &value, 4);
        word |= sign;
    } else {
        word = sign | ((rest << 13) + (112u << 23));
    }
    std::memcpy(&value, &word, 4);
    return value;
}

inline float load_scale(const uint8_t* at, int64_t index, int32_t type) {
    float value;
    if (type == kFloat32) {
        std::memcpy(&value, at + 4 * index, 4);
        return value;
    }
    uint16_t half;
    std::memcpy(&half, at + 2 * index, 2);
    if (type == kFloat16) return half_to_float(half);
    const uint32_t word = uint32_t(half) << 16;
    std::memcpy(&value, &word, 4);
    return value;
}

// Activations of M tokens in the order of the chunks, in C * parts pieces of unit / parts
// channels. A value far larger than its neighbours makes its piece coarse: where that would bring
// the relative error of a call near 1e-4 long chunks have two parts, and also where tokens are
// so few that it costs nothing while memory is waited for.
// int16: values (pieces, M, piece) int16, each four channels in the order 0, 2, 1, 3, so that one
//        mask turns four bytes of codes into two pairs; x ~ values * steps. (Levels that multiply
//        bytes keep two planes of bytes there instead, each its own way.)
// int8:  values (pieces, M, piece) int8.
// exact: values (pieces, M, piece) float.
struct Tokens {
    const void* values;
    const float* steps;    // (pieces, M) step of each token and piece; not for exact
    const int32_t* sums;   // (pieces, M) sum of the integers; not for exact
    int64_t count;         // M
    int64_t parts;         // of a chunk: 1 or 2
};

// Largest int16 activation: what two signed bytes hold, 0.4 % less than 32767. The same at every
// level, so that levels and processor types agree bit by bit.
constexpr int kInt16Limit = 127 * 256 + 127;

inline bool can_part(const Weight& w) { return w.unit > 64 && w.unit % 16 == 0; }

// One item of work: rows first..stop of the tokens times one panel.
struct PanelJob {
    const Weight* weight;
    const Tokens* tokens;
    const uint8_t* panel;  // its first byte
    int64_t blocks;        // 1 to 4
    int64_t first, stop;   // tokens
    float* sums;           // ((stop - first), 64) result, overwritten
    void* scratch;         // kScratchBytes, aligned to 64
};

constexpr size_t kScratchBytes = size_t(kMaxUnit) * kPanel * 4;

// Quantize rows first..stop of x into Tokens. x (M, K) of `type`, `stride` elements a row.
struct QuantizeJob {
    const Weight* weight;
    const void* x;
    int32_t type;
    int64_t stride, count;  // elements between rows; M
    int64_t parts;          // of a chunk
    int64_t first, stop;
    void* values;
    float* steps;
    int32_t* sums;
    uint8_t* needs_exact;   // (M) set to 1 where steps cannot represent the row
    float* energies;        // (M, 2) expected squared error of a token's integers, its square
};

// What a compute level provides.
struct Level {
    const char* name;
    // Write n <= 64 sums as an InputType; return whether all are finite.
    bool (*write)(const float* sums, int64_t n, int32_t type, void* out);
    void (*panel[3])(const PanelJob&);        // by Activations
    void (*quantize[3])(const QuantizeJob&);  // by Activations
};
