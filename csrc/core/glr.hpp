// Likelihood-ratio tests for one change in each of many series, online, on candidate times that all share.
//
//   y_i at coordinate x_i with weight w_i = 1 / se_i^2, i = 1 .. n; candidate tau: the change follows observation tau.
//   mean       regressor 1{i > tau} over an unknown constant
//   kink       regressor h_i = (x_i - x_tau)+ over an unknown line
//   jump+kink  both over an unknown line
//   statistic  = (regressor . residual of the baseline)^2 / |regressor's residual|^2, the fall of the sum of squares
//   mean+variance   n log v - n1 log v1 - n2 log v2, v the mean squared residual of its own mean
//
// Grid. tau is kept while tau mod 2^l = 0, l = floor(log2(age / K)) (0 below K), age = n - tau: K candidates an octave
// of age. Level l is looked at every 2^max(l-2, 0) steps, so a look is late by at most age / (4 K).
//
// Storage. Not prefix sums, whose differences cancel, but the moments of the observations *between* two candidates,
// about the elder one's x. A walk from the newest block to the oldest adds them up:
//   hy <- hy + delta s + Q_b,  s <- s + S_b;    S_b = sum w y,  Q_b = sum w y (x - x_b),  delta = x of the last - x_b
// Every term is as large as the suffix it belongs to, so float32 blocks lose nothing at a young age however long the
// series is. A dropped candidate's block is added to the elder neighbor's. When the number of observations doubles,
// the baseline so far is taken off all sums (`rebase`): trends and offsets do not eat the digits either.
#pragma once
#include <cstdint>
#include <vector>

#include "core/lanes.hpp"

