// y = x W^T: the functions that awqbench/gemm/native.py calls.
//
//   x  (M, K) float32 or bfloat16, `stride` elements between rows
//   y  (M, N) of the type of x, contiguous
//   W  a packed stream: native_stream.h
// References: awqbench.gemm.numpy_.matmul; PackedWeight.dequantize for rows with NaN.
//
// A call goes through its tokens 1024 at a time: activations to integers, shared by tokens;
// products, shared by panels of 64 columns; then rows that came out NaN or infinite again, in
// float64 (native_exact.h), so that they are what IEEE gives and touch no other row.
#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <new>
#include <vector>

#include "native_amx.h"
#include "native_arm.h"
#include "native_exact.h"
#include "native_stream.h"
#include "native_threads.h"

extern const Level kPortableLevel;
#if defined(__x86_64__)
extern const Level kAmxLevel, kAvx2Level, kAvx512Level;
#elif defined(__aarch64__)
extern const Level kNeonLevel, kNeonDotprodLevel, kNeonI8mmLevel, kSveLevel;
#endif

namespace {

constexpr int64_t kTokensAtOnce = 1024;  // bounds the memory of a call
constexpr int64_t kTokensOfJob = 512;    // 64 sums of each stay in L2: 128 KiB
constexpr int64_t kFewTokens = 4;        // bound by reading weights
constexpr size_t kKeptBytes = size_t(64) << 20;
// Below so many activations, or products of one, waking another thread costs more than it saves.
constexpr int64_t kQuantizeAlone = 1 << 15, kMultiplyAlone = 1 << 17;

#if defined(__SANITIZE_ADDRESS__)
constexpr bool kKeepBuffers = false;  // of exactly the size asked for: overruns are seen
#else
constexpr bool kKeepBuffers = true;
#endif

struct Buffer {  // grows, and is kept by its thread
    void* bytes = nullptr;
    size_t size = 0;
    ~Buffer() { std::free(bytes); }
    void* get(size_t needed) {
        if (needed > size || !kKeepBuffers) {
            std::free(bytes);
            size = kKeepBuffers ? (needed + 4095) / 4096 * 4096 : needed;
            if (posix_memalign(&bytes, 4096, size) != 0) {
                bytes = nullptr;
                size = 0;
            }
        }
        return bytes;
    }
    void shrink() {
        if (size <= kKeptBytes) return;
        std::free(bytes);
        bytes = nullptr;
        size = 0;
    }
};

thread_local Buffer tokens_buffer, sums_buffer;

struct Levels {
    const Level* list[8];
    int count;
};

Levels find_levels() {  // best first
    Levels found = {{}, 0};
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni")) {
#if !defined(AWQ_WITHOUT_AMX)
        if (amx_is_usable()) found.list[found.count++] = &kAmxLevel;
#endif
        found.list[found.count++] = &kAvx512Level;
    }
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
        __builtin_cpu_supports("f16c"))
        found.list[found.count++] = &kAvx2Level;
#elif defined(__aarch64__)
    const ArmFeatures has = arm_features();
#if defined(__linux__) && !defined(AWQ_WITHOUT_SVE)
    if (has.sve_256) found.list[found.count++] = &kSveLevel;
#endif
    if (has.i8mm) found.list[found.count++] = &kNeonI8mmLevel;
    if (has.dotprod) found.list[found.count++] = &kNeonDotprodLevel;
    found.list[found.count++] = &kNeonLevel;
#endif
    found.list[found.count++] = &kPortableLevel;
    return found;
}

const Levels& levels() {
    static const Levels found = find_levels();
    return found;
}

}  // namespace

// Passed by native.py; fields in this order, no padding between them.
struct Call {
    const void* x;
    void* y;
    int64_t stride;
    int64_t count;  // M
    int32_t type;   // InputType
    int32_t activations;
    int32_t level;
    int32_t threads;
    Parallel parallel;  // or null: native_threads.h
};

