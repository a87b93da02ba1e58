// The AVX-512 VNNI level: vpdpwssd on int16 pairs, vpdpbusd on bytes (avx512f, bw, vl, vnni).
//
// Both do one 512-bit operation a cycle on Zen 4, as the bfloat16 dot product does: int16
// activations have the ceiling of dense bfloat16, int8 activations twice that.
#include <immintrin.h>

#include "native_stream.h"

namespace {

#include "native_avx512.h"

#define HAS_QUADS
#include "native_activations.h"
#include "native_output.h"
#include "native_panel.h"

}  // namespace

extern const Level kAvx512Level;
const Level kAvx512Level = {
    "avx512-vnni",
    write_row,
    {panel<PairKernel, int16_t>, panel<FloatKernel, float>, panel<QuadKernel, int8_t>},
    {quantize<kInt16Limit, kPairs>, copy_exact, quantize<127, kBytes>},
};
