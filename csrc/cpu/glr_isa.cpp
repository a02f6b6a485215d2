// The detector's step for one instruction set: compiled once for each, under the same rules as isa.cpp.
#include "cpu/glr_isa.hpp"

#include "cpu/engine_lanes_isa.hpp"

namespace dif {
namespace {

using F = L::F;
constexpr int N = glr_lanes;

template <GlrModel model>
constexpr int kinds = model == GlrModel::mean ? 1 : 2;
template <GlrModel model>
constexpr bool slopes = model == GlrModel::kink || model == GlrModel::jump_kink;

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

// Sums of everything after a candidate; and of everything, with the baseline fitted to it.
struct Suffixes {
  D w, h, hh, s, hy;
};
struct Fits {
  D w, per_w, mean_x, sxx, per_sxx, a, b, s, v, x, variance;
};

// The statistic of one candidate; 0 where its regressor is not told from the baseline.
template <GlrModel model>
DIF_INLINE void statistic(const Suffixes& e, const Fits& f, double from, double sign, bool one_sided, D& to) {
  const D before = f.w - e.w, zero = {}, unit = zero + 1;
  const I apart = (e.w > glr_least * f.w) & (before > glr_least * f.w);
  if constexpr (model == GlrModel::mean) {
    const D d = e.s - f.a * e.w;
    const I told = one_sided ? apart & (sign * d > 0) : apart;
    to = (told ? d * d * f.w : zero) / (told ? e.w * before : unit);
  } else if constexpr (model == GlrModel::mean_variance) {
    const D after_n = e.h, before_n = f.x - after_n, wn1 = before * before_n, wn2 = e.w * after_n;
    const I told = apart & (before_n >= 5) & (after_n >= 5);
    const D s1 = f.s - e.s, v1 = (f.v - e.hy) * before - s1 * s1, v2 = e.hy * e.w - e.s * e.s;
    D first, second;
    log_ratio(told ? f.variance * wn1 : unit, told ? (v1 > 1e-30 * wn1 ? v1 : 1e-30 * wn1) : unit, first);
    log_ratio(told ? f.variance * wn2 : unit, told ? (v2 > 1e-30 * wn2 ? v2 : 1e-30 * wn2) : unit, second);
    to = before_n * first + after_n * second;
    to = told ? to : zero;
  } else {
    const D dx = from - f.mean_x, hx = e.hh + dx * e.h;
    const D square = e.hh - e.h * e.h * f.per_w - hx * hx * f.per_sxx, d = e.hy - f.a * e.h - f.b * hx;
    const I kinked = apart & (f.sxx > 0) & (square > glr_least * e.hh);
    if constexpr (model == GlrModel::kink) {
      const I told = one_sided ? kinked & (sign * d > 0) : kinked;
      to = (told ? d * d : zero) / (told ? square : unit);
    } else {
      const D ux = e.h + dx * e.w, jump = e.w - e.w * e.w * f.per_w - ux * ux * f.per_sxx;
      const I jumped = kinked & (jump > glr_least * e.w);
      const D per_jump = 1 / (jumped ? jump : unit);
      const D share = (e.h - e.w * e.h * f.per_w - ux * hx * f.per_sxx) * per_jump;
      const D rest = square - share * share * jump, d1 = e.s - f.a * e.w - f.b * ux, d2 = d - share * d1;
      const I told = jumped & (rest > glr_least * e.hh);
      to = (told ? d1 * d1 * per_jump : zero) + (told ? d2 * d2 : zero) / (told ? rest : unit);
    }
  }
}

// The walk of one half of the channels, from lane `low` on.
template <GlrModel model>
DIF_INLINE void own_walk(const GlrLook& p, const GlrPack& pack, int low, float* best) {
  const D zero = {}, unit = zero + 1;
  D S, T, W, X, XX, top = {};
  read(pack.totals + low, S);
  read(pack.totals + N + low, T);
  read(pack.own_totals + low, W);
  read(pack.own_totals + N + low, X);
  read(pack.own_totals + 2 * N + low, XX);
  Fits f;
  f.w = W;
  f.per_w = 1 / (W > 0 ? W : unit);
  f.s = S;
  f.v = T;
  f.x = X;
  f.a = S * f.per_w;
  f.mean_x = X * f.per_w;
  f.sxx = XX - X * f.mean_x;
  f.per_sxx = (f.sxx > 0 ? unit : zero) / (f.sxx > 0 ? f.sxx : unit);
  f.b = (T - f.mean_x * S) * f.per_sxx;
  f.variance = (T - S * f.a) / (X > 0 ? X : unit);
  f.variance = f.variance > 1e-30 ? f.variance : zero + 1e-30;
  Suffixes e{};
  double origin = p.x;
  for (int64_t k = 0; k < p.count; ++k) {
    const GlrBlock& block = p.blocks[k];
    const float* row = pack.rows + static_cast<int64_t>(block.slot) * kinds<model> * N + low;
    const double* own = pack.own + static_cast<int64_t>(block.slot) * 3 * N + low;
    const double delta = slopes<model> ? origin - block.origin : 0.0;
    origin = block.origin;
    D w, x, s, hy = {}, xx = {}, now;
    read(own, w);
    read(own + N, x);
    read(row, s);
    if constexpr (slopes<model>) {
      read(own + 2 * N, xx);
      e.hh += xx + 2 * delta * e.h + delta * delta * e.w;
    }
    if constexpr (kinds<model> == 2) {
      read(row + N, hy);
      e.hy += hy + delta * e.s;
    }
    e.h += x + delta * e.w;
    e.w += w;
    e.s += s;
    statistic<model>(e, f, origin - p.first_x, p.sign, p.one_sided, now);
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
      own[i] = w[i];
      own[N + i] = slopes<model> ? x * w[i] : (w[i] > 0 ? 1.0 : 0.0);
      own[2 * N + i] = x * x * w[i];
    }
  }
  for (int i = 0; i < N; ++i) {
    const double wy = w[i] * static_cast<double>(y[i]);
    S[i] += wy;
    T[i] += model == GlrModel::mean_variance ? wy * static_cast<double>(y[i]) : at[i] * wy;
    W[i] += w[i];
    X[i] += slopes<model> ? at[i] * w[i] : (w[i] > 0 ? 1.0 : 0.0);
    XX[i] += at[i] * at[i] * w[i];
  }
  merge<model>(p, pack.rows);
  for (int64_t k = 0; k < p.merge_count; ++k) {
    const GlrMerge& m = p.merges[k];
    const double delta = slopes<model> ? m.delta : 0.0;
    const double* from = pack.own + static_cast<int64_t>(m.from) * 3 * N;
    double* to = pack.own + static_cast<int64_t>(m.to) * 3 * N;
    for (int i = 0; i < N; ++i) {
      to[2 * N + i] += from[2 * N + i] + 2 * delta * from[N + i] + delta * delta * from[i];
      to[N + i] += from[N + i] + delta * from[i];
      to[i] += from[i];
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
