// How one chain of a run moves: a sampler's settings, what it carries beside w, and its step.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "core/philox.hpp"
#include "cpu/aligned.hpp"
#include "cpu/engine_isa.hpp"
#include "cpu/kernels.hpp"

namespace dif {

enum SamplerKind : int32_t {
  sampler_sgld = 0,
  sampler_langevin = 1,        // momentum with friction; with inertia > 0, a thermostat
  sampler_preconditioned = 2,  // RMSprop, Adam
  sampler_hmc = 3,             // accept-reject on full batches; leapfrog = 1 is MALA
};

// A step size is lr for every sampler: one with momentum moves by h = sqrt(lr), so that its noise is of the size of
// SGLD's. `first` and `second` (chains, dim; row stride state_ld): momenta, or the means of g and g^2; unused ones
// null.
struct SamplerSettings {
  int32_t kind;
  int32_t leapfrog;                                      // mean steps of a trajectory
  double beta1, beta2, epsilon;                          // of the metric
  int64_t adapt;                                         // the metric stands still from this step
  double inertia;                                        // of the thermostat; 0: none
  double box = std::numeric_limits<double>::infinity();  // |w - center| of each coordinate stays within; infinity: none
  const double* friction;                                // (chains)
  double* thermostat;                                    // (chains), begins as friction
  float *first, *second;
  int64_t state_ld;
  const float* anchor;  // (dim), the full gradient at the center, for control variates; or null
};

// sum weight d . (nbeta g), and `gauge`, which tells what the step size does: of SGLD, in any metric, the virial
// sum (w - center) . (nbeta g), k nbeta L where the loss grows as |w|^k; with momentum the mean square momentum (1 at
// the right temperature); of HMC the probability of acceptance.
struct StepReport {
  double work, gauge;
};

// One chain's vectors, padded to whole tiles; the mask holds the padding still.
struct ChainVectors {
  float *w, *g;
  const float* center;
  const uint8_t* mask;  // or null
  int64_t dim, padded, moving;
};

class Mover {
 public:
  Mover(const SamplerSettings& settings, const ChainVectors& at)
      : settings_(settings),
        at_(at),
        first_(size(settings.first != nullptr || settings.kind == sampler_hmc)),
        second_(size(settings.second != nullptr)),
        kept_w_(size(settings.kind == sampler_hmc)),
        kept_g_(size(settings.kind == sampler_hmc)),
        drawn_(at.padded <= most_drawn ? steps_ahead * most_drawn : 0) {}

  void load(int64_t c) {
    copy_row(settings_.first, c, first_);
    copy_row(settings_.second, c, second_);
    fresh_ = false;
  }
  void save(int64_t c) const {
    const int64_t o = c * settings_.state_ld;
    if (settings_.first) std::copy(first_.begin(), first_.begin() + at_.dim, settings_.first + o);
    if (settings_.second) std::copy(second_.begin(), second_.begin() + at_.dim, settings_.second + o);
  }

  // HMC's gradient at w is still there from the last step of this call.
  bool knows_gradient() const { return fresh_; }
  double loss() const { return loss_; }

  // Moves chain `chain` (row c) one step from w, whose loss and gradient are known; `pass` computes both anew at w.
  // Sums that only the report needs are taken where `recorded`.
  template <class Pass>
  StepReport step(int64_t c, uint32_t chain, int64_t t, double nbeta, double localization, double lr, uint64_t seed,
                  double loss, bool recorded, Pass pass) {
    recorded_ = recorded;
    const uint32_t step = static_cast<uint32_t>(t);
    const float b = static_cast<float>(nbeta), pull = static_cast<float>(localization);
    const Address noise{seed, chain, step, update_noise};
    StepReport report{0.0, 0.0};
    if (settings_.kind == sampler_sgld) {
      const Sgld k{{b, pull, static_cast<float>(-0.5 * lr), static_cast<float>(std::sqrt(lr))}};
      const StepSums s = each_block(kernels().sgld, k, noise, true, recorded);
      report = {s.work, nbeta * virial_};
    } else if (settings_.kind == sampler_preconditioned) {
      const bool adapts = t < settings_.adapt;
      const double b1 = settings_.beta1, b2 = adapts ? settings_.beta2 : 1.0;
      const Preconditioned k{b,
                             pull,
                             static_cast<float>(-0.5 * lr),
                             static_cast<float>(lr),
                             static_cast<float>(b1),
                             static_cast<float>(1.0 - b1),
                             static_cast<float>(b2),
                             static_cast<float>(1.0 - b2),
                             static_cast<float>(settings_.epsilon)};
      const StepSums s = each_block(kernels().preconditioned, k, noise, true, recorded);
      report = {s.work, nbeta * virial_};
    } else if (settings_.kind == sampler_langevin) {
      report = langevin(c, nbeta, localization, std::sqrt(lr), noise);
    } else {
      return trajectory(chain, step, nbeta, localization, std::sqrt(lr), seed, loss, pass);
    }
    if (std::isfinite(settings_.box)) clamp();
    return report;
  }

