// What an instruction set offers the engine: passes over a Program, the same bits from each set.
#pragma once
#include "cpu/engine_plan.hpp"
#include "cpu/kernels.hpp"

namespace dif {

// The sum of the losses of a batch and, unless g is null, the gradient (plan.total) of their mean; also
// per-sample losses (batch.count), which may be null with samples in the lanes. s: plan.scratch floats, zero
// at first use, touched by passes of this plan alone.
template <class T>
using Pass = double (*)(const Plan& plan, const T* w, const Batch<T>& batch, T* g, T* s, double* losses);

// The same for sixteen chains on one batch: w, g (plan.total, 16), sums (16).
using ChainsPass = void (*)(const Plan& plan, const float* w, const Batch<float>& batch, float* g, float* s,
                            double* sums);

// Sixteen chains side by side: what their update needs.
struct ChainsBlock {
  float* w;  // (dim, 16)
  const float *g, *center;
  const uint8_t* mask;  // (dim) or null
  int64_t dim;
  // (16) each, in the order of the lanes
  const float *nbeta, *localization, *minus_half_lr, *noise;
};

constexpr int64_t steps_ahead = 16;

struct EngineKernels {
  const char* name;
  Pass<float> matrix, samples;
  ChainsPass chains;
  // The step of core/update.hpp; energy (2, 16): sum d . (nbeta g) and sum (w - center) . (nbeta g). Lane i draws the
  // noise of chain first_chain + lane_order[i].
  void (*update_chains)(const ChainsBlock&, uint64_t seed, uint32_t first_chain, uint32_t step, double* energy);
  void (*lane_order)(uint32_t* out);
  // out (count): the sample that each random word names, floor(word n / 2^32).
  void (*indices)(const uint32_t* words, int64_t count, int64_t n, int32_t* out);
  // The same numbers for steps_ahead steps from at.step, a lane a step, so that no lane idles however few numbers a
  // step needs: out (steps_ahead, ld) gets the samples, or the normals, of coordinates 0 ... 4 quads - 1 <= ld.
  void (*samples_ahead)(const Address& at, int64_t quads, int64_t n, int32_t* out, int64_t ld);
  void (*normals_ahead)(const Address& at, int64_t quads, float* out, int64_t ld);
  // Independent sums of `rounds` fused multiply-adds in every lane: how fast this core can go. out (16) starts as three
  // numbers. Returns the flops.
  double (*multiply_adds)(int64_t rounds, float* out);
};

extern const EngineKernels engine_baseline;
extern const EngineKernels engine_avx2;
extern const EngineKernels engine_avx512;

// The set that `kernels()` names.
const EngineKernels& engine_kernels();
// The verifying copy, in double.
double matrix_pass_f64(const Plan& plan, const double* w, const Batch<double>& batch, double* g, double* s,
                       double* losses);

}  // namespace dif
