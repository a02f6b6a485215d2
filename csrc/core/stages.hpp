// Stages of one training curve, online: a test for acceleration, and a two-state machine that turns alarms
// into rows.
//
//   QUIET   excess = s m1 + min(s slope, 0) (T0 - T1) - s m0  >=  max(floor, z x its standard error)
//           m0 the newest w observations, m1 and m2 the two blocks of u in {w, 2w, 4w} before them, T their
//           mean steps, slope = (m1 - m2) / (T1 - T2); s = +1 for a fall, -1 for a rise (metrics only). Never
//           positive if convex.
//   STAGE   until the speed has surely fallen to kappa x its peak; its end moves on with the tail, until the curve
//           rests or the next alarm; then the levels and their 10, 50, 90 % crossings.
//
// Two rows of one direction are one where the curve only wavered on its way (`list`, `apart`).
//
// Noise, where no errors are given. From second differences of block means, up to a quarter of the block asked about
// (`deviation`). A noise with a memory is larger than that: what a scale has itself seen rise above its line in quiet
// (`excess_noise`) is the second estimate. It raises the level that is asked, and, once it is well known, lets a
// smaller one do. A noise that grows with a stage (of the logarithm of a falling loss) is seen in third differences
// (`fresh`).
//
// Signal: log(max(y, 0) + eps x largest |y| so far) of a loss, y itself of a metric. Step is the linear step.
// Memory: six doubles an observation, nine with standard errors; everything is a function of the observations
// alone, so whoever keeps (t, y, se) can rebuild the detector to the bit. Cost: the grid of blocks, about 40
// contrasts an observation; the searches for onset and crossings read one stage, once. Accuracy: values are
// taken less the first one and sums carry their rounding errors along, so the mean of a block is as exact
// late in a long run, or on top of a large offset, as it is at the start.
#pragma once
#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <limits>
#include <optional>
#include <vector>

#include "core/stages_memory.hpp"

namespace dif {

struct StageSettings {
  bool loss = true;         // a positive loss, or a metric that may go either way
  double delta = 0.05;      // least excess: nats of a loss, share of the range of a metric
  double z = 8;             // least excess in standard errors, where second differences alone are known
  double z_own = 4.5;       // the same once the excess of quiet at this scale is known
  double z_given = 5;       // the same in standard errors that come with the observations
  double kappa = 0.7;       // a stage ends at this share of its peak speed
  double size = 0.01;       // rows below this share of the loss range are not listed
  double skip = 10;         // steps at the start that are not looked at
  double eps = 0.01;        // floor of the logarithm, as a share of the largest loss
  double metric_range = 0;  // known range of a metric; 0: the range so far
};

struct StageAlarm {
  double step, onset;
  double excess;  // in units of what was needed
  int64_t block;  // observations in the block that fired
  int direction;  // -1 a fall, +1 a rise
};

struct StageRow {
  double onset, midpoint, end, alarm, closed;  // steps
  double before, after;                        // levels of the raw curve
  double gain;                                 // change of the signal in the stage's direction
  int direction;
  bool open;
};

class StageDetector {
 public:
  explicit StageDetector(const StageSettings& settings) : set_(settings) {}

  const std::vector<double>& steps() const { return t_; }
  const std::vector<double>& values() const { return y_; }
  const std::vector<double>& errors() const { return se_; }  // empty unless they are given
  double last_step() const { return t_.empty() ? -std::numeric_limits<double>::infinity() : t_.back(); }
  int64_t size() const { return static_cast<int64_t>(t_.size()); }

  // One observation at step t > last_step(), t >= 0, all finite; se < 0 says that no standard error is known.
  // The first observation decides whether standard errors are used; one that lacks it afterwards repeats the
  // last.
  std::optional<StageAlarm> update(double t, double y, double se) {
    push(t, y, se);
    if (start_ < 0) {
      if (t < set_.skip) return std::nullopt;
      start_ = size() - 1;
    }
    fresh();
    std::optional<StageAlarm> alarm;
    if (!active_) alarm = look();
    if (settling_) settle();
    if (active_) follow();
    return alarm;
  }

