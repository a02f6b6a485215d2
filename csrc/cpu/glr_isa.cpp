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

// Sums of everything after a candidate, one of each channel; and of everything, with the baseline fitted to it.
struct Suffixes {
  double w[N] = {}, h[N] = {}, hh[N] = {}, s[N] = {}, hy[N] = {};
};
struct Fits {
  double w[N], mean_x[N], sxx[N], a[N], b[N], s[N], v[N], x[N];
};

double log_variance(double squares, double sum, double w, double count) {
  const double v = (squares - sum * sum / w) / count;
  return __builtin_log(v > 1e-30 ? v : 1e-30);
}

template <GlrModel model>
DIF_INLINE double statistic(const Suffixes& e, const Fits& f, int i, double from, double sign, bool one_sided) {
  const double w = f.w[i], after = e.w[i], before = w - after;
  const bool apart = after > glr_least * w && before > glr_least * w;
  if constexpr (model == GlrModel::mean) {
    const double d = sign * (e.s[i] - f.a[i] * after), z = one_sided && d < 0 ? 0 : d;
    return apart ? z * z * w / (after * before) : 0;
  } else if constexpr (model == GlrModel::mean_variance) {
    const double n = f.x[i], n2 = e.h[i], n1 = n - n2;
    if (!apart || n1 < 5 || n2 < 5) return 0;
    return n * log_variance(f.v[i], f.s[i], w, n) - n1 * log_variance(f.v[i] - e.hy[i], f.s[i] - e.s[i], before, n1) -
           n2 * log_variance(e.hy[i], e.s[i], after, n2);
  } else {
    const double dx = from - f.mean_x[i], hx = e.hh[i] + dx * e.h[i];
    const double square = e.hh[i] - e.h[i] * e.h[i] / w - hx * hx / f.sxx[i];
    const double d = e.hy[i] - f.a[i] * e.h[i] - f.b[i] * hx;
    const bool told = apart && f.sxx[i] > 0 && square > glr_least * e.hh[i];
    if constexpr (model == GlrModel::kink) {
      const double z = one_sided && sign * d < 0 ? 0 : d;
      return told ? z * z / square : 0;
    } else {
      const double ux = e.h[i] + dx * after, jump = after - after * after / w - ux * ux / f.sxx[i];
      const double share = (e.h[i] - after * e.h[i] / w - ux * hx / f.sxx[i]) / jump;
      const double rest = square - share * share * jump, d1 = e.s[i] - f.a[i] * after - f.b[i] * ux;
      const double d2 = d - share * d1;
      return told && jump > glr_least * after && rest > glr_least * e.hh[i] ? d1 * d1 / jump + d2 * d2 / rest : 0;
    }
  }
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
  Fits f;
  for (int i = 0; i < N; ++i) {
    const double total = W[i] > 0 ? W[i] : 1.0;
    f.w[i] = W[i];
    f.s[i] = S[i];
    f.v[i] = T[i];
    f.x[i] = X[i];
    f.mean_x[i] = X[i] / total;
    f.sxx[i] = XX[i] - X[i] * f.mean_x[i];
    f.a[i] = S[i] / total;
    f.b[i] = f.sxx[i] > 0 ? (T[i] - f.mean_x[i] * S[i]) / f.sxx[i] : 0;
    best[i] = 0;
  }
  Suffixes e;
  double origin_so_far = p.x;
  for (int64_t k = 0; k < p.count; ++k) {
    const GlrBlock& block = p.blocks[k];
    const float* row = pack.rows + static_cast<int64_t>(block.slot) * kinds<model> * N;
    const double* own = pack.own + static_cast<int64_t>(block.slot) * 3 * N;
    const double delta = slopes<model> ? origin_so_far - block.origin : 0.0, from = block.origin - p.first_x;
    origin_so_far = block.origin;
    for (int i = 0; i < N; ++i) {
      e.hh[i] += own[2 * N + i] + 2 * delta * e.h[i] + delta * delta * e.w[i];
      e.h[i] += own[N + i] + delta * e.w[i];
      if constexpr (kinds<model> == 2) e.hy[i] += static_cast<double>(row[N + i]) + delta * e.s[i];
      e.w[i] += own[i];
      e.s[i] += static_cast<double>(row[i]);
    }
    for (int i = 0; i < N; ++i) {
      const float value = static_cast<float>(statistic<model>(e, f, i, from, p.sign, p.one_sided));
      best[i] = value > best[i] ? value : best[i];
    }
  }
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
