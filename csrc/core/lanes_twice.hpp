// Two blocks of lanes side by side. One block's instructions wait on each other for most of Philox and of the
// polynomials; a second, independent block fills the wait without asking more of the out-of-order window.
#pragma once
#include "lanes.hpp"

namespace dif {

template <class L>
struct Twice {
  static constexpr int width = 2 * L::width;
  struct F {
    typename L::F a, b;
  };
  struct U {
    typename L::U a, b;
  };
  struct W {
    typename L::W a, b;
  };
  struct M {
    typename L::M a, b;
  };
  static DIF_INLINE F set(float x) { return {L::set(x), L::set(x)}; }
  static DIF_INLINE F load(const float* p) { return {L::load(p), L::load(p + L::width)}; }
  static DIF_INLINE void store(float* p, F x) {
    L::store(p, x.a);
    L::store(p + L::width, x.b);
  }
  static DIF_INLINE M load_mask(const uint8_t* p) { return {L::load_mask(p), L::load_mask(p + L::width)}; }
  static DIF_INLINE F select(M m, F yes, F no) { return {L::select(m.a, yes.a, no.a), L::select(m.b, yes.b, no.b)}; }
  static DIF_INLINE F sub(F x, F y) { return {L::sub(x.a, y.a), L::sub(x.b, y.b)}; }
  static DIF_INLINE F mul(F x, F y) { return {L::mul(x.a, y.a), L::mul(x.b, y.b)}; }
  static DIF_INLINE F fma(F x, F y, F z) { return {L::fma(x.a, y.a, z.a), L::fma(x.b, y.b, z.b)}; }
  static DIF_INLINE F div(F x, F y) { return {L::div(x.a, y.a), L::div(x.b, y.b)}; }
  static DIF_INLINE F sqrt(F x) { return {L::sqrt(x.a), L::sqrt(x.b)}; }
  static DIF_INLINE F from_unsigned(U x) { return {L::from_unsigned(x.a), L::from_unsigned(x.b)}; }
  static DIF_INLINE F from_signed(U x) { return {L::from_signed(x.a), L::from_signed(x.b)}; }
  static DIF_INLINE void split(F x, F& m, F& e) {
    L::split(x.a, m.a, e.a);
    L::split(x.b, m.b, e.b);
  }
  static DIF_INLINE F choose_by_bit0(U u, F even, F odd) {
    return {L::choose_by_bit0(u.a, even.a, odd.a), L::choose_by_bit0(u.b, even.b, odd.b)};
  }
  static DIF_INLINE F negate_by_bit1(U u, F x) { return {L::negate_by_bit1(u.a, x.a), L::negate_by_bit1(u.b, x.b)}; }
  static DIF_INLINE F negate(F x) { return {L::negate(x.a), L::negate(x.b)}; }
  static DIF_INLINE W counters(uint32_t first) {
    return {L::counters(first), L::counters(first + static_cast<uint32_t>(L::width))};
  }
  static DIF_INLINE W wide(uint32_t x) { return {L::wide(x), L::wide(x)}; }
  static DIF_INLINE W product(W x, uint32_t c) { return {L::product(x.a, c), L::product(x.b, c)}; }
  static DIF_INLINE W high(W x) { return {L::high(x.a), L::high(x.b)}; }
  static DIF_INLINE W xor3(W x, W y, const uint64_t& key) { return {L::xor3(x.a, y.a, key), L::xor3(x.b, y.b, key)}; }
  static DIF_INLINE U narrow(W x) { return {L::narrow(x.a), L::narrow(x.b)}; }
  static DIF_INLINE void store_words(uint32_t* p, U x) {
    L::store_words(p, x.a);
    L::store_words(p + L::width, x.b);
  }
  static DIF_INLINE U words(F x) { return {L::words(x.a), L::words(x.b)}; }
  static DIF_INLINE F floats(U x) { return {L::floats(x.a), L::floats(x.b)}; }
  static DIF_INLINE void transpose(F (&z)[4]) {
    typename L::F first[4] = {z[0].a, z[1].a, z[2].a, z[3].a}, second[4] = {z[0].b, z[1].b, z[2].b, z[3].b};
    L::transpose(first);
    L::transpose(second);
    z[0] = {first[0], first[1]};
    z[1] = {first[2], first[3]};
    z[2] = {second[0], second[1]};
    z[3] = {second[2], second[3]};
  }
};

}  // namespace dif
