// The health scan of weights of 16 bits: one pass over bit patterns.
//
// Reference: `Tally` in awqbench/inspect/health/figures.py, whose figures these are.
//
// Without its sign a floating-point pattern, read as an integer, orders as its magnitude.
// Stretches of 2048 numbers are counted in 16-bit lanes, 32 numbers an instruction; groups are
// looked at for their largest magnitude and their signs. The caller gives pieces that a cache
// holds, so that memory is read once. Counting is written in lanes: gcc 12 does not vectorise a
// loop of so many sums by itself (3.3 GB/s a thread), nor does looking at the ends of a stretch
// first help much (9), as almost every stretch holds a number that becomes subnormal. Measured
// on one thread of an AMD EPYC 9004: 19 without groups, 10 in groups of 128.
//
// values:   (rows, width) int16, contiguous
// limits:   infinity, overflow_from, subnormal_below, flushed_below (patterns)
// channels: (width) int16, largest magnitude of every `row_step`-th row, or null
// out:      absmax, smallest, nonzero, nonfinite, overflow, flushed, subnormal,
//           smallest_group, groups, vanished, one_signed; combined with what is there

#include <algorithm>
#include <cstdint>

#if defined(__x86_64__) && defined(__GLIBC__)
#define WIDEST __attribute__((target_clones("arch=skylake-avx512", "avx2", "default")))
#else
#define WIDEST
#endif

