// Eight lanes in AVX2 + FMA registers. Same operations, same bits as core/lanes.hpp.
#pragma once
#include <immintrin.h>

#include "core/lanes.hpp"

namespace dif {

struct Avx2Lanes {
  static constexpr int width = 8;
  using F = __m256;
  using U = __m256i;
  struct W {
    __m256i a, b;  // counters whose word ends in an even, an odd 32-bit lane
  };
  using M = __m256i;

  static DIF_INLINE F set(float x) { return _mm256_set1_ps(x); }
  static DIF_INLINE F load(const float* p) { return _mm256_loadu_ps(p); }
  static DIF_INLINE void store(float* p, F a) { _mm256_storeu_ps(p, a); }
  static DIF_INLINE M load_mask(const uint8_t* p) {
    const __m256i x = _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
    return _mm256_cmpgt_epi32(x, _mm256_setzero_si256());
  }
  static DIF_INLINE F select(M m, F yes, F no) { return _mm256_blendv_ps(no, yes, _mm256_castsi256_ps(m)); }
  static DIF_INLINE F sub(F a, F b) { return _mm256_sub_ps(a, b); }
  static DIF_INLINE F mul(F a, F b) { return _mm256_mul_ps(a, b); }
  static DIF_INLINE F fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
  static DIF_INLINE F div(F a, F b) { return _mm256_div_ps(a, b); }
  static DIF_INLINE F sqrt(F a) { return _mm256_sqrt_ps(a); }
  // Both halves convert exactly and the fma rounds once, which is the rounding of a direct conversion.
  static DIF_INLINE F from_unsigned(U a) {
    const F low = _mm256_cvtepi32_ps(_mm256_and_si256(a, _mm256_set1_epi32(0xffff)));
    const F high = _mm256_cvtepi32_ps(_mm256_srli_epi32(a, 16));
    return _mm256_fmadd_ps(high, _mm256_set1_ps(65536.0f), low);
  }
  static DIF_INLINE F from_signed(U a) { return _mm256_cvtepi32_ps(a); }
  static DIF_INLINE void split(F x, F& m, F& e) {
    const __m256i u = _mm256_castps_si256(x);
    const __m256i k = _mm256_srai_epi32(_mm256_sub_epi32(u, _mm256_set1_epi32(0x3f400000)), 23);
    m = _mm256_castsi256_ps(_mm256_sub_epi32(u, _mm256_slli_epi32(k, 23)));
    e = _mm256_cvtepi32_ps(k);
  }
  static DIF_INLINE F choose_by_bit0(U a, F even, F odd) {
    return _mm256_blendv_ps(even, odd, _mm256_castsi256_ps(_mm256_slli_epi32(a, 31)));
  }
  static DIF_INLINE F negate_by_bit1(U a, F x) {
    const __m256i sign = _mm256_slli_epi32(_mm256_srli_epi32(_mm256_slli_epi32(a, 30), 31), 31);
    return _mm256_xor_ps(x, _mm256_castsi256_ps(sign));
  }
  static DIF_INLINE F negate(F x) { return _mm256_xor_ps(x, _mm256_set1_ps(-0.0f)); }

  // 32-bit lane 4 b + i starts as counter 2 i + b: `transpose` works inside the two 128-bit blocks b only.
  static DIF_INLINE W counters(uint32_t first) {
    const __m256i even = _mm256_set_epi32(0, 5, 0, 1, 0, 4, 0, 0);
    const __m256i odd = _mm256_set_epi32(0, 7, 0, 3, 0, 6, 0, 2);
    const __m256i start = _mm256_set1_epi32(static_cast<int>(first));
    return {_mm256_add_epi32(start, even), _mm256_add_epi32(start, odd)};
  }
  static DIF_INLINE W wide(uint32_t x) {
    const __m256i r = _mm256_set1_epi64x(x);
    return {r, r};
  }
  static DIF_INLINE W product(W x, uint32_t c) {
    const __m256i m = _mm256_set1_epi64x(c);
    return {_mm256_mul_epu32(x.a, m), _mm256_mul_epu32(x.b, m)};
  }
  static DIF_INLINE W high(W x) { return {_mm256_srli_epi64(x.a, 32), _mm256_srli_epi64(x.b, 32)}; }
  static DIF_INLINE W xor3(W x, W y, const uint64_t& key) {
    const __m256i k = _mm256_set1_epi64x(static_cast<long long>(key));
    return {_mm256_xor_si256(_mm256_xor_si256(x.a, y.a), k), _mm256_xor_si256(_mm256_xor_si256(x.b, y.b), k)};
  }
  static DIF_INLINE U narrow(W x) { return _mm256_blend_epi32(x.a, _mm256_slli_epi64(x.b, 32), 0xAA); }
  static DIF_INLINE void store_words(uint32_t* p, U a) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), a); }
  static DIF_INLINE U words(F a) { return _mm256_castps_si256(a); }
  static DIF_INLINE F floats(U a) { return _mm256_castsi256_ps(a); }

  static DIF_INLINE void transpose(F (&z)[4]) {
    const __m256d a = _mm256_castps_pd(_mm256_unpacklo_ps(z[0], z[1]));
    const __m256d b = _mm256_castps_pd(_mm256_unpacklo_ps(z[2], z[3]));
    const __m256d c = _mm256_castps_pd(_mm256_unpackhi_ps(z[0], z[1]));
    const __m256d d = _mm256_castps_pd(_mm256_unpackhi_ps(z[2], z[3]));
    z[0] = _mm256_castpd_ps(_mm256_unpacklo_pd(a, b));
    z[1] = _mm256_castpd_ps(_mm256_unpackhi_pd(a, b));
    z[2] = _mm256_castpd_ps(_mm256_unpacklo_pd(c, d));
    z[3] = _mm256_castpd_ps(_mm256_unpackhi_pd(c, d));
  }
};

}  // namespace dif
