// A sampler's step over all chains at once.
#pragma once
#include <cstdint>

namespace dif {

// One tensor of a model, for all chains. Pointers are to coordinate 0 of chain 0; chain c of w lies w_ld
// floats further each. A stride of 0 shares one row among the chains.
struct SgldTensor {
  int64_t first, size;  // the coordinates of this tensor in a chain's vector
  const float* g;       // (chains, size), its own rows: coordinate `first` is at g[0]
  int64_t g_ld;
};

struct SgldBlock {
  float* w;  // (chains, dim), updated in place
  int64_t w_ld;
  const float* center;  // (chains, dim) or (dim)
  int64_t center_ld;
  const uint8_t* mask;  // (chains, dim), (dim) or null: zero keeps a coordinate
  int64_t mask_ld;
  int64_t chains;
};

struct SgldSettings {
  const double *lr, *localization, *nbeta;  // (chains)
  uint64_t seed;
  uint32_t step, first_chain;  // chain c draws the noise of chain first_chain + c
  bool noise;
};

// Tensors must not overlap. `energy` (chains) receives sum d . (nbeta g), `square` (chains) sum d . d; either may be
// null. The result does not depend on `threads`.
void sgld_step(const SgldBlock&, const SgldTensor* tensors, int64_t tensor_count, const SgldSettings&, double* energy,
               double* square, int threads);

// What a sampler carries beside w: (chains, dim; row stride ld), updated in place; or null.
struct StateRows {
  float *first = nullptr, *second = nullptr;
  int64_t ld = 0;
};

// The same for any sampler of core/update.hpp, with its struct's floats as `coefficients` (chains, n), in order:
// 0 Sgld, 1 Langevin (first: momenta), 2 Preconditioned (first, second: means of g and g^2); false if there is none.
// work, gauge (chains): sum weight d . (nbeta g) and sum weight d . d, of Langevin sum p . p; either may be null.
bool sampler_step(int sampler, const SgldBlock&, const StateRows&, const SgldTensor* tensors, int64_t tensor_count,
                  const float* coefficients, uint64_t seed, uint32_t step, uint32_t first_chain, bool noise,
                  double* work, double* gauge, int threads);

}  // namespace dif
