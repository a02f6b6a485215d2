// The engine's sixteen lanes in two AVX2 registers. Same operations, same bits as PortableEngine<float>.
#pragma once
#include "cpu/engine_lanes.hpp"
#include "cpu/lanes_avx2.hpp"

namespace dif {

// Eight lanes with what the matrix kernels need.
struct Avx2Panel : Avx2Lanes {
  using T = float;
  static constexpr int rows = 6, panels = 2;  // 12 accumulators of 16 registers

  static DIF_INLINE __m256i first_words(int n) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
  }
  static DIF_INLINE F load_first(const float* p, int n) { return _mm256_maskload_ps(p, first_words(n)); }
  static DIF_INLINE void store_first(float* p, F a, int n) { _mm256_maskstore_ps(p, first_words(n), a); }
};

struct Avx2Engine : Twice<Avx2Lanes> {
  using T = float;
  using H = Avx2Panel;
  static constexpr bool own_math = true;
  using Panel = Avx2Panel;
  static constexpr int tile = 2;

  static DIF_INLINE M first(int n) { return {H::first_words(n), H::first_words(n - 8)}; }
  static DIF_INLINE F load_first(const float* p, int n) { return {H::load_first(p, n), H::load_first(p + 8, n - 8)}; }
  static DIF_INLINE void store_first(float* p, F x, int n) {
    H::store_first(p, x.a, n);
    H::store_first(p + 8, x.b, n - 8);
  }
  static DIF_INLINE F add(F x, F y) { return {_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b)}; }
  static DIF_INLINE F div(F x, F y) { return {_mm256_div_ps(x.a, y.a), _mm256_div_ps(x.b, y.b)}; }
  static DIF_INLINE F max(F x, F y) { return {_mm256_max_ps(x.a, y.a), _mm256_max_ps(x.b, y.b)}; }
  static DIF_INLINE F min(F x, F y) { return {_mm256_min_ps(x.a, y.a), _mm256_min_ps(x.b, y.b)}; }
  static DIF_INLINE M greater(F x, F y) {
    return {_mm256_castps_si256(_mm256_cmp_ps(x.a, y.a, _CMP_GT_OQ)),
            _mm256_castps_si256(_mm256_cmp_ps(x.b, y.b, _CMP_GT_OQ))};
  }
  static DIF_INLINE __m256 power8(__m256 n) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23));
  }
  static DIF_INLINE F power_of_two(F n) { return {power8(n.a), power8(n.b)}; }
  static DIF_INLINE float total(F x) {
    const __m256 b = _mm256_add_ps(x.a, x.b);
    const __m128 c = _mm_add_ps(_mm256_castps256_ps128(b), _mm256_extractf128_ps(b, 1));
    const __m128 d = _mm_add_ps(c, _mm_movehl_ps(c, c));
    return _mm_cvtss_f32(_mm_add_ss(d, _mm_shuffle_ps(d, d, 1)));
  }
  static DIF_INLINE float largest(F x) {
    const __m256 b = _mm256_max_ps(x.a, x.b);
    const __m128 c = _mm_max_ps(_mm256_castps256_ps128(b), _mm256_extractf128_ps(b, 1));
    const __m128 d = _mm_max_ps(c, _mm_movehl_ps(c, c));
    return _mm_cvtss_f32(_mm_max_ss(d, _mm_shuffle_ps(d, d, 1)));
  }
  static DIF_INLINE F totals(const float* p) {
    float out[16];
    for (int i = 0; i < 16; ++i) out[i] = total(load(p + 16 * i));
    return load(out);
  }
  static DIF_INLINE void accumulate(double* sums, F x) {
    const __m128 quarter[4] = {_mm256_castps256_ps128(x.a), _mm256_extractf128_ps(x.a, 1), _mm256_castps256_ps128(x.b),
                               _mm256_extractf128_ps(x.b, 1)};
    for (int i = 0; i < 4; ++i) {
      _mm256_storeu_pd(sums + 4 * i, _mm256_add_pd(_mm256_loadu_pd(sums + 4 * i), _mm256_cvtps_pd(quarter[i])));
    }
  }
  template <class Row>
  static DIF_INLINE void columns4(Row row, F (&out)[4]) {
    __m256 low[4], high[4];
    for (int k = 0; k < 4; ++k) {
      low[k] = _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(row(k))), _mm_loadu_ps(row(4 + k)), 1);
      high[k] = _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(row(8 + k))), _mm_loadu_ps(row(12 + k)), 1);
    }
    Avx2Lanes::transpose(low);
    Avx2Lanes::transpose(high);
    for (int k = 0; k < 4; ++k) out[k] = {low[k], high[k]};
  }
  template <class Row>
  static DIF_INLINE void columns8(Row row, F (&out)[8]) {
    columns8_by_4<Avx2Engine>(row, out);
  }
};

}  // namespace dif