  // Step of the alarm whose stage, or its tail, still goes on; NaN when all is quiet.
  double open_alarm() const {
    const std::optional<Active>& open = active_ ? active_ : settling_;
    return open ? t_[static_cast<std::size_t>(open->alarm)] : std::nan("");
  }

  // All transitions known now; one that still goes on comes last and is marked.
  std::vector<StageRow> rows() const {
    std::vector<Listed> all = closed_;
    if (settling_) list(all, *settling_, settled_, true);
    if (active_) list(all, *active_, size(), true);
    std::vector<StageRow> rows;
    for (const Listed& listed : all) {
      if (counts(listed.row)) rows.push_back(listed.row);
    }
    return rows;
  }

 private:
  static constexpr int64_t scales[] = {1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128};
  static constexpr int scale_count = sizeof(scales) / sizeof(scales[0]);
  static constexpr double resolved = 0.1;  // a speed is read over the shortest block that knows it this well
  static constexpr double sharp = 0.05;    // the same between rows: a fall by 1 - kappa is then six errors
  static constexpr double most_of = 0.5;   // of the gain of a joined row: what its parts must have
  static constexpr double sure = 2;        // standard errors by which a speed must have fallen
  static constexpr double rest = 0.3;      // of its peak speed: here the tail of a stage ends
  static constexpr double in_tail = 0.25;  // of the floor: what a bend in a tail must reach, as its row needs the rest
  static constexpr int few = 12, many = 36;  // values that a quartile needs to raise, and to lower, what is asked
  static constexpr double most = 2;          // times z: what a quartile may ask
  static constexpr double normal = 1.4826;   // standard deviation over median of |.|, and over upper quartile
  static constexpr int third_window = 16;
  static constexpr double slack = 1.2;  // by which the median of the last 16 may be above the older one by chance
  static constexpr double grown = 2;    // a median of 16 is good to a third: below this factor the noise has not grown

  struct Active {
    int64_t onset, alarm, block, speed_block;  // onset, alarm: indices of observations
    double peak;
    int sign;  // +1 a fall, -1 a rise
  };
  struct Block {
    double value, step;
  };
  struct Listed {
    Active stage;
    StageRow row;
  };

  Block block(int64_t end, int64_t length) const { return {g_.mean(end, length), x_.mean(end, length)}; }

  void push(double t, double y, double se) {
    if (t_.empty()) {
      given_ = se >= 0;
      low_ = high_ = y;
      first_step_ = t;
    }
    low_ = std::min(low_, y);
    high_ = std::max(high_, y);
    t_.push_back(t);
    y_.push_back(y);
    x_.push(t - first_step_);
    double error = se >= 0 || se_.empty() ? se : se_.back();
    if (given_) se_.push_back(error);
    if (set_.loss) {
      const double top = std::max(std::abs(low_), std::abs(high_));
      const double level = std::max(std::max(y, 0.0) + set_.eps * top, std::numeric_limits<double>::min());
      const double signal = std::log(level);
      if (size() == 1) first_signal_ = signal;
      g_.push(signal - first_signal_);
      error /= level;
    } else {
      if (size() == 1) first_signal_ = y;
      g_.push(y - first_signal_);
    }
    if (given_) variance_.push(error * error);
  }

  // Standard deviation of the mean of the `length` observations before `end`; negative while it is not known.
  // Where no errors are given, noise is taken from blocks up to a quarter as long: then a correlated noise is
  // not read as a white one. `scale` is the index of a scale that is at least that quarter.
  double deviation(int64_t end, int64_t length, int scale = scale_count - 1) const {
    const double n = static_cast<double>(length);
    if (given_) return std::sqrt(std::max(variance_.mean(end, length), 0.0) / n);
    while (scale > 0 && 4 * scales[scale] > length) --scale;
    if (largest_noise_[scale] < 0) return -1;
    const bool more = fresh_ > grown * noise_[0];
    return (more ? std::max(fresh_, largest_noise_[scale]) : largest_noise_[scale]) / std::sqrt(n);
  }