 private:
  static constexpr int64_t most_drawn = 64;  // half a tile of the update

  size_t size(bool needed) const { return needed ? static_cast<size_t>(at_.padded) : 0; }
  void copy_row(const float* rows, int64_t c, std::vector<float>& out) const {
    if (rows) std::copy(rows + c * settings_.state_ld, rows + c * settings_.state_ld + at_.dim, out.begin());
  }
  bool moves(int64_t i) const { return !at_.mask || at_.mask[i] != 0; }

  template <class Kernel, class Step>
  StepSums each_block(Kernel kernel, const Step& k, const Address& noise, bool noisy, bool gauged = false) {
    StepSums all{0.0, 0.0};
    double virial[4] = {};  // sum (w - center) g, a block at a time, while the cache holds the block
    for (int64_t first = 0; first < at_.padded; first += block_size) {
      const int64_t size = std::min(block_size, at_.padded - first);
      if (gauged) {
        sum_moving(first, std::min(first + size, at_.dim), virial,
                   [this](int64_t i) { return away(i) * static_cast<double>(at_.g[i]); });
      }
      const bool masked = at_.mask && (at_.moving != at_.dim || first + size > at_.dim);  // or only the padding stands
      const StepArrays arrays{
          {at_.w + first, first_.empty() ? nullptr : first_.data() + first,
           second_.empty() ? nullptr : second_.data() + first},
          at_.g + first,
          at_.center + first,
          masked ? at_.mask + first : nullptr,
          noisy ? drawn(noise) : nullptr,
          recorded_ || settings_.kind == sampler_langevin};  // whose temperature moves the thermostat
      const StepSums one = kernel(arrays, first, size, k, noise, noisy);
      all.work += one.work;
      all.square += one.square;
    }
    virial_ = virial[0] + virial[1] + virial[2] + virial[3];
    return all;
  }

  // The normals of a vector so short that they are drawn for several steps at once; of others null.
  const float* drawn(const Address& at) {
    if (at_.padded > most_drawn) return nullptr;
    if (!has_drawn_ || at.chain != drawn_at_.chain || at.step - drawn_at_.step >= steps_ahead) {
      engine_kernels().normals_ahead(at, (at_.dim + 3) / 4, drawn_.get(), most_drawn);
      drawn_at_ = at;
      has_drawn_ = true;
    }
    return drawn_.get() + (at.step - drawn_at_.step) * most_drawn;
  }

  StepReport langevin(int64_t c, double nbeta, double localization, double h, const Address& noise) {
    double& zeta = settings_.thermostat[c];
    Langevin k{static_cast<float>(nbeta),
               static_cast<float>(localization),
               static_cast<float>(-h),
               static_cast<float>(0.5 * h),
               0.0f,
               0.0f};
    balance(zeta, settings_.friction[c], k.keep, k.noise_size);
    const StepSums s = each_block(kernels().langevin, k, noise, true);
    const double temperature = s.square / static_cast<double>(at_.moving);
    if (settings_.inertia > 0.0) zeta = thermostat_turn(zeta, temperature, settings_.inertia);
    return {s.work, temperature};
  }

