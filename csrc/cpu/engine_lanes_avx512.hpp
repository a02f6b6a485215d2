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
};

}  // namespace dif
