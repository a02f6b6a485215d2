// One step of each sampler on a block of lanes. Reference: devinterp_fast/_reference.py.
//
// All of them sample exp(-U), U = nbeta L + (localization / 2) |w - center|^2, tempered and localized, from
//   force = nbeta g,  d = grad U = nbeta g + localization (w - center),  g the gradient of the mean loss.
// A sampler is a struct of coefficients whose `step` moves one coordinate's `states` numbers, w first, by one unit of
// noise z. Where `noise` is false, z is not read. `weight` is what d and force are weighted with in the two sums that
// measure the step: sum weight d . force and sum weight d . d, the latter of momenta (`gauge_is_square`) sum p . p.
// Source: Welling, Teh (2011) for SGLD; Lau, Furman, Wang, Murfet, Wei (2023) for the localized form.
#pragma once
#include <cmath>

#include "lanes.hpp"

namespace dif {

struct SgldCoefficients {
  float nbeta, localization, minus_half_lr, noise;
};

// w - (lr / 2) d. `drift` is d and `force` is nbeta g: sum d . force is the energy that measures the step-size
// bias of nbeta L. (Not sum d^2: its part localization (w - center) moves w along flat directions too, where the
// loss, and so its bias, is nothing.)
template <class L>
DIF_INLINE typename L::F sgld(typename L::F w, typename L::F g, typename L::F center, const SgldCoefficients& k,
                              typename L::F& drift, typename L::F& force) {
  force = L::mul(L::set(k.nbeta), g);
  drift = L::fma(L::set(k.localization), L::sub(w, center), force);
  return L::fma(L::set(k.minus_half_lr), drift, w);
}

// SGLD: w <- w - (lr / 2) d + sqrt(lr) z.
struct Sgld {
  static constexpr int states = 1;  // w
  static constexpr bool gauge_is_square = false;
  SgldCoefficients k;
  template <class L, bool noise>
  DIF_INLINE void step(typename L::F (&s)[1], typename L::F g, typename L::F center, typename L::F z,
                       typename L::F& drift, typename L::F& force, typename L::F& weight) const {
    s[0] = sgld<L>(s[0], g, center, k, drift, force);
    if constexpr (noise) s[0] = L::fma(L::set(k.noise), z, s[0]);
    weight = drift;
  }
};

// Langevin dynamics with momentum p, unit mass, time step h (BAOAB with its two kicks joined, so that the gradient is
// taken where the next draw is):
//   p <- p - h d,  w <- w + (h / 2) p,  p <- keep p + noise z,  w <- w + (h / 2) p
// keep^2 + noise^2 = 1 without a thermostat. On a quadratic the variance of w is exact for every stable h (h^2 a < 4).
// With keep = 1 and no noise it is a leapfrog step of Hamiltonian dynamics; half the kick begins a trajectory.
// Source: Leimkuhler, Matthews (2013); Chen, Fox, Guestrin (2014) for the stochastic gradient.
struct Langevin {
  static constexpr int states = 2;  // w, p
  static constexpr bool gauge_is_square = true;
  float nbeta, localization, minus_kick, half_move, keep, noise_size;
  template <class L, bool noise>
  DIF_INLINE void step(typename L::F (&s)[2], typename L::F g, typename L::F center, typename L::F z,
                       typename L::F& drift, typename L::F& force, typename L::F& weight) const {
    using F = typename L::F;
    force = L::mul(L::set(nbeta), g);
    drift = L::fma(L::set(localization), L::sub(s[0], center), force);
    const F p = L::fma(L::set(minus_kick), drift, s[1]);
    s[0] = L::fma(L::set(half_move), p, s[0]);
    s[1] = p;
    if constexpr (noise) s[1] = L::fma(L::set(noise_size), z, L::mul(L::set(keep), p));
    s[0] = L::fma(L::set(half_move), s[1], s[0]);
    weight = drift;
  }
};

// Friction zeta (a thermostat's) and the noise of `friction` balance where they are equal, by Cayley's form of the
// exponential; both are shares of a step, and x = max(-1/2, zeta / 2) keeps the momentum from being turned around:
//   keep = (1 - x) / (1 + x),  noise^2 = 2 friction / (1 + x)^2
DIF_INLINE void balance(double zeta, double friction, float& keep, float& noise_size) {
  const double half = 0.5 * zeta, x = half > -0.5 ? half : -0.5;
  keep = static_cast<float>((1.0 - x) / (1.0 + x));
  noise_size = static_cast<float>(std::sqrt(2.0 * friction) / (1.0 + x));
}
// The thermostat's turn after a step: the mean square momentum is to be 1.
DIF_INLINE double thermostat_turn(double zeta, double temperature, double inertia) {
  return zeta + (temperature - 1.0) / inertia;
}

// SGLD in a diagonal metric learned from the gradients (RMSprop; Adam where beta1 > 0):
//   m <- beta1 m + (1 - beta1) g,  v <- beta2 v + (1 - beta2) g^2,  G = 1 / (sqrt(v) + epsilon)
//   w <- w - (lr / 2) G (nbeta m + localization (w - center)) + sqrt(lr G) z
// beta2 = 1 holds the metric still, which alone makes the sampler right: a metric that moves with w needs the further
// drift (lr / 2) dG/dw.
// Source: Li, Chen, Carlson, Carin (2016).
struct Preconditioned {
  static constexpr int states = 3;  // w, m, v
  static constexpr bool gauge_is_square = false;
  float nbeta, localization, minus_half_lr, lr, beta1, rest1, beta2, rest2, epsilon;
  template <class L, bool noise>
  DIF_INLINE void step(typename L::F (&s)[3], typename L::F g, typename L::F center, typename L::F z,
                       typename L::F& drift, typename L::F& force, typename L::F& weight) const {
    using F = typename L::F;
    s[1] = L::fma(L::set(beta1), s[1], L::mul(L::set(rest1), g));
    s[2] = L::fma(L::set(beta2), s[2], L::mul(L::mul(L::set(rest2), g), g));
    const F metric = L::div(L::set(1.0f), L::sub(L::sqrt(s[2]), L::set(-epsilon)));
    force = L::mul(L::set(nbeta), s[1]);
    drift = L::fma(L::set(localization), L::sub(s[0], center), force);
    weight = L::mul(metric, drift);
    s[0] = L::fma(L::set(minus_half_lr), weight, s[0]);
    if constexpr (noise) s[0] = L::fma(L::sqrt(L::mul(L::set(lr), metric)), z, s[0]);
  }
};

}  // namespace dif
