// One call of the native kernels, for counting its instructions.
//
//     arm_one_call LEVEL ACTIVATIONS TOKENS PANELS
//
// LEVEL by name, ACTIVATIONS as in native_stream.h. The weight has (64 PANELS, 1024) codes of 4
// bits in groups of 128.
#include <cstdio>
#include <cstdlib>
#include <vector>

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

int main(int count, char** words) {
    if (count != 5) return 2;
    Weight w = {};
    w.out_features = 64 * std::atoi(words[4]);
    w.in_features = 1024;
    w.n_chunks = 8;
    w.unit = 128;
    w.code_bits = 4;
    const int64_t tokens = std::atoi(words[3]);
    uint8_t* stream = static_cast<uint8_t*>(std::aligned_alloc(64, size_t(awq_stream_bytes(&w))));
    std::memset(stream, 0x12, size_t(awq_stream_bytes(&w)));
    w.stream = stream;
    std::vector<float> x(size_t(tokens) * 1024, 0.5f), y(size_t(tokens * w.out_features));
    int level = 0;
    while (level < awq_level_count() && std::strcmp(awq_level_name(level), words[1])) ++level;
    const Call call = {x.data(), y.data(), 1024, tokens, kInputFloat32, std::atoi(words[2]),
                       level, 1, nullptr};
#if defined(__x86_64__)
    asm volatile("int3");  // arm_count_steps begins here
#endif
    const int32_t status = awq_gemm(&w, &call);
    std::free(stream);
    return status;
}
