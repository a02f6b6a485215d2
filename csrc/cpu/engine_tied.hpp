// The tied pair: loss and gradient of |act(W^T W x + b) - y|^2 in one walk over the batch, act none or relu.
//
// The toy model of superposition, and any other pair of linear maps that share their weights. Its values are so
// few that the general layout (engine_small.hpp) spends its time writing and reading them. Here a group of
// registers (of sixteen samples, or of one sample of sixteen chains) goes through both maps and back while
//
//   h = W x          d = slope of the loss, masked by act          s = W d
//   o = W^T h + b    gradient of W += d h^T (as W^T) + s x^T       of b += d
//
// with h, s and d in registers; weights and running sums come from the first cache, once for the whole group.
// Losses are those of the general layout, bit for bit. Sums run over columns in their order, d h^T and s x^T apart,
// so that no bit depends on the width of a group.
#pragma once
#include "cpu/engine_plan.hpp"

namespace dif {

template <class L, bool chains, int hidden, bool weighted>
struct Tied {
  using T = typename L::T;
  using F = typename L::F;
  static constexpr int64_t lanes = 16;
  static constexpr int64_t most = tied_features;
  // Two sets of hidden x group registers, the group's losses and slopes.
  static constexpr int widest = hidden <= 2 ? L::tile : (L::tile + 1) / 2;

  const Plan& plan;
  const T* w;  // (total), or (total, 16)
  const Batch<T>& batch;
  T* g;            // (dim, 16): gradient of W by way of o, and of b
  T* h_sum;        // (features, hidden, 16): gradient of W by way of h
  T* data;         // (2, group, features, 16)
  double* losses;  // (count) or null
  double* sums;    // (16)

  int64_t features, first, unit, feature;  // W of hidden unit k and feature j: first + k unit + j feature
  int64_t bias;                            // or -1
  bool train_bias;
  T floor;  // 0 for a relu, below all numbers without one

  Tied(const Plan& p, const T* weights, const Batch<T>& rows, T* gradient, T* s, double* per_sample, double* total)
      : plan(p),
        w(weights),
        batch(rows),
        g(chains ? gradient : s + p.sums),
        h_sum(s + p.targets),
        data(h_sum + hidden * most * lanes),
        losses(per_sample),
        sums(total) {
    const ProgramOp &down = plan.ops[1], &up = plan.ops[2];
    features = plan.values[up.out].cols;
    first = down.weight;
    unit = down.transposed ? 1 : features;
    feature = down.transposed ? hidden : 1;
    bias = up.bias;
    train_bias = bias >= 0 && bias < plan.dim;
    floor = up.activation == act_relu ? T(0) : -__builtin_inff();
  }
  DIF_INLINE int64_t at(int64_t k, int64_t j) const { return first + k * unit + j * feature; }
  DIF_INLINE F weight(int64_t i) const {
    if constexpr (chains) return L::load(w + lanes * i);
    return L::set(w[i]);
  }

  const T* row(const T* rows, int64_t size, int64_t i) const {
    return rows + static_cast<int64_t>(batch.index[i]) * size;
  }
  // Columns c ... c + C - 1 of a data set as (C, size, 16): where they lie so already, or at `to`. Past the last sample
  // of a ragged column comes that sample again.
  template <int C, bool ragged>
  DIF_INLINE const T* columns(const T* rows, int64_t size, const T* turned, int64_t c, T* to) const {
    if (turned) return turned + c * size * lanes;
    const int64_t last = batch.count - 1 - c * lanes;
    const int32_t* const index = batch.index + c * lanes;
    const auto from = [&](int64_t q) {
      return rows + static_cast<int64_t>(index[ragged && q > last ? last : q]) * size;
    };
    int64_t j = 0;
    for (; j + 8 <= size; j += 8) {
#pragma GCC unroll 1
      for (int i = 0; i < C; ++i) {
        F eight[8];
        L::columns8([&](int q) { return from(i * lanes + q) + j; }, eight);
#pragma GCC unroll 8
        for (int k = 0; k < 8; ++k) L::store(to + (i * size + j + k) * lanes, eight[k]);
      }
    }
    for (; j < size; j += 4) {
#pragma GCC unroll 1
      for (int i = 0; i < C; ++i) {
        F four[4];
        L::columns4([&](int q) { return from(i * lanes + q) + j; }, four);
#pragma GCC unroll 4
        for (int k = 0; k < 4; ++k) L::store(to + (i * size + j + k) * lanes, four[k]);
      }
    }
    return to;
  }