  // Deviation of one observation as the quiet excess at scales up to `length` knows it; negative if none from half of
  // `length` on holds `least` values. The newest `w` values of a scale wait: they may belong to a stage.
  double excess_noise(int64_t length, int sign, int least) const {
    double largest = 0;
    bool known = false;
    for (int k = 0; k < scale_count && scales[k] <= length; ++k) {
      const int64_t until = size() - scales[k];
      if (quiet_[k].known(until) < least) break;
      largest = std::max(largest, normal * quiet_[k].spread(until, sign));
      known = 2 * scales[k] >= length;
    }
    return known ? largest : -1;
  }

  // Of the four observations before `end`, absolute, in units of one observation's deviation.
  double third_difference(int64_t end) const {
    double miss[2];
    for (int64_t j = 0; j < 2; ++j) {
      const int64_t e = end - j;
      const Block b0 = block(e, 1), b1 = block(e - 1, 1), b2 = block(e - 2, 1);
      const double r = (b0.step - b1.step) / (b1.step - b2.step);
      miss[j] = (b1.value + (b1.value - b2.value) * r - b0.value) / std::sqrt(1 + (1 + r) * (1 + r) + r * r);
    }
    return std::abs(miss[0] - miss[1]) / std::sqrt(20.0 / 6.0);  // equal gaps: (1, -3, 3, -1) over root 6
  }

  // Deviation of one observation from the last third differences, which neither a line nor a bend enters, in stages
  // too.
  void fresh() {
    if (given_ || size() < 4) return;
    const double third = third_difference(size());
    if (!std::isfinite(third)) return;
    third_[static_cast<std::size_t>(third_count_++ % third_window)] = third;
    const int n = static_cast<int>(std::min<int64_t>(third_count_, third_window));
    if (n < third_window / 2) return;
    std::array<double, third_window> sorted = third_;
    std::nth_element(sorted.begin(), sorted.begin() + n / 2, sorted.begin() + n);
    fresh_ = normal * sorted[static_cast<std::size_t>(n / 2)];
  }

  void spread_noise(int k) { largest_noise_[k] = std::max(k > 0 ? largest_noise_[k - 1] : -1.0, noise_[k]); }

  std::optional<StageAlarm> look() {
    const int64_t e = size();
    const double range = set_.metric_range > 0 ? set_.metric_range : high_ - low_;
    const double floor = (settling_ ? in_tail : 1) * (set_.loss ? set_.delta : set_.delta * range);
    double best = 0;
    int64_t best_block = 0;
    int best_sign = 0;
    int k = 0;
    for (; k < scale_count && e - 3 * scales[k] >= start_; ++k) {
      spread_noise(k);
      const int64_t w = scales[k];
      const Block b0 = block(e, w);
      for (int64_t u = w; u <= 4 * w && e - w - 2 * u >= start_; u *= 2) {
        const Block b1 = block(e - w, u), b2 = block(e - w - u, u);
        const double gap = b1.step - b2.step, ahead = b0.step - b1.step, r = ahead / gap;
        const double slope = (b1.value - b2.value) / gap, lever = (1 + r) * (1 + r) + r * r;
        if (u == w && !given_) {
          const double miss = (b1.value + slope * ahead - b0.value) / std::sqrt(1 + lever);
          if (std::isfinite(miss)) {  // values near the largest double overflow
            history_[k].push(std::abs(miss));
            if (e % std::max<int64_t>(1, w / 8) == 0) quiet_[k].push(e, miss * std::sqrt(static_cast<double>(w)));
          }
        }
        for (int s = 1; s >= (set_.loss ? 1 : -1); s -= 2) {
          const double excess = s * b1.value + std::min(s * slope, 0.0) * ahead - s * b0.value;
          if (!(excess > 0 && excess >= floor)) continue;  // the error is asked for only where it decides
          const double sd0 = deviation(e, w, k), sd1 = deviation(e - w, u, k);
          if (sd0 < 0) continue;
          const double needed = std::max(floor, asked(w, u, s, r, std::sqrt(sd0 * sd0 + sd1 * sd1 * lever)));
          if (excess >= needed && excess / needed > best) {
            best = excess / needed;
            best_block = w;
            best_sign = s;
          }
        }
      }
      if (history_[k].count() >= 3) {
        noise_[k] = 1.4826 * history_[k].median() * std::sqrt(static_cast<double>(w));
      }
      spread_noise(k);
    }
    for (; k < scale_count; ++k) spread_noise(k);
    if (best_block == 0) return std::nullopt;
    active_ = Active{onset(best_block, best_sign), e - 1, best_block, 1, 0.0, best_sign};
    for (int j = 0; j < scale_count; ++j) quiet_[j].forget_after(active_->onset + scales[j] / 2);
    return StageAlarm{t_[e - 1], t_[active_->onset], best, best_block, -best_sign};
  }

