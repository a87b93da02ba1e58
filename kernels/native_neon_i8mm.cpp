// The NEON level with products of byte matrices (smmla: i8mm; Neoverse N2, V1, V2, Apple M2).
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

extern const Level kNeonI8mmLevel;
const Level kNeonI8mmLevel = {
    "neon-i8mm",
    write_row,
    {panel<MatrixKernel<2>, int16_t>, panel<FloatKernel, float>,
     panel<MatrixKernel<1>, int8_t>},
    {quantize_planes, copy_exact, quantize<127, kBytes>},
};
