// The AVX2 level: vpmaddwd on int16 pairs (avx2, fma, f16c: x86 since 2013).
//
// int8 activations are kept as int16 here, for vpmaddubsw saturates; they bring no speed.
#include <immintrin.h>

#include "native_stream.h"

namespace {

struct V {
    static constexpr int lanes = 8, rows = 4, unpack_rows = 3, cols = 2, prefetch_bytes = 8704;
    using I = __m256i;
    using F = __m256;
    static I load(const void* at) { return _mm256_loadu_si256(static_cast<const I*>(at)); }
    static void store(void* at, I a) { _mm256_store_si256(static_cast<I*>(at), a); }
    static F loadf(const float* at) { return _mm256_load_ps(at); }
    static void storef(float* at, F a) { _mm256_store_ps(at, a); }
    static I zero() { return _mm256_setzero_si256(); }
    static I seti(int32_t a) { return _mm256_set1_epi32(a); }
    static F setf(float a) { return _mm256_set1_ps(a); }
    static I broadcast(const void* at) {
        int32_t word;
        std::memcpy(&word, at, 4);
        return _mm256_set1_epi32(word);
    }
    static I pairs(I acc, I a, I b) { return _mm256_add_epi32(acc, _mm256_madd_epi16(a, b)); }
    static I band(I a, I b) { return _mm256_and_si256(a, b); }
    template <int n>
    static I shift(I a) {
        return _mm256_srli_epi32(a, n);
    }
    template <int n>
    static I shift16(I a) {
        return _mm256_srli_epi16(a, n);
    }
    static I mul32(I a, I b) { return _mm256_mullo_epi32(a, b); }
    static I sub16(I a, I b) { return _mm256_sub_epi16(a, b); }
    static I sub32(I a, I b) { return _mm256_sub_epi32(a, b); }
    static F tofloat(I a) { return _mm256_cvtepi32_ps(a); }
    static F fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
    static F mul(F a, F b) { return _mm256_mul_ps(a, b); }
    static void prefetch(const void* at) {
        _mm_prefetch(static_cast<const char*>(at), _MM_HINT_T0);
    }
    static void read_scales(const uint8_t* from, int n, int32_t type, float* out) {
        for (int c = 0; c < n; c += 8) {
            if (type == kFloat16)
                _mm256_store_ps(out + c, _mm256_cvtph_ps(_mm_loadu_si128(
                                             reinterpret_cast<const __m128i*>(from + 2 * c))));
            else
                for (int i = c; i < c + 8; ++i) out[i] = load_scale(from, i, type);
        }
    }
};

#include "native_activations.h"
#include "native_output.h"
#include "native_panel.h"

}  // namespace

extern const Level kAvx2Level;
const Level kAvx2Level = {
    "avx2",
    write_row,
    {panel<PairKernel, int16_t>, panel<FloatKernel, float>, panel<PairKernel, int16_t>},
    {quantize<kInt16Limit, kPairs>, copy_exact, quantize<127, kPairs>},
};
