// The many-channel detector without Python, so that sanitizers see every path: brute force, missing values, weights of
// their own, restarts, threads.
#include "cpu/glr.hpp"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "check.hpp"

namespace {

const double inf = std::numeric_limits<double>::infinity();
const float nan32 = std::numeric_limits<float>::quiet_NaN();

// Deterministic, symmetric, of variance one: the sum of twelve uniform numbers.
double noise(uint64_t& state) {
  double sum = -6;
  for (int i = 0; i < 12; ++i) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    sum += static_cast<double>(state >> 11) / 9007199254740992.0;
  }
  return sum;
}

std::vector<double> steps(int64_t n) {
  std::vector<double> x(static_cast<size_t>(n));
  for (size_t i = 0; i < x.size(); ++i) x[i] = static_cast<double>(i);
  return x;
}

// Largest fall of the squares when a jump after observation tau joins the mean, over the grid's own tau.
double brute_force(const dif::GlrDetector& detector, const float* y, int64_t n, int64_t ld) {
  double best = 0;
  for (const dif::GlrBlock& block : detector.grid.blocks) {
    double before = 0, after = 0;
    for (int64_t i = 0; i < n; ++i) (i < block.tau ? before : after) += static_cast<double>(y[i * ld]);
    const double n1 = static_cast<double>(block.tau), n2 = static_cast<double>(n) - n1;
    const double d = after / n2 - before / n1;
    best = std::max(best, d * d * n1 * n2 / (n1 + n2));
  }
  return best;
}

void equals_brute_force() {
  const int64_t channels = 19, n = 64;  // every candidate is looked at when n is a power of two
  std::vector<float> y(static_cast<size_t>(channels * n));
  uint64_t random = 5;
  for (float& v : y) v = static_cast<float>(noise(random));
  dif::GlrDetector detector({channels, dif::GlrModel::mean, 4, 0, inf, 0, false});
  detector.update(steps(n).data(), n, y.data(), channels, nullptr, false, nullptr, 1);
  for (int64_t c = 0; c < channels; ++c) {
    const double got = static_cast<double>(detector.statistic[static_cast<size_t>(c)]);
    const double expected = brute_force(detector, y.data() + c, n, channels);
    // float32 sums of 64 values: some 64 x 6e-8 of sums up to ten times the statistic's root
    CHECK(std::abs(got - expected) <= 1e-4 * (1 + expected));
  }
}

std::vector<dif::GlrAlarm> run(dif::GlrModel model, int threads, bool own, std::vector<float>& statistic) {
  const int64_t channels = 50, n = 600;
  std::vector<float> y(static_cast<size_t>(channels * n));
  std::vector<double> weight(y.size()), at(y.size());
  uint64_t random = 11;
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t c = 0; c < channels; ++c) {
      const auto k = static_cast<size_t>(i * channels + c);
      y[k] = static_cast<float>(noise(random) + (i > 300 ? 4.0 * static_cast<double>(c % 3) : 0.0));
      if (i % 37 == 3 && c % 5 == 1) y[k] = nan32;
      if (i % 101 == 7) y[k] = nan32;  // nobody is seen
      weight[k] = i % 13 == 2 ? 0.0 : 1.0 + 0.01 * static_cast<double>(c);
      at[k] = static_cast<double>(i) + 0.001 * static_cast<double>(c);
    }
  }
  dif::GlrDetector detector({channels, model, 4, 0, 60.0, 3.5, true});
  const bool slopes = model == dif::GlrModel::kink || model == dif::GlrModel::jump_kink;
  const auto alarms = detector.update(steps(n).data(), n, y.data(), channels, own ? weight.data() : nullptr, false,
                                      own && slopes ? at.data() : nullptr, threads);
  CHECK(detector.bytes() > 0);
  CHECK(!detector.profile(channels - 1).empty());
  CHECK(static_cast<int64_t>(detector.squares().size()) == detector.grid.looked_at() * channels);
  statistic.assign(detector.statistic.begin(), detector.statistic.begin() + channels);
  return alarms;
}

void threads_and_restarts() {
  for (const dif::GlrModel model :
       {dif::GlrModel::mean, dif::GlrModel::kink, dif::GlrModel::jump_kink, dif::GlrModel::mean_variance}) {
    for (const bool own : {false, true}) {
      std::vector<float> one, two;
      const auto first = run(model, 1, own, one), second = run(model, 2, own, two);
      CHECK(first.size() >= 33);  // two of three channels jump by four or more standard deviations
      CHECK(first.size() == second.size());
      CHECK(one == two);
      for (size_t i = 0; i < std::min(first.size(), second.size()); ++i) {
        CHECK(first[i].n == second[i].n && first[i].channel == second[i].channel && first[i].tau == second[i].tau);
        CHECK(first[i].low <= first[i].tau && first[i].tau <= first[i].high && first[i].tau < first[i].n);
      }
    }
  }
}

void extremes() {
  const float large = std::numeric_limits<float>::max(), least = std::numeric_limits<float>::denorm_min();
  for (const dif::GlrModel model :
       {dif::GlrModel::mean, dif::GlrModel::kink, dif::GlrModel::jump_kink, dif::GlrModel::mean_variance}) {
    dif::GlrDetector detector({3, model, 4, 0, inf, 0, false});
    for (int i = 0; i < 300; ++i) {
      const double x = i;
      const float y[3] = {i % 2 ? large : -large, least, static_cast<float>(inf)};
      detector.update(&x, 1, y, 3, nullptr, false, nullptr, 1);
    }
    CHECK(detector.grid.n == 300);
    CHECK(detector.statistic[2] == 0);      // never seen
    CHECK(detector.statistic[1] <= 1e-6F);  // a constant: logarithms of variances leave their rounding
    detector.restart(0, detector.grid.blocks.front().tau);
  }
}

}  // namespace

int main() {
  equals_brute_force();
  threads_and_restarts();
  extremes();
  return check::summary("glr");
}
