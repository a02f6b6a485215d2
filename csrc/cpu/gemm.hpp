// Small matrix products for one core.
//
//   C (m, n) = A (m, k) B (k, n) + start,   start = a bias row (n), zero, or C itself
//
// A is read one element at a time with any strides, so a transposed A costs nothing; B and C have unit column
// stride. A block of rows x (panels of registers) of C stays in registers while k runs; k is cut at k_block
// (or what the caller says) so that the strip of B stays in a cache. Every element of C is one chain of fused
// multiply-adds in the order of k: its bits depend neither on the blocking nor on the instruction set. Nothing is
// allocated. B must not overlap C. Register blocking as in Goto, van de Geijn (2008), Anatomy of high-performance
// matrix multiplication.
#pragma once
#include <cstdint>

#include "core/lanes.hpp"

namespace dif {

template <class L>
struct Gemm {
  using T = typename L::T;
  using P = typename L::Panel;
  using F = typename P::F;
  static constexpr int width = P::width;
  static constexpr int64_t k_block = 160;

  struct Left {  // A
    const T* p;
    int64_t row, column;
  };

  // One block of R rows and V registers; `last` columns of the last register exist (width: all).
  template <int R, int V, bool ragged>
  static void block(int64_t k, Left a, const T* b, int64_t b_ld, T* c, int64_t c_ld, const T* bias, bool accumulate,
                    int last) {
    F sum[R][V];
    if (accumulate) {
      for (int i = 0; i < R; ++i) {
        for (int j = 0; j < V; ++j) {
          const T* at = c + i * c_ld + j * width;
          sum[i][j] = ragged && j == V - 1 ? P::load_first(at, last) : P::load(at);
        }
      }
    } else {
      for (int j = 0; j < V; ++j) {
        const F start = !bias                  ? P::set(0)
                        : ragged && j == V - 1 ? P::load_first(bias + j * width, last)
                                               : P::load(bias + j * width);
        for (int i = 0; i < R; ++i) sum[i][j] = start;
      }
    }
    for (int64_t q = 0; q < k; ++q) {
      F right[V];
#pragma GCC unroll 8
      for (int j = 0; j < V; ++j) {
        right[j] = ragged && j == V - 1 ? P::load_first(b + j * width, last) : P::load(b + j * width);
      }
#pragma GCC unroll 16
      for (int i = 0; i < R; ++i) {
        const F left = P::set(a.p[i * a.row]);
#pragma GCC unroll 8
        for (int j = 0; j < V; ++j) sum[i][j] = P::fma(left, right[j], sum[i][j]);
      }
      a.p += a.column;
      b += b_ld;
    }
    for (int i = 0; i < R; ++i) {
      for (int j = 0; j < V; ++j) {
        T* at = c + i * c_ld + j * width;
        if (ragged && j == V - 1) {
          P::store_first(at, sum[i][j], last);
        } else {
          P::store(at, sum[i][j]);
        }
      }
    }
  }

  // All rows of one strip of V registers: blocks of R rows, then of R / 2, ... 1.
  template <int R, int V, bool ragged>
  static DIF_INLINE void strip(int64_t m, int64_t k, Left a, const T* b, int64_t b_ld, T* c, int64_t c_ld,
                               const T* bias, bool accumulate, int last) {
    while (m >= R) {
      block<R, V, ragged>(k, a, b, b_ld, c, c_ld, bias, accumulate, last);
      a.p += R * a.row;
      c += R * c_ld;
      m -= R;
    }
    if constexpr (R > 1) strip<R / 2 + (R == 6), V, ragged>(m, k, a, b, b_ld, c, c_ld, bias, accumulate, last);
  }

  template <int V>
  static void strip_of(bool ragged, int64_t m, int64_t k, Left a, const T* b, int64_t b_ld, T* c, int64_t c_ld,
                       const T* bias, bool accumulate, int last) {
    // Narrow strips take more rows, for as many independent sums.
    constexpr int R = V == P::panels ? P::rows : P::rows * P::panels / V > 16 ? 16 : P::rows * P::panels / V;
    if (ragged) {
      strip<R, V, true>(m, k, a, b, b_ld, c, c_ld, bias, accumulate, last);
    } else {
      strip<R, V, false>(m, k, a, b, b_ld, c, c_ld, bias, accumulate, last);
    }
  }

  static void run(int64_t m, int64_t n, int64_t k, Left a, const T* b, int64_t b_ld, T* c, int64_t c_ld, const T* bias,
                  bool accumulate, int64_t at_a_time = k_block) {
    for (int64_t q = 0; q < k; q += at_a_time) {
      const int64_t depth = k - q < at_a_time ? k - q : at_a_time;
      const bool onto = accumulate || q > 0;
      for (int64_t j = 0; j < n;) {
        const int64_t left = (n - j + width - 1) / width;  // registers still to do
        const int strips = left < P::panels ? static_cast<int>(left) : P::panels;
        const int64_t columns = n - j < strips * width ? n - j : strips * width;
        const int last = static_cast<int>(columns - (strips - 1) * width);
        const bool ragged = last < width;
        const Left at{a.p + q * a.column, a.row, a.column};
        const T* bs = b + q * b_ld + j;
        const T* start = bias ? bias + j : nullptr;
        switch (strips) {
          case 1:
            strip_of<1>(ragged, m, depth, at, bs, b_ld, c + j, c_ld, start, onto, last);
            break;
          case 2:
            strip_of<(P::panels >= 2 ? 2 : 1)>(ragged, m, depth, at, bs, b_ld, c + j, c_ld, start, onto, last);
            break;
          case 3:
            strip_of<(P::panels >= 3 ? 3 : 1)>(ragged, m, depth, at, bs, b_ld, c + j, c_ld, start, onto, last);
            break;
          default:
            strip_of<(P::panels >= 4 ? 4 : 1)>(ragged, m, depth, at, bs, b_ld, c + j, c_ld, start, onto, last);
        }
        j += columns;
      }
    }
  }
};

// out (columns, rows) = transpose of in (rows, columns).
template <class L>
void transpose(int64_t rows, int64_t columns, const typename L::T* in, int64_t in_ld, typename L::T* out,
               int64_t out_ld) {
  using F = typename L::F;
  int64_t r = 0;
  for (; r + 16 <= rows; r += 16) {
    int64_t c = 0;
    for (; c + 4 <= columns; c += 4) {
      F z[4];
      L::columns4([&](int i) { return in + (r + i) * in_ld + c; }, z);
      for (int f = 0; f < 4; ++f) L::store(out + (c + f) * out_ld + r, z[f]);
    }
    for (; c < columns; ++c) {
      for (int i = 0; i < 16; ++i) out[c * out_ld + r + i] = in[(r + i) * in_ld + c];
    }
  }
  for (; r < rows; ++r) {
    for (int64_t c = 0; c < columns; ++c) out[c * out_ld + r] = in[r * in_ld + c];
  }
}

}  // namespace dif