namespace dif {

enum class GlrModel : int32_t { mean = 0, kink = 1, jump_kink = 2, mean_variance = 3 };

// Moments of the shared weights: of one block about its x, or of everything about the first x.
struct GlrMoments {
  double w = 0, x = 0, xx = 0;
  void add(double weight, double at) {
    w += weight;
    x += weight * at;
    xx += weight * at * at;
  }
  // Adds the moments `other`, whose origin lies `delta` above ours.
  void append(const GlrMoments& other, double delta) {
    xx += other.xx + 2 * delta * other.x + delta * delta * other.w;
    x += other.x + delta * other.w;
    w += other.w;
  }
};

// The observations after `tau`, up to the next younger candidate.
struct GlrBlock {
  int64_t tau;
  int32_t slot;   // where the channels keep their sums
  double origin;  // x of observation tau
  GlrMoments moments;
};

struct GlrMerge {
  int32_t from, to;
  double delta;
};

// One block of the walk, and what turns its sums into signed roots z of the statistic:
//   z = root s or hy + own s + level S + trend T;  S, T: the channel's total of w y, and of w y about the mean x.
struct GlrCandidate {
  int32_t slot;
  bool evaluate;
  float delta;
  float root, own, level, trend;
  float jump_own, jump_level, jump_trend;  // jump+kink: the part of the jump alone
};

// Everything that one step asks of every channel.
struct GlrStep {
  int64_t n = 0;        // observations so far, this one included
  int32_t slot = -1;    // of the new block; -1: the first observation
  double weight = 1;    // shared
  double x = 0;         // of the observation
  double origin = 0;    // of the new block
  double first_x = 0;   // origin of the totals
  GlrMoments total;     // shared, about first_x
  bool rebase = false;  // after this step
  std::vector<GlrMerge> merges;
  std::vector<GlrCandidate> walk;  // youngest first, up to the last that is looked at
  std::vector<GlrBlock> blocks;    // all, youngest first, after the merges
};

// Everything after one candidate, about its x.
struct GlrSuffix {
  double w = 0, h = 0, hh = 0, s = 0, hy = 0;
  // `delta`: from this block's origin to that of the suffix so far.
  void append(const GlrMoments& block, double sum, double moment, double delta) {
    hh += block.xx + 2 * delta * h + delta * delta * w;
    h += block.x + delta * w;
    hy += moment + delta * s;
    w += block.w;
    s += sum;
  }
};

constexpr double glr_least = 1e-9;  // a regressor is not told from its baseline below this share of its square

// Coefficients for shared weights; everything but the sums in `suffix` is used. sign: +1, or -1 for falls only.
inline void glr_coefficients(GlrModel model, const GlrMoments& total, const GlrSuffix& suffix, double at, double sign,
                             GlrCandidate& c) {
  c.evaluate = false;
  c.root = c.own = c.level = c.trend = c.jump_own = c.jump_level = c.jump_trend = 0;
  const double w = total.w, before = w - suffix.w;
  if (!(suffix.w > glr_least * w && before > glr_least * w)) return;
  if (model == GlrModel::mean) {
    const double root = sign * __builtin_sqrt(w / (suffix.w * before));
    c.root = static_cast<float>(root);
    c.level = static_cast<float>(-root * suffix.w / w);
    c.evaluate = true;
    return;
  }
  const double xbar = total.x / w, sxx = total.xx - total.x * xbar, dx = at - xbar;
  if (!(sxx > 0)) return;
  const double hx = suffix.hh + dx * suffix.h;
  const double square = suffix.hh - suffix.h * suffix.h / w - hx * hx / sxx;
  if (!(square > glr_least * suffix.hh)) return;
  if (model == GlrModel::kink) {
    const double root = sign / __builtin_sqrt(square);
    c.root = static_cast<float>(root);
    c.level = static_cast<float>(-root * suffix.h / w);
    c.trend = static_cast<float>(-root * hx / sxx);
    c.evaluate = true;
    return;
  }
  const double ux = suffix.h + dx * suffix.w;
  const double jump = suffix.w - suffix.w * suffix.w / w - ux * ux / sxx;
  if (!(jump > glr_least * suffix.w)) return;
  const double cross = suffix.h - suffix.w * suffix.h / w - ux * hx / sxx, share = cross / jump;
  const double rest = square - share * cross;
  if (!(rest > glr_least * suffix.hh)) return;
  const double first = 1 / __builtin_sqrt(jump), second = 1 / __builtin_sqrt(rest);
  c.jump_own = static_cast<float>(first);
  c.jump_level = static_cast<float>(-first * suffix.w / w);
  c.jump_trend = static_cast<float>(-first * ux / sxx);
  c.root = static_cast<float>(second);
  c.own = static_cast<float>(-second * share);
  c.level = static_cast<float>(-second * (suffix.h - share * suffix.w) / w);
  c.trend = static_cast<float>(-second * (hx - share * ux) / sxx);
  c.evaluate = true;
}

// The shared candidate times. `advance` describes the next step; channels follow it.
class GlrGrid {
 public:
  GlrGrid(GlrModel model, int per_octave, int side) : model_(model), k_(per_octave), side_(side) {}

  int64_t n = 0;
  int32_t slots = 0;  // that have ever been in use at once: the room a channel needs
  double x = 0, first_x = 0;
  GlrMoments total;
  std::vector<GlrBlock> blocks;  // youngest first
  std::vector<int32_t> free;

  int level(int64_t age) const {
    int l = 0;
    for (int64_t q = age / k_; q > 1; q >>= 1) ++l;
    return l;
  }

  // How many of the youngest candidates this step looks at.
  int64_t looked_at() const {
    int64_t count = 0;
    for (const GlrBlock& b : blocks) {
      const int l = level(n - b.tau);
      if (l > 2 && (n & ((int64_t{1} << (l - 2)) - 1)) != 0) break;  // older ones wait longer still
      ++count;
    }
    return count;
  }

  void advance(double at, double weight, GlrStep& step) {
    step.merges.clear();
    step.walk.clear();
    if (n == 0) first_x = at;
    step.slot = -1;
    step.origin = x;
    if (n > 0) {
      if (free.empty()) free.push_back(slots++);
      step.slot = free.back();
      free.pop_back();
      GlrBlock block{n, step.slot, x, {}};
      block.moments.add(weight, at - x);
      blocks.insert(blocks.begin(), block);
    }
    ++n;
    x = at;
    total.add(weight, at - first_x);
    prune(step);
    step.n = n;
    step.weight = weight;
    step.x = at;
    step.first_x = first_x;
    step.total = total;
    step.rebase = n >= 8 && (n & (n - 1)) == 0;
    step.blocks = blocks;
    look(step);
  }

