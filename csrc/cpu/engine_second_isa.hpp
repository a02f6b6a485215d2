// What an instruction set offers for second derivatives: the passes of engine_second.hpp, the same bits from each set.
#pragma once
#include "cpu/engine_plan.hpp"

namespace dif {

enum Product : int32_t { product_hessian = 0, product_ggn = 1, product_fisher = 2 };

// One block of samples, a few probes.
template <class T>
struct SecondJob {
  const Plan* plan;     // of the state
  const Plan* tangent;  // of the tangents: the same Program in blocks of probes x samples
  const Batch<T>* batch;
  int64_t first, samples, probes;
  int32_t product;
  const T* w;         // (total)
  const T* turned;    // the transposed weights, as the plan places them behind `kept`
  const T* v;         // (probes, total) directions, zero on frozen parameters
  const T* v_turned;  // (probes) x the same transposed
  int64_t v_ld, v_turned_ld;
  T* state;    // (plan.kept), read only
  T* scratch;  // (tangent.kept), zero at first use
  T* work;     // second_work(plan) numbers
  T* weights;  // (probes, samples), of the Fisher product
  T* out;      // (probes, total), added to
  int64_t out_ld;
};

template <class T>
struct SecondKernels {
  const char* name;
  // to <- the transposed copies of w, as the plan places them behind `kept`.
  void (*turn)(const Plan& plan, const T* w, T* to);
  // The state of a block in s (plan.scratch, weights turned), per-sample losses, the gradient of the mean onto g.
  void (*state)(const Plan& plan, const T* w, const Batch<T>& batch, T* g, T* s, int64_t first, int64_t samples,
                double* losses);
  void (*product)(const SecondJob<T>& job);
  // C (m, n) = A (m, k) B (k, n), onto C or not; A with any strides.
  void (*multiply)(int64_t m, int64_t n, int64_t k, const T* a, int64_t a_row, int64_t a_column, const T* b,
                   int64_t b_ld, T* c, int64_t c_ld, bool onto);
};

extern const SecondKernels<float> second_baseline, second_avx2, second_avx512;
extern const SecondKernels<double> second_f64_baseline, second_f64_avx2, second_f64_avx512;

// The set that `kernels()` names.
template <class T>
const SecondKernels<T>& second_kernels();

}  // namespace dif
