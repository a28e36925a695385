// A few threads that wait for each other some two hundred times a token.
//
// Between two barriers lie some ten microseconds, so waiting means spinning; who has spun for long gives the processor
// away, since the other thread may be waiting for this very core, and between steps a worker goes to sleep.
#pragma once

#include <sched.h>
#include <unistd.h>

#include <atomic>
#include <condition_variable>
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

class Pool {
public:
    explicit Pool(int threads) : threads_(threads), owner_(getpid()) { start(); }

    ~Pool() {
        if (getpid() != owner_) {  // in a forked child the workers do not exist: there is nobody to join
            for (auto& worker : workers_) worker.detach();
            return;
        }
        stop_ = true;
        wake();
        for (auto& worker : workers_) worker.join();
    }

    int threads() const { return threads_; }

    // Runs job(0) here and job(1) to job(threads - 1) on the workers; returns when all are done.
    void run(const std::function<void(int)>& job) {
        job_ = &job;
        wake();
        job(0);
        barrier();
    }

    // Nobody goes on before everybody is here.
    void barrier() {
        if (threads_ == 1) return;
        const unsigned round = round_.load(std::memory_order_relaxed);
        if (here_.fetch_add(1, std::memory_order_acq_rel) + 1 == threads_) {
            here_.store(0, std::memory_order_relaxed);
            round_.store(round + 1, std::memory_order_release);
            return;
        }
        for (int spins = 0; round_.load(std::memory_order_acquire) == round;)
            if (++spins < SPINS) pause_briefly();
            else sched_yield();
    }

private:
    void start() {
        for (int t = 1; t < threads_; t++) workers_.emplace_back([this, t] { work(t); });
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
            seen++;
            if (stop_) return;
            (*job_)(thread);
            barrier();
        }
    }

    const int threads_;
    const pid_t owner_;
    std::vector<std::thread> workers_;
    std::mutex mutex_;
    std::condition_variable sleepers_;
    const std::function<void(int)>* job_ = nullptr;
    std::atomic<bool> stop_{false};
    alignas(64) std::atomic<unsigned> jobs_{0};
    alignas(64) std::atomic<int> here_{0};
    alignas(64) std::atomic<unsigned> round_{0};
};

}  // namespace qkv
