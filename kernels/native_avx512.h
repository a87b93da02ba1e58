// The vector type V of sixteen lanes, for native_panel.h.
//
// Included by native_<level>.cpp inside its anonymous namespace.

struct V {
    static constexpr int lanes = 16, rows = 6, unpack_rows = 5, cols = 4, prefetch_bytes = 8704;
    using I = __m512i;
    using F = __m512;
    static I load(const void* at) { return _mm512_loadu_si512(at); }
    static void store(void* at, I a) { _mm512_store_si512(at, a); }
    static F loadf(const float* at) { return _mm512_load_ps(at); }
    static void storef(float* at, F a) { _mm512_store_ps(at, a); }
    static I zero() { return _mm512_setzero_si512(); }
    static I seti(int32_t a) { return _mm512_set1_epi32(a); }
    static F setf(float a) { return _mm512_set1_ps(a); }
    static I broadcast(const void* at) {
        int32_t word;
        std::memcpy(&word, at, 4);
        return _mm512_set1_epi32(word);
    }
    // As assembly: of the intrinsics GCC 12 makes copies that spill half of the accumulators.
    static I pairs(I acc, I a, I b) {
        asm("vpdpwssd %2, %1, %0" : "+v"(acc) : "v"(a), "v"(b));
        return acc;
    }
    static I quads(I acc, I a, I b) {
        asm("vpdpbusd %2, %1, %0" : "+v"(acc) : "v"(a), "v"(b));
        return acc;
    }
    static I band(I a, I b) { return _mm512_and_si512(a, b); }
    template <int n>
    static I shift(I a) {
        return _mm512_srli_epi32(a, n);
    }
    template <int n>
    static I shift16(I a) {
        return _mm512_srli_epi16(a, n);
    }
    static I mul32(I a, I b) { return _mm512_mullo_epi32(a, b); }
    static I sub16(I a, I b) { return _mm512_sub_epi16(a, b); }
    static I sub32(I a, I b) { return _mm512_sub_epi32(a, b); }
    static F tofloat(I a) { return _mm512_cvtepi32_ps(a); }
    static F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
    static F mul(F a, F b) { return _mm512_mul_ps(a, b); }
    static void prefetch(const void* at) {
        _mm_prefetch(static_cast<const char*>(at), _MM_HINT_T1);
    }
    static void read_scales(const uint8_t* from, int n, int32_t type, float* out) {
        for (int c = 0; c < n; c += 16) {
            if (type == kFloat16)
                _mm512_store_ps(out + c, _mm512_cvtph_ps(_mm256_loadu_si256(
                                             reinterpret_cast<const __m256i*>(from + 2 * c))));
            else
                for (int i = c; i < c + 16; ++i) out[i] = load_scale(from, i, type);
        }
    }
};
