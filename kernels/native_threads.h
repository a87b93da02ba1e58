// Threads that share the items of one call. See native_threads.cpp.
#pragma once

#include <cstdint>

// GOMP_parallel of the OpenMP that another library has loaded: calls body(data) on a team.
using Parallel = void (*)(void (*body)(void*), void* data, unsigned threads, unsigned flags);

// Call work(context, item) for items 0..count, on the calling thread and up to threads - 1
// others: those of `parallel`, or where it is null of a pool of ours. Several callers at once
// are fine: while one has our pool, others work alone.
void run_items(int64_t count, int threads, Parallel parallel, void (*work)(void*, int64_t),
               void* context);
