// Curvature without Python: Hessian products against differences of gradients in double, Gram against Fisher, and
// Gram-Schmidt, on every instruction set, for the sanitizers to watch.
#include "cpu/curvature.hpp"

#include <cmath>
#include <memory>
#include <vector>

#include "check.hpp"
#include "core/philox.hpp"
#include "cpu/kernels.hpp"
#include "cpu/lanczos.hpp"
#include "programs.hpp"

namespace {

using dif::ProgramOp;
using dif::ProgramValue;

constexpr int64_t n = 23, features = 6;

struct Case {
  std::unique_ptr<dif::CompiledProgram> program;
  int64_t dim, tokens;
};

Case tied() {  // silu(W^T tanh(W x) + b), squared error against x
  const std::vector<ProgramValue> values{{1, 6, -1, 0}, {1, 17, -1, 0}, {1, 6, -1, 0}};
  const std::vector<ProgramOp> ops{operation(dif::op_input, 0), linear(1, 0, 0, -1, dif::act_tanh),
                                   linear(2, 1, 0, 6 * 17, dif::act_silu, true)};
  const int64_t dim = 6 * 17 + 6;
  return {std::make_unique<dif::CompiledProgram>(values, ops, std::vector<int32_t>{},
                                                 dif::ProgramLoss{dif::loss_squared, 2, 1.0 / 6, -1}, dim, dim),
          dim, 0};
}

Case attention() {  // tokens, positions, layer norm, causal attention, residual, RMS norm, gelu, reversed rows
  const int32_t t = 5, d = 6, vocabulary = 7;
  std::vector<ProgramValue> values(9, {t, d, -1, 0});
  values[3] = {t, 3 * d, -1, 0};
  for (int32_t i = 0; i < 3; ++i) values.push_back({t, d, 3, i * d});
  values[8] = {t, vocabulary, -1, 0};
  int64_t at = 0;
  const auto take = [&at](int64_t count) { return (at += count) - count; };
  ProgramOp embedding = operation(dif::op_embedding, 0), position = operation(dif::op_position, 1, 0),
            norm = operation(dif::op_layer_norm, 2, 1), attend = operation(dif::op_attention, 4, 9, 10, 11),
            rms = operation(dif::op_rms_norm, 6, 5), gather = operation(dif::op_gather, 7, 6);
  embedding.weight = take(vocabulary * d);
  embedding.size = vocabulary;
  position.weight = take(t * d);
  position.size = t;
  norm.weight = take(d);
  norm.bias = take(d);
  norm.factor = rms.factor = 1e-2;
  const ProgramOp qkv = linear(3, 2, take(3 * d * d), take(3 * d), dif::act_none);
  attend.heads = 2;
  attend.causal = 1;
  attend.factor = 0.5;
  rms.weight = take(d);
  std::vector<int32_t> map;
  for (int32_t e = 0; e < t * d; ++e) map.push_back(e % 4 == 3 ? -1 : t * d - 1 - e);
  const ProgramOp out = linear(8, 7, take(vocabulary * d), take(vocabulary), dif::act_gelu);
  return {
      std::make_unique<dif::CompiledProgram>(values,
                                             std::vector<ProgramOp>{embedding, position, norm, qkv, attend,
                                                                    operation(dif::op_add, 5, 1, 4), rms, gather, out},
                                             map, dif::ProgramLoss{dif::loss_cross_entropy, 8, 1.0 / t, -1}, at, at),
      at, t};
}

template <class T>
std::vector<T> normals(int64_t size, uint32_t step) {
  std::vector<float> out(static_cast<size_t>(size));
  dif::kernels().normals(out.data(), 0, size, {7, 0, step, dif::Stream::probes});
  return {out.begin(), out.end()};
}

template <class T>
struct Rows {
  std::vector<T> x = normals<T>(n * features, 1);
  std::vector<int32_t> tokens, index;
  dif::Data<T> data;
  explicit Rows(const Case& c) {
    for (int32_t i = 0; i < n * 8; ++i) tokens.push_back(i * 5 % 7);
    for (int32_t i = 0; i < n; ++i) index.push_back(i * 3 % n);
    data = {{x.data(), x.data(), tokens.data(), tokens.data(), features, features, c.tokens, c.tokens, nullptr, 0}, n};
  }
};

template <class T>
std::unique_ptr<dif::Curvature<T>> curvature(const Case& c, const Rows<T>& rows, const std::vector<T>& w, int64_t cache,
                                             int threads) {
  return std::make_unique<dif::Curvature<T>>(*c.program, rows.data, rows.index.data(), n, w.data(),
                                             static_cast<int64_t>(w.size()) / c.dim, cache, threads);
}

template <class T>
std::vector<T> product(dif::Curvature<T>& at, dif::Product kind, const std::vector<T>& v, int64_t probes, int threads) {
  std::vector<T> out(v.size());
  at.product(kind, v.data(), probes, out.data(), threads);
  return out;
}

double distance(const std::vector<double>& a, const std::vector<double>& b) {
  double square = 0, norm = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    square += (a[i] - b[i]) * (a[i] - b[i]);
    norm += b[i] * b[i];
  }
  return std::sqrt(square / norm);
}

