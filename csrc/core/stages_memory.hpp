// What a stage detector remembers of one curve in running form: sums whose rounding is kept, the median of the last
// second differences, and what quiet has itself shown. Each is a function of the values pushed, in their order.
#pragma once
#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace dif {

// Prefix sums, each with the rounding error that it left behind (two-sum).
class PrefixSums {
 public:
  void push(double value) {
    const double old = sum_.back(), total = old + value, back = total - old;
    rest_.push_back(rest_.back() + ((old - (total - back)) + (value - back)));
    sum_.push_back(total);
  }
  // Mean of the `length` values before index `end`.
  double mean(int64_t end, int64_t length) const {
    return ((sum_[end] - sum_[end - length]) + (rest_[end] - rest_[end - length])) / static_cast<double>(length);
  }

 private:
  std::vector<double> sum_{0.0}, rest_{0.0};
};

// Median of the last 48 values: a ring in order of arrival, and the same values sorted.
class RunningMedian {
 public:
  void push(double value) {
    if (count_ == capacity) {
      double* old = std::lower_bound(sorted_.data(), sorted_.data() + count_, ring_[next_]);
      std::copy(old + 1, sorted_.data() + count_, old);
      --count_;
    }
    double* place = std::upper_bound(sorted_.data(), sorted_.data() + count_, value);
    std::copy_backward(place, sorted_.data() + count_, sorted_.data() + count_ + 1);
    *place = value;
    ring_[next_] = value;
    next_ = (next_ + 1) % capacity;
    ++count_;
  }
  int count() const { return count_; }
  double median() const { return 0.5 * (sorted_[(count_ - 1) / 2] + sorted_[count_ / 2]); }

 private:
  static constexpr int capacity = 48;
  std::array<double, capacity> ring_{}, sorted_{};
  int count_ = 0, next_ = 0;
};

// What one scale saw rise above its line, in units of one observation's deviation, newest last.
class QuietExcess {
 public:
  void push(int64_t at, double value) {
    if (count_ == capacity) {
      std::copy(items_.begin() + 1, items_.end(), items_.begin());
      --count_;
    }
    items_[static_cast<std::size_t>(count_++)] = {at, value};
  }
  // What was seen from `at` on belongs to a stage, not to quiet.
  void forget_after(int64_t at) {
    while (count_ > 0 && items_[static_cast<std::size_t>(count_ - 1)].at > at) --count_;
  }
  int known(int64_t until) const {
    int n = count_;
    while (n > 0 && items_[static_cast<std::size_t>(n - 1)].at > until) --n;
    return std::min(n, window);
  }
  // Of the last 48 up to `until`, of a fall (sign +1) or a rise: the smaller of the upper quartile, which a curve
  // that slows down does not raise, and half the distance of the quartiles, which one that speeds up raises less.
  double spread(int64_t until, int sign) const {
    int end = count_;
    while (end > 0 && items_[static_cast<std::size_t>(end - 1)].at > until) --end;
    const int n = std::min(end, window);
    std::array<double, window> values{};
    for (int i = 0; i < n; ++i) {
      values[static_cast<std::size_t>(i)] = sign * items_[static_cast<std::size_t>(end - n + i)].value;
    }
    std::sort(values.data(), values.data() + n);
    const double upper = values[static_cast<std::size_t>((3 * (n - 1) + 2) / 4)];
    return std::min(upper, 0.5 * (upper - values[static_cast<std::size_t>((n - 1) / 4)]));
  }

 private:
  static constexpr int window = 48, capacity = 64;
  struct Item {
    int64_t at;
    double value;
  };
  std::array<Item, capacity> items_{};
  int count_ = 0;
};

}  // namespace dif
