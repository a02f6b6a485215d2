// Standard normals with an address: Box-Muller on the words of Philox, with our own polynomials.
//
//   (z0, z1) = sqrt(-2 ln u) (cos, sin)(2 pi v),  u from word 0, v from word 1; (z2, z3) from words 2 and 3.
//   Coordinate 4 q + k of a chain's vector gets normal k of quad q.
//
// Only + - * fma sqrt and integer operations: the bits are equal on every lane type. The radius uses all 32
// bits of its word, u = (x + 1/2) / 2^32, so normals reach 6.76. Relative error of the logarithm, sine and
// cosine about 1e-7; a radius below 0.01 is coarse, since u near 1 is, by up to 2e-5 absolute. The polynomials are
// fitted by tools/polynomials.py. Source: Box, Muller (1958).
#pragma once
#include "philox.hpp"

namespace dif {

// -2 ln u for u in (0, 1].
template <class L>
DIF_INLINE typename L::F minus_two_log(typename L::F u) {
  using F = typename L::F;
  F m, e;
  L::split(u, m, e);
  const F t = L::sub(m, L::set(1.0f));
  F p = L::set(-0.108290985f);
  p = L::fma(p, t, L::set(0.241337255f));
  p = L::fma(p, t, L::set(-0.299645722f));
  p = L::fma(p, t, L::set(0.33644709f));
  p = L::fma(p, t, L::set(-0.399544179f));
  p = L::fma(p, t, L::set(0.499869794f));
  p = L::fma(p, t, L::set(-0.666670918f));
  p = L::fma(p, t, L::set(1.00000119f));
  p = L::fma(p, t, L::set(-2.0f));
  return L::fma(t, p, L::mul(e, L::set(-1.38629436f)));
}

// Cosine and sine of pi x for x in [-1/4, 1/4].
template <class L>
DIF_INLINE void cos_sin_pi(typename L::F x, typename L::F& c, typename L::F& s) {
  using F = typename L::F;
  const F v = L::mul(x, x);
  F p = L::set(-0.599804342f);
  p = L::fma(p, v, L::set(2.5508008f));
  p = L::fma(p, v, L::set(-5.16773319f));
  p = L::fma(p, v, L::set(3.14159274f));
  s = L::mul(p, x);
  F q = L::set(0.228981569f);
  q = L::fma(q, v, L::set(-1.33475792f));
  q = L::fma(q, v, L::set(4.05869675f));
  q = L::fma(q, v, L::set(-4.93480206f));
  c = L::fma(q, v, L::set(1.0f));
}

// One pair of normals from two words. The two low bits of `angle` name the quadrant, all of it the place in
// it.
template <class L>
DIF_INLINE void box_muller(typename L::U radius, typename L::U angle, typename L::F& z0, typename L::F& z1) {
  using F = typename L::F;
  const F u = L::fma(L::from_unsigned(radius), L::set(0x1p-32f), L::set(0x1p-33f));
  const F r = L::negate_by_bit1(angle, L::sqrt(minus_two_log<L>(u)));
  F c, s;
  cos_sin_pi<L>(L::mul(L::from_signed(angle), L::set(0x1p-33f)), c, s);
  z0 = L::mul(r, L::choose_by_bit0(angle, c, s));
  z1 = L::mul(r, L::choose_by_bit0(angle, s, L::negate(c)));
}

// The 4 * width normals of the quads first, first + 1, ...: z[k] holds coordinates width * k ... in order.
template <class L>
DIF_INLINE void normals(const PhiloxKeys& key, uint32_t first, uint32_t chain, uint32_t step, uint32_t stream,
                        typename L::F (&z)[4]) {
  const PhiloxWords<L> w = philox<L>(key, first, chain, step, stream);
  box_muller<L>(w.word[0], w.word[1], z[0], z[1]);
  box_muller<L>(w.word[2], w.word[3], z[2], z[3]);
  L::transpose(z);
}

}  // namespace dif
