#include "native_arm.h"

#if defined(__aarch64__) && defined(__linux__)

#include <sys/auxv.h>
#include <sys/prctl.h>

namespace {

// Of asm/hwcap.h and linux/prctl.h, whose older versions lack them.
constexpr unsigned long kDotprod = 1ul << 20, kSve = 1ul << 22;    // AT_HWCAP
constexpr unsigned long kSveI8mm = 1ul << 9, kI8mm = 1ul << 13;    // AT_HWCAP2
constexpr int kSveGetVectorLength = 51, kVectorLengthMask = 0xffff;

}  // namespace

ArmFeatures arm_features() {
    const unsigned long first = getauxval(AT_HWCAP), second = getauxval(AT_HWCAP2);
    ArmFeatures found = {(first & kDotprod) != 0, (second & kI8mm) != 0, false};
    if ((first & kSve) != 0 && (second & kSveI8mm) != 0)
        found.sve_256 = (prctl(kSveGetVectorLength) & kVectorLengthMask) == 256 / 8;
    return found;
}

#elif defined(__aarch64__) && defined(__APPLE__)

#include <sys/sysctl.h>

#include <cstddef>

namespace {

bool has(const char* name) {
    int value = 0;
    size_t size = sizeof value;
    return sysctlbyname(name, &value, &size, nullptr, 0) == 0 && value != 0;
}

}  // namespace

ArmFeatures arm_features() {
    return {has("hw.optional.arm.FEAT_DotProd"), has("hw.optional.arm.FEAT_I8MM"), false};
}

#else

ArmFeatures arm_features() { return {}; }

#endif