  // Least excess that the noise lets count; `error` is the standard error from second differences.
  double asked(int64_t w, int64_t u, int sign, double r, double error) const {
    if (given_) return set_.z_given * error;
    const double n0 = excess_noise(w, sign, few);
    if (n0 < 0) return set_.z * error;
    const double n1 = std::max(n0, excess_noise(u, sign, few));
    const double lever = (1 + r) * (1 + r) + r * r;
    // what quiet has shown is as old as its values: a noise that has grown since has grown at all scales
    const double since = noise_[0] > 0 ? std::max(1.0, fresh_ / (slack * noise_[0])) : 1;
    const double own = since * std::sqrt(n0 * n0 / static_cast<double>(w) + n1 * n1 * lever / static_cast<double>(u));
    // as rare in a long run as in one of 256 observations: exp(-z^2 / 2) falls as the number of looks grows
    const double longer = 2 * std::log(std::max(1.0, static_cast<double>(size()) / 256));
    const double z_own = std::sqrt(set_.z_own * set_.z_own + longer);
    const double z = excess_noise(w, sign, many) < 0 ? set_.z : std::min(z_own, set_.z);
    return std::max(z * error, std::min(most * set_.z * error, z_own * own));
  }

  double speed(int64_t end, int64_t length, int sign) const {
    const Block b0 = block(end, length), b1 = block(end - length, length);
    return -sign * (b0.value - b1.value) / (b0.step - b1.step);
  }

  // Last index of this quiet spell whose speed is within 5 % of the least.
  int64_t onset(int64_t block_length, int sign) const {
    const int64_t e = size(), h = std::max<int64_t>(1, block_length / 2), first = start_ + 2 * h;
    double least = std::numeric_limits<double>::infinity();
    for (int64_t j = first; j <= e; ++j) least = std::min(least, std::max(speed(j, h, sign), 0.0));
    const double bound = least + 0.05 * (std::max(speed(e, h, sign), 0.0) - least);
    int64_t last = e;
    while (last > first && !(std::max(speed(last, h, sign), 0.0) <= bound)) --last;
    return std::min(std::max(last - h - 1, start_), e - 2);
  }

  // Speed over the shortest block that resolves it; notes that block.
  double resolved_speed(Active& a) const {
    const int64_t e = size();
    double v = 0;
    for (int k = 0; k < scale_count; ++k) {
      const int64_t w = scales[k];
      if (e < 2 * w || (k > 0 && w > 2 * a.block)) break;
      v = speed(e, w, a.sign);
      a.speed_block = w;
      const double sd = deviation(e, w), gap = x_.mean(e, w) - x_.mean(e - w, w);
      if (sd < 0 || std::sqrt(2.0) * sd / gap <= resolved * (a.peak > 0 ? a.peak : std::max(v, 0.0))) break;
    }
    return v;
  }

  void follow() {
    Active& a = *active_;
    const double v = resolved_speed(a);
    a.peak = std::max(a.peak, v);
    const int64_t e = size(), w = a.speed_block;
    const double sd = deviation(e, w), gap = x_.mean(e, w) - x_.mean(e - w, w);
    const double error = sd > 0 ? std::sqrt(2.0) * sd / gap : 0;
    if (v + sure * error > set_.kappa * a.peak || e - 1 == a.alarm) return;
    settling_ = a;
    closed_at_ = settled_ = e;
    start_ = e - w;
    active_.reset();
  }

