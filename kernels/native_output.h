// Sums written as y, and whether they are finite.
//
// Included by each native_<level>.cpp inside its anonymous namespace: plain loops that the
// compiler turns into that level's instructions.

// To nearest, half to even; a NaN stays one.
inline uint16_t to_bfloat16(uint32_t word) {
    const uint32_t rounded = (word + 0x7fffu + (word >> 16 & 1u)) >> 16;
    const uint32_t nan = word >> 16 | 0x40u;
    return uint16_t((word & 0x7fffffffu) > 0x7f800000u ? nan : rounded);
}

// Write n sums as `type`; return whether all are finite.
bool write_row(const float* sums, int64_t n, int32_t type, void* out) {
    uint32_t words[kPanel], largest = 0;
    std::memcpy(words, sums, size_t(n) * 4);
    for (int64_t i = 0; i < n; ++i) {
        const uint32_t magnitude = words[i] & 0x7fffffffu;
        largest = magnitude > largest ? magnitude : largest;
    }
    if (type == kInputFloat32) {
        std::memcpy(out, words, size_t(n) * 4);
    } else {
        uint16_t halves[kPanel];
        for (int64_t i = 0; i < n; ++i) halves[i] = to_bfloat16(words[i]);
        std::memcpy(out, halves, size_t(n) * 2);
    }
    return largest < 0x7f800000u;
}