namespace {

struct State {
    const Weight* weight;
    const Call* call;
    const Level* level;
    int64_t begin, count;  // tokens at once
    Tokens tokens;
    QuantizeJob quantize;
    uint8_t* bad;
    const ExactJob* exact;
    int64_t rows_at_once;  // made integers by one thread
    int64_t n_parts;  // of tokens, for each panel
    std::atomic<bool>* out_of_memory;
};

int64_t element_bytes(int32_t type) { return type == kInputFloat32 ? 4 : 2; }

const uint8_t* panel_bytes(const Weight& w, int64_t panel) {
    return w.stream + panel * w.n_chunks * chunk_bytes(w, 4);
}

void quantize_item(void* context, int64_t item) {
    const State& s = *static_cast<State*>(context);
    QuantizeJob job = s.quantize;
    job.first = item * s.rows_at_once;
    job.stop = std::min(job.first + s.rows_at_once, s.count);
    s.level->quantize[s.call->activations](job);
}

void panel_item(void* context, int64_t item) {
    const State& s = *static_cast<State*>(context);
    const Weight& w = *s.weight;
    const int64_t panel = item / s.n_parts, part = item % s.n_parts;
    PanelJob job = {};
    job.weight = s.weight;
    job.tokens = &s.tokens;
    job.panel = panel_bytes(w, panel);
    job.blocks = blocks_of_panel(w, panel);
    job.first = s.count * part / s.n_parts;
    job.stop = s.count * (part + 1) / s.n_parts;
    const int64_t m = job.stop - job.first;
    job.scratch = sums_buffer.get(kScratchBytes + size_t(m) * kPanel * sizeof(float));
    if (job.scratch == nullptr) {
        s.out_of_memory->store(true);
        return;
    }
    job.sums = reinterpret_cast<float*>(static_cast<char*>(job.scratch) + kScratchBytes);
    s.level->panel[s.call->activations](job);
    const int64_t columns = std::min<int64_t>(kPanel, w.out_features - panel * kPanel);
    for (int64_t i = 0; i < m; ++i) {
        const int64_t row = job.first + i;
        const int64_t at = (s.begin + row) * w.out_features + panel * kPanel;
        char* out = static_cast<char*>(s.call->y) + at * element_bytes(s.call->type);
        if (!s.level->write(job.sums + i * kPanel, columns, s.call->type, out))
            __atomic_store_n(s.bad + row, 1, __ATOMIC_RELAXED);
    }
}

void exact_item(void* context, int64_t item) {
    const State& s = *static_cast<State*>(context);
    exact_panel(*s.exact, item, panel_bytes(*s.weight, item));
}

size_t rounded(size_t bytes) { return (bytes + 63) / 64 * 64; }

// Lay out the memory of the tokens of `s`; false if there is none.
bool lay_out(State& s, int64_t parts) {
    const Weight& w = *s.weight;
    const size_t n = size_t(s.count) * w.n_chunks * parts;
    const size_t values = rounded(n * (w.unit / parts) * (s.call->activations == kExact ? 4 : 2));
    const size_t small = rounded(n * 4), energies = rounded(size_t(s.count) * 8);
    char* bytes = static_cast<char*>(tokens_buffer.get(values + 2 * small + energies + s.count));
    if (bytes == nullptr) return false;
    float* steps = reinterpret_cast<float*>(bytes + values);
    int32_t* sums = reinterpret_cast<int32_t*>(bytes + values + small);
    s.bad = reinterpret_cast<uint8_t*>(bytes + values + 2 * small + energies);
    std::memset(s.bad, 0, size_t(s.count));
    s.tokens = {bytes, steps, sums, s.count, parts};
    QuantizeJob& job = s.quantize;
    job = {};
    job.weight = s.weight;
    job.x = static_cast<const char*>(s.call->x) +
            s.begin * s.call->stride * element_bytes(s.call->type);
    job.type = s.call->type;
    job.stride = s.call->stride;
    job.count = s.count;
    job.parts = parts;
    job.values = bytes;
    job.steps = steps;
    job.sums = sums;
    job.needs_exact = s.bad;
    job.energies = reinterpret_cast<float*>(bytes + values + 2 * small);
    return true;
}

// Whether integers are too coarse for a relative error of 1e-4, with room for chance. (Sums of
// squares that overflow compare as false; rows that need it are computed again anyway.)
bool is_coarse(const State& s) {
    double error = 0, energy = 0;
    for (int64_t i = 0; i < s.count; ++i) {
        error += s.quantize.energies[2 * i];
        energy += s.quantize.energies[2 * i + 1];
    }
    return error > 0.8e-4 * 0.8e-4 * energy;
}

bool make_tokens(State& s) {
    const int32_t activations = s.call->activations;
    const bool may_part = activations != kExact && can_part(*s.weight);
    const int threads = s.count * s.weight->in_features < kQuantizeAlone ? 1 : s.call->threads;
    // Every thread has rows to make; in fours, which all levels read together or not at all.
    const int64_t share = (s.count + threads - 1) / threads;
    s.rows_at_once = std::max<int64_t>(4, std::min<int64_t>(16, (share + 3) / 4 * 4));
    const int64_t shares = (s.count + s.rows_at_once - 1) / s.rows_at_once;
    for (int64_t parts = may_part && s.count <= kFewTokens ? 2 : 1;; ++parts) {
        if (!lay_out(s, parts)) return false;
        run_items(shares, threads, s.call->parallel, quantize_item, &s);
        if (parts == 2 || !may_part || activations != kInt16 || !is_coarse(s)) return true;
    }
}

void exact_rows(State& s) {
    std::vector<int64_t> rows;
    for (int64_t i = 0; i < s.count; ++i)
        if (s.bad[i]) rows.push_back(s.begin + i);
    if (rows.empty()) return;
    const ExactJob job = {s.weight, s.call->x, s.call->type, s.call->stride,
                          rows.data(), int64_t(rows.size()), s.call->y};
    s.exact = &job;
    run_items(panel_count(*s.weight), s.call->threads, s.call->parallel, exact_item, &s);
}

bool multiply(State& s) {
    if (!make_tokens(s)) return false;
    s.n_parts = (s.count + kTokensOfJob - 1) / kTokensOfJob;
    const int64_t work = s.count * s.weight->in_features * s.weight->out_features;
    run_items(panel_count(*s.weight) * s.n_parts, work < kMultiplyAlone ? 1 : s.call->threads,
              s.call->parallel, panel_item, &s);
    if (s.out_of_memory->load()) return false;
    exact_rows(s);
    return true;
}

}  // namespace