  // One trajectory of Hamiltonian dynamics from fresh momenta, accepted with probability min(1, exp(H - H')). Its
  // length is uniform in ceil(leapfrog / 2) ... floor(3 leapfrog / 2), the same for all chains of a step. The last quad
  // of the momenta's stream holds the uniform words: word 0 of the chain accepts, word 1 of chain 2^32 - 1 is the
  // length.
  template <class Pass>
  StepReport trajectory(uint32_t chain, uint32_t step, double nbeta, double localization, double h, uint64_t seed,
                        double loss, Pass pass) {
    constexpr int64_t last_quad = 4 * int64_t{0xffffffff};
    uint32_t own[4], shared[4];
    kernels().words(own, last_quad, 4, {seed, chain, step, momenta});
    kernels().words(shared, last_quad, 4, {seed, 0xffffffffu, step, momenta});
    const int64_t low = (settings_.leapfrog + 1) / 2, high = settings_.leapfrog + settings_.leapfrog / 2;
    const int64_t length =
        low + static_cast<int64_t>((static_cast<uint64_t>(shared[1]) * static_cast<uint64_t>(high - low + 1)) >> 32);
    kernels().normals(first_.data(), 0, at_.padded, {seed, chain, step, momenta});
    std::copy(at_.w, at_.w + at_.padded, kept_w_.begin());
    std::copy(at_.g, at_.g + at_.padded, kept_g_.begin());
    const double before = nbeta * loss + 0.5 * localization * distance() + 0.5 * square(first_);
    Langevin k{static_cast<float>(nbeta),
               static_cast<float>(localization),
               static_cast<float>(-0.5 * h),
               static_cast<float>(0.5 * h),
               1.0f,
               0.0f};
    double work = 0.0, there = loss;
    for (int64_t i = 0; i < length; ++i) {
      const StepSums s = each_block(kernels().langevin, k, {seed, chain, step, momenta}, false);
      if (i == 0) work = s.work;
      k.minus_kick = static_cast<float>(-h);
      there = pass();
      if (!std::isfinite(there)) break;
    }
    k.minus_kick = static_cast<float>(-0.5 * h);
    k.half_move = 0.0f;
    each_block(kernels().langevin, k, {seed, chain, step, momenta}, false);
    const double after = nbeta * there + 0.5 * localization * distance() + 0.5 * square(first_);
    const bool inside = !std::isfinite(settings_.box) || within();
    const double chance = std::isfinite(after) && inside ? std::min(1.0, std::exp(before - after)) : 0.0;
    fresh_ = true;
    if ((static_cast<double>(own[0]) + 0.5) * 0x1p-32 < chance) {
      loss_ = there;
    } else {
      std::copy(kept_w_.begin(), kept_w_.end(), at_.w);
      std::copy(kept_g_.begin(), kept_g_.end(), at_.g);
      loss_ = loss;
    }
    return {work, chance};
  }

  double square(const std::vector<float>& v) const {
    return sum_moving([&v](int64_t i) {
      const double x = static_cast<double>(v[static_cast<size_t>(i)]);
      return x * x;
    });
  }
  double distance() const {
    return sum_moving([this](int64_t i) { return away(i) * away(i); });
  }
  double away(int64_t i) const { return static_cast<double>(at_.w[i]) - static_cast<double>(at_.center[i]); }

  // term(i) over the coordinates that move; every fourth in a sum of its own, so that four additions run at a time.
  template <class Term>
  double sum_moving(Term term) const {
    double sum[4] = {};
    sum_moving(0, at_.dim, sum, term);
    return sum[0] + sum[1] + sum[2] + sum[3];
  }
  // Those of low ... high - 1 onto `sum`; low is a multiple of four.
  template <class Term>
  void sum_moving(int64_t low, int64_t high, double (&sum)[4], Term term) const {
    if (at_.moving == at_.dim) return four_sums(low, high, sum, term);
    four_sums(low, high, sum, [&](int64_t i) { return moves(i) ? term(i) : 0.0; });
  }
  template <class Term>
  static void four_sums(int64_t low, int64_t high, double (&sum)[4], Term term) {
    int64_t i = low;
    for (; i + 4 <= high; i += 4) {
      for (int k = 0; k < 4; ++k) sum[k] += term(i + k);
    }
    for (; i < high; ++i) sum[i % 4] += term(i);
  }
  void clamp() {
    const float box = static_cast<float>(settings_.box);
    for (int64_t i = 0; i < at_.dim; ++i) {
      if (moves(i)) at_.w[i] = std::min(at_.center[i] + box, std::max(at_.center[i] - box, at_.w[i]));
    }
  }
  bool within() const {
    for (int64_t i = 0; i < at_.dim; ++i) {
      if (moves(i) && !(std::fabs(static_cast<double>(at_.w[i]) - static_cast<double>(at_.center[i])) <= settings_.box))
        return false;
    }
    return true;
  }

  const SamplerSettings& settings_;
  ChainVectors at_;
  std::vector<float> first_, second_, kept_w_, kept_g_;
  Aligned<float> drawn_;
  Address drawn_at_{};
  bool has_drawn_ = false, recorded_ = true;
  bool fresh_ = false;
  double loss_ = 0.0, virial_ = 0.0;
};

}  // namespace dif
