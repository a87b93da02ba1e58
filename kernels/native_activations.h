// Activations made integers, per token and piece of a chunk: x ~ step * value, |value| <= limit.
//
// Included by each native_<level>.cpp inside its anonymous namespace: plain loops that the
// compiler turns into that level's instructions.
//
// A piece that holds NaN or infinity gets the step NaN, which makes its row of y NaN; such rows
// are computed again (native_exact.h). A row all of whose values are below 1e-30 is marked for
// that too, for its steps would be subnormal.

constexpr float kTiny = 1e-30f;

inline uint32_t bits_of(float value) {
    uint32_t word;
    std::memcpy(&word, &value, 4);
    return word;
}

inline float value_of(uint32_t word) {
    float value;
    std::memcpy(&value, &word, 4);
    return value;
}

// Copy a piece of a token to float32, padded with zeros.
inline void load_piece(const QuantizeJob& job, int64_t token, int64_t piece, float* out) {
    const Weight& w = *job.weight;
    const int64_t unit = w.unit / job.parts, begin = piece * unit, start = token * job.stride;
    const bool single = job.type == kInputFloat32;  // else bfloat16
    const float* x = static_cast<const float*>(job.x) + (single ? start : 0);
    const uint16_t* half = static_cast<const uint16_t*>(job.x) + (single ? 0 : start);
    if (w.order != nullptr) {
        for (int64_t i = 0; i < unit; ++i) {
            const int32_t k = w.order[begin + i];
            out[i] = k < 0 ? 0.0f : single ? x[k] : value_of(uint32_t(half[k]) << 16);
        }
        return;
    }
    const int64_t left = w.in_features - begin, n = left < unit ? (left < 0 ? 0 : left) : unit;
    if (single)
        std::memcpy(out, x + begin, size_t(n) * 4);
    else
        for (int64_t i = 0; i < n; ++i) out[i] = value_of(uint32_t(half[begin + i]) << 16);
    for (int64_t i = n; i < unit; ++i) out[i] = 0.0f;
}

// Largest magnitude; as integers, NaN and infinity lie above every number.
inline uint32_t largest_bits(const float* x, int64_t n) {
    uint32_t largest = 0;
    for (int64_t i = 0; i < n; ++i) {
        const uint32_t magnitude = bits_of(x[i]) & 0x7fffffffu;
        largest = magnitude > largest ? magnitude : largest;
    }
    return largest;
}

// Write the integers of a piece; return its step.
inline float to_integers(float* x, int64_t n, uint32_t largest, float limit, int32_t* out) {
    const float absmax = value_of(largest);
    if (largest >= 0x7f800000u || largest == 0) {
        std::memset(out, 0, size_t(n) * 4);
        return largest ? value_of(0x7fc00000u) : 0.0f;
    }
    const float up = absmax < kTiny ? 0x1p80f : 1.0f;  // 1 / absmax must not overflow
    const float inverse = limit / (absmax * up);
    // 1.5 * 2^23 added rounds to the nearest integer, which is left in the low bits.
    for (int64_t i = 0; i < n; ++i)
        out[i] = int32_t(bits_of(x[i] * up * inverse + 12582912.0f)) - 0x4b400000;
    return absmax / limit;
}

// The order 0, 2, 1, 3 of each four int16: see Tokens.
inline void store_pairs(const int32_t* values, int64_t n, int16_t* out) {
    for (int64_t i = 0; i < n; i += 4) {
        out[i] = int16_t(values[i]);
        out[i + 1] = int16_t(values[i + 2]);
        out[i + 2] = int16_t(values[i + 1]);
        out[i + 3] = int16_t(values[i + 3]);
    }
}

// How the integers of a piece are written.
constexpr int kPairs = 0;   // int16, as store_pairs
constexpr int kBytes = 1;   // int8
constexpr int kPlanes = 2;  // all high bytes (signed), then all low ones (unsigned)

// Values of at most LIMIT and their sums.
template <int LIMIT, int FORM>
void quantize(const QuantizeJob& job) {
    const int64_t unit = job.weight->unit / job.parts, pieces = job.weight->n_chunks * job.parts;
    alignas(64) float x[kMaxUnit];
    alignas(64) int32_t values[kMaxUnit];
    for (int64_t token = job.first; token < job.stop; ++token) {
        uint32_t row_largest = 0;
        float error = 0, energy = 0;
        for (int64_t c = 0; c < pieces; ++c) {
            const int64_t at = c * job.count + token;
            load_piece(job, token, c, x);
            const uint32_t largest = largest_bits(x, unit);
            row_largest = largest > row_largest ? largest : row_largest;
            job.steps[at] = to_integers(x, unit, largest, float(LIMIT), values);
            int32_t sum = 0;
            uint32_t squares = 0;  // in units of 256: 128 * 2^30 / 256 fits
            for (int64_t i = 0; i < unit; ++i) {
                sum += values[i];
                squares += uint32_t(values[i] * values[i]) >> 8;
            }
            job.sums[at] = sum;
            const float step = largest < 0x7f800000u ? job.steps[at] : 0.0f;
            error += step * step * float(unit) / 12.0f;  // a rounding error is uniform
            energy += step * step * float(squares) * 256.0f;
            if (FORM == kBytes) {
                int8_t* bytes = static_cast<int8_t*>(job.values) + at * unit;
                for (int64_t i = 0; i < unit; ++i) bytes[i] = int8_t(values[i]);
            } else if (FORM == kPlanes) {
                int8_t* high = static_cast<int8_t*>(job.values) + at * unit * 2;
                uint8_t* low = static_cast<uint8_t*>(job.values) + at * unit * 2 + unit;
                for (int64_t i = 0; i < unit; ++i) high[i] = int8_t(values[i] >> 8);
                for (int64_t i = 0; i < unit; ++i) low[i] = uint8_t(values[i]);
            } else {
                store_pairs(values, unit, static_cast<int16_t*>(job.values) + at * unit);
            }
        }
        job.energies[2 * token] = error;
        job.energies[2 * token + 1] = energy;
        if (row_largest > 0 && value_of(row_largest) < kTiny) job.needs_exact[token] = 1;
    }
}

void copy_exact(const QuantizeJob& job) {
    const int64_t unit = job.weight->unit / job.parts, pieces = job.weight->n_chunks * job.parts;
    for (int64_t token = job.first; token < job.stop; ++token)
        for (int64_t c = 0; c < pieces; ++c)
            load_piece(job, token, c,
                       static_cast<float*>(job.values) + (c * job.count + token) * unit);
}
