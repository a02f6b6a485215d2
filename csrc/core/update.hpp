// One step of a sampler on a block of lanes.
//
// SGLD, tempered and localized:
//   d  = nbeta g + localization (w - center)
//   w <- w - (lr / 2) d + sqrt(lr) xi
// g is the gradient of the mean loss. Reference: devinterp_fast/_reference.py.
// Source: Welling, Teh (2011); Lau, Furman, Wang, Murfet, Wei (2023) for the localized form.
#pragma once
#include "lanes.hpp"

namespace dif {

struct SgldCoefficients {
  float nbeta, localization, minus_half_lr, noise;
};

// Returns the new w; `drift` is d, whose square sums to the energy that measures the step-size bias.
template <class L>
DIF_INLINE typename L::F sgld(typename L::F w, typename L::F g, typename L::F center, const SgldCoefficients& k,
                              typename L::F& drift) {
  drift = L::fma(L::set(k.localization), L::sub(w, center), L::mul(L::set(k.nbeta), g));
  return L::fma(L::set(k.minus_half_lr), drift, w);
}

}  // namespace dif
