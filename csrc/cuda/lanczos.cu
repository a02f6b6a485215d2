// Two-pass classical Gram-Schmidt of one vector for each chain against that chain's basis, and the scalars of Lanczos.
//
// Pass: c_j = q_j . v for all j, then v <- v - sum_j c_j q_j; twice, which is enough (Kahan, Parlett). The second
// pass's products are taken while the first one's differences are being written, so the basis is read three times from
// memory. Products are summed in the order of core/blocks.hpp.
#include "core/blocks.hpp"
#include "cuda/cuda.hpp"
#include "cuda/lanes.cuh"
#include "cuda/launch.cuh"

namespace dif::cuda {

using L = ThreadLane;
constexpr int threads = 256;  // and coordinates that a block of threads holds at a time
constexpr int warps = threads / warp;
constexpr int most_products = 256;  // of one launch: their running sums share a block's memory

// Block p * chains + c: coordinates p * block_size ... of chain c. First v <- v - sum coefficient_j q_j, unless there
// are no coefficients; then, as partial (pieces, chains, products), the products of v with q_first ... and, where
// `squared`, with itself last. Pool: (products, 32) running sums.
__global__ void __launch_bounds__(threads)
    project_kernel(Basis basis, float* v, int64_t v_ld, const double* coefficients, int64_t first, int64_t products,
                   bool squared, double* partial) {
  DIF_SHARED_POOL(float, sums);
  DIF_SHARED(float, now, threads);
  const int64_t chains = basis.chains, index = blockIdx.x, chain = index % chains, start = index / chains * block_size;
  const int64_t stop = start + block_size < basis.dim ? start + block_size : basis.dim;
  const int thread = static_cast<int>(threadIdx.x), lane = thread % warp;
  const float* q = basis.q + chain * basis.chain_ld;
  float* row = v + chain * v_ld;
  for (int64_t i = thread; i < products * warp; i += threads) sums[i] = 0.0f;
  for (int64_t at = start; at < stop; at += threads) {
    const int64_t i = at + thread;
    float x = i < stop ? row[i] : 0.0f;
    if (coefficients && i < stop) {
      for (int64_t j = 0; j < basis.vectors; ++j) {
        x = L::fma(-static_cast<float>(coefficients[chain * basis.vectors + j]), q[j * basis.ld + i], x);
      }
      row[i] = x;
    }
    now[thread] = x;
    __syncthreads();
    const int rows = static_cast<int>((stop - at < threads ? stop - at : threads) + warp - 1) / warp;
    for (int64_t k = thread / warp; k < products; k += warps) {
      const bool self = squared && k == products - 1;
      const float* other = q + (first + k) * basis.ld + at;
      float sum = sums[k * warp + lane];
      for (int r = 0; r < rows; ++r) {
        const int o = r * warp + lane;
        if (at + o < stop) sum = L::fma(self ? now[o] : other[o], now[o], sum);
      }
      sums[k * warp + lane] = sum;
    }
    __syncthreads();
  }
  for (int64_t k = thread; k < products; k += threads) {
    double total = 0.0;
    for (int i = 0; i < running_sums; ++i) total += static_cast<double>(sums[k * warp + i]);
    partial[index * products + k] = total;
  }
}

// out (chains; row stride ld) <- the sums over pieces, in their order, of `products` numbers of each chain.
__global__ void __launch_bounds__(threads) add_pieces_kernel(const double* partial, int64_t pieces, int64_t numbers,
                                                             int64_t products, double* out, int64_t ld, int64_t first) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * threads + threadIdx.x;
  if (i >= numbers) return;
  double total = 0.0;
  for (int64_t p = 0; p < pieces; ++p) total += partial[p * numbers + i];
  out[i / products * ld + first + i % products] = total;
}

// The next vector of each basis, its length, and the diagonal: beta = |v|, q = v / beta, alpha = both passes' c_last.
__global__ void __launch_bounds__(threads)
    normalize_kernel(Basis basis, const float* v, int64_t v_ld, const double* first, const double* second,
                     const double* square, float* next, int64_t next_ld, double* alpha, double* beta) {
  const int64_t chain = blockIdx.y;
  const double length = sqrt(square[chain]);
  if (blockIdx.x == 0 && threadIdx.x == 0) {
    const int64_t last = (chain + 1) * basis.vectors - 1;
    alpha[chain] = basis.vectors > 0 ? first[last] + second[last] : 0.0;
    beta[chain] = length;
  }
  const float scale = static_cast<float>(length > 0.0 ? 1.0 / length : 0.0);
  const int64_t stride = static_cast<int64_t>(gridDim.x) * threads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * threads + threadIdx.x; i < basis.dim; i += stride) {
    next[chain * next_ld + i] = L::mul(scale, v[chain * v_ld + i]);
  }
}

int64_t orthogonalize_partial(int64_t chains, int64_t vectors, int64_t dim) {
  const int64_t most = vectors > 1 ? vectors : 1;
  return (dim + block_size - 1) / block_size * chains * (most < most_products ? most : most_products);
}

// Subtracts with `coefficients` (or null), then fills out (chains, ld) with `products` products from `first`.
static const char* project(const Basis& basis, float* v, int64_t v_ld, const double* coefficients, int64_t products,
                           bool squared, double* partial, double* out, int64_t ld, void* stream) {
  const int64_t pieces = (basis.dim + block_size - 1) / block_size, blocks = pieces * basis.chains;
  if (blocks > most_blocks) return too_many_blocks;
  for (int64_t first = 0; first < products; first += most_products) {
    const int64_t count = products - first < most_products ? products - first : most_products;
    DIF_LAUNCH(project_kernel, static_cast<unsigned>(blocks), threads,
               static_cast<size_t>(count) * warp * sizeof(float), stream, basis, v, v_ld,
               first == 0 ? coefficients : nullptr, first, count, squared, partial);
    if (const char* error = launched()) return error;
    const int64_t numbers = basis.chains * count;
    DIF_LAUNCH(add_pieces_kernel, static_cast<unsigned>((numbers + threads - 1) / threads), threads, 0, stream, partial,
               pieces, numbers, count, out, ld, first);
    if (const char* error = launched()) return error;
  }
  return nullptr;
}

const char* orthogonalize(const Basis& basis, float* v, int64_t v_ld, double* partial, double* first, double* second,
                          double* square, void* stream) {
  if (basis.chains <= 0 || basis.dim <= 0) return nullptr;
  const int64_t m = basis.vectors;
  if (m > 0) {
    if (const char* error = project(basis, v, v_ld, nullptr, m, false, partial, first, m, stream)) return error;
    if (const char* error = project(basis, v, v_ld, first, m, false, partial, second, m, stream)) return error;
  }
  return project(basis, v, v_ld, m > 0 ? second : nullptr, 1, true, partial, square, 1, stream);
}

const char* normalize(const Basis& basis, const float* v, int64_t v_ld, const double* first, const double* second,
                      const double* square, float* next, int64_t next_ld, double* alpha, double* beta, void* stream) {
  if (basis.chains <= 0) return nullptr;
  if (basis.chains > 65535) return too_many_blocks;
  const int64_t blocks = basis.dim > 0 ? (basis.dim + block_size - 1) / block_size : 1;  // the scalars at least
  DIF_LAUNCH(normalize_kernel,
             dim3(static_cast<unsigned>(blocks < 65535 ? blocks : 65535), static_cast<unsigned>(basis.chains)), threads,
             0, stream, basis, v, v_ld, first, second, square, next, next_ld, alpha, beta);
  return launched();
}

}  // namespace dif::cuda
