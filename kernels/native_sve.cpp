// The SVE level for vectors of 256 bits (Neoverse V1), with sdot and smmla.
//
// Compiled for exactly 256 bits, and chosen only where the processor has them: the tile template
// wants lanes that are known. Processors with SVE of 128 bits gain nothing over NEON.
#include <arm_neon.h>
#include <arm_sve.h>

#include "native_stream.h"

namespace {

typedef svint32_t SveInt __attribute__((arm_sve_vector_bits(256)));
typedef svfloat32_t SveFloat __attribute__((arm_sve_vector_bits(256)));

struct V {
    static constexpr int lanes = 8, rows = 4, unpack_rows = 3, cols = 4, prefetch_bytes = 4096;
    using I = SveInt;
    using F = SveFloat;
    static svbool_t all() { return svptrue_b32(); }
    static I load(const void* at) { return svld1_s32(all(), static_cast<const int32_t*>(at)); }
    static void store(void* at, I a) { svst1_s32(all(), static_cast<int32_t*>(at), a); }
    static F loadf(const float* at) { return svld1_f32(all(), at); }
    static void storef(float* at, F a) { svst1_f32(all(), at, a); }
    static I zero() { return svdup_n_s32(0); }
    static I seti(int32_t a) { return svdup_n_s32(a); }
    static F setf(float a) { return svdup_n_f32(a); }
    static I band(I a, I b) { return svand_s32_x(all(), a, b); }
    static I bxor(I a, I b) { return sveor_s32_x(all(), a, b); }
    template <int n>
    static I shift(I a) {
        if constexpr (n == 0) return a;
        else return svreinterpret_s32_u32(svlsr_n_u32_x(all(), svreinterpret_u32_s32(a), n));
    }
    template <int n>
    static I shift8(I a) {
        return svreinterpret_s32_u8(svlsr_n_u8_x(svptrue_b8(), svreinterpret_u8_s32(a), n));
    }
    template <int n>
    static I left(I a) {
        return svlsl_n_s32_x(all(), a, n);
    }
    static I mul32(I a, I b) { return svmul_s32_x(all(), a, b); }
    static I add32(I a, I b) { return svadd_s32_x(all(), a, b); }
    static I sub32(I a, I b) { return svsub_s32_x(all(), a, b); }
    static F tofloat(I a) { return svcvt_f32_s32_x(all(), a); }
    static F fma(F a, F b, F c) { return svmla_f32_x(all(), c, a, b); }
    static F mul(F a, F b) { return svmul_f32_x(all(), a, b); }
    static void prefetch(const void* at) { __builtin_prefetch(at); }
    static void read_scales(const uint8_t* from, int n, int32_t type, float* out) {
        for (int c = 0; c < n; ++c) out[c] = load_scale(from, c, type);
    }
    // 16 and 8 bytes of activations, in every 128 bits of a register.
    static I bytes16(const int8_t* at) {
        return svreinterpret_s32_s8(svld1rq_s8(svptrue_b8(), at));
    }
    static I bytes8(const int8_t* at) {
        int64_t word;
        std::memcpy(&word, at, 8);
        return svreinterpret_s32_s64(svdup_n_s64(word));
    }
    // acc + the four-byte products of each lane of `codes` with lane LANE of `x`.
    template <int LANE>
    static I dot(I acc, I codes, I x) {
        return svdot_lane_s32(acc, svreinterpret_s8_s32(codes), svreinterpret_s8_s32(x), LANE);
    }
    // In every 128 bits: acc + (2, 8) bytes of `x` times (2, 8) of `codes`, transposed.
    static I matrix(I acc, I x, I codes) {
        return svmmla_s32(acc, svreinterpret_s8_s32(x), svreinterpret_s8_s32(codes));
    }
    static I zip_low(I a, I b) { return svzip1_s32(a, b); }
    static I zip_high(I a, I b) { return svzip2_s32(a, b); }
    static I join(I a, I b) {  // the lower 64 bits of both: a and b repeat theirs
        return svreinterpret_s32_s64(
            svtrn1_s64(svreinterpret_s64_s32(a), svreinterpret_s64_s32(b)));
    }
    // The even and the odd 64 bits of a and b.
    static I even_halves(I a, I b) {
        return svreinterpret_s32_s64(
            svuzp1_s64(svreinterpret_s64_s32(a), svreinterpret_s64_s32(b)));
    }
    static I odd_halves(I a, I b) {
        return svreinterpret_s32_s64(
            svuzp2_s64(svreinterpret_s64_s32(a), svreinterpret_s64_s32(b)));
    }
};

#define WITHOUT_PAIRS
#include "native_activations.h"
#include "native_output.h"
#include "native_panel.h"
// after Tile and Source
#include "native_arm_bytes.h"

}  // namespace

extern const Level kSveLevel;
const Level kSveLevel = {
    "sve-256",
    write_row,
    {panel<MatrixKernel<2>, int16_t>, panel<FloatKernel, float>,
     panel<MatrixKernel<1>, int8_t>},
    {quantize_planes, copy_exact, quantize<127, kBytes>},
};
