// Products of bytes on ARM, with a vector type V of any number of 128-bit segments.
//
// Included by native_neon_*.cpp and native_sve.cpp inside their anonymous namespaces, after
// native_panel.h. Formula and references: there.
//
// int16 activations are two planes of signed bytes, x = 256 high + low; for each eight channels
// of a token eight bytes of low, then eight of high. Codes of 4 bits are signed bytes as they
// are; codes of 8 bits become so less 128, which the zero point takes up. All sums are exact.

constexpr int kCodeBias = 128;

// As quantize<kInt16Limit, kPairs>, but in planes.
void quantize_planes(const QuantizeJob& job) {
    quantize<kInt16Limit, kPairs>(job);
    const int64_t unit = job.weight->unit / job.parts, pieces = job.weight->n_chunks * job.parts;
    for (int64_t c = 0; c < pieces; ++c) {
        int16_t* values =
            static_cast<int16_t*>(job.values) + (c * job.count + job.first) * unit;
        for (int64_t i = 0; i < (job.stop - job.first) * unit; i += 8) {
            int8_t low[8], high[8];
            for (int j = 0; j < 8; ++j) {
                // Each four lie in the order 0, 2, 1, 3.
                const int value = values[i + (j & 4) + (j & 1) * 2 + (j >> 1 & 1)];
                low[j] = int8_t(value);
                high[j] = int8_t((value - low[j]) >> 8);
            }
            std::memcpy(values + i, low, 8);
            std::memcpy(values + i + 4, high, 8);
        }
    }
}

// Eight channels of the lanes of one vector of codes: 0 to 3 of each, and 4 to 7.
struct Eight {
    V::I first, second;
};

// The first rows of the blocks that the vectors of a tile lie in: one address serves a block.
struct Blocks {
    static constexpr int count = (V::cols + kPerBlock - 1) / kPerBlock;
    const uint8_t* first[count];

    inline Blocks(const Tile& t, int v0) {
#pragma GCC unroll 4
        for (int b = 0; b < count; ++b) first[b] = row_at(t, v0 + b * kPerBlock, 0);
    }
    inline const uint8_t* at(int v) const {
        return first[v / kPerBlock] + v % kPerBlock * V::lanes * 4;
    }
};

inline void prefetch_line(const uint8_t* at, int v) {
    if (v * V::lanes * 4 % 64 == 0) V::prefetch(at + V::prefetch_bytes);
}

template <int BITS>
inline Eight unpack_eight(const Tile& t, const Blocks& blocks, int v, int64_t row) {
    const uint8_t* at = blocks.at(v);
    if (BITS == 4) {
        at += row * t.row_bytes;
        prefetch_line(at, v);
        const V::I raw = V::load(at);
        return {V::band(raw, V::seti(0x0f0f0f0f)), V::template shift8<4>(raw)};
    }
    at += 2 * row * t.row_bytes;
    prefetch_line(at, v);
    prefetch_line(at + t.row_bytes, v);
    const V::I bias = V::seti(int32_t(0x80808080));
    return {V::bxor(V::load(at), bias), V::bxor(V::load(at + t.row_bytes), bias)};
}

// Codes of a vector, from the stream or from scratch; SPLIT as the matrix product wants them:
// eight channels of the columns of the lower half of the lanes, and of the upper half.
template <class S, bool SPLIT>
inline Eight codes_of(const Tile& t, const Blocks& blocks, int v0, int v, int64_t row) {
    V::I* kept = static_cast<V::I*>(t.scratch) + (row * kVectors + v0 + v) * 2;
    if constexpr (!S::FROM_ROWS) {
        return {V::load(kept), V::load(kept + 1)};
    } else {
        Eight codes = unpack_eight<S::BITS>(t, blocks, v, row);
#if defined(__ARM_FEATURE_MATMUL_INT8)
        if (SPLIT)
            codes = {V::zip_low(codes.first, codes.second),
                     V::zip_high(codes.first, codes.second)};
#endif
        if (S::KEEP) {
            V::store(kept, codes.first);
            V::store(kept + 1, codes.second);
        }
        return codes;
    }
}

// - z sum_k x_k of a vector of columns, with z as the codes are biased.
inline V::I less_zeros(const Tile& t, int v, int64_t token) {
    const V::I bias = V::seti(t.code_bits == 8 ? kCodeBias : 0);
    const V::I zeros = V::sub32(V::load(t.header->zeros + v * V::lanes), bias);
    return V::mul32(zeros, V::seti(-t.sums[token]));
}

// PLANES of a token's bytes: 2 for int16, 1 for int8.
template <int PLANES>
struct DotKernel {
    // 24 accumulators and an activation each, two vectors of codes and a mask.
    static constexpr int rows = PLANES == 2 ? 3 : 5, unpack_rows = rows;

