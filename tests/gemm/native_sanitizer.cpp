// Random calls of the native kernels, for AddressSanitizer and UndefinedBehaviorSanitizer.
//
//     native_sanitizer CALLS SEED
//
// Every array has exactly the bytes that it needs, at an odd place, so that a read or write of
// one byte too many is seen. Results are compared with a plain loop in double. Built and run by
// sanitize_native.py, with the kernels' sources and nothing of Python.
#include <atomic>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <random>
#include <thread>
#include <vector>

#if defined(__x86_64__)
#include "emulated_tiles.h"
#endif
#include "native_stream.h"
#include "native_threads.h"

struct Call {
    const void* x;
    void* y;
    int64_t stride, count;
    int32_t type, activations, level, threads;
    Parallel parallel;
};

extern "C" {
int32_t awq_level_count();
const char* awq_level_name(int32_t level);
int64_t awq_stream_bytes(const Weight* w);
int32_t awq_gemm(const Weight* w, const Call* call);
}

namespace {

struct Random {
    std::mt19937_64 engine;
    int64_t below(int64_t n) { return int64_t(engine() % uint64_t(n)); }
    float normal() { return std::normal_distribution<float>()(engine); }
};

struct Case {
    Weight w = {};
    Call call = {};
    std::vector<int32_t> order;
    std::vector<double> decoded;  // (N, K)
    std::unique_ptr<uint8_t[]> stream, x, y;
    bool has_nan = false;
};

void put_scale(uint8_t* at, float value, int32_t type) {
    uint32_t word;
    std::memcpy(&word, &value, 4);
    if (type == kFloat32) std::memcpy(at, &word, 4);
    const uint16_t brain = uint16_t(word >> 16);
    if (type == kBfloat16) std::memcpy(at, &brain, 2);
    const uint16_t half = uint16_t(0x2000 + (word >> 13 & 0x0fff));  // 2^-7 to 2^-3
    if (type == kFloat16) std::memcpy(at, &half, 2);
}

void fill_shape(Case& c, Random& random) {
    Weight& w = c.w;
    w.unit = int32_t(8 * (1 + random.below(16)));
    w.n_chunks = 1 + random.below(4);
    const int64_t places = w.n_chunks * w.unit;
    w.in_features = places - random.below(w.unit);
    w.out_features = 1 + random.below(150);
    w.code_bits = random.below(2) ? 4 : 8;
    w.scale_type = int32_t(random.below(3));
    if (random.below(3) != 0) return;
    c.order.assign(size_t(places), -1);  // act-order: any channel in any place
    for (int64_t k = 0; k < w.in_features; ++k) c.order[size_t(k)] = int32_t(k);
    for (int64_t i = places - 1; i > 0; --i)
        std::swap(c.order[size_t(i)], c.order[size_t(random.below(i + 1))]);
    w.order = c.order.data();
}

void fill_weight(Case& c, Random& random) {
    Weight& w = c.w;
    const int64_t bytes = awq_stream_bytes(&w);
    c.stream.reset(new uint8_t[size_t(bytes)]);
    for (int64_t i = 0; i < bytes; ++i) c.stream[size_t(i)] = uint8_t(random.below(256));
    w.stream = c.stream.get();
    c.decoded.assign(size_t(w.out_features * w.in_features), 0.0);
    uint8_t* at = c.stream.get();
    for (int64_t panel = 0; panel < panel_count(w); ++panel) {
        const int64_t blocks = blocks_of_panel(w, panel);
        for (int64_t chunk = 0; chunk < w.n_chunks; ++chunk, at += chunk_bytes(w, blocks)) {
            uint8_t* scales = at + blocks * code_bytes(w);
            uint8_t* zeros = scales + blocks * kBlock * scale_bytes(w);
            for (int64_t n = 0; n < blocks * kBlock; ++n) {
                put_scale(scales + n * scale_bytes(w), 0.01f + 0.001f * float(random.below(50)),
                          w.scale_type);
                zeros[n] = uint8_t(random.below(w.code_bits == 4 ? 16 : 256));
                const int64_t row = panel * kPanel + n;
                for (int64_t i = 0; i < w.unit && row < w.out_features; ++i) {
                    const int64_t place = chunk * w.unit + i;
                    const int64_t k = w.order ? w.order[place] : place;
                    if (k < 0 || k >= w.in_features) continue;
                    const int64_t per_row = w.code_bits == 4 ? 8 : 4;
                    const int byte = at[(i / per_row * blocks * kBlock + n) * 4 + i % 4];
                    const int code = w.code_bits == 8 ? byte : i % 8 < 4 ? byte & 15 : byte >> 4;
                    c.decoded[size_t(row * w.in_features + k)] =
                        double(code - zeros[n]) * double(load_scale(scales, n, w.scale_type));
                }
            }
        }
    }
}

void fill_call(Case& c, Random& random, int threads) {
    Call& call = c.call;
    const Weight& w = c.w;
    call.count = random.below(20) ? random.below(24) : 100 + random.below(60);
    call.stride = w.in_features + random.below(9);
    call.type = int32_t(random.below(2));
    call.activations = int32_t(random.below(3));
    call.level = int32_t(random.below(awq_level_count()));
    call.threads = threads;
    const int64_t width = call.type == kInputFloat32 ? 4 : 2;
    const int64_t used = call.count ? (call.count - 1) * call.stride + w.in_features : 0;
    c.x.reset(new uint8_t[size_t(used * width)]);
    c.y.reset(new uint8_t[size_t(call.count * w.out_features * width)]);
    c.has_nan = random.below(8) == 0;
    for (int64_t i = 0; i < used; ++i) {
        float value = random.normal();
        if (c.has_nan && random.below(used) < 2) value = random.below(2) ? NAN : INFINITY;
        uint32_t word;
        std::memcpy(&word, &value, 4);
        const uint16_t brain = uint16_t(word >> 16);
        std::memcpy(c.x.get() + i * width, width == 4 ? static_cast<void*>(&word) : (void*)&brain,
                    size_t(width));
    }
    call.x = c.x.get();
    call.y = c.y.get();
}

double value_at(const uint8_t* bytes, int64_t index, int32_t type) {
    uint32_t word = 0;
    if (type == kInputFloat32) {
        std::memcpy(&word, bytes + 4 * index, 4);
    } else {
        uint16_t half;
        std::memcpy(&half, bytes + 2 * index, 2);
        word = uint32_t(half) << 16;
    }
    float value;
    std::memcpy(&value, &word, 4);
    return double(value);
}

// Relative Frobenius error; infinite where a NaN is missing or does not belong.
double error_of(const Case& c) {
    const Weight& w = c.w;
    double wrong = 0, norm = 1e-12;
    for (int64_t m = 0; m < c.call.count; ++m) {
        for (int64_t n = 0; n < w.out_features; ++n) {
            double exact = 0;
            for (int64_t k = 0; k < w.in_features; ++k)
                exact += value_at(c.x.get(), m * c.call.stride + k, c.call.type) *
                         c.decoded[size_t(n * w.in_features + k)];
            const double y = value_at(c.y.get(), m * w.out_features + n, c.call.type);
            if (std::isnan(exact) || std::isnan(y)) {
                if (std::isnan(exact) != std::isnan(y)) return INFINITY;
            } else if (std::isinf(exact) || std::isinf(y)) {
                if (exact != y) return INFINITY;
            } else {
                wrong += (y - exact) * (y - exact);
                norm += exact * exact;
            }
        }
    }
    return std::sqrt(wrong / norm);
}

#if defined(__x86_64__)

// A call between two of someone else who keeps tiles configured, as ggml does, or not.
int32_t call_beside_others(const Case& c, Random& random) {
    emulated::Config other = {};
    if (random.below(2)) {
        other.palette = 1;
        other.rows[3] = 7;
        other.row_bytes[3] = 12;
        emulated::load_config(&other);
    }
    const int32_t status = awq_gemm(&c.w, &c.call);
    if (std::memcmp(&emulated::state.config, &other, sizeof other) != 0) {
        std::printf("tiles of another user are not as they were\n");
        return -1;
    }
    emulated::release();
    return status;
}

// Integers are exact: tiles must give bit by bit what the level after them does.
bool agrees_with_next(const Case& c) {
    if (std::strcmp(awq_level_name(c.call.level), "amx-int8") != 0) return true;
    const int64_t width = c.call.type == kInputFloat32 ? 4 : 2;
    std::vector<uint8_t> y(size_t(c.call.count * c.w.out_features * width) + 1);
    Call call = c.call;
    call.y = y.data();
    call.level += 1;
    return awq_gemm(&c.w, &call) == 0 && std::memcmp(y.data(), c.y.get(), y.size() - 1) == 0;
}

#else

int32_t call_beside_others(const Case& c, Random&) { return awq_gemm(&c.w, &c.call); }

bool agrees_with_next(const Case&) { return true; }

#endif

bool run(Random& random, int threads) {
    Case c;
    fill_shape(c, random);
    fill_weight(c, random);
    fill_call(c, random, threads);
    const int32_t status = call_beside_others(c, random);
    const double limits[] = {1e-3, 2e-6, 5e-2}, rounding = c.call.type == kInputFloat32 ? 0 : 5e-3;
    const double error = error_of(c);
    if (status == 0 && error <= limits[c.call.activations] + rounding && agrees_with_next(c))
        return true;
    std::printf("status %d, error %g: M %ld K %ld N %ld unit %d bits %d type %d act. %d %s\n",
                int(status), error, long(c.call.count), long(c.w.in_features),
                long(c.w.out_features), int(c.w.unit), int(c.w.code_bits), int(c.call.type),
                int(c.call.activations), awq_level_name(c.call.level));
    return false;
}

}  // namespace

int main(int argc, char** argv) {
    const int64_t calls = argc > 1 ? std::atoll(argv[1]) : 1000;
    const uint64_t seed = argc > 2 ? uint64_t(std::atoll(argv[2])) : 0;
    std::atomic<int64_t> failures{0};
    Random random{std::mt19937_64(seed)};
    for (int64_t i = 0; i < calls; ++i)
        if (!run(random, int(1 + random.below(8)))) ++failures;
    std::vector<std::thread> callers;  // at once
    for (int t = 0; t < 4; ++t)
        callers.emplace_back([&, t] {
            Random own{std::mt19937_64(seed + 1 + uint64_t(t))};
            for (int64_t i = 0; i < calls / 20; ++i)
                if (!run(own, 1 + t)) ++failures;
        });
    for (std::thread& caller : callers) caller.join();
    std::printf("%ld calls, %ld failures\n", long(calls + 4 * (calls / 20)), long(failures.load()));
    return failures.load() ? 1 : 0;
}
