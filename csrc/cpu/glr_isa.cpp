// The detector's step for one instruction set: compiled once for each, under the same rules as isa.cpp.
#include "cpu/glr_isa.hpp"

#include "core/glr_own.hpp"
#include "cpu/engine_lanes_isa.hpp"

namespace dif {
namespace {

using F = L::F;
constexpr int N = glr_lanes;

template <GlrModel model>
constexpr int kinds = glr_kinds<model>;
template <GlrModel model>
constexpr bool slopes = glr_slopes<model>;

template <GlrModel model>
void merge(const GlrLook& p, float* rows) {
  for (int64_t i = 0; i < p.merge_count; ++i) {
    const GlrMerge& m = p.merges[i];
    const float* from = rows + static_cast<int64_t>(m.from) * kinds<model> * N;
    float* to = rows + static_cast<int64_t>(m.to) * kinds<model> * N;
    const F s = L::load(from);
    if constexpr (kinds<model> == 2) {
      const F delta = L::set(slopes<model> ? static_cast<float>(m.delta) : 0.0f);
      L::store(to + N, L::add(L::load(to + N), L::fma(delta, s, L::load(from + N))));
    }
    L::store(to, L::add(L::load(to), s));
  }
}

bool prepare(const GlrPack& pack, double at, const float* y, float* value) {
  const double *level = pack.base, *slope = level + N;
  int finite = 1;
  for (int i = 0; i < N; ++i) value[i] = static_cast<float>(static_cast<double>(y[i]) - (level[i] + slope[i] * at));
  for (int i = 0; i < N; ++i) finite &= value[i] - value[i] == 0.0f;
  return finite != 0;
}

float keep(F now, float* best, float* peak) {
  L::store(best, now);
  L::store(peak, L::max(L::load(peak), now));
  return L::largest(now);
}

template <GlrModel model>
float shared_step(const GlrLook& p, const GlrPack& pack, const float* y, float* best, float* peak) {
  double *S = pack.totals, *T = S + N;
  const F wy = L::mul(L::set(p.weight), L::load(y));
  float wys[N], level[N], trend[N] = {};
  L::store(wys, wy);
  for (int i = 0; i < N; ++i) S[i] += static_cast<double>(wys[i]);
  if constexpr (slopes<model>) {
    for (int i = 0; i < N; ++i) T[i] += p.at * static_cast<double>(wys[i]);
    for (int i = 0; i < N; ++i) trend[i] = static_cast<float>(T[i] - p.mean_x * S[i]);
  }
  for (int i = 0; i < N; ++i) level[i] = static_cast<float>(S[i]);
  if (p.slot >= 0) {
    float* row = pack.rows + static_cast<int64_t>(p.slot) * kinds<model> * N;
    L::store(row, wy);
    if constexpr (kinds<model> == 2) L::store(row + N, L::mul(L::set(p.ahead), wy));
  }
  merge<model>(p, pack.rows);
  return keep(glr_walk<L, model>(p.walk, p.count, pack.rows, L::load(level), L::load(trend), p.one_sided), best, peak);
}

float shared(const GlrLook& p, const GlrPack& pack, const float* y, float* best, float* peak) {
  if (p.model == GlrModel::mean) return shared_step<GlrModel::mean>(p, pack, y, best, peak);
  if (p.model == GlrModel::kink) return shared_step<GlrModel::kink>(p, pack, y, best, peak);
  return shared_step<GlrModel::jump_kink>(p, pack, y, best, peak);
}

// Eight channels in double: the compiler makes the instruction set's own registers of them, and every operation is
// correctly rounded.
using D = double __attribute__((vector_size(64)));
using I = int64_t __attribute__((vector_size(64)));
using Eight = float __attribute__((vector_size(32)));
constexpr int H = 8;

DIF_INLINE void read(const double* p, D& to) { __builtin_memcpy(&to, p, sizeof to); }
DIF_INLINE void read(const float* p, D& to) {
  Eight narrow;
  __builtin_memcpy(&narrow, p, sizeof narrow);
  to = __builtin_convertvector(narrow, D);
}

// log(a / b) of positive normal numbers, relative error 1e-13:
// 2 atanh(s) + k log 2, s = (a 2^-k - b) / (a 2^-k + b), |s| < 0.172.
DIF_INLINE void log_ratio(const D& a, const D& b, D& to) {
  constexpr int64_t mantissa = (int64_t{1} << 52) - 1, one = 0x3ff0000000000000, two52 = 0x4330000000000000;
  const I bits_a = (I)a, bits_b = (I)b;
  D ma = (D)((bits_a & mantissa) | one), mb = (D)((bits_b & mantissa) | one);
  const I more = ma > 1.4142135623730951 * mb, less = mb > 1.4142135623730951 * ma;
  const I k = (bits_a >> 52) - (bits_b >> 52) - more + less;  // a comparison that holds is -1
  mb = more ? mb + mb : mb;
  ma = less ? ma + ma : ma;
  const D s = (ma - mb) / (ma + mb), q = s * s;
  D sum = q * (1.0 / 15) + 1.0 / 13;
  sum = sum * q + 1.0 / 11;
  sum = sum * q + 1.0 / 9;
  sum = sum * q + 1.0 / 7;
  sum = sum * q + 1.0 / 5;
  sum = sum * q + 1.0 / 3;
  const D exponent = (D)((k + 4096) | two52) - (4503599627370496.0 + 4096.0);  // exact: |k| < 4096
  to = exponent * 0.6931471805599453 + 2 * (s + s * q * sum);
}

using Moments = GlrOwnMoments<D>;
using Suffix = GlrOwnSuffix<D>;
using Fit = GlrOwnFit<D>;

// What mean+variance asks of the totals besides: x counts observations, v sums the weighted squares.
struct Spread {
  D s, v, x, variance;
};

// n log v - n1 log v1 - n2 log v2 of one candidate.
DIF_INLINE void statistic(const Suffix& e, const Fit& f, const Spread& all, D& to) {
  const D zero = {}, unit = zero + 1, before = f.w - e.w, before_n = all.x - e.h;
  const D wn1 = before * before_n, wn2 = e.w * e.h;
  const I apart = (e.w > glr_least * f.w) & (before > glr_least * f.w), told = apart & (before_n >= 5) & (e.h >= 5);
  const D s1 = all.s - e.s, v1 = (all.v - e.hy) * before - s1 * s1, v2 = e.hy * e.w - e.s * e.s;
  D first, second;
  log_ratio(told ? all.variance * wn1 : unit, told ? (v1 > 1e-30 * wn1 ? v1 : 1e-30 * wn1) : unit, first);
  log_ratio(told ? all.variance * wn2 : unit, told ? (v2 > 1e-30 * wn2 ? v2 : 1e-30 * wn2) : unit, second);
  to = before_n * first + e.h * second;
  to = told ? to : zero;
}

// The walk of one half of the channels, from lane `low` on.
template <GlrModel model>
DIF_INLINE void own_walk(const GlrLook& p, const GlrPack& pack, int low, float* best) {
  const D zero = {}, unit = zero + 1;
  D S, T, top = {};
  Moments all;
  read(pack.totals + low, S);
  read(pack.totals + N + low, T);
  read(pack.own_totals + low, all.w);
  read(pack.own_totals + N + low, all.x);
  read(pack.own_totals + 2 * N + low, all.xx);
  const Fit f(all, S, T);
  Spread spread{S, T, all.x, (T - S * f.a) / (all.x > 0 ? all.x : unit)};
  spread.variance = spread.variance > 1e-30 ? spread.variance : zero + 1e-30;
  Suffix e{};
  double origin = p.x;
  for (int64_t k = 0; k < p.count; ++k) {
    const GlrBlock& block = p.blocks[k];
    const float* row = pack.rows + static_cast<int64_t>(block.slot) * kinds<model> * N + low;
    const double* own = pack.own + static_cast<int64_t>(block.slot) * 3 * N + low;
    const double delta = slopes<model> ? origin - block.origin : 0.0;
    origin = block.origin;
    Moments m{};
    D s, moment = {}, now;
    read(own, m.w);
    read(own + N, m.x);
    read(row, s);
    if constexpr (slopes<model>) read(own + 2 * N, m.xx);
    if constexpr (kinds<model> == 2) read(row + N, moment);
    glr_own_append<model>(e, m, s, moment, delta);
    if constexpr (model == GlrModel::mean_variance) {
      statistic(e, f, spread, now);
    } else {
      glr_own_statistic<model>(e, f, origin - p.first_x, p.sign, p.one_sided, now);
    }
    top = now > top ? now : top;
  }
  const Eight narrow = __builtin_convertvector(top, Eight);
  __builtin_memcpy(best + low, &narrow, sizeof narrow);
}

template <GlrModel model>
float own_step(const GlrLook& p, const GlrPack& pack, const float* y, const double* w, const double* at, float* best,
               float* peak) {
  double *S = pack.totals, *T = S + N, *W = pack.own_totals, *X = W + N, *XX = X + N;
  const double origin = p.at - static_cast<double>(p.ahead);
  if (p.slot >= 0) {
    float* row = pack.rows + static_cast<int64_t>(p.slot) * kinds<model> * N;
    double* own = pack.own + static_cast<int64_t>(p.slot) * 3 * N;
    for (int i = 0; i < N; ++i) {
      const double x = at[i] - origin, wy = w[i] * static_cast<double>(y[i]);
      row[i] = static_cast<float>(wy);
      if constexpr (slopes<model>) row[N + i] = static_cast<float>(x * wy);
      if constexpr (model == GlrModel::mean_variance) row[N + i] = static_cast<float>(wy * static_cast<double>(y[i]));
      const GlrOwnMoments<double> one = glr_own_observation<model>(x, w[i]);
      own[i] = one.w;
      own[N + i] = one.x;
      own[2 * N + i] = one.xx;
    }
  }
  for (int i = 0; i < N; ++i) {
    const double wy = w[i] * static_cast<double>(y[i]);
    S[i] += wy;
    T[i] += model == GlrModel::mean_variance ? wy * static_cast<double>(y[i]) : at[i] * wy;
    const GlrOwnMoments<double> one = glr_own_observation<model>(at[i], w[i]);
    W[i] += one.w;
    X[i] += one.x;
    XX[i] += one.xx;
  }
  merge<model>(p, pack.rows);
  for (int64_t k = 0; k < p.merge_count; ++k) {
    const GlrMerge& m = p.merges[k];
    const double delta = slopes<model> ? m.delta : 0.0;
    const double* from = pack.own + static_cast<int64_t>(m.from) * 3 * N;
    double* to = pack.own + static_cast<int64_t>(m.to) * 3 * N;
    for (int i = 0; i < N; ++i) {
      GlrOwnMoments<double> sum{to[i], to[N + i], to[2 * N + i]};
      glr_own_merge(sum, GlrOwnMoments<double>{from[i], from[N + i], from[2 * N + i]}, delta);
      to[i] = sum.w;
      to[N + i] = sum.x;
      to[2 * N + i] = sum.xx;
    }
  }
  for (int low = 0; low < N; low += H) own_walk<model>(p, pack, low, best);
  return keep(L::load(best), best, peak);
}

float own(const GlrLook& p, const GlrPack& pack, const float* y, const double* w, const double* at, float* best,
          float* peak) {
  if (p.model == GlrModel::mean) return own_step<GlrModel::mean>(p, pack, y, w, at, best, peak);
  if (p.model == GlrModel::kink) return own_step<GlrModel::kink>(p, pack, y, w, at, best, peak);
  if (p.model == GlrModel::jump_kink) return own_step<GlrModel::jump_kink>(p, pack, y, w, at, best, peak);
  return own_step<GlrModel::mean_variance>(p, pack, y, w, at, best, peak);
}

}  // namespace

extern const GlrKernels DIF_OF_ISA(glr);
const GlrKernels DIF_OF_ISA(glr) = {isa_name, prepare, shared, own};

}  // namespace dif