// H v = (g(w + h v) - g(w - h v)) / 2 h up to h^2 and 1e-16 / h; g (H v) by Fisher's own meaning from the Gram matrix.
void check_double(const Case& c) {
  const Rows<double> rows(c);
  std::vector<double> w = normals<double>(c.dim, 2);
  const std::vector<double> v = normals<double>(c.dim, 3);
  for (double& x : w) x *= 0.5;
  const double h = 1e-5;
  std::vector<double> expected(v.size()), moved(w);
  for (const double sign : {1.0, -1.0}) {
    for (size_t i = 0; i < w.size(); ++i) moved[i] = w[i] + sign * h * v[i];
    const auto at = curvature(c, rows, moved, 1 << 24, 1);
    for (size_t i = 0; i < w.size(); ++i) expected[i] += sign * at->gradient()[i] / (2 * h);
  }
  const auto at = curvature(c, rows, w, 1 << 24, 1);
  CHECK(distance(product(*at, dif::product_hessian, v, 1, 1), expected) < 1e-7);
  // trace of the Gram matrix = trace of the Fisher matrix
  std::vector<double> gram(static_cast<size_t>(n * n));
  at->gram(gram.data(), 1);
  std::vector<double> eye(static_cast<size_t>(c.dim * c.dim));
  for (int64_t i = 0; i < c.dim; ++i) eye[static_cast<size_t>(i * (c.dim + 1))] = 1.0;
  const std::vector<double> fisher = product(*at, dif::product_fisher, eye, c.dim, 2);
  double one = 0, two = 0;
  for (int64_t i = 0; i < n; ++i) one += gram[static_cast<size_t>(i * (n + 1))];
  for (int64_t i = 0; i < c.dim; ++i) two += fisher[static_cast<size_t>(i * (c.dim + 1))];
  CHECK(std::fabs(one - two) <= 1e-12 * two);
}

// Every instruction set, threads, no cache: the same bits, for a stack of checkpoints.
void check_bits(const Case& c) {
  const Rows<float> rows(c);
  const std::vector<float> w = normals<float>(3 * c.dim, 4), v = normals<float>(3 * 6 * c.dim, 5);
  std::vector<std::vector<float>> answers;
  for (int isa = 0; const dif::Kernels* k = dif::available(isa); ++isa) {
    CHECK(dif::use_kernels(k->name));
    for (const int threads : {1, 2}) {
      const auto at = curvature(c, rows, w, threads == 1 ? 1 << 24 : 0, threads);
      CHECK(at->cached() == (threads == 1 ? at->states() : 0));
      std::vector<float> all, gram(static_cast<size_t>(3 * n * n));
      for (const auto kind : {dif::product_hessian, dif::product_ggn, dif::product_fisher}) {
        const std::vector<float> part = product(*at, kind, v, 6, threads);
        all.insert(all.end(), part.begin(), part.end());
      }
      at->gram(gram.data(), threads);
      all.insert(all.end(), gram.begin(), gram.end());
      answers.push_back(all);
    }
  }
  dif::use_kernels("");
  for (const auto& answer : answers) CHECK(answer == answers[0]);
}

template <class T>
void check_gram_schmidt(int64_t dim) {
  const int64_t chains = 2, m = 5;
  const double eps = sizeof(T) == 4 ? 6e-8 : 1.2e-16;
  for (int isa = 0; const dif::Kernels* k = dif::available(isa); ++isa) {
    CHECK(dif::use_kernels(k->name));
    std::vector<T> basis = normals<T>(chains * m * dim, 6);
    std::vector<double> gram(static_cast<size_t>(chains * m * m)), coefficients(static_cast<size_t>(chains * m)),
        norms(static_cast<size_t>(chains));
    for (int64_t j = 0; j < m; ++j) {  // each vector against those before it
      const dif::GramSchmidt<T> at{basis.data() + j * dim,
                                   basis.data(),
                                   gram.data(),
                                   coefficients.data(),
                                   norms.data(),
                                   chains,
                                   dim,
                                   j,
                                   j > 0 ? j - 1 : 0,
                                   m * dim,
                                   m * dim,
                                   dim,
                                   m * m,
                                   m,
                                   m};
      std::vector<double> work(static_cast<size_t>(dif::gram_schmidt_work(at)));
      dif::gram_schmidt(at, work.data(), 2);
    }
    for (int64_t c = 0; c < chains; ++c) {
      for (int64_t i = 0; i < m; ++i) {
        for (int64_t j = 0; j <= i; ++j) {
          // Wider than the sums under test, whose own rounding would else be a multiple of sqrt(dim) eps.
          long double dot = 0;
          for (int64_t e = 0; e < dim; ++e) {
            dot += static_cast<long double>(basis[static_cast<size_t>((c * m + i) * dim + e)]) *
                   static_cast<long double>(basis[static_cast<size_t>((c * m + j) * dim + e)]);
          }
          CHECK(std::fabs(static_cast<double>(dot - (i == j))) <= 8 * eps);
        }
      }
    }
  }
  dif::use_kernels("");
}

void check_signs() {
  const int64_t dim = 8300;
  std::vector<float> signs(static_cast<size_t>(2 * dim));
  const std::vector<float> x = normals<float>(2 * dim, 8);
  dif::rademacher(signs.data(), 2, dim, dim, 3, 0, 1, 2);
  double dots[2];
  dif::rademacher_dot(x.data(), 2, dim, dim, 3, 0, 1, dots, 2);
  for (size_t p = 0; p < 2; ++p) {
    double sum = 0;
    for (size_t i = 0; i < static_cast<size_t>(dim); ++i) {
      const size_t e = p * static_cast<size_t>(dim) + i;
      CHECK(std::fabs(signs[e]) == 1.0f);
      sum += static_cast<double>(signs[e]) * static_cast<double>(x[e]);
    }
    CHECK(std::fabs(sum - dots[p]) <= 1e-10);
  }
}

}  // namespace

int main() {
  check_double(tied());
  check_double(attention());
  check_bits(tied());
  check_bits(attention());
  for (const int64_t dim : {7, 33, 2100, 8300}) {
    check_gram_schmidt<float>(dim);
    check_gram_schmidt<double>(dim);
  }
  check_signs();
  return check::summary("curvature");
}
