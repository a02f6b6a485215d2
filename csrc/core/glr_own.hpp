// The statistics of a channel whose observations have weights of their own, 0 where one is missing: every sum in
// double. D is a register of doubles on the CPU and `Exact` on the device: one text, one order of operations, the same
// bits.
#pragma once
#include "core/glr.hpp"

namespace dif {

// A double whose products no flag fuses with the sums around them.
struct Exact {
  double v = 0.0;
  Exact() = default;
  DIF_INLINE Exact(double x) : v(x) {}
  friend DIF_INLINE Exact operator+(Exact a, Exact b) { return a.v + b.v; }
  friend DIF_INLINE Exact operator-(Exact a, Exact b) { return a.v - b.v; }
  friend DIF_INLINE Exact operator*(Exact a, Exact b) { return product(a.v, b.v); }
  friend DIF_INLINE Exact operator/(Exact a, Exact b) { return a.v / b.v; }
  friend DIF_INLINE bool operator>(Exact a, Exact b) { return a.v > b.v; }
  DIF_INLINE Exact& operator+=(Exact b) { return *this = *this + b; }
};

template <GlrModel model>
constexpr int glr_kinds = model == GlrModel::mean ? 1 : 2;  // sums of observations that a row keeps
template <GlrModel model>
constexpr bool glr_slopes = model == GlrModel::kink || model == GlrModel::jump_kink;

// One channel's own moments, as GlrMoments; of models without a slope the second counts observations.
template <class D>
struct GlrOwnMoments {
  D w, x, xx;
};

// Of one observation of weight w at x.
template <GlrModel model, class D>
DIF_INLINE GlrOwnMoments<D> glr_own_observation(const D& x, const D& w) {
  return {w, glr_slopes<model> ? x * w : (w > 0.0 ? D(1.0) : D(0.0)), x * x * w};
}

// Adds a dropped candidate's block, whose origin lies `delta` above.
template <class D>
DIF_INLINE void glr_own_merge(GlrOwnMoments<D>& to, const GlrOwnMoments<D>& from, double delta) {
  to.xx += from.xx + 2 * delta * from.x + delta * delta * from.w;
  to.x += from.x + delta * from.w;
  to.w += from.w;
}

// Everything after one candidate, about its x; without a slope h counts observations, and hy sums their squares.
template <class D>
struct GlrOwnSuffix {
  D w{}, h{}, hh{}, s{}, hy{};
};

// One block more; `delta`: from its origin to that of the suffix so far. sum, moment: what its row keeps.
template <GlrModel model, class D>
DIF_INLINE void glr_own_append(GlrOwnSuffix<D>& e, const GlrOwnMoments<D>& block, const D& sum, const D& moment,
                               double delta) {
  if constexpr (glr_slopes<model>) e.hh += block.xx + 2 * delta * e.h + delta * delta * e.w;
  if constexpr (glr_kinds<model> == 2) {
    e.hy += moment + delta * e.s;
    e.h += block.x + delta * e.w;
  }
  e.w += block.w;
  e.s += sum;
}

// The baseline of everything so far; S, T: the channel's sums of w y and w y x.
template <class D>
struct GlrOwnFit {
  D w, per_w, mean_x, sxx, per_sxx, a, b;
  DIF_INLINE GlrOwnFit(const GlrOwnMoments<D>& all, const D& S, const D& T) {
    const D zero{}, unit = zero + 1.0;
    w = all.w;
    per_w = 1.0 / (w > 0.0 ? w : unit);
    a = S * per_w;
    mean_x = all.x * per_w;
    sxx = all.xx - all.x * mean_x;
    per_sxx = (sxx > 0.0 ? unit : zero) / (sxx > 0.0 ? sxx : unit);
    b = (T - mean_x * S) * per_sxx;
  }
};

// The statistic of one candidate at x = from; 0 where its regressor is not told from the baseline. sign: +1 or -1.
template <GlrModel model, class D>
DIF_INLINE void glr_own_statistic(const GlrOwnSuffix<D>& e, const GlrOwnFit<D>& f, double from, double sign,
                                  bool one_sided, D& to) {
  const D before = f.w - e.w, zero{}, unit = zero + 1.0;
  const auto apart = (e.w > glr_least * f.w) & (before > glr_least * f.w);
  if constexpr (model == GlrModel::mean) {
    const D d = e.s - f.a * e.w;
    const auto told = one_sided ? apart & (sign * d > 0.0) : apart;
    to = (told ? d * d * f.w : zero) / (told ? e.w * before : unit);
  } else {
    const D dx = from - f.mean_x, hx = e.hh + dx * e.h;
    const D square = e.hh - e.h * e.h * f.per_w - hx * hx * f.per_sxx, d = e.hy - f.a * e.h - f.b * hx;
    const auto kinked = apart & (f.sxx > 0.0) & (square > glr_least * e.hh);
    if constexpr (model == GlrModel::kink) {
      const auto told = one_sided ? kinked & (sign * d > 0.0) : kinked;
      to = (told ? d * d : zero) / (told ? square : unit);
    } else {
      const D ux = e.h + dx * e.w, jump = e.w - e.w * e.w * f.per_w - ux * ux * f.per_sxx;
      const auto jumped = kinked & (jump > glr_least * e.w);
      const D per_jump = 1.0 / (jumped ? jump : unit);
      const D share = (e.h - e.w * e.h * f.per_w - ux * hx * f.per_sxx) * per_jump;
      const D rest = square - share * share * jump, d1 = e.s - f.a * e.w - f.b * ux, d2 = d - share * d1;
      const auto told = jumped & (rest > glr_least * e.hh);
      to = (told ? d1 * d1 * per_jump : zero) + (told ? d2 * d2 : zero) / (told ? rest : unit);
    }
  }
}

}  // namespace dif
