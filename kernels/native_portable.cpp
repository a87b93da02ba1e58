// The level for every processor: four lanes in the vector types of GCC and Clang, no intrinsics.
#include "native_stream.h"

namespace {

struct V {
    static constexpr int lanes = 4, rows = 2, unpack_rows = 2, cols = 2, prefetch_bytes = 1024;
    typedef int32_t I __attribute__((vector_size(16)));
    typedef uint32_t U __attribute__((vector_size(16)));
    typedef uint16_t S __attribute__((vector_size(16)));
    typedef float F __attribute__((vector_size(16)));
    template <class T>
    static T read(const void* at) {
        T value;
        std::memcpy(&value, at, sizeof value);
        return value;
    }
    static I load(const void* at) { return read<I>(at); }
    static void store(void* at, I a) { std::memcpy(at, &a, sizeof a); }
    static F loadf(const float* at) { return read<F>(at); }
    static void storef(float* at, F a) { std::memcpy(at, &a, sizeof a); }
    static I zero() { return I{}; }
    static I seti(int32_t a) { return I{a, a, a, a}; }
    static F setf(float a) { return F{a, a, a, a}; }
    static I broadcast(const void* at) { return seti(read<int32_t>(at)); }
    // Sums of products stay below 2^31; single shifts of signed lanes extend their halves.
    static I pairs(I acc, I a, I b) {
        const I low = (I)((U)a << 16) >> 16, other = (I)((U)b << 16) >> 16;
        return acc + low * other + (a >> 16) * (b >> 16);
    }
    static I band(I a, I b) { return a & b; }
    template <int n>
    static I shift(I a) {
        return (I)((U)a >> n);
    }
    template <int n>
    static I shift16(I a) {
        return (I)((S)a >> n);
    }
    static I mul32(I a, I b) { return a * b; }
    static I sub16(I a, I b) { return (I)((S)a - (S)b); }
    static I sub32(I a, I b) { return a - b; }
    static F tofloat(I a) { return __builtin_convertvector(a, F); }
    static F fma(F a, F b, F c) { return a * b + c; }
    static F mul(F a, F b) { return a * b; }
    static void prefetch(const void* at) { __builtin_prefetch(at); }
    static void read_scales(const uint8_t* from, int n, int32_t type, float* out) {
        for (int c = 0; c < n; ++c) out[c] = load_scale(from, c, type);
    }
};

#include "native_activations.h"
#include "native_output.h"
#include "native_panel.h"

}  // namespace

extern const Level kPortableLevel;
const Level kPortableLevel = {
    "portable",
    write_row,
    {panel<PairKernel, int16_t>, panel<FloatKernel, float>, panel<PairKernel, int16_t>},
    {quantize<kInt16Limit, kPairs>, copy_exact, quantize<127, kPairs>},
};
