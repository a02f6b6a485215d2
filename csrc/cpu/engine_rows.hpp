// Operations of the matrix layout that work on whole rows: pooling, and values side by side.
#pragma once
#include "cpu/engine_attention.hpp"

namespace dif {

template <class L>
struct Rows : Attention<L> {
  using Base = Attention<L>;
  using Base::columns;
  using Base::joined;
  using Base::load;
  using Base::plan;
  using Base::rows;
  using Base::s;
  using Base::samples;
  using Base::store;
  using Base::view;
  using typename Base::F;
  using typename Base::T;
  using typename Base::View;

  // fn(row of out, first row of a's sample, the rows pooled): op.size of them, -1 for none
  template <class Fn>
  DIF_INLINE void each_window(const ProgramOp& op, const OpPlan& at, Fn fn) const {
    const int64_t height = plan.values[op.out].rows, from = plan.values[op.a].rows;
    for (int64_t i = 0; i < samples; ++i) {
      for (int64_t r = 0; r < height; ++r) fn(i * height + r, i * from, plan.maps + at.extra + r * op.size);
    }
  }
  void clear(const View& a, int64_t count) const {
    for (int64_t r = 0; r < count; ++r) {
      columns(a.cols, [&](int64_t j, int64_t n) { store(a.d + r * a.ld + j, L::set(0), n); });
    }
  }

  void mean_rows(const ProgramOp& op, const OpPlan& at) const {
    const View a = view(op.a), out = view(op.out);
    const F factor = L::set(static_cast<T>(op.factor));
    each_window(op, at, [&](int64_t to, int64_t from, const int32_t* map) {
      columns(out.cols, [&](int64_t j, int64_t n) {
        F sum = L::set(0);
        for (int32_t q = 0; q < op.size; ++q) {
          if (map[q] >= 0) sum = L::add(sum, load(a.p + (from + map[q]) * a.ld + j, n));
        }
        store(out.p + to * out.ld + j, L::mul(factor, sum), n);
      });
    });
  }
  void mean_rows_back(const ProgramOp& op, const OpPlan& at) const {
    const View a = view(op.a), out = view(op.out);
    if (!a.d) return;
    if (!at.add_a) clear(a, rows(op.a));
    const F factor = L::set(static_cast<T>(op.factor));
    each_window(op, at, [&](int64_t to, int64_t from, const int32_t* map) {
      columns(out.cols, [&](int64_t j, int64_t n) {
        const F d = L::mul(factor, load(out.d + to * out.ld + j, n));
        for (int32_t q = 0; q < op.size; ++q) {
          if (map[q] < 0) continue;
          T* back = a.d + (from + map[q]) * a.ld + j;
          store(back, L::add(load(back, n), d), n);
        }
      });
    });
  }

  // Keeps which row of the window was the largest.
  void max_rows(const ProgramOp& op, const OpPlan& at) const {
    const View a = view(op.a), out = view(op.out);
    T* const chosen = s + at.turned;
    each_window(op, at, [&](int64_t to, int64_t from, const int32_t* map) {
      columns(out.cols, [&](int64_t j, int64_t n) {
        F top = L::set(0), which = L::set(-1);
        for (int32_t q = 0; q < op.size; ++q) {
          if (map[q] < 0) continue;
          const F v = load(a.p + (from + map[q]) * a.ld + j, n), number = L::set(static_cast<T>(q));
          const auto first = L::greater(L::set(0), which), above = L::greater(v, top);
          top = L::select(first, v, L::select(above, v, top));
          which = L::select(first, number, L::select(above, number, which));
        }
        store(out.p + to * out.ld + j, top, n);
        store(chosen + to * out.ld + j, which, n);
      });
    });
  }
  void max_rows_back(const ProgramOp& op, const OpPlan& at) const {
    const View a = view(op.a), out = view(op.out);
    if (!a.d) return;
    if (!at.add_a) clear(a, rows(op.a));
    const T* const chosen = s + at.turned;
    const F near = L::set(T(0.25));
    each_window(op, at, [&](int64_t to, int64_t from, const int32_t* map) {
      columns(out.cols, [&](int64_t j, int64_t n) {
        const F d = load(out.d + to * out.ld + j, n), which = load(chosen + to * out.ld + j, n);
        for (int32_t q = 0; q < op.size; ++q) {
          if (map[q] < 0) continue;
          const F off = L::sub(which, L::set(static_cast<T>(q)));
          T* back = a.d + (from + map[q]) * a.ld + j;
          store(back, L::add(load(back, n), L::select(L::greater(near, L::mul(off, off)), d, L::set(0))), n);
        }
      });
    });
  }

  void join(const ProgramOp& op) const {
    const View a = view(op.a), b = view(op.b), out = view(op.out);
    for (int64_t r = 0; r < rows(op.out); ++r) {
      T* to = out.p + r * out.ld;
      columns(a.cols, [&](int64_t j, int64_t n) { store(to + j, load(a.p + r * a.ld + j, n), n); });
      columns(b.cols, [&](int64_t j, int64_t n) { store(to + a.cols + j, load(b.p + r * b.ld + j, n), n); });
    }
  }
  void join_back(const ProgramOp& op, const OpPlan& at) const {
    const View a = view(op.a), b = view(op.b), out = view(op.out);
    const auto take = [&](const View& v, int64_t column, bool add) {
      for (int64_t r = 0; v.d && r < rows(op.out); ++r) {
        columns(v.cols, [&](int64_t j, int64_t n) {
          T* to = v.d + r * v.ld + j;
          store(to, joined(load(out.d + r * out.ld + column + j, n), to, n, add), n);
        });
      }
    };
    take(a, 0, at.add_a);
    take(b, a.cols, at.add_b);
  }
};

}  // namespace dif
