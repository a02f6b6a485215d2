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

template <class L, bool chains, int hidden>
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
  T* data;         // (2, features, group, 16)
  double* losses;  // (count) or null
  double* sums;    // (16)

  const ProgramOp& first() const { return plan.ops[1]; }
  const ProgramOp& second() const { return plan.ops[2]; }
  int64_t features() const { return plan.values[second().out].cols; }
  // Offset of the weight between hidden unit k and feature j.
  DIF_INLINE int64_t at(int64_t k, int64_t j) const {
    return first().weight + (first().transposed ? j * hidden + k : k * features() + j);
  }
  DIF_INLINE F weight(int64_t i) const {
    if constexpr (chains) return L::load(w + lanes * i);
    return L::set(w[i]);
  }

  const T* row(const T* rows, int64_t size, int64_t i) const {
    const int64_t last = batch.count - 1;
    return rows + static_cast<int64_t>(batch.index[i < last ? i : last]) * size;
  }
  // Columns c ... c + C - 1 of a data set, feature by feature, at `to`.
  template <int C>
  DIF_INLINE void turn(const T* rows, int64_t size, const T* turned, int64_t c, T* to) const {
    const int64_t n = features();
#pragma GCC unroll 4
    for (int i = 0; i < C; ++i) {
      if (turned) {
        const T* from = turned + (c + i) * size * lanes;
        for (int64_t j = 0; j < n; ++j) L::store(to + (j * C + i) * lanes, L::load(from + j * lanes));
        continue;
      }
      const T* sample[lanes];
      for (int64_t q = 0; q < lanes; ++q) sample[q] = row(rows, size, (c + i) * lanes + q);
      for (int64_t j = 0; j < n; j += 4) {
        F four[4];
        L::columns4([&](int q) { return sample[q] + j; }, four);
        for (int64_t k = 0; k < 4 && j + k < n; ++k) L::store(to + ((j + k) * C + i) * lanes, four[k]);
      }
    }
  }

  template <int C, bool ragged>
  DIF_INLINE void group(int64_t c) const {
    const int64_t n = features();
    const bool relu = second().activation == act_relu, own = batch.y == batch.x;
    const bool train_bias = second().bias >= 0 && second().bias < plan.dim;
    const T *x_row[C], *y_row[C];
    const T *x_at = data, *y_at = own ? data : data + most * C * lanes;
    if constexpr (chains) {
      for (int i = 0; i < C; ++i) {
        x_row[i] = row(batch.x, batch.x_size, c + i);
        y_row[i] = row(batch.y, batch.y_size, c + i);
      }
    } else {
      turn<C>(batch.x, batch.x_size, batch.x_turned, c, data);
      if (!own) turn<C>(batch.y, batch.y_size, batch.y_turned, c, data + most * C * lanes);
    }
    const bool weighted = plan.loss.importance >= 0;
    const auto x = [&](int64_t j, int i) {
      if constexpr (chains) return L::set(x_row[i][j]);
      return L::load(x_at + (j * C + i) * lanes);
    };
    const auto y = [&](int64_t j, int i) {
      if constexpr (chains) return L::set(y_row[i][j]);
      return L::load(y_at + (j * C + i) * lanes);
    };
    const F zero = L::set(0);
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
        const F left = weight(at(k, j));
#pragma GCC unroll 4
        for (int i = 0; i < C; ++i) h[k][i] = L::fma(left, in[i], h[k][i]);
      }
    }
    const int64_t live = batch.count - c * (chains ? 1 : lanes);
    for (int64_t j = 0; j < n; ++j) {
      F d[C];
      const F bias = second().bias >= 0 ? weight(second().bias + j) : zero;
      F left[hidden];
#pragma GCC unroll 4
      for (int k = 0; k < hidden; ++k) left[k] = weight(at(k, j));
#pragma GCC unroll 4
      for (int i = 0; i < C; ++i) {
        F o = bias;
#pragma GCC unroll 4
        for (int k = 0; k < hidden; ++k) o = L::fma(left[k], h[k][i], o);
        if (relu) o = L::max(zero, o);
        F e = L::sub(o, y(j, i));
        if constexpr (ragged) e = L::select(L::first(static_cast<int>(live - i * lanes)), e, zero);
        d[i] = weighted ? L::mul(e, weight(plan.loss.importance + j)) : e;
        loss[i] = L::fma(d[i], e, loss[i]);
        if (relu) d[i] = L::select(L::greater(o, zero), d[i], zero);
      }
      if (train_bias) {
        T* to = g + lanes * (second().bias + j);
        F sum = L::load(to);
#pragma GCC unroll 4
        for (int i = 0; i < C; ++i) sum = L::add(sum, d[i]);
        L::store(to, sum);
      }
#pragma GCC unroll 4
      for (int k = 0; k < hidden; ++k) {
        T* to = g + lanes * at(k, j);
        F sum = L::load(to);
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
        F sum = L::load(to);
#pragma GCC unroll 4
        for (int i = 0; i < C; ++i) sum = L::fma(s[k][i], x(j, i), sum);
        L::store(to, sum);
        to += lanes;
      }
    }
    for (int i = 0; i < C; ++i) {
      L::accumulate(sums, loss[i]);
      if (chains || !losses) continue;
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
    T* const sum = chains ? g : s + plan.sums;
    T* const h_sum = s + plan.targets;
    const Tied pass{plan, w, batch, sum, h_sum, h_sum + hidden * most * lanes, losses, sums};
    const int64_t n = pass.features();
    for (int64_t i = 0; i < plan.dim; ++i) L::store(sum + lanes * i, L::set(0));
    for (int64_t i = 0; i < n * hidden; ++i) L::store(h_sum + lanes * i, L::set(0));
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
    const F slope = L::set(static_cast<T>(2.0 * plan.loss.factor / static_cast<double>(batch.count)));
    if constexpr (chains) {
      for (int64_t i = 0; i < plan.dim; ++i) L::store(g + lanes * i, L::mul(slope, L::load(g + lanes * i)));
    } else {
      int64_t i = 0;
      for (; i + lanes <= plan.dim; i += lanes) L::store(g + i, L::mul(slope, L::totals(sum + lanes * i)));
      if (i < plan.dim) L::store_first(g + i, L::mul(slope, L::totals(sum + lanes * i)), static_cast<int>(plan.dim - i));
    }
  }
};

}  // namespace dif
