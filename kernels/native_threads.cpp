// Where torch is loaded its OpenMP threads do the work: they spin for some milliseconds after
// each of torch's operations, and threads of ours would have to wait for their cores (measured:
// two threads no faster than one after an operation of torch, 1.9 times as fast without).
//
// Else a small pool of sleeping threads: workers wait on a condition, they do not spin. The
// caller takes items from the first moment and never waits for a worker that has not started: on a
// busy machine a worker may wake after all the work is done.
#include "native_threads.h"

#include <unistd.h>

#include <atomic>
#include <condition_variable>
#include <mutex>
#include <system_error>
#include <thread>

namespace {

constexpr int kMaxWorkers = 255;

struct Pool {
    const pid_t owner = getpid();
    std::mutex busy;  // held by the caller whose items these are
    std::mutex mutex;
    std::condition_variable wake, done;
    int workers = 0;
    // The call in progress, under `mutex`, but for `next`.
    void (*work)(void*, int64_t) = nullptr;
    void* context = nullptr;
    int64_t count = 0;
    int wanted = 0;  // workers that may still join
    int active = 0;
    std::atomic<int64_t> next{0};

    void take() {
        for (int64_t item; (item = next.fetch_add(1, std::memory_order_relaxed)) < count;)
            work(context, item);
    }

    void serve() {
        std::unique_lock<std::mutex> lock(mutex);
        for (;;) {
            wake.wait(lock, [this] { return wanted > 0; });
            --wanted;
            ++active;
            lock.unlock();
            take();
            lock.lock();
            if (--active == 0) done.notify_one();
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

// The items of a call on a team of OpenMP.
struct Team {
    void (*work)(void*, int64_t);
    void* context;
    int64_t count;
    std::atomic<int64_t> next{0};
};

void team_body(void* data) {
    Team& team = *static_cast<Team*>(data);
    for (int64_t item; (item = team.next.fetch_add(1, std::memory_order_relaxed)) < team.count;)
        team.work(team.context, item);
}

}  // namespace

void run_items(int64_t count, int threads, Parallel parallel, void (*work)(void*, int64_t),
               void* context) {
    const int64_t most = count < kMaxWorkers ? count : kMaxWorkers;
    const int helpers = int(threads < most ? threads : most) - 1;
    if (helpers > 0 && parallel != nullptr) {
        Team team{work, context, count};
        return parallel(team_body, &team, unsigned(helpers + 1), 0);
    }
    Pool* shared = helpers > 0 ? &pool() : nullptr;
    if (shared == nullptr || !shared->busy.try_lock()) {
        for (int64_t item = 0; item < count; ++item) work(context, item);
        return;
    }
    std::lock_guard<std::mutex> holding(shared->busy, std::adopt_lock);
    {
        std::lock_guard<std::mutex> lock(shared->mutex);
        shared->start(helpers);
        shared->work = work;
        shared->context = context;
        shared->count = count;
        shared->next = 0;
        shared->wanted = helpers < shared->workers ? helpers : shared->workers;
    }
    for (int i = 0; i < helpers; ++i) shared->wake.notify_one();
    shared->take();
    std::unique_lock<std::mutex> lock(shared->mutex);
    shared->wanted = 0;
    shared->done.wait(lock, [shared] { return shared->active == 0; });
}
