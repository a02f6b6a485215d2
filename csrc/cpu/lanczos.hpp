// Gram-Schmidt of one new vector against a basis, for many chains at once, and random signs with an address.
//
// Two passes of classical Gram-Schmidt, u <- u - Q^T Q u twice, have together the coefficients
//   c = (2 I - G) Q u,  G = Q Q^T,
// so a known G saves the second pass its reading: the basis is read once for Q u (and for the newest row of G), once
// for u - Q^T c. Products and sums are double: G differs from the identity by the basis's own rounding, and what c
// leaves over is of its square. With float vectors the result is orthogonal up to its rounding. Double vectors have no
// wider sums to lean on: where most of u cancels, the rounding of Q u itself is left over, so all of it is done twice.
// Sources: Giraud, Langou, Rozloznik (2005) for two passes being enough; the identity is theirs written out.
#pragma once
#include <cstdint>

namespace dif {

template <class T>
struct GramSchmidt {
  T* u;            // (chains, dim), row stride u_ld: replaced by the orthogonal part, divided by its norm
  const T* basis;  // (chains, ., dim), rows nearly orthonormal; strides chain_ld, vector_ld
  double* gram;    // (chains, ., .), strides gram_chain_ld, gram_ld: G; rows and columns from `known` on are written
  double* coefficients;  // (chains, count), row stride coefficients_ld
  double* norms;         // (chains): of the orthogonal part; where 0, u is left 0
  int64_t chains, dim, count, known;
  int64_t u_ld, chain_ld, vector_ld, gram_chain_ld, gram_ld, coefficients_ld;
};

// Doubles of working memory.
template <class T>
int64_t gram_schmidt_work(const GramSchmidt<T>&);
// The bits do not depend on threads, other chains or the instruction set.
template <class T>
void gram_schmidt(const GramSchmidt<T>&, double* work, int threads);

// Signs +1 and -1: coordinate i of probe p has bit i % 32 of word i / 32 (word i / 32 % 4 of quad i / 128) at (seed, p,
// step, stream 3); a set bit is -1. Never stored where only sums of them are wanted:
//   rademacher      out (probes, dim) dense
//   rademacher_dot  out (probes) = sum_i sign_i x_i, x (probes, dim) with row stride x_ld, in double
template <class T>
void rademacher(T* out, int64_t probes, int64_t dim, int64_t ld, uint64_t seed, uint32_t first_probe, uint32_t step,
                int threads);
template <class T>
void rademacher_dot(const T* x, int64_t probes, int64_t dim, int64_t x_ld, uint64_t seed, uint32_t first_probe,
                    uint32_t step, double* out, int threads);

// What an instruction set offers, on one block of coordinates.
template <class T>
struct LanczosKernels {
  // out[r * count + i] = sum q_i x_r over the first size coordinates, for i < limits[r]; q (count, .) with stride ld.
  void (*dots)(const T* q, int64_t ld, int64_t count, const T* const* x, const int64_t* limits, int64_t vectors,
               int64_t size, double* out);
  // u <- u - sum c_i q_i, returns the sum of its squares.
  double (*subtract)(T* u, const T* q, int64_t ld, int64_t count, const double* c, int64_t size);
};

struct LanczosIsa {
  const char* name;
  LanczosKernels<float> f32;
  LanczosKernels<double> f64;
};

extern const LanczosIsa lanczos_baseline, lanczos_avx2, lanczos_avx512;

}  // namespace dif
