// Where torch is loaded its OpenMP threads do the work: they spin for some milliseconds after
// each of torch's operations, and threads of ours would have to wait for their cores (measured:
// two threads no faster than one after an operation of torch, 1.9 times as fast without).
//
// Else a small pool of threads that wait on a condition, after they have spun for a moment: calls
// follow one another closely, and waking a thread costs as long as a small product. The caller
// takes items from the first moment and never waits for a worker that has not started: on a busy
// machine a worker may wake after all the work is done.
//
// Measured on two Zen 4 cores, 4096 x 4096, int16, in turns: a range for each thread takes 0.92 of
// the time of one counter for all at one token, 0.95 at 16; spinning before sleeping 0.67 of it in
// the pool at one token. Prefetching into L1 alone (NTA) took 0.98 with int16 and 1.1 with int8,
// twice or half the distance 1.03 and 1.2: left as they were.
#include "native_threads.h"

#include <unistd.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

namespace {

constexpr int kMaxWorkers = 255;

// The items of a call, a range for each thread: it takes its own from the front, so that it
// reads one stretch of memory to the end and what it has prefetched is its own; then from the
// back of the others' ranges, so that a thread that starts late or never has no items left.
class Items {
  public:
    Items(void (*work)(void*, int64_t), void* context, int64_t count, int threads)
        : work_(work), context_(context), ranges_(size_t(threads)) {
        for (int64_t i = 0; i < threads; ++i)
            ranges_[size_t(i)].ends = packed(count * i / threads, count * (i + 1) / threads);
    }

    void take() {
        const size_t n = ranges_.size(), own = joined_.fetch_add(1, std::memory_order_relaxed) % n;
        for (size_t i = 0; i < n; ++i) {
            std::atomic<uint64_t>& ends = ranges_[(own + i) % n].ends;
            uint64_t now = ends.load(std::memory_order_relaxed);
            while (now >> 32 < (now & 0xffffffff)) {
                const uint64_t next = i == 0 ? now + (uint64_t(1) << 32) : now - 1;
                if (!ends.compare_exchange_weak(now, next, std::memory_order_relaxed)) continue;
                work_(context_, int64_t(i == 0 ? now >> 32 : next & 0xffffffff));
                now = ends.load(std::memory_order_relaxed);
            }
        }
    }

  private:
    struct alignas(64) Range {
        std::atomic<uint64_t> ends;  // first item, and the one after the last
    };
    static uint64_t packed(int64_t first, int64_t stop) {
        return uint64_t(first) << 32 | uint64_t(stop);
    }
    void (*work_)(void*, int64_t);
    void* context_;
    std::vector<Range> ranges_;
    std::atomic<size_t> joined_{0};
};

inline void pause() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("isb" ::: "memory");
#endif
}

// Wait for a condition without sleeping, for 50 microseconds at most: about what waking a
// sleeping thread costs.
template <class Condition>
void spin_until(Condition is_met) {
    using Clock = std::chrono::steady_clock;
    const Clock::time_point limit = Clock::now() + std::chrono::microseconds(50);
    while (!is_met() && Clock::now() < limit)
        for (int i = 0; i < 16; ++i) pause();
}

struct Pool {
    const pid_t owner = getpid();
    std::mutex busy;  // held by the caller whose items these are
    std::mutex mutex;
    std::condition_variable wake, done;
    int workers = 0;
    // The call in progress, under `mutex`.
    Items* items = nullptr;
    std::atomic<int> wanted{0};  // workers that may still join
    std::atomic<int> active{0};

    void serve() {
        std::unique_lock<std::mutex> lock(mutex);
        for (;;) {
            wake.wait(lock, [this] { return wanted > 0; });
            --wanted;
            ++active;
            Items* found = items;
            lock.unlock();
            found->take();
            lock.lock();
            if (--active == 0) done.notify_one();
            lock.unlock();
            spin_until([this] { return wanted.load(std::memory_order_acquire) > 0; });
            lock.lock();
        }
    }

    void start(int needed) {
        for (; workers < needed; ++workers) {
            try {
                std::thread(&Pool::serve, this).detach();
            } catch (const std::system_error&) {
                return;  // no more threads to be had: fewer do the work
            }
        }
    }
};

// Never deleted, for its threads outlive main; a child process made by fork, which has none
// of them, gets a pool of its own.
Pool& pool() {
    static std::atomic<Pool*> current{nullptr};
    Pool* found = current.load();
    while (found == nullptr || found->owner != getpid()) {
        Pool* fresh = new Pool;
        if (current.compare_exchange_strong(found, fresh)) return *fresh;
        delete fresh;
    }
    return *found;
}

void team_body(void* items) { static_cast<Items*>(items)->take(); }

}  // namespace

void run_items(int64_t count, int threads, Parallel parallel, void (*work)(void*, int64_t),
               void* context) {
    const int64_t most = count < kMaxWorkers ? count : kMaxWorkers;
    const int helpers = int(threads < most ? threads : most) - 1;
    if (helpers > 0 && parallel != nullptr) {
        Items items(work, context, count, helpers + 1);
        return parallel(team_body, &items, unsigned(helpers + 1), 0);
    }
    Pool* shared = helpers > 0 ? &pool() : nullptr;
    if (shared == nullptr || !shared->busy.try_lock()) {
        for (int64_t item = 0; item < count; ++item) work(context, item);
        return;
    }
    std::lock_guard<std::mutex> holding(shared->busy, std::adopt_lock);
    Items items(work, context, count, helpers + 1);
    {
        std::lock_guard<std::mutex> lock(shared->mutex);
        shared->start(helpers);
        shared->items = &items;
        shared->wanted = helpers < shared->workers ? helpers : shared->workers;
    }
    for (int i = 0; i < helpers; ++i) shared->wake.notify_one();
    items.take();
    shared->wanted = 0;
    spin_until([shared] { return shared->active.load(std::memory_order_acquire) == 0; });
    std::unique_lock<std::mutex> lock(shared->mutex);
    shared->wanted = 0;
    shared->done.wait(lock, [shared] { return shared->active == 0; });
}
