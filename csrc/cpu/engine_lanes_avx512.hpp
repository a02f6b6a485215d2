// The engine's sixteen lanes in one AVX-512 register. Same operations, same bits as PortableEngine<float>.
#pragma once
#include "cpu/engine_lanes.hpp"
#include "cpu/lanes_avx512.hpp"

namespace dif {

struct Avx512Engine : Avx512Lanes {
  using T = float;
  static constexpr bool own_math = true;
  using Panel = Avx512Engine;
  static constexpr int rows = 6, panels = 4;  // 24 accumulators of 32 registers
  static constexpr int tile = 4;              // 16 sums of the small layouts

  static DIF_INLINE M first(int n) { return static_cast<M>(n >= 16 ? 0xffff : (1 << n) - 1); }
  static DIF_INLINE F load_first(const float* p, int n) { return _mm512_maskz_loadu_ps(first(n), p); }
  static DIF_INLINE void store_first(float* p, F a, int n) { _mm512_mask_storeu_ps(p, first(n), a); }
  static DIF_INLINE F add(F a, F b) { return _mm512_add_ps(a, b); }
  static DIF_INLINE F div(F a, F b) { return _mm512_div_ps(a, b); }
  static DIF_INLINE F max(F a, F b) { return _mm512_max_ps(a, b); }
  static DIF_INLINE F min(F a, F b) { return _mm512_min_ps(a, b); }
  static DIF_INLINE M greater(F a, F b) { return _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ); }
  static DIF_INLINE F power_of_two(F n) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_add_epi32(_mm512_cvtps_epi32(n), _mm512_set1_epi32(127)), 23));
  }
  static DIF_INLINE float total(F a) {
    const __m256 b = _mm256_add_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps(a, 1));
    const __m128 c = _mm_add_ps(_mm256_castps256_ps128(b), _mm256_extractf128_ps(b, 1));
    const __m128 d = _mm_add_ps(c, _mm_movehl_ps(c, c));
    return _mm_cvtss_f32(_mm_add_ss(d, _mm_shuffle_ps(d, d, 1)));
  }
  static DIF_INLINE float largest(F a) {
    const __m256 b = _mm256_max_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps(a, 1));
    const __m128 c = _mm_max_ps(_mm256_castps256_ps128(b), _mm256_extractf128_ps(b, 1));
    const __m128 d = _mm_max_ps(c, _mm_movehl_ps(c, c));
    return _mm_cvtss_f32(_mm_max_ss(d, _mm_shuffle_ps(d, d, 1)));
  }
  // Each step adds the halves of two registers side by side in one, in the order of `total`.
  static DIF_INLINE F totals(const float* p) {
    F quarter[4];
    for (int i = 0; i < 4; ++i) {
      F half[2];
      for (int k = 0; k < 2; ++k) {
        const F a = load(p + 16 * (i + 8 * k)), b = load(p + 16 * (i + 8 * k + 4));
        half[k] = add(_mm512_shuffle_f32x4(a, b, 0x44), _mm512_shuffle_f32x4(a, b, 0xee));
      }
      quarter[i] = add(_mm512_shuffle_f32x4(half[0], half[1], 0x88), _mm512_shuffle_f32x4(half[0], half[1], 0xdd));
    }
    const F a = pairs(quarter[0], quarter[1]), b = pairs(quarter[2], quarter[3]);
    return add(_mm512_shuffle_ps(a, b, 0x88), _mm512_shuffle_ps(a, b, 0xdd));
  }
  static DIF_INLINE F pairs(F a, F b) {
    const __m512d x = _mm512_castps_pd(a), y = _mm512_castps_pd(b);
    return add(_mm512_castpd_ps(_mm512_unpacklo_pd(x, y)), _mm512_castpd_ps(_mm512_unpackhi_pd(x, y)));
  }
  static DIF_INLINE void accumulate(double* sums, F a) {
    const __m512d low = _mm512_cvtps_pd(_mm512_castps512_ps256(a)),
                  high = _mm512_cvtps_pd(_mm512_extractf32x8_ps(a, 1));
    _mm512_storeu_pd(sums, _mm512_add_pd(_mm512_loadu_pd(sums), low));
    _mm512_storeu_pd(sums + 8, _mm512_add_pd(_mm512_loadu_pd(sums + 8), high));
  }
  template <class Row>
  static DIF_INLINE void columns4(Row row, F (&out)[4]) {
    // Block b of out[k] holds row 4 b + k; the transpose inside blocks makes lane 4 b + k of out[f] that
    // row's f.
    for (int k = 0; k < 4; ++k) {
      F z = _mm512_castps128_ps512(_mm_loadu_ps(row(k)));
      z = _mm512_mask_broadcast_f32x4(z, 0x00f0, _mm_loadu_ps(row(4 + k)));
      z = _mm512_mask_broadcast_f32x4(z, 0x0f00, _mm_loadu_ps(row(8 + k)));
      out[k] = _mm512_mask_broadcast_f32x4(z, 0xf000, _mm_loadu_ps(row(12 + k)));
    }
    transpose(out);
  }
  // Register k of a half h begins as rows 8 h + k and 8 h + 4 + k.
  template <class Row>
  static DIF_INLINE void columns8(Row row, F (&out)[8]) {
    F half[2][4];
    for (int h = 0; h < 2; ++h) {
      for (int k = 0; k < 4; ++k) {
        const F z = _mm512_castps256_ps512(_mm256_loadu_ps(row(8 * h + k)));
        half[h][k] = _mm512_insertf32x8(z, _mm256_loadu_ps(row(8 * h + 4 + k)), 1);
      }
      transpose(half[h]);
    }
    for (int k = 0; k < 4; ++k) {
      out[k] = _mm512_shuffle_f32x4(half[0][k], half[1][k], 0x88);
      out[4 + k] = _mm512_shuffle_f32x4(half[0][k], half[1][k], 0xdd);
    }
  }
};

}  // namespace dif
