// Sixteen lanes in AVX-512 registers. Same operations, same bits as core/lanes.hpp.
#pragma once
#include <immintrin.h>

#include "core/lanes.hpp"

namespace dif {

struct Avx512Lanes {
  static constexpr int width = 16;
  using F = __m512;
  using U = __m512i;
  struct W {
    __m512i a, b;  // counters whose word ends in an even, an odd 32-bit lane
  };
  using M = __mmask16;

  static DIF_INLINE F set(float x) { return _mm512_set1_ps(x); }
  static DIF_INLINE F load(const float* p) { return _mm512_loadu_ps(p); }
  static DIF_INLINE void store(float* p, F a) { _mm512_storeu_ps(p, a); }
  static DIF_INLINE M load_mask(const uint8_t* p) {
    const __m128i x = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return _mm_test_epi8_mask(x, x);
  }
  static DIF_INLINE F select(M m, F yes, F no) { return _mm512_mask_blend_ps(m, no, yes); }
  static DIF_INLINE F sub(F a, F b) { return _mm512_sub_ps(a, b); }
  static DIF_INLINE F mul(F a, F b) { return _mm512_mul_ps(a, b); }
  static DIF_INLINE F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
  static DIF_INLINE F div(F a, F b) { return _mm512_div_ps(a, b); }
  static DIF_INLINE F sqrt(F a) { return _mm512_sqrt_ps(a); }
  static DIF_INLINE F from_unsigned(U a) { return _mm512_cvtepu32_ps(a); }
  static DIF_INLINE F from_signed(U a) { return _mm512_cvtepi32_ps(a); }
  static DIF_INLINE void split(F x, F& m, F& e) {
    const __m512i u = _mm512_castps_si512(x);
    const __m512i k = _mm512_srai_epi32(_mm512_sub_epi32(u, _mm512_set1_epi32(0x3f400000)), 23);
    m = _mm512_getmant_ps(x, _MM_MANT_NORM_p75_1p5, _MM_MANT_SIGN_zero);
    e = _mm512_cvtepi32_ps(k);
  }
  static DIF_INLINE F choose_by_bit0(U a, F even, F odd) {
    return _mm512_mask_blend_ps(_mm512_test_epi32_mask(a, _mm512_set1_epi32(1)), even, odd);
  }
  static DIF_INLINE F negate_by_bit1(U a, F x) {
    const __m512i sign = _mm512_slli_epi32(_mm512_and_si512(a, _mm512_set1_epi32(2)), 30);
    return _mm512_castsi512_ps(_mm512_xor_si512(_mm512_castps_si512(x), sign));
  }
  static DIF_INLINE F negate(F x) { return _mm512_xor_ps(x, _mm512_set1_ps(-0.0f)); }

  // 32-bit lane 4 b + i starts as counter 4 i + b: `transpose` works inside the four 128-bit blocks b only.
  static DIF_INLINE W counters(uint32_t first) {
    const __m512i even = _mm512_set_epi32(0, 11, 0, 3, 0, 10, 0, 2, 0, 9, 0, 1, 0, 8, 0, 0);
    const __m512i odd = _mm512_set_epi32(0, 15, 0, 7, 0, 14, 0, 6, 0, 13, 0, 5, 0, 12, 0, 4);
    const __m512i start = _mm512_set1_epi32(static_cast<int>(first));
    return {_mm512_add_epi32(start, even), _mm512_add_epi32(start, odd)};
  }
  static DIF_INLINE W wide(uint32_t x) {
    const __m512i r = _mm512_set1_epi64(x);
    return {r, r};
  }
  static DIF_INLINE W product(W x, uint32_t c) {
    const __m512i m = _mm512_set1_epi64(c);
    return {_mm512_mul_epu32(x.a, m), _mm512_mul_epu32(x.b, m)};
  }
  static DIF_INLINE W high(W x) {
    return {_mm512_shuffle_epi32(x.a, _MM_PERM_DDBB), _mm512_shuffle_epi32(x.b, _MM_PERM_DDBB)};
  }
  static DIF_INLINE W xor3(W x, W y, const uint64_t& key) {
    const __m512i k = _mm512_set1_epi64(static_cast<long long>(key));
    return {_mm512_ternarylogic_epi64(x.a, y.a, k, 0x96), _mm512_ternarylogic_epi64(x.b, y.b, k, 0x96)};
  }
  static DIF_INLINE U narrow(W x) { return _mm512_mask_blend_epi32(0xAAAA, x.a, _mm512_slli_epi64(x.b, 32)); }
  static DIF_INLINE void store_words(uint32_t* p, U a) { _mm512_storeu_si512(p, a); }
  static DIF_INLINE U words(F a) { return _mm512_castps_si512(a); }
  static DIF_INLINE F floats(U a) { return _mm512_castsi512_ps(a); }

  static DIF_INLINE void transpose(F (&z)[4]) {
    const __m512d a = _mm512_castps_pd(_mm512_unpacklo_ps(z[0], z[1]));
    const __m512d b = _mm512_castps_pd(_mm512_unpacklo_ps(z[2], z[3]));
    const __m512d c = _mm512_castps_pd(_mm512_unpackhi_ps(z[0], z[1]));
    const __m512d d = _mm512_castps_pd(_mm512_unpackhi_ps(z[2], z[3]));
    z[0] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, b));
    z[1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, b));
    z[2] = _mm512_castpd_ps(_mm512_unpacklo_pd(c, d));
    z[3] = _mm512_castpd_ps(_mm512_unpackhi_pd(c, d));
  }
};

}  // namespace dif
