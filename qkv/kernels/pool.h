// A few threads that share some two hundred phases of work a token.
//
// Who computes what is not fixed: a phase is cut into blocks, each is claimed by one counter or another, and a phase is
// over when all of its blocks are done, whoever has done them. A thread that got no processor is not waited for unless
// it holds a block; it skips what is over and joins where the others are. So two threads on one core take hardly more
// time than one, where a barrier would want both to run two hundred times a token. A block's numbers never depend on
// who computes it.
//
// Each thread first claims of its own share, block by block, then of the others': where all run, hardly two of them
// touch the same counter, and each reads its own part of the weights. Between two phases lie some ten microseconds, so
// waiting means spinning; who has spun for long gives the processor away, since the other thread may be waiting for
// this very core, and between steps a worker goes to sleep.
#pragma once

#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace qkv {

inline void pause_briefly() {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#endif
}

constexpr int SPINS = 400;        // some 20 microseconds, then yield
constexpr int BEFORE_SLEEP = 25;  // yields, then a worker between steps sleeps
constexpr int BLOCKS = 4;         // a thread's share of a phase; more cost claims, fewer leave more to wait for

class Pool {
public:
    // One thread's place in a job: `share` splits a phase's work among all.
    struct Hand {
        Pool& pool;
        const int thread;
        uint32_t phase;

        // Returns when f(i) was called for all i from 0 to count - 1, by somebody; `first()` is called before the
        // first of this thread's, if it gets any: only then is what the phase reads sure to be there still.
        template <class First, class F>
        void share(int count, First first, F f) {
            if (count == 0) return;
            int done = 0, all = 0;
            for (int turn = 0; turn < pool.threads_; turn++) {
                const int owner = (thread + turn) % pool.threads_;
                const int from = int64_t(count) * owner / pool.threads_, to = int64_t(count) * (owner + 1) / pool.threads_;
                const int blocks = std::min(to - from, BLOCKS);
                all += blocks;
                for (int b; (b = pool.claim(owner, phase, blocks)) >= 0; done++) {
                    if (done == 0) first();
                    const int stop = from + int64_t(to - from) * (b + 1) / blocks;
                    for (int i = from + int64_t(to - from) * b / blocks; i < stop; i++) f(i);
                }
            }
            pool.meet(phase++, done, all);
        }
        template <class F>
        void share(int count, F f) {
            share(count, [] {}, f);
        }
    };

    explicit Pool(int threads) : threads_(threads), owner_(getpid()), claims_(threads) {
        for (int t = 1; t < threads_; t++) workers_.emplace_back([this, t] { work(t); });
    }

    ~Pool() {
        if (getpid() != owner_) {  // in a forked child the workers do not exist: there is nobody to join
            for (auto& worker : workers_) worker.detach();
            return;
        }
        stop_ = true;
        wake();
        for (auto& worker : workers_) worker.join();
    }

    // Runs the job here, and on those workers that come in time; it does all its work in `share`s, the same in each.
    void run(const std::function<void(Hand)>& job) {
        job_ = &job, began_ = phase_.load(std::memory_order_relaxed);
        if (threads_ > 1) {
            gate_.store(OPEN, std::memory_order_release);
            wake();
        }
        job(Hand{*this, 0, began_});
        if (threads_ > 1) {
            gate_.fetch_and(~OPEN, std::memory_order_acq_rel);
            wait([&] { return gate_.load(std::memory_order_acquire) == 0; });
        }
    }

private:
    static constexpr uint32_t OPEN = 1u << 31;  // of the gate; below it stands how many workers are inside

    struct alignas(64) Claims {
        std::atomic<uint64_t> next{0};  // the phase, above 32 bits, and its first block that nobody has
    };

    template <class F>
    static void wait(F over) {
        for (int spins = 0; !over();)
            if (++spins < SPINS) pause_briefly();
            else sched_yield();
    }

    // A block of a share that is this thread's to do; -1 if there is none left, or the phase is over.
    int claim(int owner, uint32_t phase, int blocks) {
        std::atomic<uint64_t>& next = claims_[owner].next;
        uint64_t seen = next.load(std::memory_order_acquire);
        while (seen >> 32 == phase && int(uint32_t(seen)) < blocks)
            if (next.compare_exchange_weak(seen, seen + 1, std::memory_order_acq_rel)) return int(uint32_t(seen));
        return -1;
    }

    // This thread has done some of a phase's blocks; nobody goes on before all of them are. The last one opens the next.
    void meet(uint32_t phase, int done, int all) {
        if (done && done_.fetch_add(done, std::memory_order_acq_rel) + done == all) {
            done_.store(0, std::memory_order_relaxed);
            for (Claims& each : claims_) each.next.store(uint64_t(phase + 1) << 32, std::memory_order_release);
            phase_.store(phase + 1, std::memory_order_release);
            return;
        }
        wait([&] { return phase_.load(std::memory_order_acquire) != phase; });
    }

    void wake() {
        {
            std::lock_guard<std::mutex> held(mutex_);
            jobs_.fetch_add(1, std::memory_order_release);
        }
        sleepers_.notify_all();
    }

    void work(int thread) {
        for (unsigned seen = 0;;) {
            int spins = 0;
            while (jobs_.load(std::memory_order_acquire) == seen) {
                if (++spins % SPINS) pause_briefly();
                else if (spins < SPINS * BEFORE_SLEEP) sched_yield();
                else {
                    std::unique_lock<std::mutex> held(mutex_);
                    sleepers_.wait(held, [&] { return jobs_.load(std::memory_order_relaxed) != seen; });
                }
            }
            seen = jobs_.load(std::memory_order_acquire);
            if (stop_) return;
            if (!enter()) continue;  // it is over
            (*job_)(Hand{*this, thread, began_});
            gate_.fetch_sub(1, std::memory_order_release);
        }
    }

    bool enter() {
        uint32_t gate = gate_.load(std::memory_order_acquire);
        while (gate & OPEN)
            if (gate_.compare_exchange_weak(gate, gate + 1, std::memory_order_acquire)) return true;
        return false;
    }

    const int threads_;
    const pid_t owner_;
    std::vector<std::thread> workers_;
    std::mutex mutex_;
    std::condition_variable sleepers_;
    const std::function<void(Hand)>* job_ = nullptr;
    uint32_t began_ = 0;  // the job's first phase; they are counted on and on
    std::atomic<bool> stop_{false};
    std::vector<Claims> claims_;  // one a thread
    alignas(64) std::atomic<unsigned> jobs_{0};
    alignas(64) std::atomic<uint32_t> gate_{0};
    alignas(64) std::atomic<int> done_{0};
    alignas(64) std::atomic<uint32_t> phase_{0};
};

}  // namespace qkv
