// Blocks of lanes: the vector type that the arithmetic of core/ is written for.
//
// A lane type L names its registers and a dozen operations on them. The arithmetic (philox.hpp, normal.hpp,
// update.hpp) is a template over L, so it exists once; an executor brings the lane type of its machine
// (cpu/lanes_avx2.hpp, cpu/lanes_avx512.hpp; a CUDA thread is a block of one lane, cuda/lanes.cuh). This file holds the
// portable lane type, plain arrays that any compiler vectorises: it is the baseline and the reference.
//
// Every operation is exact or correctly rounded (IEEE 754), so all lane types give the same bits.
//
//   F  float lanes                        U  the same number of 32-bit words
//   W  words held in 64-bit lanes: only the low 32 bits mean anything. A 32 x 32 -> 64 bit product then
//      leaves its low half in place and its high half one shift away, which is what Philox needs.
//   M  a mask of lanes
#pragma once
#include <cstdint>
#include <cstring>

#if defined(__CUDACC__)
#define DIF_INLINE __host__ __device__ __forceinline__
#define DIF_UNROLL _Pragma("unroll")
#else
#define DIF_INLINE inline __attribute__((always_inline))
#define DIF_UNROLL _Pragma("GCC unroll 16")
#endif

namespace dif {

DIF_INLINE float fma1(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
DIF_INLINE uint32_t bits_of(float x) {
  uint32_t u;
  std::memcpy(&u, &x, 4);
  return u;
}
DIF_INLINE float float_of(uint32_t u) {
  float x;
  std::memcpy(&x, &u, 4);
  return x;
}

// A product that no flag fuses with the sum around it.
DIF_INLINE double product(double a, double b) {
#if defined(__CUDA_ARCH__)
  return __dmul_rn(a, b);
#else
  return a * b;
#endif
}

// `Tag` keeps the symbols of one translation unit apart from those of another built for more instructions.
template <int N, class Tag>
struct PortableLanes {
  static constexpr int width = N;
  struct F {
    float v[N];
  };
  struct U {
    uint32_t v[N];
  };
  struct W {
    uint64_t v[N];
  };
  struct M {
    bool v[N];
  };
#define DIF_EACH for (int i = 0; i < N; ++i)
  static DIF_INLINE F set(float x) {
    F r;
    DIF_EACH r.v[i] = x;
    return r;
  }
  static DIF_INLINE F load(const float* p) {
    F r;
    DIF_EACH r.v[i] = p[i];
    return r;
  }
  static DIF_INLINE void store(float* p, F a) { DIF_EACH p[i] = a.v[i]; }
  static DIF_INLINE M load_mask(const uint8_t* p) {
    M r;
    DIF_EACH r.v[i] = p[i] != 0;
    return r;
  }
  static DIF_INLINE F select(M m, F yes, F no) {
    F r;
    DIF_EACH r.v[i] = m.v[i] ? yes.v[i] : no.v[i];
    return r;
  }
  static DIF_INLINE F sub(F a, F b) {
    F r;
    DIF_EACH r.v[i] = a.v[i] - b.v[i];
    return r;
  }
  static DIF_INLINE F mul(F a, F b) {
    F r;
    DIF_EACH r.v[i] = a.v[i] * b.v[i];
    return r;
  }
  static DIF_INLINE F fma(F a, F b, F c) {
    F r;
    DIF_EACH r.v[i] = fma1(a.v[i], b.v[i], c.v[i]);
    return r;
  }
  static DIF_INLINE F div(F a, F b) {
    F r;
    DIF_EACH r.v[i] = a.v[i] / b.v[i];
    return r;
  }
  static DIF_INLINE F sqrt(F a) {
    F r;
    DIF_EACH r.v[i] = __builtin_sqrtf(a.v[i]);
    return r;
  }
  // Nearest floats of unsigned and of signed words.
  static DIF_INLINE F from_unsigned(U a) {
    F r;
    DIF_EACH r.v[i] = static_cast<float>(a.v[i]);
    return r;
  }
  static DIF_INLINE F from_signed(U a) {
    F r;
    DIF_EACH r.v[i] = static_cast<float>(static_cast<int32_t>(a.v[i]));
    return r;
  }
  // x = m 2^e with m in [0.75, 1.5), for positive normal x.
  static DIF_INLINE void split(F x, F& m, F& e) {
    DIF_EACH {
      const uint32_t u = bits_of(x.v[i]);
      const int32_t k = static_cast<int32_t>(u - 0x3f400000u) >> 23;
      m.v[i] = float_of(u - (static_cast<uint32_t>(k) << 23));
      e.v[i] = static_cast<float>(k);
    }
  }
  // Bit 0 of a word chooses `odd` over `even`; bit 1 changes the sign.
  static DIF_INLINE F choose_by_bit0(U a, F even, F odd) {
    F r;
    DIF_EACH r.v[i] = (a.v[i] & 1u) ? odd.v[i] : even.v[i];
    return r;
  }
  static DIF_INLINE F negate_by_bit1(U a, F x) {
    F r;
    DIF_EACH r.v[i] = float_of(bits_of(x.v[i]) ^ ((a.v[i] & 2u) << 30));
    return r;
  }
  static DIF_INLINE F negate(F x) {
    F r;
    DIF_EACH r.v[i] = -x.v[i];
    return r;
  }
  // Lane i starts as word first + order(i), where order() undoes the shuffle of `transpose`.
  static DIF_INLINE W counters(uint32_t first) {
    W r;
    DIF_EACH r.v[i] = static_cast<uint32_t>(first + static_cast<uint32_t>(i));
    return r;
  }
  static DIF_INLINE W wide(uint32_t x) {
    W r;
    DIF_EACH r.v[i] = x;
    return r;
  }
  static DIF_INLINE W product(W a, uint32_t b) {
    W r;
    DIF_EACH r.v[i] = (a.v[i] & 0xffffffffu) * b;
    return r;
  }
  static DIF_INLINE W high(W a) {
    W r;
    DIF_EACH r.v[i] = a.v[i] >> 32;
    return r;
  }
  static DIF_INLINE W xor3(W a, W b, const uint64_t& key) {
    W r;
    DIF_EACH r.v[i] = a.v[i] ^ b.v[i] ^ key;
    return r;
  }
  static DIF_INLINE U narrow(W a) {
    U r;
    DIF_EACH r.v[i] = static_cast<uint32_t>(a.v[i]);
    return r;
  }
  static DIF_INLINE void store_words(uint32_t* p, U a) { DIF_EACH p[i] = a.v[i]; }
  static DIF_INLINE U words(F a) {
    U r;
    DIF_EACH r.v[i] = bits_of(a.v[i]);
    return r;
  }
  static DIF_INLINE F floats(U a) {
    F r;
    DIF_EACH r.v[i] = float_of(a.v[i]);
    return r;
  }
  // Four registers, lane i of register k = word k of counter i, become coordinates in order: 4 i + k.
  static DIF_INLINE void transpose(F (&z)[4]) {
    float t[4 * N];
    DIF_EACH for (int k = 0; k < 4; ++k) t[4 * i + k] = z[k].v[i];
    for (int k = 0; k < 4; ++k) DIF_EACH z[k].v[i] = t[N * k + i];
  }
#undef DIF_EACH
};

}  // namespace dif