extern "C" {

#define EXPORT __attribute__((visibility("default")))

// Number of levels this processor has, best first.
EXPORT int32_t awq_level_count() { return levels().count; }

EXPORT const char* awq_level_name(int32_t level) {
    const Levels& found = levels();
    return level >= 0 && level < found.count ? found.list[level]->name : "";
}

// Bytes of the stream of a weight, whose `stream` and `order` are not read.
EXPORT int64_t awq_stream_bytes(const Weight* w) {
    const int64_t panels = panel_count(*w);
    if (panels == 0) return 0;
    return w->n_chunks *
           ((panels - 1) * chunk_bytes(*w, 4) + chunk_bytes(*w, blocks_of_panel(*w, panels - 1)));
}

// 0, or 1 where a field is out of range, or 2 where memory ran out.
EXPORT int32_t awq_gemm(const Weight* w, const Call* call) {
    const Levels& found = levels();
    if (call->level < 0 || call->level >= found.count || call->activations < 0 ||
        call->activations > 2 || w->unit < 8 || w->unit > kMaxUnit || w->unit % 8 != 0 ||
        (w->code_bits != 4 && w->code_bits != 8))
        return 1;
    std::atomic<bool> out_of_memory{false};
    State s = {};
    s.weight = w;
    s.call = call;
    s.level = found.list[call->level];
    s.out_of_memory = &out_of_memory;
    try {
        for (s.begin = 0; s.begin < call->count; s.begin += kTokensAtOnce) {
            s.count = std::min(kTokensAtOnce, call->count - s.begin);
            if (!multiply(s)) return 2;
        }
    } catch (const std::bad_alloc&) {
        return 2;
    }
    tokens_buffer.shrink();
    return 0;
}

}  // extern "C"
