// Philox4x32-10: a random word is a pure function of where it is used.
//
//   counter = (quad, chain, step, stream), key = the 64-bit seed  ->  four 32-bit words
//
// Ten rounds of  (c0, c1, c2, c3) <- (hi(M1 c2) ^ c1 ^ k0, lo(M1 c2), hi(M0 c0) ^ c3 ^ k1, lo(M0 c0)),
// the key growing by (0x9E3779B9, 0xBB67AE85) a round. No state, hence no order of evaluation to respect.
// Source: Salmon, Moraes, Dror, Shaw (2011), Parallel random numbers: as easy as 1, 2, 3.
#pragma once
#include "lanes.hpp"

namespace dif {

// Who draws: the fourth word of the counter, so that no two purposes ever share a word.
enum Stream : uint32_t { update_noise = 0, batch_indices = 1, momenta = 2, probes = 3 };

// The seed as the keys of the ten rounds: made once a call, then read from memory, which costs no instruction
// of its own where a broadcast operand exists.
struct PhiloxKeys {
  uint64_t k0[10], k1[10];
  DIF_INLINE explicit PhiloxKeys(uint64_t seed) {
    uint32_t a = static_cast<uint32_t>(seed), b = static_cast<uint32_t>(seed >> 32);
    for (int round = 0; round < 10; ++round) {
      k0[round] = a;
      k1[round] = b;
      a += 0x9E3779B9u;
      b += 0xBB67AE85u;
    }
  }
};

template <class L>
struct PhiloxWords {
  typename L::U word[4];
};

// Counters (a0, a1, a2, a3), lane by lane, become their four words.
template <class L>
DIF_INLINE void philox_mix(const PhiloxKeys& key, typename L::W& a0, typename L::W& a1, typename L::W& a2,
                           typename L::W& a3) {
  using W = typename L::W;
  DIF_UNROLL
  for (int round = 0; round < 10; ++round) {
    const W p0 = L::product(a0, 0xD2511F53u), p1 = L::product(a2, 0xCD9E8D57u);
    a0 = L::xor3(L::high(p1), a1, key.k0[round]);
    a2 = L::xor3(L::high(p0), a3, key.k1[round]);
    a1 = p1;
    a3 = p0;
  }
}

// The four words of the counters (a0, a1, a2, a3), lane by lane.
template <class L>
DIF_INLINE PhiloxWords<L> philox_rounds(const PhiloxKeys& key, typename L::W a0, typename L::W a1, typename L::W a2,
                                        typename L::W a3) {
  philox_mix<L>(key, a0, a1, a2, a3);
  return {{L::narrow(a0), L::narrow(a1), L::narrow(a2), L::narrow(a3)}};
}

// Returns the four words of the quads first, first + 1, ... (in the lane order of L::counters); chain, step
// and stream are the same for all lanes.
template <class L>
DIF_INLINE PhiloxWords<L> philox(const PhiloxKeys& key, uint32_t first, uint32_t chain, uint32_t step,
                                 uint32_t stream) {
  return philox_rounds<L>(key, L::counters(first), L::wide(chain), L::wide(step), L::wide(stream));
}

}  // namespace dif
