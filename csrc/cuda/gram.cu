// The Gram matrix of per-sample gradients, from a layer's inputs and output gradients: no gradient is ever formed.
//
//   The weight gradient of sample i in a layer out = W x + b is sum_t d_it x_it', so that
//   G_ij = sum_(t, u) (d_it . d_ju) (x_it . x_ju + [b]).
//
// A block of threads owns sixteen by sixteen samples, a thread one pair. Dot products are float32 sums in the order of
// the features, sums over positions and layers are double, position by position.
#include "cuda/cuda.hpp"
#include "cuda/lanes.cuh"
#include "cuda/launch.cuh"

namespace dif::cuda {

using L = ThreadLane;
constexpr int side = 16, chunk = 32;

// Sixteen rows of chunk features each; a row more than a bank apart from the next.
struct Rows {
  float v[side][chunk + 1];
};

// Rows first, first + stride, ... from feature `at`; zeros past the last row or feature.
__device__ __forceinline__ void load_rows(Rows& rows, const float* from, int64_t first, int64_t samples,
                                          int64_t positions, int64_t position, int64_t features, int64_t at) {
  for (int i = static_cast<int>(threadIdx.x); i < side * chunk; i += side * side) {
    const int64_t sample = first + i / chunk, feature = at + i % chunk;
    const bool there = sample < samples && feature < features;
    rows.v[i / chunk][i % chunk] = there ? from[(sample * positions + position) * features + feature] : 0.0f;
  }
}

// This thread's dot product of row r of `a` and row c of `b`.
__device__ __forceinline__ float dot(Rows& a, Rows& b, int r, int c, const float* from, int64_t row, int64_t column,
                                     const GramLayer& layer, int64_t t, int64_t u, int64_t features) {
  float sum = 0.0f;
  for (int64_t at = 0; at < features; at += chunk) {
    load_rows(a, from, row, layer.samples, layer.positions, t, features, at);
    load_rows(b, from, column, layer.samples, layer.positions, u, features, at);
    __syncthreads();
    const int64_t rest = features - at;
    const int count = rest < chunk ? static_cast<int>(rest) : chunk;
    for (int k = 0; k < count; ++k) sum = L::fma(a.v[r][k], b.v[c][k], sum);
    __syncthreads();
  }
  return sum;
}

__global__ void __launch_bounds__(side* side) gram_kernel(GramLayer layer, double* gram, int64_t ld) {
  DIF_SHARED(Rows, shared, 2);
  const int64_t row = static_cast<int64_t>(blockIdx.x) * side, column = static_cast<int64_t>(blockIdx.y) * side;
  if (column > row) return;  // the matrix is symmetric
  const int r = static_cast<int>(threadIdx.x) / side, c = static_cast<int>(threadIdx.x) % side;
  double sum = 0.0;
  for (int64_t t = 0; t < layer.positions; ++t) {
    for (int64_t u = 0; u < layer.positions; ++u) {
      const float d = dot(shared[0], shared[1], r, c, layer.d, row, column, layer, t, u, layer.outputs);
      float x = dot(shared[0], shared[1], r, c, layer.x, row, column, layer, t, u, layer.inputs);
      if (layer.bias) x = L::add(x, 1.0f);
      sum += product(static_cast<double>(d), static_cast<double>(x));
    }
  }
  const int64_t i = row + r, j = column + c;
  if (i >= layer.samples || j > i) return;
  const double all = gram[i * ld + j] + sum;
  gram[i * ld + j] = all;
  gram[j * ld + i] = all;
}

const char* add_gram(const GramLayer& layer, double* gram, int64_t ld, void* stream) {
  if (layer.samples <= 0) return nullptr;
  const auto blocks = static_cast<unsigned>((layer.samples + side - 1) / side);
  if (blocks > 65535) return "samples: expected at most 1048560 a launch";
  DIF_LAUNCH(gram_kernel, dim3(blocks, blocks), side * side, 0, stream, layer, gram, ld);
  return launched();
}

}  // namespace dif::cuda
