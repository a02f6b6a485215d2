// Stages and FOCuS without Python, so that sanitizers see every path: known curves, brute force, awkward
// streams.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "check.hpp"
#include "core/focus.hpp"
#include "core/stages.hpp"

namespace {

const double nan = std::numeric_limits<double>::quiet_NaN();

// Deterministic noise in (-1, 1): a linear congruential generator is enough to shake the code.
double noise(uint64_t& state) {
  state = state * 6364136223846793005u + 1442695040888963407u;
  return static_cast<double>(state >> 11) / 4503599627370496.0 - 1.0;
}

double logistic(double t, double at, double width) { return 1 / (1 + std::exp((at - t) / width)); }

void staircase() {
  dif::StageDetector detector{dif::StageSettings{}};
  int alarms = 0, provisional = 0;
  for (double t = 0; t < 1500; t += 4) {
    const double loss = 4 * (1 - logistic(t, 300, 15)) + (1 - logistic(t, 900, 30));
    alarms += detector.update(t, loss, -1).has_value();
    for (const dif::StageRow& row : detector.rows()) provisional += row.open;
  }
  const auto rows = detector.rows();
  CHECK(alarms == 2);
  CHECK(provisional > 0);
  CHECK(rows.size() == 2);
  CHECK(rows.size() == 2 && std::abs(rows[0].midpoint - 300) < 20 && std::abs(rows[1].midpoint - 900) < 60);
  for (const dif::StageRow& row : rows) {
    CHECK(!row.open && row.direction == -1 && row.before > row.after);
    CHECK(row.onset <= row.midpoint && row.midpoint <= row.end && row.end <= row.closed);
  }
}

void relaxations() {
  for (const double se : {-1.0, 0.0}) {
    dif::StageDetector power{dif::StageSettings{}}, exponential{dif::StageSettings{}}, constant{dif::StageSettings{}};
    int alarms = 0;
    for (double t = 0; t < 3000; ++t) {
      alarms += power.update(t, 2 / std::sqrt(1 + t / 30), se).has_value();
      alarms += exponential.update(t, 3 * std::exp(-t / 200), se).has_value();
      alarms += constant.update(t, 0, se).has_value();
    }
    CHECK(alarms == 0);
    CHECK(power.rows().empty() && exponential.rows().empty() && constant.rows().empty());
  }
}

void metrics() {
  dif::StageSettings settings;
  settings.loss = false;
  settings.metric_range = 1;
  for (const double offset : {0.0, 1e9}) {
    for (const double sign : {1.0, -1.0}) {
      dif::StageDetector detector{settings};
      uint64_t random = 1;
      for (double t = 0; t < 4000; t += 4) {
        detector.update(t, offset + sign * logistic(t, 2000, 50) + 0.01 * noise(random), -1);
      }
      const auto rows = detector.rows();
      CHECK(rows.size() == 1);
      CHECK(rows.size() == 1 && rows[0].direction == sign && std::abs(rows[0].midpoint - 2000) < 60);
    }
  }
}

// Heavy noise with and without standard errors: many alarms, every path of the state machine.
void wild() {
  for (const bool loss : {true, false}) {
    for (const double se : {-1.0, 0.05}) {
      dif::StageSettings settings;
      settings.loss = loss;
      settings.z = settings.z_given = 1;
      dif::StageDetector detector{settings};
      uint64_t random = 7;
      double level = 10;
      int64_t alarms = 0;
      for (int i = 0; i < 20000; ++i) {
        level += noise(random);
        alarms += detector.update(i, std::abs(level), se).has_value();
      }
      CHECK(alarms > 10);
      CHECK(detector.size() == 20000 && detector.last_step() == 19999);
      CHECK(detector.errors().size() == (se < 0 ? 0u : 20000u));
      for (const dif::StageRow& row : detector.rows()) {
        CHECK(std::isfinite(row.onset) && row.onset <= row.end + 1e-6 && row.alarm <= row.closed);
      }
    }
  }
}

// Overflow, steps that differ in the last bit, denormals: numbers may be lost, memory may not.
void extremes() {
  const double large = std::numeric_limits<double>::max(), least = std::numeric_limits<double>::denorm_min();
  for (const bool loss : {true, false}) {
    dif::StageSettings settings;
    settings.loss = loss;
    settings.skip = 0;
    dif::StageDetector detector{settings};
    dif::Focus test;
    double t = 1e9;
    for (int i = 0; i < 600; ++i) {
      const double y = i % 3 == 0 ? large : i % 3 == 1 ? -large : least;
      detector.update(t, y, i < 300 ? -1 : large);
      test.update(y, i % 2 ? large : least);
      t = std::nextafter(t, 2e9);
    }
    CHECK(detector.size() == 600 && detector.rows().size() < 600);
    CHECK(test.state.count == 600);
  }
}

void focus_against_brute_force() {
  for (int kind = 0; kind < 5; ++kind) {
    dif::Focus test;
    uint64_t random = 3;
    std::vector<double> w{0}, s{0};
    for (int i = 0; i < 400; ++i) {
      const double shake = noise(random);
      const double y = kind == 0   ? shake
                       : kind == 1 ? 1e6 + shake
                       : kind == 2 ? (i > 200) + shake
                       : kind == 3 ? std::floor(2 * shake)
                                   : 1.0;
      const double weight = kind == 2 ? 1.5 + noise(random) : 1.0;
      const bool missing = i % 17 == 5;
      const double got = test.update(missing ? nan : y, weight);
      if (!missing) {
        const double base = kind == 1 ? 1e6 : 0;
        w.push_back(w.back() + weight);
        s.push_back(s.back() + weight * (y - base));
      }
      double expected = 0;
      for (std::size_t j = 1; j + 1 < w.size(); ++j) {
        const double d = s[j] - w[j] / w.back() * s.back();
        expected = std::max(expected, d * d * w.back() / (w[j] * (w.back() - w[j])));
      }
      // both sums are good to about 1e-13; a constant has rounding on the side of the brute force only
      CHECK(std::abs(got - expected) <= 1e-9 * expected + 1e-20);
    }
    const int64_t count = test.state.count;
    test.restart();
    CHECK(test.state.count == count && test.update(1.0, 1.0) == 0 && test.state.changepoint == -1);
    CHECK(test.update(3.0, 1.0) == 2.0 && test.state.changepoint == count + 1 && test.state.direction == 1);
  }
}

}  // namespace

int main() {
  staircase();
  relaxations();
  metrics();
  wild();
  extremes();
  focus_against_brute_force();
  return check::summary("changepoint");
}
