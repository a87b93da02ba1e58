#include "native_exact.h"

#include <algorithm>

extern const Level kPortableLevel;

namespace {

constexpr int64_t kRowsAtOnce = 8;

int code_at(const Weight& w, const uint8_t* codes, int64_t blocks, int64_t k, int64_t column) {
    const int64_t row = k / (w.code_bits == 8 ? 4 : 8) * blocks * 64;
    const int byte = codes[row + column * 4 + k % 4];
    if (w.code_bits == 8) return byte;
    return k % 8 < 4 ? byte & 15 : byte >> 4;
}

float input_at(const ExactJob& job, int64_t row, int64_t k) {
    const int64_t at = row * job.stride + k;
    if (job.type == kInputFloat32) return static_cast<const float*>(job.x)[at];
    const uint32_t word = uint32_t(static_cast<const uint16_t*>(job.x)[at]) << 16;
    float value;
    std::memcpy(&value, &word, 4);
    return value;
}

// Weights of a chunk for one channel, (columns); rounded to float32 once.
void decode(const Weight& w, const uint8_t* chunk, int64_t blocks, int64_t k, float* out) {
    const uint8_t* scales = chunk + blocks * code_bytes(w);
    const uint8_t* zeros = scales + blocks * kBlock * scale_bytes(w);
    for (int64_t n = 0; n < blocks * kBlock; ++n) {
        const int code = code_at(w, chunk, blocks, k, n) - zeros[n];
        out[n] = float(code) * load_scale(scales, n, w.scale_type);
    }
}

}  // namespace

void exact_panel(const ExactJob& job, int64_t panel, const uint8_t* bytes) {
    const Weight& w = *job.weight;
    const int64_t blocks = blocks_of_panel(w, panel), step = chunk_bytes(w, blocks);
    const int64_t columns = std::min<int64_t>(kPanel, w.out_features - panel * kPanel);
    for (int64_t first = 0; first < job.n_rows; first += kRowsAtOnce) {
        const int64_t n = std::min(kRowsAtOnce, job.n_rows - first);
        double sums[kRowsAtOnce][kPanel] = {};
        float decoded[kPanel];
        for (int64_t place = 0; place < w.n_chunks * w.unit; ++place) {
            const int64_t k = w.order ? w.order[place] : place;
            if (k < 0 || k >= w.in_features) continue;
            decode(w, bytes + place / w.unit * step, blocks, place % w.unit, decoded);
            for (int64_t i = 0; i < n; ++i) {
                const double x = input_at(job, job.rows[first + i], k);
                for (int64_t c = 0; c < kPanel; ++c)
                    if (c < columns) sums[i][c] += x * double(decoded[c]);
            }
        }
        for (int64_t i = 0; i < n; ++i) {
            float rounded[kPanel];
            for (int64_t c = 0; c < columns; ++c) rounded[c] = float(sums[i][c]);
            const int64_t at = job.rows[first + i] * w.out_features + panel * kPanel;
            char* out = static_cast<char*>(job.y) + at * (job.type == kInputFloat32 ? 4 : 2);
            kPortableLevel.write(rounded, columns, job.type, out);
        }
    }
}
