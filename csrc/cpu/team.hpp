// Threads that stay for many small jobs: a step of a chain is too short to start threads for it.
#pragma once
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace dif {

// `run(job)` calls job(member) once for each member 0 ... size() - 1, member 0 in the calling thread, and waits.
// Members wait for the next job awake for a while, then asleep. What a job writes is seen by the caller and by the next
// job.
class Team {
 public:
  explicit Team(int size) {
    for (int m = 1; m < size; ++m) workers_.emplace_back([this, m] { work(m); });
  }
  Team(const Team&) = delete;
  ~Team() {
    if (workers_.empty()) return;
    begin(nullptr);
    for (auto& worker : workers_) worker.join();
  }

  int size() const { return static_cast<int>(workers_.size()) + 1; }

  void run(const std::function<void(int)>& job) {
    if (workers_.empty()) return job(0);
    left_.store(size() - 1, std::memory_order_relaxed);
    begin(&job);
    job(0);
    while (left_.load(std::memory_order_acquire) > 0) std::this_thread::yield();
  }

 private:
  static constexpr int patience = 2000;  // looks at the round before a member sleeps: tens of microseconds

  void begin(const std::function<void(int)>* job) {
    {
      const std::lock_guard<std::mutex> hold(mutex_);
      job_ = job;
      round_.fetch_add(1, std::memory_order_release);
    }
    wake_.notify_all();
  }
  void work(int member) {
    for (uint64_t done = 0;; ++done) {
      for (int i = 0; i < patience && round_.load(std::memory_order_acquire) == done; ++i) std::this_thread::yield();
      if (round_.load(std::memory_order_acquire) == done) {
        std::unique_lock<std::mutex> hold(mutex_);
        wake_.wait(hold, [&] { return round_.load(std::memory_order_relaxed) != done; });
      }
      if (!job_) return;
      (*job_)(member);
      left_.fetch_sub(1, std::memory_order_release);
    }
  }

  std::vector<std::thread> workers_;
  std::mutex mutex_;
  std::condition_variable wake_;
  const std::function<void(int)>* job_ = nullptr;
  std::atomic<uint64_t> round_{0};
  std::atomic<int> left_{0};
};

}  // namespace dif
