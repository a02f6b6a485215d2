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

// Returns the new w. `drift` is d and `force` is nbeta g: sum d . force is the energy that measures the step-size
// bias of nbeta L. (Not sum d^2: its part localization (w - center) moves w along flat directions too, where the
// loss, and so its bias, is nothing.)
template <class L>
DIF_INLINE typename L::F sgld(typename L::F w, typename L::F g, typename L::F center, const SgldCoefficients& k,
                              typename L::F& drift, typename L::F& force) {
  force = L::mul(L::set(k.nbeta), g);
  drift = L::fma(L::set(k.localization), L::sub(w, center), force);
  return L::fma(L::set(k.minus_half_lr), drift, w);
}

}  // namespace dif