 private:
  void prune(GlrStep& step) {
    std::size_t kept = 0;
    for (std::size_t i = 0; i < blocks.size(); ++i) {
      const GlrBlock& b = blocks[i];
      if ((b.tau & ((int64_t{1} << level(n - b.tau)) - 1)) == 0) {
        blocks[kept++] = b;
        continue;
      }
      free.push_back(b.slot);
      if (i + 1 == blocks.size()) continue;  // nobody is older: the totals hold it
      GlrBlock& elder = blocks[i + 1];
      const double delta = b.origin - elder.origin;
      elder.moments.append(b.moments, delta);
      step.merges.push_back({b.slot, elder.slot, delta});
    }
    blocks.resize(kept);
  }

  void look(GlrStep& step) const {
    GlrSuffix suffix;
    double origin = x;
    for (int64_t i = 0, count = looked_at(); i < count; ++i) {
      const GlrBlock& b = blocks[static_cast<std::size_t>(i)];
      GlrCandidate c{};
      c.slot = b.slot;
      c.delta = static_cast<float>(origin - b.origin);
      suffix.append(b.moments, 0, 0, origin - b.origin);
      origin = b.origin;
      // an own weight, or mean+variance, is judged by its channel
      glr_coefficients(model_, total, suffix, b.origin - first_x, side_ < 0 ? -1 : 1, c);
      step.walk.push_back(c);
    }
  }

  GlrModel model_;
  int k_, side_;
};

// One candidate of the walk for one register of channels with shared weights: adds its block to the suffix sums s and
// hy and returns its statistic, if it is looked at. row (2, stride) floats (1 row for the mean): S and Q of the block;
// level and trend: the channels' S and T.
template <class L, GlrModel model>
DIF_INLINE typename L::F glr_candidate(const GlrCandidate& c, const float* row, int64_t stride, typename L::F level,
                                       typename L::F trend, bool one_sided, typename L::F& s, typename L::F& hy) {
  using F = typename L::F;
  constexpr int kinds = model == GlrModel::mean ? 1 : 2;
  const F zero = L::set(0.0f);
  if (kinds == 2) hy = L::add(L::fma(L::set(c.delta), s, hy), L::load(row + stride));
  s = L::add(s, L::load(row));
  if (!c.evaluate) return zero;
  F z = L::fma(L::set(c.root), kinds == 2 ? hy : s, L::mul(L::set(c.level), level));
  if (kinds == 2) z = L::fma(L::set(c.trend), trend, z);
  if (model == GlrModel::jump_kink) {
    z = L::fma(L::set(c.own), s, z);
    const F jump =
        L::fma(L::set(c.jump_own), s, L::fma(L::set(c.jump_trend), trend, L::mul(L::set(c.jump_level), level)));
    return L::fma(z, z, L::mul(jump, jump));
  }
  if (one_sided) z = L::max(z, zero);
  return L::mul(z, z);
}

// The whole walk: rows (slots, 2, stride). Returns the largest statistic.
template <class L, GlrModel model>
DIF_INLINE typename L::F glr_walk(const GlrCandidate* walk, int64_t count, const float* rows, typename L::F level,
                                  typename L::F trend, bool one_sided, int64_t stride = L::width) {
  using F = typename L::F;
  constexpr int kinds = model == GlrModel::mean ? 1 : 2;
  F s = L::set(0.0f), hy = L::set(0.0f), best = L::set(0.0f);
  for (int64_t i = 0; i < count; ++i) {
    const float* row = rows + static_cast<int64_t>(walk[i].slot) * kinds * stride;
    const F square = glr_candidate<L, model>(walk[i], row, stride, level, trend, one_sided, s, hy);
    if (walk[i].evaluate) best = L::max(best, square);
  }
  return best;
}

}  // namespace dif