  // The end of a closed stage moves on until the curve rests, or back to the onset of the next.
  void settle() {
    if (active_) {
      settled_ = std::max(std::min(settled_, active_->onset + 1), closed_at_);
    } else if (speed(size(), settling_->speed_block, settling_->sign) > rest * settling_->peak) {
      settled_ = size();
      return;
    }
    list(closed_, *settling_, settled_, false);
    settling_.reset();
  }

  // Lists a stage whose last observation is e - 1: as one with the row before it, if nothing parts them and the two
  // make up most of what lies between their ends. The range only grows: what does not count now never will.
  void list(std::vector<Listed>& all, Active stage, int64_t e, bool open) const {
    Listed last{stage, measure(stage, e, open)};
    if (!counts(last.row)) return;
    for (;;) {
      while (!all.empty() && !counts(all.back().row)) all.pop_back();
      if (all.empty()) break;
      const StageRow& before = all.back().row;
      Listed whole = all.back();
      whole.stage.speed_block = last.stage.speed_block;
      whole.row = measure(whole.stage, e, open);
      const bool most = before.gain + last.row.gain >= most_of * whole.row.gain;
      if (before.direction != last.row.direction || !most || apart(before, last.row, e)) break;
      last = whole;
      all.pop_back();
    }
    all.push_back(last);
  }

  // Did the speed between the midpoints of two rows fall to kappa x the peaks on both sides? Read over the shortest
  // block that knows it sharply, or over a third of the way from midpoint to midpoint: a training curve wavers over
  // many observations, and a block much shorter than the valley takes each of its waves for one.
  bool apart(const StageRow& a, const StageRow& b, int64_t e) const {
    const int64_t from = std::max<int64_t>(at(a.onset), 1), to = std::min(at(b.end), e - 1);
    const int64_t first = std::max(at(a.midpoint), from), last = std::min(at(b.midpoint), to);
    if (last <= first) return false;
    const double sd = noise_within(from, to + 1);
    bool parted = false;
    for (int k = 0; k < scale_count && (k == 0 || 3 * scales[k] <= last - first); ++k) {
      const int64_t w = scales[k];
      const auto v = [&](int64_t q) { return speed_at(q, w, e, -a.direction); };
      int64_t valley = first;
      double low = v(first), before = 0, after = 0;
      for (int64_t q = first + 1; q <= last; ++q) {
        if (const double here = v(q); here < low) {
          low = here;
          valley = q;
        }
      }
      for (int64_t q = from; q <= valley; ++q) before = std::max(before, v(q));
      for (int64_t q = valley; q <= to; ++q) after = std::max(after, v(q));
      const double peak = std::min(before, after), n = static_cast<double>(w);
      parted = low <= set_.kappa * peak;
      const double gap = n * (t_[to] - t_[from]) / static_cast<double>(to - from);
      if (std::sqrt(2 / n) * sd / gap <= sharp * peak) break;
    }
    return parted;
  }

  // First observation at a step or after it.
  int64_t at(double step) const { return std::lower_bound(t_.begin(), t_.end(), step) - t_.begin(); }

  // Speed from the `length` observations before index q to those from it on; fewer where the curve, or the stage that
  // ends at e, has no more.
  double speed_at(int64_t q, int64_t length, int64_t e, int sign) const {
    const int64_t after = std::min(length, e - q);
    const Block b0 = block(q + after, after), b1 = block(q, std::min(length, q));
    return -sign * (b0.value - b1.value) / (b0.step - b1.step);
  }

  // Deviation of one observation in [from, end): as given, or from third differences, since a stage is no line.
  double noise_within(int64_t from, int64_t end) const {
    if (given_) return std::sqrt(std::max(variance_.mean(end, end - from), 0.0));
    std::vector<double> third;
    for (int64_t e = std::max<int64_t>(from + 1, 4); e <= end; ++e) {
      const double value = third_difference(e);
      if (std::isfinite(value)) third.push_back(value);
    }
    if (third.empty()) return 0;
    const auto middle = third.begin() + static_cast<std::ptrdiff_t>(third.size() / 2);
    std::nth_element(third.begin(), middle, third.end());
    return normal * *middle;
  }

