// Lane types of the engine: sixteen lanes on every instruction set, so that sums over lanes have one order,
// and the few operations that passes over a Program need beyond those of core/lanes.hpp.
//
//   T          float, or double for the verifying copy
//   own_math   polynomials of core/math.hpp rather than the C library
//   load_first, store_first   the first n lanes only; the others are read as 0, not written
//   total, largest            over the lanes, halving: (i) with (i + 8), then 4, 2, 1
//   totals, accumulate        of sixteen registers, one in each lane; onto sums in double
//   tile       rows of a tile of the small layouts (engine_small.hpp)
//   Panel      the register type of the matrix kernels, with their blocking (rows x panels of registers)
#pragma once
#include "core/lanes.hpp"
#include "core/lanes_twice.hpp"

namespace dif {

template <class L, class Row>
DIF_INLINE void columns8_by_4(Row row, typename L::F (&out)[8]) {
  typename L::F first[4], second[4];
  L::columns4(row, first);
  L::columns4([&](int i) { return row(i) + 4; }, second);
  for (int k = 0; k < 4; ++k) {
    out[k] = first[k];
    out[4 + k] = second[k];
  }
}

// Arrays of sixteen; any compiler vectorizes them.
template <class Scalar, class Tag>
struct PortableEngine {
  using T = Scalar;
  static constexpr int width = 16;
  static constexpr bool own_math = sizeof(T) == 4;
  struct F {
    T v[16];
  };
  struct M {
    bool v[16];
  };
  using Panel = PortableEngine;
  static constexpr int rows = 2, panels = 1;
  static constexpr int tile = 1;
#define DIF_EACH for (int i = 0; i < 16; ++i)
#define DIF_MAP(expression)       \
  F r;                            \
  DIF_EACH r.v[i] = (expression); \
  return r
  static DIF_INLINE F set(T x) { DIF_MAP(x); }
  static DIF_INLINE F load(const T* p) { DIF_MAP(p[i]); }
  static DIF_INLINE F load_first(const T* p, int n) { DIF_MAP(i < n ? p[i] : T(0)); }
  static DIF_INLINE void store(T* p, F a) { DIF_EACH p[i] = a.v[i]; }
  static DIF_INLINE void store_first(T* p, F a, int n) {
    for (int i = 0; i < n; ++i) p[i] = a.v[i];
  }
  static DIF_INLINE F add(F a, F b) { DIF_MAP(a.v[i] + b.v[i]); }
  static DIF_INLINE F sub(F a, F b) { DIF_MAP(a.v[i] - b.v[i]); }
  static DIF_INLINE F mul(F a, F b) { DIF_MAP(a.v[i] * b.v[i]); }
  static DIF_INLINE F div(F a, F b) { DIF_MAP(a.v[i] / b.v[i]); }
  static DIF_INLINE F max(F a, F b) { DIF_MAP(a.v[i] > b.v[i] ? a.v[i] : b.v[i]); }
  static DIF_INLINE F min(F a, F b) { DIF_MAP(a.v[i] < b.v[i] ? a.v[i] : b.v[i]); }
  static DIF_INLINE F negate(F a) { DIF_MAP(-a.v[i]); }
  static DIF_INLINE F select(M m, F yes, F no) { DIF_MAP(m.v[i] ? yes.v[i] : no.v[i]); }
  static DIF_INLINE F fma(F a, F b, F c) {
    if constexpr (sizeof(T) == 4) {
      DIF_MAP(__builtin_fmaf(a.v[i], b.v[i], c.v[i]));
    } else {
      DIF_MAP(a.v[i] * b.v[i] + c.v[i]);
    }
  }
  static DIF_INLINE F sqrt(F a) {
    DIF_MAP(sizeof(T) == 4 ? T(__builtin_sqrtf(float(a.v[i]))) : T(__builtin_sqrt(a.v[i])));
  }
  static DIF_INLINE M greater(F a, F b) {
    M r;
    DIF_EACH r.v[i] = a.v[i] > b.v[i];
    return r;
  }
  static DIF_INLINE M first(int n) {
    M r;
    DIF_EACH r.v[i] = i < n;
    return r;
  }
  static DIF_INLINE F power_of_two(F n) {
    DIF_MAP(T(float_of(static_cast<uint32_t>(static_cast<int32_t>(n.v[i]) + 127) << 23)));
  }
  static DIF_INLINE void split(F x, F& m, F& e) {
    DIF_EACH {
      const uint32_t u = bits_of(float(x.v[i]));
      const int32_t k = static_cast<int32_t>(u - 0x3f400000u) >> 23;
      m.v[i] = T(float_of(u - (static_cast<uint32_t>(k) << 23)));
      e.v[i] = static_cast<T>(k);
    }
  }
  template <class Fn>
  static DIF_INLINE F each(F a, Fn fn) {
    DIF_MAP(fn(a.v[i]));
  }
  static DIF_INLINE T total(F a) {
    for (int h = 8; h > 0; h /= 2) {
      for (int i = 0; i < h; ++i) a.v[i] = a.v[i] + a.v[i + h];
    }
    return a.v[0];
  }
  static DIF_INLINE T largest(F a) {
    for (int h = 8; h > 0; h /= 2) {
      for (int i = 0; i < h; ++i) a.v[i] = a.v[i] > a.v[i + h] ? a.v[i] : a.v[i + h];
    }
    return a.v[0];
  }
  // Lane i = the total of the register at p + 16 i.
  static DIF_INLINE F totals(const T* p) { DIF_MAP(total(load(p + 16 * i))); }
  // sums[i] += lane i
  static DIF_INLINE void accumulate(double* sums, F a) { DIF_EACH sums[i] += static_cast<double>(a.v[i]); }
  // Four features of sixteen rows: out[f] lane i = row(i)[f].
  template <class Row>
  static DIF_INLINE void columns4(Row row, F (&out)[4]) {
    for (int i = 0; i < 16; ++i) {
      const T* p = row(i);
      for (int f = 0; f < 4; ++f) out[f].v[i] = p[f];
    }
  }
  // Eight features likewise.
  template <class Row>
  static DIF_INLINE void columns8(Row row, F (&out)[8]) {
    columns8_by_4<PortableEngine>(row, out);
  }
#undef DIF_MAP
#undef DIF_EACH
};

}  // namespace dif
