// Exact likelihood-ratio test for one change of a Gaussian mean, both means unknown, after every observation.
//
//   statistic = max over j of D^2 W / (W_j (W - W_j)),  D = S_j - (W_j / W) S,  W_j = sum w, S_j = sum w y up
//   to j
//
// D is linear and W_j (W - W_j) concave in the point (W_j, S_j), so the statistic is convex in it, and its
// maximum lies on a vertex of the convex hull of the points so far. Points arrive in order of W, hence the
// hull is two stacks: popping what the newest point hides costs O(1) amortized, and about log n vertices stay
// on each side. Memory: 24 bytes a vertex. NaN or weight 0: counted, otherwise ignored. Deterministic.
// Accuracy: about 1e-12 relative; values are taken less the first one, so that an offset costs nothing.
//
// The same for the mean of a one-parameter exponential family:
//
//   statistic = max over j of 2 (W_j d(m1, m) + (W - W_j) d(m2, m)),  m1, m2, m the means before, after, of all,
//
// d the divergence of two members. W_j d(S_j / W_j, .) is the perspective of a convex function less a linear one, so
// the statistic is convex in (W_j, S_j) again and the same hull holds its maximum. Source: Romano, Eckley, Fearnhead,
// Rigaill (2023), JMLR 24(81); Ward, Romano, Eckley, Fearnhead (2024), Statistics and Computing 34.
#pragma once
#include <cmath>
#include <cstdint>
#include <vector>

namespace dif {

enum class FocusFamily : int { gaussian = 0, bernoulli = 1, poisson = 2, exponential = 3 };

// p log(p / q), 0 at p = 0.
inline double focus_log_ratio(double p, double q) { return p > 0 ? p * std::log(p / q) : 0.0; }

// Divergence of the member of mean p from that of mean q.
inline double focus_divergence(FocusFamily family, double p, double q) {
  if (family == FocusFamily::bernoulli) return focus_log_ratio(p, q) + focus_log_ratio(1 - p, 1 - q);
  if (family == FocusFamily::poisson) return focus_log_ratio(p, q) - (p - q);
  return p / q - 1 - std::log(p / q);
}

// One side of the hull: vertices in order of weight.
struct FocusHull {
  std::vector<double> weight{0.0}, sum{0.0};
  std::vector<int64_t> index{0};  // first observation after the vertex

  // Removes the vertices that the point (w, s) hides; side = +1 keeps the lower hull, -1 the upper.
  void hide(double w, double s, double side) {
    std::size_t n = weight.size();
    while (n > 1 && side * ((s - sum[n - 1]) * (w - weight[n - 2]) - (s - sum[n - 2]) * (w - weight[n - 1])) <= 0) --n;
    weight.resize(n);
    sum.resize(n);
    index.resize(n);
  }
  void push(double w, double s, int64_t next) {
    weight.push_back(w);
    sum.push_back(s);
    index.push_back(next);
  }
};

struct FocusState {
  FocusHull lower, upper;  // a rise leaves its vertex below the chord, a fall above
  double weight = 0, sum = 0, offset = 0;
  bool started = false;  // has an offset
  int64_t count = 0;     // observations seen, missing ones included
  double statistic = 0;
  int64_t changepoint = -1;  // first index of the new segment; -1: no candidate yet
  int direction = 0;
};

class Focus {
 public:
  FocusState state;
  FocusFamily family = FocusFamily::gaussian;

  // weight >= 0; a value that is not finite has weight 0.
  double update(double y, double weight) {
    FocusState& a = state;
    ++a.count;
    if (!std::isfinite(y) || !(weight > 0)) return a.statistic;
    if (!a.started) {
      a.offset = family == FocusFamily::gaussian ? y : 0;
      a.started = true;
    }
    a.weight += weight;
    a.sum += weight * (y - a.offset);
    a.statistic = 0;
    a.changepoint = -1;
    a.direction = 0;
    a.lower.hide(a.weight, a.sum, 1);
    a.upper.hide(a.weight, a.sum, -1);
    best(a.lower, 1);
    best(a.upper, -1);
    a.lower.push(a.weight, a.sum, a.count);
    a.upper.push(a.weight, a.sum, a.count);
    return a.statistic;
  }

  // Forgets everything but the number of observations.
  void restart() {
    const int64_t count = state.count;
    state = FocusState{};
    state.count = count;
    state.lower.index[0] = state.upper.index[0] = count;
  }

 private:
  void best(const FocusHull& hull, int direction) {
    if (family != FocusFamily::gaussian) return best_of_family(hull, direction);
    const double total = state.weight, mean = state.sum / total;
    double largest = state.statistic / total;
    std::size_t at = 0;
    for (std::size_t i = 1; i < hull.weight.size(); ++i) {
      const double w = hull.weight[i], d = hull.sum[i] - w * mean, spread = w * (total - w);
      if (d * d > largest * spread) {  // a division only at a new maximum
        largest = d * d / spread;
        at = i;
      }
    }
    if (at == 0) return;
    state.statistic = largest * total;
    state.changepoint = hull.index[at];
    state.direction = direction;
  }

  void best_of_family(const FocusHull& hull, int direction) {
    const double total = state.weight, mean = state.sum / total;
    for (std::size_t i = 1; i < hull.weight.size(); ++i) {
      const double w = hull.weight[i], s = hull.sum[i], rest = total - w;
      const double value = 2 * (w * focus_divergence(family, s / w, mean) +
                                rest * focus_divergence(family, (state.sum - s) / rest, mean));
      if (!(value > state.statistic)) continue;
      state.statistic = value;
      state.changepoint = hull.index[i];
      state.direction = direction;
    }
  }
};

}  // namespace dif