  template <int C, bool ragged>
  DIF_INLINE void group(int64_t c) const {
    const Tied t = *this;  // what stores cannot touch
    const int64_t n = t.features;
    const bool own = batch.y == batch.x;
    const T *x_row[C], *y_row[C];
    const T *x_at = nullptr, *y_at = nullptr;
    const int64_t x_size = batch.x_size, y_size = batch.y_size;
    if constexpr (chains) {
      for (int i = 0; i < C; ++i) {
        x_row[i] = row(batch.x, x_size, c + i);
        y_row[i] = row(batch.y, y_size, c + i);
      }
    } else {
      x_at = columns<C, ragged>(batch.x, x_size, batch.x_turned, c, data);
      y_at = own ? x_at : columns<C, ragged>(batch.y, y_size, batch.y_turned, c, data + most * C * lanes);
    }
    const auto x = [&](int64_t j, int i) {
      if constexpr (chains) return L::set(x_row[i][j]);
      return L::load(x_at + (i * x_size + j) * lanes);
    };
    const auto y = [&](int64_t j, int i) {
      if constexpr (chains) return L::set(y_row[i][j]);
      return L::load(y_at + (i * y_size + j) * lanes);
    };
    const F zero = L::set(0), lowest = L::set(t.floor);
    const int kept = c == 0 ? 0 : static_cast<int>(lanes);  // sums begin with the first group
    F h[hidden][C], s[hidden][C], loss[C];
    for (int i = 0; i < C; ++i) {
      loss[i] = zero;
      for (int k = 0; k < hidden; ++k) h[k][i] = s[k][i] = zero;
    }
    for (int64_t j = 0; j < n; ++j) {
      F in[C];
#pragma GCC unroll 4
      for (int i = 0; i < C; ++i) in[i] = x(j, i);
#pragma GCC unroll 4
      for (int k = 0; k < hidden; ++k) {
        const F left = t.weight(t.at(k, j));
#pragma GCC unroll 4
        for (int i = 0; i < C; ++i) h[k][i] = L::fma(left, in[i], h[k][i]);
      }
    }
    const int64_t importance = plan.loss.importance, live = batch.count - c * (chains ? 1 : lanes);
    for (int64_t j = 0; j < n; ++j) {
      F d[C];
      const F start = t.bias >= 0 ? t.weight(t.bias + j) : zero;
      F left[hidden];
#pragma GCC unroll 4
      for (int k = 0; k < hidden; ++k) left[k] = t.weight(t.at(k, j));
#pragma GCC unroll 4
      for (int i = 0; i < C; ++i) {
        F o = start;
#pragma GCC unroll 4
        for (int k = 0; k < hidden; ++k) o = L::fma(left[k], h[k][i], o);
        o = L::max(lowest, o);
        F e = L::sub(o, y(j, i));
        if constexpr (ragged) e = L::select(L::first(static_cast<int>(live - i * lanes)), e, zero);
        d[i] = weighted ? L::mul(e, t.weight(importance + j)) : e;
        loss[i] = L::fma(d[i], e, loss[i]);
        d[i] = L::select(L::greater(o, lowest), d[i], zero);
      }
      if (t.train_bias) {
        T* to = t.g + lanes * (t.bias + j);
        F sum = L::load_first(to, kept);
#pragma GCC unroll 4
        for (int i = 0; i < C; ++i) sum = L::add(sum, d[i]);
        L::store(to, sum);
      }
#pragma GCC unroll 4
      for (int k = 0; k < hidden; ++k) {
        T* to = t.g + lanes * t.at(k, j);
        F sum = L::load_first(to, kept);
#pragma GCC unroll 4
        for (int i = 0; i < C; ++i) {
          s[k][i] = L::fma(left[k], d[i], s[k][i]);
          sum = L::fma(d[i], h[k][i], sum);
        }
        L::store(to, sum);
      }
    }
    T* to = h_sum;
    for (int64_t j = 0; j < n; ++j) {
#pragma GCC unroll 4
      for (int k = 0; k < hidden; ++k) {
        F sum = L::load_first(to, kept);
#pragma GCC unroll 4
        for (int i = 0; i < C; ++i) sum = L::fma(s[k][i], x(j, i), sum);
        L::store(to, sum);
        to += lanes;
      }
    }
#pragma GCC unroll 4
    for (int i = 0; i < C; ++i) L::accumulate(sums, loss[i]);
    for (int i = 0; !chains && losses && i < C; ++i) {
      T v[lanes];
      L::store(v, loss[i]);
      for (int64_t q = 0; q < lanes && q < live - i * lanes; ++q) {
        losses[(c + i) * lanes + q] = static_cast<double>(v[q]) * plan.loss.factor;
      }
    }
  }

