// Instructions that a program executes in its own text, not in libraries, one step at a time from
// its first int3 on.
//
//     arm_count_steps PROGRAM WORDS...
//
// For x86 on Linux, where the emulator that counts ARM's has no AVX-512. PROGRAM is linked at a
// fixed address (-no-pie), below 0x1000000.
#include <sys/ptrace.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>

int main(int count, char** words) {
    if (count < 2) return 2;
    const pid_t child = fork();
    if (child == 0) {
        ptrace(PTRACE_TRACEME, 0, nullptr, nullptr);
        execv(words[1], words + 1);
        _exit(127);
    }
    long steps = 0;
    int status = 0;
    for (int stops = 0; stops < 2; ++stops) {  // at exec, and at int3
        waitpid(child, &status, 0);
        if (!WIFSTOPPED(status)) return 1;
        if (stops == 0) ptrace(PTRACE_CONT, child, nullptr, nullptr);
    }
    for (; WIFSTOPPED(status); waitpid(child, &status, 0)) {
        user_regs_struct registers;
        ptrace(PTRACE_GETREGS, child, nullptr, &registers);
        steps += registers.rip < 0x1000000;
        if (ptrace(PTRACE_SINGLESTEP, child, nullptr, nullptr)) return 1;
    }
    std::printf("%ld\n", steps);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 1;
}
