// What every operation of the matrix layout has at hand: the block's values, registers along a row, activation
// functions.
#pragma once
#include "core/math.hpp"
#include "cpu/engine_plan.hpp"
#include "cpu/gemm.hpp"

namespace dif {

template <class L>
struct MatrixPass {
  using T = typename L::T;
  using F = typename L::F;
  using G = Gemm<L>;

  const Plan& plan;
  const T* w;
  T* g;  // null: losses only
  T* s;  // scratch
  const Batch<T>& batch;
  int64_t first, samples;  // of this block

  // ---- small tools
  static DIF_INLINE F load(const T* p, int64_t n) {
    return n >= 16 ? L::load(p) : L::load_first(p, static_cast<int>(n));
  }
  static DIF_INLINE void store(T* p, F v, int64_t n) {
    if (n >= 16) {
      L::store(p, v);
    } else {
      L::store_first(p, v, static_cast<int>(n));
    }
  }
  // fn(column, columns left) for each register of a row.
  template <class Fn>
  static DIF_INLINE void columns(int64_t n, Fn fn) {
    int64_t j = 0;
    for (; j + 16 <= n; j += 16) fn(j, int64_t{16});
    if (j < n) fn(j, n - j);
  }
  static DIF_INLINE F joined(F v, const T* old, int64_t n, bool join) { return join ? L::add(v, load(old, n)) : v; }

  struct View {
    T* p;
    T* d;  // gradient, or null
    int64_t ld, cols;
  };
  DIF_INLINE View view(int32_t v) const {
    const ValuePlan& at = plan.places[v];
    return {s + at.at, g && at.grad >= 0 ? s + at.grad : nullptr, at.ld, plan.values[v].cols};
  }
  DIF_INLINE int64_t rows(int32_t v) const { return samples * plan.values[v].rows; }
  DIF_INLINE bool trains(int64_t offset) const { return offset >= 0 && offset < plan.dim; }
  DIF_INLINE int32_t sample(int64_t i) const { return batch.index[first + i]; }

  // ---- one element of a loss, times its weight, onto `sum` where live; returns its derivative, of a square the half.
  template <int kind>
  static DIF_INLINE F element(F p, F y, typename L::M live, F weight, F& sum) {
    const F zero = L::set(0), one = L::set(1);
    if constexpr (kind == loss_squared) {
      const F e = L::select(live, L::sub(p, y), zero), u = L::mul(e, weight);
      sum = L::fma(u, e, sum);
      return u;
    } else {
      // log(1 + e^p) - y p = max(p, 0) - y p + log u, u = 1 + e^-|p|; log u / (u - 1) undoes the rounding of u.
      const F t = exp<L>(L::negate(L::max(p, L::negate(p)))), u = L::add(one, t), less = L::sub(u, one);
      const F tail = L::select(L::greater(less, zero), L::div(L::mul(log<L>(u), t), less), t);
      const F loss = L::add(L::sub(L::max(p, zero), L::mul(p, y)), tail), q = L::div(one, u);
      const F sigmoid = L::select(L::greater(p, zero), q, L::mul(t, q));
      sum = L::fma(weight, L::select(live, loss, zero), sum);
      return L::mul(weight, L::select(live, L::sub(sigmoid, y), zero));
    }
  }

  // ---- activation functions, on y in place; slopes that y does not give go to `slope`
  static DIF_INLINE bool slope_from_output(int kind) { return kind <= act_sigmoid; }
  template <int kind>
  static DIF_INLINE F act(F x, F& slope) {
    const F one = L::set(1);
    if constexpr (kind == act_relu) return L::max(L::set(0), x);
    if constexpr (kind == act_tanh) return tanh<L>(x);
    if constexpr (kind == act_sigmoid) return sigmoid<L>(x);
    if constexpr (kind == act_gelu) {
      F distribution, density;
      normal_distribution<L>(x, distribution, density);
      slope = L::fma(x, density, distribution);
      return L::mul(x, distribution);
    }
    if constexpr (kind == act_gelu_tanh) {
      const F c = L::set(static_cast<T>(0.79788456080286535588)), k = L::set(static_cast<T>(0.044715)),
              half = L::set(T(0.5));
      const F xx = L::mul(x, x);
      const F t = tanh<L>(L::mul(L::mul(c, x), L::fma(k, xx, one)));
      const F inner = L::mul(c, L::fma(L::mul(L::set(3), k), xx, one));
      const F h = L::fma(half, t, half);
      slope = L::fma(L::mul(L::mul(half, x), L::fma(L::negate(t), t, one)), inner, h);
      return L::mul(x, h);
    }
    if constexpr (kind == act_silu) {
      const F q = sigmoid<L>(x);
      slope = L::mul(q, L::fma(x, L::sub(one, q), one));
      return L::mul(x, q);
    }
    return x;
  }
  template <int kind>
  static void act_rows(T* y, T* slope, int64_t rows, int64_t ld, int64_t cols) {
    for (int64_t r = 0; r < rows; ++r) {
      columns(cols, [&](int64_t j, int64_t n) {
        F d = L::set(0);
        const F v = act<kind>(load(y + r * ld + j, n), d);
        store(y + r * ld + j, v, n);
        if constexpr (kind > act_sigmoid) store(slope + r * ld + j, d, n);
      });
    }
  }
  static void act_forward(int kind, T* y, T* slope, int64_t rows, int64_t ld, int64_t cols) {
    switch (kind) {
      case act_relu:
        return act_rows<act_relu>(y, slope, rows, ld, cols);
      case act_tanh:
        return act_rows<act_tanh>(y, slope, rows, ld, cols);
      case act_sigmoid:
        return act_rows<act_sigmoid>(y, slope, rows, ld, cols);
      case act_gelu:
        return act_rows<act_gelu>(y, slope, rows, ld, cols);
      case act_gelu_tanh:
        return act_rows<act_gelu_tanh>(y, slope, rows, ld, cols);
      case act_silu:
        return act_rows<act_silu>(y, slope, rows, ld, cols);
      default:
        return;
    }
  }
  // d <- d act'(x), and the column sums of d onto `sums` if not null.
  static void act_backward(int kind, T* d, const T* y, const T* slope, int64_t rows, int64_t ld, int64_t cols,
                           T* sums) {
    if (kind == act_none && !sums) return;
    columns(cols, [&](int64_t j, int64_t n) {
      F sum = L::set(0);
      for (int64_t r = 0; r < rows; ++r) {
        const int64_t at = r * ld + j;
        F v = load(d + at, n);
        if (kind != act_none) {
          const F one = L::set(1), o = load(y + at, n);
          if (kind == act_relu) {
            v = L::select(L::greater(o, L::set(0)), v, L::set(0));
          } else if (kind == act_tanh) {
            v = L::mul(v, L::fma(L::negate(o), o, one));
          } else if (kind == act_sigmoid) {
            v = L::mul(v, L::mul(o, L::sub(one, o)));
          } else {
            v = L::mul(v, load(slope + at, n));
          }
          store(d + at, v, n);
        }
        sum = L::add(sum, v);
      }
      if (sums) store(sums + j, L::add(load(sums + j, n), sum), n);
    });
  }
};

}  // namespace dif
