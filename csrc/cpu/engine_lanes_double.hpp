// The engine in float64 for one instruction set: sixteen lanes as arrays, in which products and sums stay apart, and
// for the matrix kernels registers with fused multiply-adds. The same bits from every set.
#pragma once
#include "cpu/engine_lanes_isa.hpp"

namespace dif {
namespace {

struct DoublePanel {
  using T = double;
#if defined(DIF_ISA_avx512)
  using F = __m512d;
  static constexpr int width = 8, rows = 6, panels = 4;  // 24 accumulators of 32 registers
  static DIF_INLINE __mmask8 first(int n) { return static_cast<__mmask8>(n >= 8 ? 0xff : (1 << n) - 1); }
  static DIF_INLINE F set(double x) { return _mm512_set1_pd(x); }
  static DIF_INLINE F load(const double* p) { return _mm512_loadu_pd(p); }
  static DIF_INLINE F load_first(const double* p, int n) { return _mm512_maskz_loadu_pd(first(n), p); }
  static DIF_INLINE void store(double* p, F a) { _mm512_storeu_pd(p, a); }
  static DIF_INLINE void store_first(double* p, F a, int n) { _mm512_mask_storeu_pd(p, first(n), a); }
  static DIF_INLINE F fma(F a, F b, F c) { return _mm512_fmadd_pd(a, b, c); }
#elif defined(DIF_ISA_avx2)
  using F = __m256d;
  static constexpr int width = 4, rows = 6, panels = 2;  // 12 accumulators of 16 registers
  static DIF_INLINE __m256i first(int n) {
    return _mm256_cmpgt_epi64(_mm256_set1_epi64x(n), _mm256_setr_epi64x(0, 1, 2, 3));
  }
  static DIF_INLINE F set(double x) { return _mm256_set1_pd(x); }
  static DIF_INLINE F load(const double* p) { return _mm256_loadu_pd(p); }
  static DIF_INLINE F load_first(const double* p, int n) { return _mm256_maskload_pd(p, first(n)); }
  static DIF_INLINE void store(double* p, F a) { _mm256_storeu_pd(p, a); }
  static DIF_INLINE void store_first(double* p, F a, int n) { _mm256_maskstore_pd(p, first(n), a); }
  static DIF_INLINE F fma(F a, F b, F c) { return _mm256_fmadd_pd(a, b, c); }
#else
  using Array = PortableEngine<double, FileTag>;
  using F = Array::F;
  static constexpr int width = 16, rows = 2, panels = 1;
  static DIF_INLINE F set(double x) { return Array::set(x); }
  static DIF_INLINE F load(const double* p) { return Array::load(p); }
  static DIF_INLINE F load_first(const double* p, int n) { return Array::load_first(p, n); }
  static DIF_INLINE void store(double* p, F a) { Array::store(p, a); }
  static DIF_INLINE void store_first(double* p, F a, int n) { Array::store_first(p, a, n); }
  static DIF_INLINE F fma(F a, F b, F c) {
    F r;
    for (int i = 0; i < 16; ++i) r.v[i] = __builtin_fma(a.v[i], b.v[i], c.v[i]);
    return r;
  }
#endif
};

struct DoubleTag {};
struct D : PortableEngine<double, DoubleTag> {
  using Panel = DoublePanel;
};

}  // namespace
}  // namespace dif
