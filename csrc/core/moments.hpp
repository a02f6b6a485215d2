// Mean and scatter of a vector's draws, kept as they come.
//
//   mean_n = mean_(n-1) + (w - mean_(n-1)) / n,   scatter_n = scatter_(n-1) + (w - mean_(n-1)) (w - mean_n)
//
// so that scatter / (n - 1) is the variance. In double: the rounding of a long run stays far below its Monte Carlo
// error. Source: Welford (1962).
#pragma once
#include <cstdint>

#include "core/lanes.hpp"

namespace dif {

// The n-th draw of one coordinate.
DIF_INLINE void add_draw(double n, double w, double& mean, double& scatter) {
  const double off = w - mean;
  mean += off / n;
  scatter += product(off, w - mean);
}
// The n-th draw: coordinate i of w at w[i stride]; mean, scatter (dim).
inline void add_draw(double n, const float* w, int64_t stride, int64_t dim, double* mean, double* scatter) {
  for (int64_t i = 0; i < dim; ++i) {
    add_draw(n, static_cast<double>(w[i * stride]), mean[i], scatter[i]);
  }
}

}  // namespace dif