  double raw_mean(int64_t first, int64_t last) const {
    double sum = 0;
    for (int64_t i = first; i < last; ++i) sum += y_[i] - y_[first];
    return y_[first] + sum / static_cast<double>(last - first);
  }

  // The row of a stage whose last observation is e - 1.
  StageRow measure(const Active& a, int64_t e, bool open) const {
    const int64_t w = a.speed_block;
    const int64_t h = std::min(std::max<int64_t>(1, a.block / 2), a.onset + 1);
    const double before = raw_mean(a.onset + 1 - h, a.onset + 1), after = raw_mean(e - w, e);
    StageRow row{};
    row.onset = crossing(a.onset, e, before, after, 0.1);
    row.midpoint = crossing(a.onset, e, before, after, 0.5);
    row.end = crossing(a.onset, e, before, after, 0.9);
    row.alarm = t_[a.alarm];
    row.closed = t_[static_cast<std::size_t>(e - 1)];
    row.before = before;
    row.after = after;
    row.gain = a.sign * (g_.mean(a.onset + 1, h) - g_.mean(e, w));
    row.direction = -a.sign;
    row.open = open;
    return row;
  }

  // Mean, in log step, of the first and the last crossing of before + share (after - before), in [first, end).
  double crossing(int64_t first, int64_t end, double before, double after, double share) const {
    const double level = before + share * (after - before), up = after > before ? 1 : -1;
    double earliest = 0, latest = 0;
    bool found = false;
    for (int64_t i = first; i + 1 < end; ++i) {
      const double s0 = up * (y_[i] - level), s1 = up * (y_[i + 1] - level);
      if ((s0 < 0) == (s1 < 0)) continue;
      const double x0 = std::log1p(t_[i]), x1 = std::log1p(t_[i + 1]);
      latest = x0 + (x1 - x0) * (s0 / (s0 - s1));
      if (!found) earliest = latest;
      found = true;
    }
    if (!found) {
      earliest = std::log1p(share > 0.5 ? t_[end - 1] : t_[first]);
      latest = std::log1p(share < 0.5 ? t_[first] : t_[end - 1]);
    }
    return std::expm1(0.5 * (earliest + latest));
  }

  bool counts(const StageRow& row) const {
    const double change = row.direction * (row.after - row.before);
    if (set_.loss) return change >= set_.size * (high_ - low_) && row.gain >= set_.delta;
    return change >= set_.delta * (set_.metric_range > 0 ? set_.metric_range : high_ - low_);
  }

  StageSettings set_;
  std::vector<double> t_, y_;
  std::vector<double> se_;  // empty unless standard errors are given
  PrefixSums g_, x_,
      variance_;        // signal and step less their first values, squared standard error of the signal
  bool given_ = false;  // are standard errors given?
  double first_signal_ = 0, first_step_ = 0, low_ = 0, high_ = 0;
  std::array<RunningMedian, scale_count> history_;  // second differences of block means, each by its own coefficient
  std::array<double, scale_count> noise_ = filled(-1);          // deviation of one observation as seen at each scale
  std::array<double, scale_count> largest_noise_ = filled(-1);  // the same up to each scale
  int64_t start_ = -1;                                          // first index of this quiet spell
  std::array<QuietExcess, scale_count> quiet_;
  std::array<double, third_window> third_{};
  int64_t third_count_ = 0;
  double fresh_ = 0;  // deviation of one observation by third differences; 0: not known
  std::optional<Active> active_, settling_;
  int64_t closed_at_ = 0, settled_ = 0;  // one past the last observation of the settling stage: at least, and so far
  std::vector<Listed> closed_;

  static std::array<double, scale_count> filled(double value) {
    std::array<double, scale_count> all;
    all.fill(value);
    return all;
  }
};

}  // namespace dif
