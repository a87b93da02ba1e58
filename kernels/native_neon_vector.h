// The vector type of the NEON levels: four lanes, in every processor of aarch64.
//
// Included by native_neon*.cpp inside their anonymous namespaces, after <arm_neon.h>.

struct V {
    // 16 accumulators: with 20 GCC 12 spills some, though 32 registers would hold all.
    static constexpr int lanes = 4, rows = 4, unpack_rows = 3, cols = 4, prefetch_bytes = 2048;
    using I = int32x4_t;
    using F = float32x4_t;
    static I load(const void* at) { return vld1q_s32(static_cast<const int32_t*>(at)); }
    static void store(void* at, I a) { vst1q_s32(static_cast<int32_t*>(at), a); }
    static F loadf(const float* at) { return vld1q_f32(at); }
    static void storef(float* at, F a) { vst1q_f32(at, a); }
    static I zero() { return vdupq_n_s32(0); }
    static I seti(int32_t a) { return vdupq_n_s32(a); }
    static F setf(float a) { return vdupq_n_f32(a); }
    static I broadcast(const void* at) {
        int32_t word;
        std::memcpy(&word, at, 4);
        return vdupq_n_s32(word);
    }
    static I pairs(I acc, I a, I b) {
        const int16x8_t x = vreinterpretq_s16_s32(a), y = vreinterpretq_s16_s32(b);
        const I low = vmull_s16(vget_low_s16(x), vget_low_s16(y));
        return vaddq_s32(acc, vpaddq_s32(low, vmull_high_s16(x, y)));
    }
    static I band(I a, I b) { return vandq_s32(a, b); }
    static I bxor(I a, I b) { return veorq_s32(a, b); }
    // Vector shifts take 1 to 32 bits.
    template <int n>
    static I shift(I a) {
        if constexpr (n == 0) return a;
        else return vreinterpretq_s32_u32(vshrq_n_u32(vreinterpretq_u32_s32(a), n));
    }
    template <int n>
    static I shift16(I a) {
        return vreinterpretq_s32_u16(vshrq_n_u16(vreinterpretq_u16_s32(a), n));
    }
    template <int n>
    static I shift8(I a) {
        return vreinterpretq_s32_u8(vshrq_n_u8(vreinterpretq_u8_s32(a), n));
    }
    template <int n>
    static I left(I a) {
        return vshlq_n_s32(a, n);
    }
    static I mul32(I a, I b) { return vmulq_s32(a, b); }
    static I add32(I a, I b) { return vaddq_s32(a, b); }
    static I sub16(I a, I b) {
        return vreinterpretq_s32_s16(vsubq_s16(vreinterpretq_s16_s32(a), vreinterpretq_s16_s32(b)));
    }
    static I sub32(I a, I b) { return vsubq_s32(a, b); }
    static F tofloat(I a) { return vcvtq_f32_s32(a); }
    static F fma(F a, F b, F c) { return vfmaq_f32(c, a, b); }
    static F mul(F a, F b) { return vmulq_f32(a, b); }
    static void prefetch(const void* at) { __builtin_prefetch(at); }
    static void read_scales(const uint8_t* from, int n, int32_t type, float* out) {
        for (int c = 0; c < n; c += 4) {
            if (type == kFloat16) {
                uint16x4_t halves;
                std::memcpy(&halves, from + 2 * c, 8);
                vst1q_f32(out + c, vcvt_f32_f16(vreinterpret_f16_u16(halves)));
            } else {
                for (int i = c; i < c + 4; ++i) out[i] = load_scale(from, i, type);
            }
        }
    }

#if defined(__ARM_FEATURE_DOTPROD)
    // 16 and 8 bytes of activations, in every 128 bits of a register.
    static I bytes16(const int8_t* at) { return load(at); }
    static I bytes8(const int8_t* at) {
        int64_t word;
        std::memcpy(&word, at, 8);
        return vreinterpretq_s32_s64(vdupq_n_s64(word));
    }
    // acc + the four-byte products of each lane of `codes` with lane LANE of `x`.
    template <int LANE>
    static I dot(I acc, I codes, I x) {
        return vdotq_laneq_s32(acc, vreinterpretq_s8_s32(codes), vreinterpretq_s8_s32(x), LANE);
    }
#endif
#if defined(__ARM_FEATURE_MATMUL_INT8)
    // acc + (2, 8) bytes of `x` times (2, 8) bytes of `codes`, transposed: (2, 2) sums.
    static I matrix(I acc, I x, I codes) {
        return vmmlaq_s32(acc, vreinterpretq_s8_s32(x), vreinterpretq_s8_s32(codes));
    }
    static I zip_low(I a, I b) { return vzip1q_s32(a, b); }
    static I zip_high(I a, I b) { return vzip2q_s32(a, b); }
    static I join(I a, I b) {  // the lower 64 bits of both
        return vreinterpretq_s32_s64(
            vzip1q_s64(vreinterpretq_s64_s32(a), vreinterpretq_s64_s32(b)));
    }
    // The even and the odd 64 bits of a and b.
    static I even_halves(I a, I b) {
        return vreinterpretq_s32_s64(
            vuzp1q_s64(vreinterpretq_s64_s32(a), vreinterpretq_s64_s32(b)));
    }
    static I odd_halves(I a, I b) {
        return vreinterpretq_s32_s64(
            vuzp2q_s64(vreinterpretq_s64_s32(a), vreinterpretq_s64_s32(b)));
    }
#endif
};