    template <class S, int MR>
    __attribute__((noinline)) static void tile(const Tile& given, int v0) {
        const Tile t = given;  // a copy that no store can change: its fields stay in registers
        V::I acc[MR][V::cols], high[MR][V::cols];
#pragma GCC unroll 16
        for (int i = 0; i < MR; ++i)
#pragma GCC unroll 16
            for (int v = 0; v < V::cols; ++v) {
                acc[i][v] = less_zeros(t, v0 + v, i);
                if (PLANES == 2) high[i][v] = V::zero();
            }
        const int8_t* x = static_cast<const int8_t*>(t.x);
        const Blocks blocks(t, v0);
        for (int64_t row = 0; row < t.unit / 8; ++row) {
            V::I a[MR];
#pragma GCC unroll 16
            for (int i = 0; i < MR; ++i) {
                const int8_t* at = x + (i * t.unit + row * 8) * PLANES;
                a[i] = PLANES == 2 ? V::bytes16(at) : V::bytes8(at);
            }
#pragma GCC unroll 16
            for (int v = 0; v < V::cols; ++v) {
                const Eight b = codes_of<S, false>(t, blocks, v0, v, row);
#pragma GCC unroll 16
                for (int i = 0; i < MR; ++i) {
                    acc[i][v] = V::template dot<0>(acc[i][v], b.first, a[i]);
                    if (PLANES == 2) high[i][v] = V::template dot<2>(high[i][v], b.first, a[i]);
                    acc[i][v] = V::template dot<1>(acc[i][v], b.second, a[i]);
                    if (PLANES == 2) high[i][v] = V::template dot<3>(high[i][v], b.second, a[i]);
                }
            }
        }
        if (PLANES == 2)
#pragma GCC unroll 16
            for (int i = 0; i < MR; ++i)
#pragma GCC unroll 16
                for (int v = 0; v < V::cols; ++v)
                    acc[i][v] = V::add32(acc[i][v], V::template left<8>(high[i][v]));
        PairKernel::add<MR>(t, v0, acc);
    }
};

#if defined(__ARM_FEATURE_MATMUL_INT8)
// Two rows of bytes at once: the planes of one token (int16), or two tokens (int8).
template <int PLANES>
struct MatrixKernel {
    static constexpr int rows = PLANES == 2 ? 3 : 6, unpack_rows = rows;

    template <int MR>
    static inline V::I bytes_of(const int8_t* x, int64_t unit, int64_t row, int i) {
        if (PLANES == 2) return V::bytes16(x + (i * unit + row * 8) * 2);
        const int other = 2 * i + 1 < MR ? 2 * i + 1 : 2 * i;  // of an odd token twice the same
        return V::join(V::bytes8(x + 2 * i * unit + row * 8),
                       V::bytes8(x + other * unit + row * 8));
    }

    template <class S, int MR>
    __attribute__((noinline)) static void tile(const Tile& given, int v0) {
        // One row alone would use half of each product: and there is nothing to unpack for others.
        if constexpr (MR == 1 && S::FROM_ROWS && !S::KEEP)
            return DotKernel<PLANES>::template tile<S, 1>(given, v0);
        const Tile t = given;
        constexpr int PAIRS = PLANES == 2 ? MR : (MR + 1) / 2;
        V::I low[PAIRS][V::cols], high[PAIRS][V::cols];  // of the lanes of a vector of columns
#pragma GCC unroll 16
        for (int i = 0; i < PAIRS; ++i)
#pragma GCC unroll 16
            for (int v = 0; v < V::cols; ++v) low[i][v] = high[i][v] = V::zero();
        const int8_t* x = static_cast<const int8_t*>(t.x);
        const Blocks blocks(t, v0);
        for (int64_t row = 0; row < t.unit / 8; ++row) {
            V::I a[PAIRS];
#pragma GCC unroll 16
            for (int i = 0; i < PAIRS; ++i) a[i] = bytes_of<MR>(x, t.unit, row, i);
#pragma GCC unroll 16
            for (int v = 0; v < V::cols; ++v) {
                const Eight b = codes_of<S, true>(t, blocks, v0, v, row);
#pragma GCC unroll 16
                for (int i = 0; i < PAIRS; ++i) {
                    low[i][v] = V::matrix(low[i][v], a[i], b.first);
                    high[i][v] = V::matrix(high[i][v], a[i], b.second);
                }
            }
        }
        V::I acc[MR][V::cols];
#pragma GCC unroll 16
        for (int i = 0; i < PAIRS; ++i)
#pragma GCC unroll 16
            for (int v = 0; v < V::cols; ++v) {
                const V::I first = V::even_halves(low[i][v], high[i][v]);
                const V::I second = V::odd_halves(low[i][v], high[i][v]);
                if (PLANES == 2) {
                    const V::I sum = V::add32(first, V::template left<8>(second));
                    acc[i][v] = V::add32(sum, less_zeros(t, v0 + v, i));
                } else {
                    acc[2 * i][v] = V::add32(first, less_zeros(t, v0 + v, 2 * i));
                    if (2 * i + 1 < MR)
                        acc[2 * i + 1][v] = V::add32(second, less_zeros(t, v0 + v, 2 * i + 1));
                }
            }
        PairKernel::add<MR>(t, v0, acc);
    }
};
#endif