  // All whole columns: groups of C, then of C / 2, ... 1.
  template <int C>
  DIF_INLINE void groups(int64_t c, int64_t whole) const {
    for (; c + C <= whole; c += C) group<C, false>(c);
    if constexpr (C > 1) groups<C / 2>(c, whole);
  }

  // The arguments of Small::run, with a gradient.
  static void run(const Plan& plan, const T* w, const Batch<T>& batch, T* g, T* s, double* losses, double* sums) {
    const Tied pass(plan, w, batch, g, s, losses, sums);
    T *const sum = pass.g, *const h_sum = pass.h_sum;
    const int64_t n = pass.features, trained = n * hidden + (pass.train_bias ? n : 0);
    for (int64_t i = 0; trained < plan.dim && i < plan.dim; ++i) L::store(sum + lanes * i, L::set(0));  // parts unused
    for (int i = 0; i < lanes; ++i) sums[i] = 0.0;
    const int64_t whole = chains ? batch.count : batch.count / lanes;
    pass.template groups<widest>(0, whole);
    if (!chains && whole * lanes < batch.count) pass.template group<1, true>(whole);
    for (int i = 0; i < lanes; ++i) sums[i] *= plan.loss.factor;
    for (int64_t j = 0; j < n; ++j) {
      for (int64_t k = 0; k < hidden; ++k) {
        T* to = sum + lanes * pass.at(k, j);
        L::store(to, L::add(L::load(to), L::load(h_sum + (j * hidden + k) * lanes)));
      }
    }
    const T factor = static_cast<T>(2.0 * plan.loss.factor / batch.samples());
    const F slope = L::set(factor);
    if constexpr (chains) {
      for (int64_t i = 0; i < plan.dim; ++i) L::store(g + lanes * i, L::mul(slope, L::load(g + lanes * i)));
    } else {
      int64_t i = 0;
      for (; i + lanes <= plan.dim; i += lanes) L::store(g + i, L::mul(slope, L::totals(sum + lanes * i)));
      if (i + 4 < plan.dim) {
        L::store_first(g + i, L::mul(slope, L::totals(sum + lanes * i)), static_cast<int>(plan.dim - i));
      } else {  // one by one, in the order of `totals`
        for (; i < plan.dim; ++i) g[i] = factor * L::total(L::load(sum + lanes * i));
      }
    }
  }
};

}  // namespace dif
