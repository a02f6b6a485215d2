// What an instruction set offers the engine: passes over a Program, the same bits from each set.
#pragma once
#include "cpu/engine_plan.hpp"

namespace dif {

// Per-sample losses (batch.count) and, unless g is null, the gradient (plan.total) of their mean. s:
// plan.scratch floats, whose contents only the engine touches, zero at first use.
template <class T>
using Pass = void (*)(const Plan& plan, const T* w, const Batch<T>& batch, T* g, T* s, double* losses);

struct EngineKernels {
  const char* name;
  Pass<float> matrix;
  // out (count): the sample that each random word names, floor(word n / 2^32).
  void (*indices)(const uint32_t* words, int64_t count, int64_t n, int32_t* out);
};

extern const EngineKernels engine_baseline;
extern const EngineKernels engine_avx2;
extern const EngineKernels engine_avx512;

// The set that `kernels()` names.
const EngineKernels& engine_kernels();
// The verifying copy, in double.
void matrix_pass_f64(const Plan& plan, const double* w, const Batch<double>& batch, double* g, double* s,
                     double* losses);

}  // namespace dif
