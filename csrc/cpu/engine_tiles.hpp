// The products of the small layouts (engine_small.hpp): tiles of sums in registers.
#pragma once
#include "cpu/engine_plan.hpp"

namespace dif {

template <class L, bool chains>
struct Tiles {
  using T = typename L::T;
  using F = typename L::F;
  static constexpr int tile = L::tile;             // rows of a tile; tile^2 sums stay in registers
  static constexpr int64_t per = chains ? 1 : 16;  // samples in a register
  static constexpr int64_t lanes = 16;

  const Plan& plan;
  const T* w;  // (total), or (total, 16)
  T* g;        // (total, 16), or null: losses only
  T* s;        // scratch
  const Batch<T>& batch;
  int64_t first, samples, columns, stride;
  const T** rows;  // (columns) inputs of each sample, with chains in the lanes
  double* sums;    // (16) losses summed in each lane

  struct View {
    T* p;
    T* d;
    int64_t cols;
  };
  DIF_INLINE View view(int32_t v) const {
    const ValuePlan& at = plan.places[v];
    return {s + at.at, g && at.grad >= 0 ? s + at.grad : nullptr, plan.values[v].cols};
  }
  DIF_INLINE bool trains(int64_t offset) const { return offset >= 0 && offset < plan.dim; }
  DIF_INLINE int64_t at(int64_t row, int64_t column) const { return (row * stride + column) * lanes; }
  DIF_INLINE F weight(int64_t i) const {
    if constexpr (chains) return L::load(w + lanes * i);
    return L::set(w[i]);
  }
  // The weights of one product: element (row, inner) at base + row * a + inner * b.
  struct Weights {
    int64_t base, a, b;
  };
  static DIF_INLINE Weights forward_weights(const ProgramOp& op, int64_t in, int64_t out) {
    return op.transposed ? Weights{op.weight, 1, out} : Weights{op.weight, in, 1};
  }
  static DIF_INLINE Weights backward_weights(const ProgramOp& op, int64_t in, int64_t out) {
    return op.transposed ? Weights{op.weight, out, 1} : Weights{op.weight, 1, in};
  }

  // ---- tiles. Fn(row, column, sum) ends a tile's element; X(inner, column) reads the right operand.
  template <int R, int C, class X, class Start, class End>
  DIF_INLINE void product_tile(Weights m, int64_t inner, int64_t r, int64_t c, X x, Start start, End end) const {
    F sum[R][C];
    for (int i = 0; i < R; ++i) {
      const F from = start(r + i);
      for (int j = 0; j < C; ++j) sum[i][j] = from;
    }
    for (int64_t k = 0; k < inner; ++k) {
      F right[C];
#pragma GCC unroll 8
      for (int j = 0; j < C; ++j) right[j] = x(k, c + j);
#pragma GCC unroll 8
      for (int i = 0; i < R; ++i) {
        const F left = weight(m.base + (r + i) * m.a + k * m.b);
#pragma GCC unroll 8
        for (int j = 0; j < C; ++j) sum[i][j] = L::fma(left, right[j], sum[i][j]);
      }
    }
    for (int i = 0; i < R; ++i) {
      for (int j = 0; j < C; ++j) end(r + i, c + j, sum[i][j]);
    }
  }
  template <int R, int C, class X, class Start, class End>
  DIF_INLINE void product_columns(Weights m, int64_t inner, int64_t r, int64_t c, X x, Start start, End end) const {
    for (; c + C <= columns; c += C) product_tile<R, C>(m, inner, r, c, x, start, end);
    if constexpr (C > 1) {
      if (c < columns) product_columns<R, C / 2>(m, inner, r, c, x, start, end);
    }
  }
  template <int R, class X, class Start, class End>
  DIF_INLINE void product_rows(Weights m, int64_t height, int64_t inner, int64_t r, X x, Start start, End end) const {
    constexpr int C = tile * tile / R > 8 ? 8 : tile * tile / R;
    for (; r + R <= height; r += R) product_columns<R, C>(m, inner, r, 0, x, start, end);
    if constexpr (R > 1) {
      if (r < height) product_rows<R / 2>(m, height, inner, r, x, start, end);
    }
  }
  // Weight gradients: element (row, inner) += sum over columns of d (row, column) x (inner, column). Even and odd
  // columns add up apart, for twice as many independent sums.
  template <int R, int C, class X>
  DIF_INLINE void outer_tile(Weights m, int64_t r, int64_t k, const T* d, X x) const {
    F even[R][C], odd[R][C];
    for (int i = 0; i < R; ++i) {
      for (int j = 0; j < C; ++j) {
        even[i][j] = L::load(g + lanes * (m.base + (r + i) * m.a + (k + j) * m.b));
        odd[i][j] = L::set(0);
      }
    }
    const auto column = [&](int64_t c, F(&sum)[R][C]) {
      F right[C];
#pragma GCC unroll 8
      for (int j = 0; j < C; ++j) right[j] = x(k + j, c);
#pragma GCC unroll 8
      for (int i = 0; i < R; ++i) {
        const F left = L::load(d + at(r + i, c));
#pragma GCC unroll 8
        for (int j = 0; j < C; ++j) sum[i][j] = L::fma(left, right[j], sum[i][j]);
      }
    };
    int64_t c = 0;
    for (; c + 2 <= columns; c += 2) {
      column(c, even);
      column(c + 1, odd);
    }
    if (c < columns) column(c, even);
    for (int i = 0; i < R; ++i) {
      for (int j = 0; j < C; ++j) {
        L::store(g + lanes * (m.base + (r + i) * m.a + (k + j) * m.b), L::add(even[i][j], odd[i][j]));
      }
    }
  }
  template <int R, int C, class X>
  DIF_INLINE void outer_columns(Weights m, int64_t inner, int64_t r, int64_t k, const T* d, X x) const {
    for (; k + C <= inner; k += C) outer_tile<R, C>(m, r, k, d, x);
    if constexpr (C > 1) {
      if (k < inner) outer_columns<R, C / 2>(m, inner, r, k, d, x);
    }
  }
  // Columns of an outer tile: two sums each of R x C must stay in registers.
  static constexpr int outer(int R) { return tile * tile / 2 / R > 0 ? tile * tile / 2 / R : 1; }
  template <int R, class X>
  DIF_INLINE void outer_rows(Weights m, int64_t height, int64_t inner, int64_t r, const T* d, X x) const {
    for (; r + R <= height; r += R) outer_columns<R, outer(R)>(m, inner, r, 0, d, x);
    if constexpr (R > 1) {
      if (r < height) outer_rows<R / 2>(m, height, inner, r, d, x);
    }
  }
};

}  // namespace dif
