// Two passes of classical Gram-Schmidt of one vector for each chain against that chain's basis, and the scalars of
// Lanczos. As on the CPU (cpu/lanczos.hpp) both passes have together the coefficients c = (2 I - G) Q v, G = Q Q^T, of
// which a step makes the newest row: the basis is read once for Q v and that row, once for v - Q^T c. Products and sums
// are double, in the CPU's order: coordinates of a tile in 32 sums, those halving, tiles of a block of core/blocks.hpp,
// blocks. The bits are the CPU's.
#include "core/blocks.hpp"
#include "cuda/cuda.hpp"
#include "cuda/lanes.cuh"
#include "cuda/launch.cuh"

namespace dif::cuda {

constexpr int threads = 256;
constexpr int warps = threads / warp;
constexpr int tile = 2048;
constexpr int tiles_a_block = static_cast<int>(block_size) / tile;
constexpr int64_t most_vectors = 6000;  // whose products share a block's memory

static int64_t tiles_of(int64_t dim) { return (dim + tile - 1) / tile; }

// A warp's 32 sums, as the CPU adds four registers of eight.
__device__ __forceinline__ double halved(double sum) {
  for (const int lanes : {8, 16, 4, 2, 1}) sum += __shfl_xor_sync(all_lanes, sum, lanes);
  return sum;
}

// Block t * chains + c: tile t of chain c. partial (tiles, chains, 2, vectors) <- its products of all vectors with v
// and with the last vector; a warp a vector.
__global__ void __launch_bounds__(threads) dots_kernel(Basis basis, const float* v, int64_t v_ld, double* partial) {
  DIF_SHARED(float, now, tile);
  DIF_SHARED(float, last, tile);
  const int64_t index = blockIdx.x, chain = index % basis.chains, start = index / basis.chains * tile;
  const int thread = static_cast<int>(threadIdx.x), lane = thread % warp;
  const int size = static_cast<int>(basis.dim - start < tile ? basis.dim - start : tile);
  const float *q = basis.q + chain * basis.chain_ld + start, *newest = q + (basis.vectors - 1) * basis.ld;
  for (int i = thread; i < size; i += threads) {
    now[i] = v[chain * v_ld + start + i];
    last[i] = newest[i];
  }
  __syncthreads();
  for (int64_t j = thread / warp; j < basis.vectors; j += warps) {
    double with_v = 0.0, with_last = 0.0;
    for (int i = lane; i < size; i += warp) {
      const double x = static_cast<double>(q[j * basis.ld + i]);
      with_v += product(x, static_cast<double>(now[i]));  // of two floats: exact
      with_last += product(x, static_cast<double>(last[i]));
    }
    with_v = halved(with_v), with_last = halved(with_last);
    if (lane == 0) {
      partial[2 * index * basis.vectors + j] = with_v;
      partial[(2 * index + 1) * basis.vectors + j] = with_last;
    }
  }
}

// A block a chain. gram: its newest row and column; c (chains, vectors) <- (2 I - G) Q v. Pool: (vectors) doubles.
__global__ void __launch_bounds__(threads)
    coefficients_kernel(const double* partial, int64_t tiles, int64_t chains, int64_t vectors, double* gram,
                        int64_t gram_ld, int64_t gram_chain_ld, double* c) {
  DIF_SHARED_POOL(double, first);
  const int64_t chain = blockIdx.x;
  double* g = gram + chain * gram_chain_ld;
  for (int64_t k = threadIdx.x; k < 2 * vectors; k += threads) {
    double total = 0.0;
    for (int64_t t = 0; t < tiles;) {
      double block = 0.0;
      for (int i = 0; i < tiles_a_block && t < tiles; ++i, ++t)
        block += partial[(t * chains + chain) * 2 * vectors + k];
      total += block;
    }
    const int64_t j = k % vectors;
    if (k < vectors) {
      first[j] = total;
    } else {
      g[(vectors - 1) * gram_ld + j] = g[j * gram_ld + vectors - 1] = total;
    }
  }
  __syncthreads();
  for (int64_t i = threadIdx.x; i < vectors; i += threads) {
    double again = first[i];  // what the second pass finds
    for (int64_t j = 0; j < vectors; ++j) again -= product(g[i * gram_ld + j], first[j]);
    c[chain * vectors + i] = first[i] + again;
  }
}

// Block t * chains + c: v <- v - sum c_j q_j on tile t of chain c.
__global__ void __launch_bounds__(threads) subtract_kernel(Basis basis, float* v, int64_t v_ld, const double* c) {
  constexpr int each = tile / threads;
  const int64_t index = blockIdx.x, chain = index % basis.chains, start = index / basis.chains * tile;
  const int64_t left = basis.dim - start - threadIdx.x;  // of this thread's first coordinate to the end
  const float* q = basis.q + chain * basis.chain_ld + start + threadIdx.x;
  float* row = v + chain * v_ld + start + threadIdx.x;
  double x[each];
  for (int i = 0; i < each; ++i) x[i] = i * threads < left ? static_cast<double>(row[i * threads]) : 0.0;
  for (int64_t j = 0; j < basis.vectors; ++j) {
    const double k = c[chain * basis.vectors + j];
    for (int i = 0; i < each; ++i) {
      if (i * threads < left) x[i] -= product(k, static_cast<double>(q[j * basis.ld + i * threads]));
    }
  }
  for (int i = 0; i < each; ++i) {
    if (i * threads < left) row[i * threads] = static_cast<float>(x[i]);
  }
}

// A warp a block of coordinates, b * chains + c: squares (blocks, chains) <- its sum of squares.
__global__ void __launch_bounds__(warp)
    squares_of_blocks_kernel(const float* v, int64_t v_ld, int64_t dim, int64_t chains, double* squares) {
  const int64_t index = blockIdx.x, chain = index % chains, start = index / chains * block_size;
  const int64_t stop = start + block_size < dim ? start + block_size : dim;
  double sum = 0.0;
  for (int64_t i = start + threadIdx.x; i < stop; i += warp) {
    const double x = static_cast<double>(v[chain * v_ld + i]);
    sum += product(x, x);
  }
  sum = halved(sum);
  if (threadIdx.x == 0) squares[index] = sum;
}

// The next vector of each basis, its length, and the diagonal: beta = |v|, q = v / beta, alpha = c_last.
__global__ void __launch_bounds__(threads)
    normalize_kernel(Basis basis, const float* v, int64_t v_ld, const double* squares, int64_t blocks, const double* c,
                     float* next, int64_t next_ld, double* alpha, double* beta) {
  DIF_SHARED(double, length, 1);
  const int64_t chain = blockIdx.y;
  if (threadIdx.x == 0) {
    double total = 0.0;
    for (int64_t b = 0; b < blocks; ++b) total += squares[b * basis.chains + chain];
    length[0] = sqrt(total);
    if (blockIdx.x == 0) {
      alpha[chain] = basis.vectors > 0 ? c[(chain + 1) * basis.vectors - 1] : 0.0;
      beta[chain] = length[0];
    }
  }
  __syncthreads();
  const double inverse = length[0] > 0.0 ? 1.0 / length[0] : 0.0;
  const int64_t stride = static_cast<int64_t>(gridDim.x) * threads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * threads + threadIdx.x; i < basis.dim; i += stride) {
    next[chain * next_ld + i] = static_cast<float>(product(inverse, static_cast<double>(v[chain * v_ld + i])));
  }
}

