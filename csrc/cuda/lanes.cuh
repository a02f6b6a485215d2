// A CUDA thread as a block of one lane: the lane type that the arithmetic of core/ runs with on a GPU.
//
// Every operation is a correctly rounded one, spelled so that no compiler flag fuses or approximates it: the bits are
// those of core/lanes.hpp. (A NaN's own bits are the one exception: a GPU knows a single NaN.)
#pragma once
#include "core/lanes.hpp"

namespace dif::cuda {

struct ThreadLane {
  static constexpr int width = 1;
  static constexpr bool own_math = true;
  using T = float;
  using F = float;
  using U = uint32_t;
  struct W {
    uint32_t low, high;
  };
  using M = bool;

#if defined(__CUDA_ARCH__)
  static DIF_INLINE F add(F a, F b) { return __fadd_rn(a, b); }
  static DIF_INLINE F sub(F a, F b) { return __fsub_rn(a, b); }
  static DIF_INLINE F mul(F a, F b) { return __fmul_rn(a, b); }
  static DIF_INLINE F div(F a, F b) { return __fdiv_rn(a, b); }
  static DIF_INLINE F fma(F a, F b, F c) { return __fmaf_rn(a, b, c); }
  static DIF_INLINE F sqrt(F a) { return __fsqrt_rn(a); }
#else
  static DIF_INLINE F add(F a, F b) { return a + b; }
  static DIF_INLINE F sub(F a, F b) { return a - b; }
  static DIF_INLINE F mul(F a, F b) { return a * b; }
  static DIF_INLINE F div(F a, F b) { return a / b; }
  static DIF_INLINE F fma(F a, F b, F c) { return fma1(a, b, c); }
  static DIF_INLINE F sqrt(F a) { return __builtin_sqrtf(a); }
#endif
  static DIF_INLINE F set(float x) { return x; }
  static DIF_INLINE F load(const float* p) { return *p; }
  static DIF_INLINE void store(float* p, F a) { *p = a; }
  static DIF_INLINE M load_mask(const uint8_t* p) { return *p != 0; }
  static DIF_INLINE F select(M m, F yes, F no) { return m ? yes : no; }
  static DIF_INLINE M greater(F a, F b) { return a > b; }
  static DIF_INLINE F max(F a, F b) { return a > b ? a : b; }
  static DIF_INLINE F min(F a, F b) { return a < b ? a : b; }
  static DIF_INLINE F negate(F a) { return -a; }
  static DIF_INLINE F power_of_two(F n) { return float_of(static_cast<uint32_t>(static_cast<int32_t>(n) + 127) << 23); }
  static DIF_INLINE F from_unsigned(U a) { return static_cast<float>(a); }
  static DIF_INLINE F from_signed(U a) { return static_cast<float>(static_cast<int32_t>(a)); }
  static DIF_INLINE void split(F x, F& m, F& e) {
    const uint32_t u = bits_of(x);
    const int32_t k = static_cast<int32_t>(u - 0x3f400000u) >> 23;
    m = float_of(u - (static_cast<uint32_t>(k) << 23));
    e = static_cast<float>(k);
  }
  static DIF_INLINE F choose_by_bit0(U a, F even, F odd) { return (a & 1u) ? odd : even; }
  static DIF_INLINE F negate_by_bit1(U a, F x) { return float_of(bits_of(x) ^ ((a & 2u) << 30)); }
  static DIF_INLINE W counters(uint32_t first) { return {first, 0}; }
  static DIF_INLINE W wide(uint32_t x) { return {x, 0}; }
  static DIF_INLINE W product(W a, uint32_t b) {
#if defined(__CUDA_ARCH__)
    uint64_t p;  // in C++ the compiler makes a product of 64-bit words of it, one more addition each
    asm("mul.wide.u32 %0, %1, %2;" : "=l"(p) : "r"(a.low), "r"(b));
#else
    const uint64_t p = static_cast<uint64_t>(a.low) * b;
#endif
    return {static_cast<uint32_t>(p), static_cast<uint32_t>(p >> 32)};
  }
  static DIF_INLINE W high(W a) { return {a.high, 0}; }
  static DIF_INLINE W xor3(W a, W b, const uint64_t& key) { return {a.low ^ b.low ^ static_cast<uint32_t>(key), 0}; }
  static DIF_INLINE U narrow(W a) { return a.low; }
  // One lane's four words are its quad's coordinates in order.
  static DIF_INLINE void transpose(F (&)[4]) {}
};

}  // namespace dif::cuda
