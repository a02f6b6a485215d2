// Linear maps whose weights are far larger than the cache, for a few rows of samples: every weight is read once where
// it lies, a few rows of W at a time, and nothing is copied of it but what a block of registers holds.
//
// The sums are those of `Gemm`, in its order: the same bits as from a transposed copy.
#pragma once
#include "cpu/gemm.hpp"

namespace dif {

template <class L>
struct Streamed {
  using T = typename L::T;
  using G = Gemm<L>;
  // Rows of W at a time. Rows a power of two apart share one set of the first cache, which has eight places or more.
  static constexpr int64_t read = 8, written = 6;

  // fn(row, rows) for each `chunk` of `count` rows.
  template <class Fn>
  static DIF_INLINE void rows(int64_t count, int64_t chunk, Fn fn) {
    for (int64_t r = 0; r < count; r += chunk) fn(r, count - r < chunk ? count - r : chunk);
  }

  // out (m, n) = a (m, k) W^T + start by way of out^T = W a^T; W (n, k), start as in Gemm::run. lines ((n + k) ld):
  // scratch, m <= ld.
  static void across(int64_t m, int64_t n, int64_t k, const T* a, int64_t a_ld, const T* weight, T* out, int64_t out_ld,
                     const T* bias, bool join, T* lines, int64_t ld) {
    T *in = lines, *to = lines + k * ld;
    transpose<L>(m, k, a, a_ld, in, ld);
    if (join) transpose<L>(m, n, out, out_ld, to, ld);
    if (bias) {
      for (int64_t r = 0; r < n; ++r) {
        for (int64_t i = 0; i < m; ++i) to[r * ld + i] = bias[r];
      }
    }
    rows(n, read, [&](int64_t r, int64_t count) {
      G::run(count, m, k, {weight + r * k, k, 1}, in, ld, to + r * ld, ld, nullptr, join || bias, k);
    });
    transpose<L>(n, m, to, ld, out, out_ld);
  }

  // out (m, n) = a (m, k) W + start; W (k, n).
  static void along(int64_t m, int64_t n, int64_t k, const T* a, int64_t a_ld, const T* weight, T* out, int64_t out_ld,
                    const T* bias, bool join) {
    rows(k, read, [&](int64_t r, int64_t count) {
      G::run(m, n, count, {a + r, a_ld, 1}, weight + r * n, n, out, out_ld, bias, join || r > 0);
    });
  }

  // g (n, k) = x^T (n, m) y (m, k), or onto g.
  static void outer(int64_t n, int64_t k, int64_t m, const T* x, int64_t x_ld, const T* y, int64_t y_ld, T* g,
                    bool onto) {
    rows(n, written, [&](int64_t r, int64_t count) {
      G::run(count, k, m, {x + r, 1, x_ld}, y, y_ld, g + r * k, k, nullptr, onto);
    });
  }
};

}  // namespace dif
