// Compiled without the flags of any level: runs where there is no AMX.
#include "native_amx.h"

#if defined(__x86_64__) && defined(__linux__) && !defined(AWQ_WITHOUT_AMX)

#include <cpuid.h>
#include <setjmp.h>
#include <signal.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace {

#if defined(AWQ_EMULATE_TILES)

bool has_tiles() { return true; }

#else

constexpr int kRequestPermission = 0x1023;  // ARCH_REQ_XCOMP_PERM of arch_prctl, Linux 5.16
constexpr int kTileData = 18;               // component of the extended state

bool has_tiles() {
    unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
    if (!__get_cpuid(1, &eax, &ebx, &ecx, &edx) || !(ecx >> 27 & 1)) return false;  // OSXSAVE
    if (!__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx)) return false;
    if (!(edx >> 24 & 1) || !(edx >> 25 & 1)) return false;  // amx-tile, amx-int8
    unsigned low, high;
    asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    if ((low >> 17 & 3) != 3) return false;  // the system keeps both parts of the tiles' state
    return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

#endif

// Of the thread that tries; another thread's signal goes to the handler from before.
thread_local sigjmp_buf* trying = nullptr;
struct sigaction handler_before;

void on_illegal(int signal, siginfo_t* info, void* context) {
    if (trying != nullptr) siglongjmp(*trying, 1);
    if (handler_before.sa_flags & SA_SIGINFO)
        return handler_before.sa_sigaction(signal, info, context);
    if (handler_before.sa_handler != SIG_DFL && handler_before.sa_handler != SIG_IGN)
        return handler_before.sa_handler(signal);
    sigaction(signal, &handler_before, nullptr);  // the instruction is tried again, and kills
}

bool multiplies_guarded() {
    struct sigaction action = {};
    action.sa_sigaction = on_illegal;
    action.sa_flags = SA_SIGINFO;
    sigemptyset(&action.sa_mask);
    sigjmp_buf here;
    if (sigaction(SIGILL, &action, &handler_before) != 0) return false;
    volatile bool good = false;
    if (sigsetjmp(here, 1) == 0) {
        trying = &here;
        good = amx_multiplies();
    }
    trying = nullptr;
    sigaction(SIGILL, &handler_before, nullptr);
    return good;
}

}  // namespace

bool amx_is_usable() { return has_tiles() && multiplies_guarded(); }

#else

bool amx_is_usable() { return false; }

#endif
