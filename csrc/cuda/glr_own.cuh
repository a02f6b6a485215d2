// A channel whose observations have weights of their own, 0 where one is missing: all sums in double, as the CPU's
// detector takes them (cpu/glr_isa.cpp, own_step), to its bits.
#pragma once
#include "core/glr.hpp"
#include "cuda/lanes.cuh"

namespace dif::cuda {

// One channel's weights: number k of block `slot` at blocks[(3 slot + k) stride], those of everything at totals[k
// stride]; k = 0, 1, 2: sums of w, w x, w x^2 (of the mean: of w, observations, unused).
struct OwnWeights {
  double *blocks, *totals;
  int64_t stride;
  DIF_INLINE double& at(int32_t slot, int k) const { return blocks[(3 * static_cast<int64_t>(slot) + k) * stride]; }
  DIF_INLINE GlrMoments moments(int32_t slot) const { return {at(slot, 0), at(slot, 1), at(slot, 2)}; }
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

// The baseline of everything so far, and everything after a candidate.
struct OwnFit {
  double w, mean_x, sxx, a, b;
  DIF_INLINE OwnFit(const GlrMoments& t, double S, double T) {
    const double total = t.w > 0 ? t.w : 1.0;
    w = t.w;
    mean_x = t.x / total;
    sxx = t.xx - product(t.x, mean_x);
    a = S / total;
    b = sxx > 0 ? (T - product(mean_x, S)) / sxx : 0;
  }
};
struct OwnSuffix {
  double w = 0, h = 0, hh = 0, s = 0, hy = 0;
  DIF_INLINE void append(const GlrMoments& m, double sum, double moment, double delta) {
    hh += m.xx + product(2 * delta, h) + product(product(delta, delta), w);
    h += m.x + product(delta, w);
    hy += moment + product(delta, s);
    w += m.w;
    s += sum;
  }
};

template <GlrModel model>
DIF_INLINE double own_statistic(const OwnSuffix& e, const OwnFit& f, double from, double sign, bool one_sided) {
  const double w = f.w, after = e.w, before = w - after;
  const bool apart = after > product(glr_least, w) && before > product(glr_least, w);
  if constexpr (model == GlrModel::mean) {
    const double d = product(sign, e.s - product(f.a, after)), z = one_sided && d < 0 ? 0 : d;
    return apart ? product(product(z, z), w) / product(after, before) : 0;
  } else {
    const double dx = from - f.mean_x, hx = e.hh + product(dx, e.h);
    const double square = e.hh - product(e.h, e.h) / w - product(hx, hx) / f.sxx;
    const double d = e.hy - product(f.a, e.h) - product(f.b, hx);
    const bool told = apart && f.sxx > 0 && square > product(glr_least, e.hh);
    if constexpr (model == GlrModel::kink) {
      const double z = one_sided && product(sign, d) < 0 ? 0 : d;
      return told ? product(z, z) / square : 0;
    } else {
      const double ux = e.h + product(dx, after);
      const double jump = after - product(after, after) / w - product(ux, ux) / f.sxx;
      const double share = (e.h - product(after, e.h) / w - product(ux, hx) / f.sxx) / jump;
      const double rest = square - product(product(share, share), jump);
      const double d1 = e.s - product(f.a, after) - product(f.b, ux), d2 = d - product(share, d1);
      return told && jump > product(glr_least, after) && rest > product(glr_least, e.hh)
                 ? product(d1, d1) / jump + product(d2, d2) / rest
                 : 0;
    }
  }
}

// fn(candidate, statistic) for each of `count` blocks, youngest first; x: of the last observation.
template <GlrModel model, class Fn>
DIF_INLINE void own_walk(const GlrBlock* blocks, int64_t count, double x, double first_x, const float* rows,
                         const OwnWeights& own, const OwnFit& fit, double sign, bool one_sided, Fn fn) {
  constexpr int kinds = model == GlrModel::mean ? 1 : 2;
  OwnSuffix suffix;
  for (int64_t i = 0; i < count; ++i) {
    const GlrBlock& b = blocks[i];
    const float* row = rows + static_cast<int64_t>(b.slot) * kinds * own.stride;
    const double delta = kinds == 2 ? x - b.origin : 0.0;
    x = b.origin;
    const double moment = kinds == 2 ? static_cast<double>(row[own.stride]) : 0.0;
    suffix.append(own.moments(b.slot), static_cast<double>(row[0]), moment, delta);
    fn(i, static_cast<float>(own_statistic<model>(suffix, fit, b.origin - first_x, sign, one_sided)));
  }
}

// The new observation's block, of weight w; ahead: its x less the block's origin.
template <GlrModel model>
DIF_INLINE void own_block(int32_t slot, double w, double x, double wy, float* row, const OwnWeights& own) {
  constexpr bool slopes = model != GlrModel::mean;
  row[0] = static_cast<float>(wy);
  if (slopes) row[own.stride] = static_cast<float>(product(x, wy));
  own.at(slot, 0) = w;
  own.at(slot, 1) = slopes ? product(x, w) : (w > 0 ? 1.0 : 0.0);
  own.at(slot, 2) = product(product(x, x), w);
}
template <GlrModel model>
DIF_INLINE void own_totals(double at, double w, const OwnWeights& own) {
  constexpr bool slopes = model != GlrModel::mean;
  own.totals[0] += w;
  own.totals[own.stride] += slopes ? product(at, w) : (w > 0 ? 1.0 : 0.0);
  own.totals[2 * own.stride] += product(product(at, at), w);
}
template <GlrModel model>
DIF_INLINE void own_merge(const GlrMerge& m, const OwnWeights& own) {
  const double delta = model != GlrModel::mean ? m.delta : 0.0;
  const GlrMoments from = own.moments(m.from);
  own.at(m.to, 2) += from.xx + product(2 * delta, from.x) + product(product(delta, delta), from.w);
  own.at(m.to, 1) += from.x + product(delta, from.w);
  own.at(m.to, 0) += from.w;
}

}  // namespace dif::cuda
