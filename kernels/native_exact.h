// Rows computed again in float64 from decoded weights, as PackedWeight.dequantize and IEEE
// have it: rows that came out NaN or infinite, and rows too small to make integers of.
#pragma once

#include "native_stream.h"

// y[row, n] of one panel for some rows of x. rows (n_rows); y (M, N) of the type of x.
struct ExactJob {
    const Weight* weight;
    const void* x;
    int32_t type;
    int64_t stride;
    const int64_t* rows;
    int64_t n_rows;
    void* y;
};

void exact_panel(const ExactJob& job, int64_t panel, const uint8_t* bytes);
