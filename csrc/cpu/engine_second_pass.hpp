// What every operation has at hand under the R-operator (engine_second.hpp): the state of a block, and the tangents of
// all probes below each other.
#pragma once
#include "cpu/engine_second_isa.hpp"
#include "cpu/engine_second_state.hpp"

namespace dif {

template <class L>
struct SecondPass {
  using T = typename L::T;
  using F = typename L::F;
  using G = Gemm<L>;
  using M = MatrixPass<L>;
  using View = typename M::View;

  const SecondJob<T>& job;
  const Matrix<L>& x;  // values and gradients
  const Matrix<L>& r;  // their tangents: probe i's rows start at row i count(value)

  DIF_INLINE bool hessian() const { return job.product == product_hessian; }
  DIF_INLINE int64_t count(int32_t value) const { return job.samples * x.plan.values[value].rows; }
  // fn(probe, row, row among the tangents)
  template <class Fn>
  DIF_INLINE void each_row(int32_t value, Fn fn) const {
    const int64_t rows = count(value);
    for (int64_t i = 0; i < job.probes; ++i) {
      for (int64_t row = 0; row < rows; ++row) fn(i, row, i * rows + row);
    }
  }
};

}  // namespace dif
