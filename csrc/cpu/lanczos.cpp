#include "cpu/lanczos.hpp"

#include <algorithm>
#include <cmath>
#include <vector>

#include "core/philox.hpp"
#include "cpu/in_use.hpp"
#include "cpu/kernels.hpp"
#include "cpu/parallel.hpp"

namespace dif {
namespace {

const LanczosIsa& isa() { return DIF_IN_USE(lanczos); }

template <class T>
const LanczosKernels<T>& kernels_of() {
  if constexpr (sizeof(T) == 4) {
    return isa().f32;
  } else {
    return isa().f64;
  }
}

int64_t blocks_of(int64_t dim) { return (dim + block_size - 1) / block_size; }

// fn(row, first coordinate, coordinates) for each block of each row.
template <class Fn>
void each_block(int threads, int64_t rows, int64_t dim, Fn fn) {
  const int64_t blocks = blocks_of(dim);
  parallel(threads, rows * blocks, [&](int64_t low, int64_t high) {
    for (int64_t item = low; item < high; ++item) {
      const int64_t first = item % blocks * block_size;
      fn(item / blocks, first, std::min(block_size, dim - first), item);
    }
  });
}

}  // namespace

template <class T>
int64_t gram_schmidt_work(const GramSchmidt<T>& at) {
  return at.chains * blocks_of(at.dim) * (1 + at.count - at.known) * at.count + at.chains * blocks_of(at.dim);
}

namespace {

// u <- u - Q^T c, coefficients (+)= c, norms = |u|.
template <class T>
void project(const GramSchmidt<T>& at, bool onto, double* work, int threads) {
  const LanczosKernels<T>& kernel = kernels_of<T>();
  const int64_t blocks = blocks_of(at.dim), vectors = 1 + at.count - at.known, sums = vectors * at.count;
  double *dots = work, *squares = work + at.chains * blocks * sums;
  each_block(threads, at.chains, at.dim, [&](int64_t chain, int64_t first, int64_t size, int64_t item) {
    const T* q = at.basis + chain * at.chain_ld + first;
    std::vector<const T*> x{at.u + chain * at.u_ld + first};
    std::vector<int64_t> limits{at.count};
    for (int64_t r = at.known; r < at.count; ++r) {
      x.push_back(q + r * at.vector_ld);
      limits.push_back(r + 1);
    }
    kernel.dots(q, at.vector_ld, at.count, x.data(), limits.data(), vectors, size, dots + item * sums);
  });
  const auto count = static_cast<size_t>(at.count);
  std::vector<double> projection(count), c(static_cast<size_t>(at.chains) * count);
  for (int64_t chain = 0; chain < at.chains; ++chain) {
    double* gram = at.gram + chain * at.gram_chain_ld;
    const auto sum = [&](int64_t k) {
      double total = 0.0;
      for (int64_t b = 0; b < blocks; ++b) total += dots[(chain * blocks + b) * sums + k];
      return total;
    };
    for (int64_t r = at.known; r < at.count; ++r) {
      for (int64_t i = 0; i <= r; ++i) {
        gram[r * at.gram_ld + i] = gram[i * at.gram_ld + r] = sum((1 + r - at.known) * at.count + i);
      }
    }
    for (int64_t i = 0; i < at.count; ++i) projection[static_cast<size_t>(i)] = sum(i);
    for (int64_t i = 0; i < at.count; ++i) {
      double again = projection[static_cast<size_t>(i)];  // what the second pass finds
      for (int64_t j = 0; j < at.count; ++j) again -= gram[i * at.gram_ld + j] * projection[static_cast<size_t>(j)];
      const double part = projection[static_cast<size_t>(i)] + again;
      double& total = at.coefficients[chain * at.coefficients_ld + i];
      total = onto ? total + part : part;
      c[static_cast<size_t>(chain * at.count + i)] = part;
    }
  }
  each_block(threads, at.chains, at.dim, [&](int64_t chain, int64_t first, int64_t size, int64_t item) {
    squares[item] = kernel.subtract(at.u + chain * at.u_ld + first, at.basis + chain * at.chain_ld + first,
                                    at.vector_ld, at.count, c.data() + chain * at.count, size);
  });
  for (int64_t chain = 0; chain < at.chains; ++chain) {
    double total = 0.0;
    for (int64_t b = 0; b < blocks; ++b) total += squares[chain * blocks + b];
    at.norms[chain] = std::sqrt(total);
  }
}

}  // namespace

template <class T>
void gram_schmidt(const GramSchmidt<T>& at, double* work, int threads) {
  project(at, false, work, threads);
  if constexpr (sizeof(T) == 8) {
    GramSchmidt<T> again = at;
    again.known = at.count;
    project(again, true, work, threads);
  }
  each_block(threads, at.chains, at.dim, [&](int64_t chain, int64_t first, int64_t size, int64_t) {
    const double inverse = at.norms[chain] > 0.0 ? 1.0 / at.norms[chain] : 0.0;
    T* u = at.u + chain * at.u_ld + first;
    for (int64_t i = 0; i < size; ++i) u[i] = static_cast<T>(inverse * static_cast<double>(u[i]));
  });
}

template <class T>
void rademacher(T* out, int64_t chains, int64_t dim, int64_t ld, uint64_t seed, uint32_t first_probe, uint32_t step,
                int threads) {
  each_block(threads, chains, dim, [&](int64_t row, int64_t first, int64_t size, int64_t) {
    uint32_t words[block_size / 32];
    kernels().words(words, first / 32, (size + 31) / 32,
                    {seed, first_probe + static_cast<uint32_t>(row), step, probes});
    T* to = out + row * ld + first;
    for (int64_t i = 0; i < size; ++i) to[i] = (words[i / 32] >> (i % 32) & 1u) != 0 ? T(-1) : T(1);
  });
}

template <class T>
void rademacher_dot(const T* x, int64_t chains, int64_t dim, int64_t x_ld, uint64_t seed, uint32_t first_probe,
                    uint32_t step, double* out, int threads) {
  const int64_t blocks = blocks_of(dim);
  std::vector<double> parts(static_cast<size_t>(chains * blocks));
  each_block(threads, chains, dim, [&](int64_t row, int64_t first, int64_t size, int64_t item) {
    uint32_t words[block_size / 32];
    kernels().words(words, first / 32, (size + 31) / 32,
                    {seed, first_probe + static_cast<uint32_t>(row), step, probes});
    const T* from = x + row * x_ld + first;
    double sum[32] = {};
    for (int64_t i = 0; i < size; ++i) {
      const double value = static_cast<double>(from[i]);
      sum[i % 32] += (words[i / 32] >> (i % 32) & 1u) != 0 ? -value : value;
    }
    for (int k = 1; k < 32; ++k) sum[0] += sum[k];
    parts[static_cast<size_t>(item)] = sum[0];
  });
  for (int64_t row = 0; row < chains; ++row) {
    out[row] = 0.0;
    for (int64_t b = 0; b < blocks; ++b) out[row] += parts[static_cast<size_t>(row * blocks + b)];
  }
}

#define DIF_LANCZOS_FOR(T)                                                                    \
  template int64_t gram_schmidt_work(const GramSchmidt<T>&);                                  \
  template void gram_schmidt(const GramSchmidt<T>&, double*, int);                            \
  template void rademacher(T*, int64_t, int64_t, int64_t, uint64_t, uint32_t, uint32_t, int); \
  template void rademacher_dot(const T*, int64_t, int64_t, int64_t, uint64_t, uint32_t, uint32_t, double*, int);
DIF_LANCZOS_FOR(float)
DIF_LANCZOS_FOR(double)
#undef DIF_LANCZOS_FOR

}  // namespace dif
