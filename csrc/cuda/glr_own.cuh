// Where a thread keeps the moments of a channel whose observations have weights of their own, and its walk over them.
#pragma once
#include "core/glr_own.hpp"
#include "cuda/lanes.cuh"

namespace dif::cuda {

// One channel's weights: number k of block `slot` at blocks[(3 slot + k) stride], those of everything at totals[k
// stride]; k = 0, 1, 2: sums of w, w x, w x^2 (of the mean: of w, observations, unused).
struct OwnWeights {
  double *blocks, *totals;
  int64_t stride;
  DIF_INLINE double& at(int32_t slot, int k) const { return blocks[(3 * static_cast<int64_t>(slot) + k) * stride]; }
  DIF_INLINE GlrMoments moments(int32_t slot) const { return {at(slot, 0), at(slot, 1), at(slot, 2)}; }
  DIF_INLINE GlrOwnMoments<Exact> exact(int32_t slot) const { return {at(slot, 0), at(slot, 1), at(slot, 2)}; }
  DIF_INLINE GlrMoments total() const { return {totals[0], totals[stride], totals[2 * stride]}; }
  // From the weights that all channels shared so far.
  DIF_INLINE void start(const GlrBlock* shared, int64_t count, const GlrMoments& all) const {
    totals[0] = all.w, totals[stride] = all.x, totals[2 * stride] = all.xx;
    for (int64_t i = 0; i < count; ++i) {
      const GlrMoments& m = shared[i].moments;
      at(shared[i].slot, 0) = m.w, at(shared[i].slot, 1) = m.x, at(shared[i].slot, 2) = m.xx;
    }
  }
};

// fn(candidate, statistic) for each of `count` blocks, youngest first; x: of the last observation.
template <GlrModel model, class Fn>
DIF_INLINE void own_walk(const GlrBlock* blocks, int64_t count, double x, double first_x, const float* rows,
                         const OwnWeights& own, double S, double T, int side, Fn fn) {
  constexpr int kinds = glr_kinds<model>;
  const GlrMoments all = own.total();
  const GlrOwnFit<Exact> fit({all.w, all.x, all.xx}, S, T);
  GlrOwnSuffix<Exact> suffix;
  for (int64_t i = 0; i < count; ++i) {
    const GlrBlock& b = blocks[i];
    const float* row = rows + static_cast<int64_t>(b.slot) * kinds * own.stride;
    const double delta = kinds == 2 ? x - b.origin : 0.0;
    x = b.origin;
    const double moment = kinds == 2 ? static_cast<double>(row[own.stride]) : 0.0;
    glr_own_append<model, Exact>(suffix, own.exact(b.slot), static_cast<double>(row[0]), moment, delta);
    Exact now;
    glr_own_statistic<model>(suffix, fit, b.origin - first_x, side < 0 ? -1.0 : 1.0, side != 0, now);
    fn(i, static_cast<float>(now.v));
  }
}

// The new observation's block, of weight w at x from the block's origin.
template <GlrModel model>
DIF_INLINE void own_block(int32_t slot, double w, double x, double wy, float* row, const OwnWeights& own) {
  row[0] = static_cast<float>(wy);
  if (glr_slopes<model>) row[own.stride] = static_cast<float>(product(x, wy));
  const auto one = glr_own_observation<model, Exact>(x, w);
  own.at(slot, 0) = one.w.v;
  own.at(slot, 1) = one.x.v;
  own.at(slot, 2) = one.xx.v;
}
template <GlrModel model>
DIF_INLINE void own_totals(double at, double w, const OwnWeights& own) {
  const auto one = glr_own_observation<model, Exact>(at, w);
  own.totals[0] += one.w.v;
  own.totals[own.stride] += one.x.v;
  own.totals[2 * own.stride] += one.xx.v;
}
template <GlrModel model>
DIF_INLINE void own_merge(const GlrMerge& m, const OwnWeights& own) {
  auto sum = own.exact(m.to);
  glr_own_merge(sum, own.exact(m.from), glr_slopes<model> ? m.delta : 0.0);
  own.at(m.to, 0) = sum.w.v;
  own.at(m.to, 1) = sum.x.v;
  own.at(m.to, 2) = sum.xx.v;
}

}  // namespace dif::cuda
