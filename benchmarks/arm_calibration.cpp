// Cycles of inner loops on the processor that runs this, for static_throughput's error.
//
// Compiled by arm_static.py with -DLEVEL="native_<level>.cpp", whose tiles it calls, and -DCASES
// of RUN(kernel, bits, tokens). Prints for each the cycles for 1024 weights. All data lies in the
// first cache. What a call costs besides its loop cancels between a long and a short one; the
// clock's rate comes from a chain of multiplications, three cycles each on every x86 of ten years.
#include <chrono>
#include <cstdio>
#include <cstdlib>

#include LEVEL

namespace {

constexpr int64_t kShort = 64, kLong = 192;  // channels
constexpr int kCalls = 400, kTrials = 400;

double seconds() {
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch())
        .count();
}

double seconds_of_a_cycle() {
    constexpr int kLinks = 20000;
    double best = 1;
    for (int trial = 0; trial < 20; ++trial) {
        uint64_t value = 3;
        const double start = seconds();
        for (int i = 0; i < kLinks; ++i) asm volatile("imul %0, %0" : "+r"(value));
        const double took = seconds() - start;
        best = took < best ? took : best;
    }
    return best / (3.0 * kLinks);
}

alignas(4096) uint8_t codes[kLong * 4 * kPanel + 65536];
alignas(64) uint8_t scratch[kLong * kPanel * 4];
alignas(64) float x[16 * kLong], y[16 * kPanel];
float steps[16];
int32_t sums[16];
Header header;

template <class Kernel, int BITS, int MR>
double seconds_of(int64_t unit) {
    Tile t = {};
    t.chunk = codes;
    t.header = &header;
    t.scratch = scratch;
    t.x = x;
    t.steps = steps;
    t.sums = sums;
    t.y = y;
    t.unit = unit;
    t.row_bytes = 256;
    t.code_bits = 4;
    for (int b = 0; b < 4; ++b) t.offsets[b] = b * 64;
    double best = 1;
    for (int trial = 0; trial < kTrials; ++trial) {
        const double start = seconds();
        for (int call = 0; call < kCalls; ++call)
            Kernel::template tile<Source<BITS, false>, MR>(t, 0);
        const double took = seconds() - start;
        best = took < best ? took : best;
    }
    return best / kCalls;
}

template <class Kernel, int BITS, int MR>
void run(const char* name) {
    const double cycle = seconds_of_a_cycle();
    const double slope = seconds_of<Kernel, BITS, MR>(kLong) - seconds_of<Kernel, BITS, MR>(kShort);
    const double weights = double(kLong - kShort) * V::cols * V::lanes;
    std::printf("%s %d %d %.2f\n", name, BITS, MR, slope / cycle * 1024 / weights);
}

}  // namespace

#define RUN(kernel, bits, tokens) run<kernel, bits, tokens>(#kernel);

int main() { CASES }