namespace {

constexpr int64_t kStretch = 2048;

enum Out {
  kAbsmax, kSmallest, kNonzero, kNonfinite, kOverflow, kFlushed, kSubnormal,
  kSmallestGroup, kGroups, kVanished, kOneSigned
};

struct Limits {
  int32_t infinity, overflow_from, subnormal_below, flushed_below;
};

struct Counts {
  int32_t largest_finite, smallest;  // magnitudes; without any but zeros the smallest is 65536
  int64_t zeros, nonfinite, overflow, flushed, below;
};

// Sixteen numbers; compilers lower it to what the processor has.
typedef int16_t Lanes __attribute__((vector_size(32)));
typedef uint16_t UnsignedLanes __attribute__((vector_size(32)));
constexpr int64_t kLanes = 16;

// The numbers of one stretch by lane; a comparison of lanes is -1 where it holds.
struct Sums {
  Lanes largest{}, zeros{}, finite{}, upto{}, flushed{}, below{};
  UnsignedLanes smallest_less_one = ~UnsignedLanes{};
};

WIDEST void add_lanes(const int16_t* values, int64_t blocks, Limits limits, Sums* total) {
  const Lanes infinity = Lanes{} + static_cast<int16_t>(limits.infinity);
  const Lanes from = Lanes{} + static_cast<int16_t>(std::min(limits.overflow_from, 32767));
  const Lanes subnormal = Lanes{} + static_cast<int16_t>(std::min(limits.subnormal_below, 32767));
  const Lanes flush = Lanes{} + static_cast<int16_t>(std::min(limits.flushed_below, 32767));
  Sums sums = *total;
  for (int64_t i = 0; i < blocks; ++i) {
    Lanes magnitude;
    __builtin_memcpy(&magnitude, values + i * kLanes, sizeof magnitude);
    magnitude &= 0x7fff;
    const UnsignedLanes less_one = reinterpret_cast<UnsignedLanes>(magnitude) - 1;
    const Lanes is_finite = magnitude < infinity;
    const Lanes finite = magnitude & is_finite;
    sums.largest = finite > sums.largest ? finite : sums.largest;
    sums.smallest_less_one =
        less_one < sums.smallest_less_one ? less_one : sums.smallest_less_one;
    sums.zeros -= magnitude == 0;
    sums.finite -= is_finite;
    sums.upto -= magnitude < from;
    sums.flushed -= magnitude < flush;
    sums.below -= magnitude < subnormal;
  }
  *total = sums;
}

Counts count_in(const int16_t* values, int64_t count, Limits limits) {
  Sums sums;
  const int64_t blocks = count / kLanes, rest = count % kLanes;
  add_lanes(values, blocks, limits, &sums);
  if (rest) {  // as a block whose other lanes repeat its first number, and are taken off
    int16_t last[kLanes];
    for (int64_t i = 0; i < kLanes; ++i) {
      last[i] = values[blocks * kLanes + (i < rest ? i : 0)];
    }
    Sums padded;
    add_lanes(last, 1, limits, &padded);
    for (int64_t i = 0; i < kLanes; ++i) {
      sums.largest[i] = std::max<int16_t>(sums.largest[i], padded.largest[i]);
      sums.smallest_less_one[i] =
          std::min<uint16_t>(sums.smallest_less_one[i], padded.smallest_less_one[i]);
      if (i >= rest) continue;
      sums.zeros[i] += padded.zeros[i];
      sums.finite[i] += padded.finite[i];
      sums.upto[i] += padded.upto[i];
      sums.flushed[i] += padded.flushed[i];
      sums.below[i] += padded.below[i];
    }
  }
  Counts found{0, 65536, 0, count, count, 0, 0};
  for (int64_t i = 0; i < kLanes; ++i) {
    found.largest_finite = std::max<int32_t>(found.largest_finite, sums.largest[i]);
    found.smallest = std::min<int32_t>(found.smallest, sums.smallest_less_one[i] + 1);
    found.zeros += sums.zeros[i];
    found.nonfinite -= sums.finite[i];
    found.overflow -= sums.upto[i];
    found.flushed += sums.flushed[i];
    found.below += sums.below[i];
  }
  found.overflow = std::max<int64_t>(found.overflow - found.nonfinite, 0);
  found.flushed -= limits.flushed_below > 0 ? found.zeros : 0;
  found.below -= limits.subnormal_below > 0 ? found.zeros : 0;
  return found;
}

void add_elements(const int16_t* values, int64_t count, Limits limits, int64_t* out) {
  const Counts found = count_in(values, count, limits);
  out[kNonfinite] += found.nonfinite;
  out[kOverflow] += found.overflow;
  out[kFlushed] += found.flushed;
  out[kSubnormal] += found.below - found.flushed;
  out[kNonzero] += count - found.zeros - found.nonfinite;
  out[kAbsmax] = std::max<int64_t>(out[kAbsmax], found.largest_finite);
  if (found.smallest < limits.infinity) {
    out[kSmallest] = std::min<int64_t>(out[kSmallest], found.smallest);
  }
}

struct Range {
  int16_t largest, low, high;  // largest magnitude; smallest and largest signed pattern
};

WIDEST Range range_of(const int16_t* values, int64_t count) {
  int16_t largest = 0, low = INT16_MAX, high = INT16_MIN;
  for (int64_t i = 0; i < count; ++i) {
    const int16_t magnitude = values[i] & 0x7fff;
    largest = std::max(largest, magnitude);
    low = std::min(low, values[i]);
    high = std::max(high, values[i]);
  }
  return {largest, low, high};
}

void add_group(const int16_t* values, int64_t count, Limits limits, int64_t* out) {
  const Range range = range_of(values, count);
  out[kGroups] += 1;
  if (range.largest > 0 && range.largest <= limits.infinity) {  // NaN is above
    out[kSmallestGroup] = std::min<int64_t>(out[kSmallestGroup], range.largest);
    out[kVanished] += range.largest < limits.flushed_below;
  }
  const bool positive = range.low > 0 && range.high <= limits.infinity;
  // Negative patterns order by magnitude, -0.0 lowest of all.
  const bool negative =
      range.high < 0 && range.low > INT16_MIN && (range.high & 0x7fff) <= limits.infinity;
  out[kOneSigned] += positive || negative;
}

WIDEST void widen(int16_t* __restrict__ channels, const int16_t* __restrict__ row,
                  int64_t width) {
  for (int64_t i = 0; i < width; ++i) {
    const int16_t magnitude = row[i] & 0x7fff;
    channels[i] = std::max(channels[i], magnitude);
  }
}

}  // namespace

extern "C" __attribute__((visibility("default"))) void awq_scan16(
    const int16_t* values, int64_t rows, int64_t width, int64_t group_size,
    const int32_t* limits_in, int64_t row_step, int16_t* channels, int64_t* out) {
  const Limits limits{limits_in[0], limits_in[1], limits_in[2], limits_in[3]};
  const int64_t size = rows * width;
  for (int64_t at = 0; at < size; at += kStretch) {
    const int64_t stop = std::min(at + kStretch, size);
    add_elements(values + at, stop - at, limits, out);
  }
  if (group_size <= 0) return;
  for (int64_t row = 0; row < rows; ++row) {
    const int16_t* start = values + row * width;
    for (int64_t at = 0; at < width; at += group_size) {
      add_group(start + at, std::min(group_size, width - at), limits, out);
    }
    if (channels != nullptr && row % row_step == 0) widen(channels, start, width);
  }
}
