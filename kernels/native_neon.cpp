// The NEON level, for every processor of aarch64: products of 16-bit pairs (smull).
//
// int8 activations are kept as int16 here; they bring no speed.
#include <arm_neon.h>

#include "native_stream.h"

namespace {

#include "native_neon_vector.h"
// after V
#include "native_activations.h"
#include "native_output.h"
#include "native_panel.h"

}  // namespace

extern const Level kNeonLevel;
const Level kNeonLevel = {
    "neon",
    write_row,
    {panel<PairKernel, int16_t>, panel<FloatKernel, float>, panel<PairKernel, int16_t>},
    {quantize<kInt16Limit, kPairs>, copy_exact, quantize<127, kPairs>},
};
