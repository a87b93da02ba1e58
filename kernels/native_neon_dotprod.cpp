// The NEON level with dot products of bytes (sdot: Armv8.2 with asimddp; Neoverse N1, Apple A11).
#include <arm_neon.h>

#include "native_stream.h"

namespace {

#include "native_neon_vector.h"
// after V
#include "native_activations.h"
#include "native_output.h"
#include "native_panel.h"
// after Tile and Source
#include "native_arm_bytes.h"

}  // namespace

extern const Level kNeonDotprodLevel;
const Level kNeonDotprodLevel = {
    "neon-dotprod",
    write_row,
    {panel<DotKernel<2>, int16_t>, panel<FloatKernel, float>, panel<DotKernel<1>, int8_t>},
    {quantize_planes, copy_exact, quantize<127, kBytes>},
};