static int64_t blocks_of(int64_t dim) { return (dim + block_size - 1) / block_size; }

int64_t orthogonalize_partial(int64_t chains, int64_t vectors, int64_t dim) {
  return 2 * tiles_of(dim) * chains * vectors + blocks_of(dim) * chains;
}

const char* orthogonalize(const Basis& basis, float* v, int64_t v_ld, const Projection& at, void* stream) {
  const int64_t m = basis.vectors, tiles = tiles_of(basis.dim), blocks = tiles * basis.chains;
  if (blocks <= 0) return nullptr;
  if (blocks > most_blocks) return too_many_blocks;
  if (m > most_vectors) return "basis: expected at most 6000 vectors";
  if (m > 0) {
    const auto many = static_cast<unsigned>(blocks), chains = static_cast<unsigned>(basis.chains);
    DIF_LAUNCH(dots_kernel, many, threads, 0, stream, basis, v, v_ld, at.partial);
    if (const char* error = launched()) return error;
    const double* partial = at.partial;
    DIF_LAUNCH(coefficients_kernel, chains, threads, static_cast<size_t>(m) * sizeof(double), stream, partial, tiles,
               basis.chains, m, at.gram, at.gram_ld, at.gram_chain_ld, at.coefficients);
    if (const char* error = launched()) return error;
    const double* c = at.coefficients;
    DIF_LAUNCH(subtract_kernel, many, threads, 0, stream, basis, v, v_ld, c);
    if (const char* error = launched()) return error;
  }
  DIF_LAUNCH(squares_of_blocks_kernel, static_cast<unsigned>(blocks_of(basis.dim) * basis.chains), warp, 0, stream, v,
             v_ld, basis.dim, basis.chains, at.partial);
  return launched();
}

const char* normalize(const Basis& basis, const float* v, int64_t v_ld, const Projection& at, float* next,
                      int64_t next_ld, double* alpha, double* beta, void* stream) {
  if (basis.chains <= 0) return nullptr;
  if (basis.chains > 65535) return too_many_blocks;
  const int64_t parts = blocks_of(basis.dim);
  const int64_t blocks = next && parts > 0 ? parts : 1;  // the scalars at least
  const double *squares = at.partial, *c = at.coefficients;
  Basis written = basis;
  if (!next) written.dim = 0;
  DIF_LAUNCH(normalize_kernel,
             dim3(static_cast<unsigned>(blocks < 65535 ? blocks : 65535), static_cast<unsigned>(basis.chains)), threads,
             0, stream, written, v, v_ld, squares, parts, c, next, next_ld, alpha, beta);
  return launched();
}

}  // namespace dif::cuda
