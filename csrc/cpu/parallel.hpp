// Spreads independent items over threads. Which thread runs an item never shows in a result.
#pragma once
#include <cstdint>
#include <thread>
#include <vector>

namespace dif {

// Calls fn(low, high) on contiguous ranges that cover [0, items), one range a thread, and waits for all.
template <class Fn>
void parallel(int threads, int64_t items, Fn fn) {
  if (threads > items) threads = static_cast<int>(items);
  if (threads <= 1) {
    if (items > 0) fn(int64_t{0}, items);
    return;
  }
  std::vector<std::thread> workers;
  workers.reserve(static_cast<size_t>(threads - 1));
  for (int t = 1; t < threads; ++t) {
    workers.emplace_back(fn, items * t / threads, items * (t + 1) / threads);
  }
  fn(int64_t{0}, items / threads);
  for (auto& worker : workers) worker.join();
}

}  // namespace dif
