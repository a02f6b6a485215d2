// Multi-head attention in the matrix layout, full or causal, head by head in blocks of rows.
#pragma once
#include "cpu/engine_pass.hpp"

namespace dif {

template <class L>
struct Attention : MatrixPass<L> {
  using Base = MatrixPass<L>;
  using Base::batch;
  using Base::columns;
  using Base::g;
  using Base::load;
  using Base::plan;
  using Base::rows;
  using Base::s;
  using Base::samples;
  using Base::store;
  using Base::view;
  using Base::w;
  using typename Base::F;
  using typename Base::G;
  using typename Base::T;
  using typename Base::View;

  // ---- attention; extra holds the probabilities (samples, heads, T, ld), then three blocks of working
  // memory
  struct Heads {
    int64_t t, d, ld, blocks;
    T *turned, *back;
  };
  DIF_INLINE Heads heads(const ProgramOp& op, const OpPlan& at) const {
    const int64_t t = plan.values[op.a].rows, d = plan.values[op.a].cols / op.heads, ld = (t + 15) / 16 * 16;
    T* work = s + at.extra + plan.block * op.heads * t * ld;
    return {t, d, ld, op.causal ? 16 : t, work, work + d * ld};
  }
  // Row blocks of a causal square reach `wide` columns: fn(row, rows, wide).
  template <class Fn>
  static DIF_INLINE void row_blocks(const Heads& h, Fn fn) {
    for (int64_t r = 0; r < h.t; r += h.blocks) {
      const int64_t count = h.t - r < h.blocks ? h.t - r : h.blocks;
      fn(r, count, r + count);
    }
  }
  void attention(const ProgramOp& op, const OpPlan& at) const {
    const Heads h = heads(op, at);
    const View q = view(op.a), k = view(op.b), v = view(op.c), out = view(op.out);
    const T factor = static_cast<T>(op.factor);
    for (int64_t i = 0; i < samples; ++i) {
      for (int64_t n = 0; n < op.heads; ++n) {
        const int64_t row = i * h.t, column = n * h.d;
        T* p = s + at.extra + (i * op.heads + n) * h.t * h.ld;
        transpose<L>(h.t, h.d, k.p + row * k.ld + column, k.ld, h.turned, h.ld);
        row_blocks(h, [&](int64_t r, int64_t count, int64_t wide) {
          G::run(count, wide, h.d, {q.p + (row + r) * q.ld + column, q.ld, 1}, h.turned, h.ld, p + r * h.ld, h.ld,
                 nullptr, false);
          for (int64_t e = r; e < r + count; ++e) softmax_row(p + e * h.ld, op.causal ? e + 1 : h.t, wide, factor);
          G::run(count, h.d, wide, {p + r * h.ld, h.ld, 1}, v.p + row * v.ld + column, v.ld,
                 out.p + (row + r) * out.ld + column, out.ld, nullptr, false);
        });
      }
    }
  }
  // p[0 .. live) <- softmax(factor p), p[live .. wide) <- 0
  static DIF_INLINE void softmax_row(T* p, int64_t live, int64_t wide, T factor) {
    const F k = L::set(factor), low = L::set(static_cast<T>(-3e38));
    F top = low;
    columns(live, [&](int64_t j, int64_t n) {
      const F v = L::mul(k, load(p + j, n));
      top = L::max(L::select(L::first(static_cast<int>(n)), v, low), top);
    });
    const F peak = L::set(L::largest(top));
    F sum = L::set(0);
    columns(live, [&](int64_t j, int64_t n) {
      const F e = L::select(L::first(static_cast<int>(n)), exp<L>(L::sub(L::mul(k, load(p + j, n)), peak)), L::set(0));
      sum = L::add(sum, e);
      store(p + j, e, n);
    });
    const F inverse = L::set(T(1) / L::total(sum));
    columns(live, [&](int64_t j, int64_t n) { store(p + j, L::mul(load(p + j, n), inverse), n); });
    for (int64_t j = live; j < wide; ++j) p[j] = 0;
  }
  // d_s = p (d_p - sum(p d_p)) factor, on d_p in place
  static DIF_INLINE void softmax_row_back(const T* p, T* d, int64_t wide, T factor) {
    F sum = L::set(0);
    columns(wide, [&](int64_t j, int64_t n) { sum = L::fma(load(p + j, n), load(d + j, n), sum); });
    const F mean = L::set(L::total(sum)), k = L::set(factor);
    columns(wide, [&](int64_t j, int64_t n) {
      store(d + j, L::mul(L::mul(load(p + j, n), k), L::sub(load(d + j, n), mean)), n);
    });
  }
  void attention_back(const ProgramOp& op, const OpPlan& at) const {
    const Heads h = heads(op, at);
    const View q = view(op.a), k = view(op.b), v = view(op.c), out = view(op.out);
    const T factor = static_cast<T>(op.factor);
    for (int64_t i = 0; i < samples; ++i) {
      for (int64_t n = 0; n < op.heads; ++n) {
        const int64_t row = i * h.t, column = n * h.d;
        const T* p = s + at.extra + (i * op.heads + n) * h.t * h.ld;
        const T* d_out = out.d + row * out.ld + column;
        transpose<L>(h.t, h.d, v.p + row * v.ld + column, v.ld, h.turned, h.ld);
        row_blocks(h, [&](int64_t r, int64_t count, int64_t wide) {
          T* d_p = h.back + r * h.ld;
          G::run(count, wide, h.d, {d_out + r * out.ld, out.ld, 1}, h.turned, h.ld, d_p, h.ld, nullptr, false);
          for (int64_t e = 0; e < count; ++e) softmax_row_back(p + (r + e) * h.ld, d_p + e * h.ld, wide, factor);
          if (q.d) {
            G::run(count, h.d, wide, {d_p, h.ld, 1}, k.p + row * k.ld + column, k.ld, q.d + (row + r) * q.ld + column,
                   q.ld, nullptr, at.add_a);
          }
        });
        // Columns c .. c + count of a causal square begin at row c.
        row_blocks(h, [&](int64_t c, int64_t count, int64_t) {
          const int64_t from = op.causal ? c : 0, deep = h.t - from;
          if (k.d) {
            G::run(count, h.d, deep, {h.back + from * h.ld + c, 1, h.ld}, q.p + (row + from) * q.ld + column, q.ld,
                   k.d + (row + c) * k.ld + column, k.ld, nullptr, at.add_b);
          }
          if (v.d) {
            G::run(count, h.d, deep, {p + from * h.ld + c, 1, h.ld}, d_out + from * out.ld, out.ld,
                   v.d + (row + c) * v.ld + column, v.ld, nullptr, at.add_c);
          }
        });
      }
    }
  }
};

}  // namespace dif
