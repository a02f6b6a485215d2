// Exponential, logarithm, tanh and the normal distribution on blocks of lanes.
//
// float: our own polynomials, so that the bits are equal on every instruction set. exp and the normal
// distribution are right to about 1e-7 of their value, tanh to 2e-7. double (the lane type says
// `own_math = false`): the C library, lane by lane; it verifies, it does not hurry.
// The polynomials are fitted by tools/polynomials.py.
#pragma once
#include "normal.hpp"

namespace dif {

// e^x for x in [-87, 88]; outside, the value at the nearer end. Cody-Waite reduction to |r| <= ln 2 / 2.
template <class L>
DIF_INLINE typename L::F exp(typename L::F x) {
  using F = typename L::F;
  if constexpr (!L::own_math) {
    return L::each(x, [](auto v) { return __builtin_exp(v); });
  } else {
    x = L::max(L::set(-87.0f), L::min(L::set(88.0f), x));
    // Adding 1.5 2^23 rounds to an integer, to even when halfway.
    const F n = L::sub(L::fma(x, L::set(1.44269504f), L::set(12582912.0f)), L::set(12582912.0f));
    const F r = L::fma(n, L::set(2.12194440e-4f), L::fma(n, L::set(-0.693359375f), x));
    F p = L::set(0.00138207444f);
    p = L::fma(p, r, L::set(0.00836924836f));
    p = L::fma(p, r, L::set(0.041668281f));
    p = L::fma(p, r, L::set(0.166665167f));
    p = L::fma(p, r, L::set(0.49999994f));
    p = L::fma(p, r, L::set(1.0f));
    p = L::fma(p, r, L::set(1.0f));
    return L::mul(p, L::power_of_two(n));
  }
}

// ln x for positive normal x.
template <class L>
DIF_INLINE typename L::F log(typename L::F x) {
  if constexpr (!L::own_math) {
    return L::each(x, [](auto v) { return __builtin_log(v); });
  } else {
    return L::mul(L::set(-0.5f), minus_two_log<L>(x));
  }
}

template <class L>
DIF_INLINE typename L::F tanh(typename L::F x) {
  using F = typename L::F;
  if constexpr (!L::own_math) {
    return L::each(x, [](auto v) { return __builtin_tanh(v); });
  } else {
    const F v = L::mul(x, x), one = L::set(1.0f);
    F p = L::set(-0.0056922962f);
    p = L::fma(p, v, L::set(0.0206281673f));
    p = L::fma(p, v, L::set(-0.0537365153f));
    p = L::fma(p, v, L::set(0.133314058f));
    p = L::fma(p, v, L::set(-0.333332807f));
    p = L::fma(p, v, one);
    // Beyond |x| = 5/8: 1 - 2 / (e^(2 x) + 1), which saturates at both ends.
    const F far = L::sub(one, L::div(L::set(2.0f), L::add(exp<L>(L::add(x, x)), one)));
    return L::select(L::greater(v, L::set(0.390625f)), far, L::mul(x, p));
  }
}

template <class L>
DIF_INLINE typename L::F sigmoid(typename L::F x) {
  const typename L::F one = L::set(1);
  return L::div(one, L::add(one, exp<L>(L::negate(x))));
}

// The normal distribution function Phi(x), and its density. Phi(-|x|) = density erfcx(|x| / sqrt 2) sqrt(pi /
// 2).
template <class L>
DIF_INLINE void normal_distribution(typename L::F x, typename L::F& distribution, typename L::F& density) {
  using F = typename L::F;
  using T = typename L::T;
  density = L::mul(L::set(static_cast<T>(0.398942280401432677939946)), exp<L>(L::mul(L::mul(L::set(T(-0.5)), x), x)));
  if constexpr (!L::own_math) {
    distribution = L::each(x, [](auto v) { return 0.5 * __builtin_erfc(v * -0.70710678118654752440); });
  } else {
    const F z = L::mul(L::set(0.707106781f), L::max(x, L::negate(x)));
    const F t = L::div(L::set(1.0f), L::fma(L::set(0.4f), z, L::set(1.0f)));
    F p = L::set(-0.0295930281f);
    p = L::fma(p, t, L::set(0.198006183f));
    p = L::fma(p, t, L::set(-0.498795211f));
    p = L::fma(p, t, L::set(0.547414124f));
    p = L::fma(p, t, L::set(-0.284349293f));
    p = L::fma(p, t, L::set(0.272057056f));
    p = L::fma(p, t, L::set(0.129682735f));
    p = L::fma(p, t, L::set(0.214918435f));
    p = L::fma(p, t, L::set(0.224952102f));
    p = L::fma(p, t, L::set(0.225706905f));
    const F tail = L::mul(L::mul(density, L::set(1.25331414f)), L::mul(p, t));
    distribution = L::select(L::greater(x, L::set(0.0f)), L::sub(L::set(1.0f), tail), tail);
  }
}

}  // namespace dif
