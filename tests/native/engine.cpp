// The engine without Python: passes against differences in double, and runs of chains, for the sanitizers to watch.
#include "cpu/engine.hpp"

#include <cmath>
#include <cstring>
#include <memory>
#include <vector>

#include "check.hpp"
#include "core/philox.hpp"
#include "cpu/batches.hpp"
#include "cpu/kernels.hpp"
#include "cpu/parts.hpp"
#include "programs.hpp"

namespace {

using dif::ProgramOp;
using dif::ProgramValue;

// A Program with its data: 37 rows of floats, of which the first also serve as tokens and classes.
struct Case {
  std::unique_ptr<dif::CompiledProgram> program;
  int64_t dim;
  int64_t x_size, y_size, token_size, class_size;
};

constexpr int64_t n = 37;

Case tied(int32_t hidden) {  // relu(W^T W x + b)
  const std::vector<ProgramValue> values{{1, 6, -1, 0}, {1, hidden, -1, 0}, {1, 6, -1, 0}};
  const std::vector<ProgramOp> ops{operation(dif::op_input, 0), linear(1, 0, 0, -1, dif::act_none),
                                   linear(2, 1, 0, 6 * hidden, dif::act_relu, true)};
  const int64_t dim = 6 * hidden + 6;
  return {std::make_unique<dif::CompiledProgram>(values, ops, std::vector<int32_t>{},
                                                 dif::ProgramLoss{dif::loss_squared, 2, 1.0 / 6, -1}, dim, dim),
          dim,
          8,
          8,
          0,
          0};
}

Case attention() {  // tokens -> embedding -> layer norm -> q, k, v -> causal attention -> residual -> gelu -> classes
  const int32_t t = 5, d = 6, vocabulary = 7;
  const std::vector<ProgramValue> values{{t, d, -1, 0}, {t, d, -1, 0}, {t, 3 * d, -1, 0},
                                         {t, d, 2, 0},  {t, d, 2, d},  {t, d, 2, 2 * d},
                                         {t, d, -1, 0}, {t, d, -1, 0}, {t, vocabulary, -1, 0}};
  int64_t at = 0;
  const auto take = [&at](int64_t count) { return (at += count) - count; };
  ProgramOp embedding = operation(dif::op_embedding, 0);
  embedding.weight = take(vocabulary * d);
  embedding.size = vocabulary;
  ProgramOp norm = operation(dif::op_layer_norm, 1, 0);
  norm.weight = take(d);
  norm.bias = take(d);
  norm.factor = 1e-5;
  const ProgramOp qkv = linear(2, 1, take(3 * d * d), take(3 * d), dif::act_none);
  ProgramOp attend = operation(dif::op_attention, 6, 3, 4, 5);
  attend.heads = 2;
  attend.causal = 1;
  attend.factor = 0.5;
  const ProgramOp sum = operation(dif::op_add, 7, 0, 6);
  const ProgramOp out = linear(8, 7, take(vocabulary * d), take(vocabulary), dif::act_gelu);
  return {std::make_unique<dif::CompiledProgram>(values, std::vector<ProgramOp>{embedding, norm, qkv, attend, sum, out},
                                                 std::vector<int32_t>{},
                                                 dif::ProgramLoss{dif::loss_cross_entropy, 8, 1.0 / t, -1}, at, at),
          at,
          0,
          0,
          t,
          t};
}

std::vector<float> normals(int64_t size, uint32_t step) {
  std::vector<float> out(static_cast<size_t>(size));
  dif::kernels().normals(out.data(), 0, size, {7, 0, step, dif::Stream::probes});
  return out;
}

template <class T>
struct Rows {
  std::vector<T> x;
  std::vector<int32_t> integers;
  dif::Data<T> data;
  explicit Rows(const Case& c) : integers(static_cast<size_t>(n * 8)) {
    for (const float v : normals(n * 8 + 4, 1)) x.push_back(static_cast<T>(v));
    for (size_t i = 0; i < integers.size(); ++i) integers[i] = static_cast<int32_t>(i * 5 % 7);
    data = {{x.data(), x.data(), integers.data(), integers.data(), c.x_size, c.y_size, c.token_size, c.class_size,
             nullptr, 0},
            n};
  }
};

std::vector<int32_t> some_samples(int64_t count) {
  dif::Batches batches(dif::batch_independent, 3, 0, n, count, 1);
  const int32_t* index = batches.at(0);
  return std::vector<int32_t>(index, index + count);
}

// Scratch memory of a plan, on cache lines as the engine's own is.
template <class T>
struct Scratch {
  std::vector<T> memory;
  T* p;
  explicit Scratch(const dif::Plan& plan) : memory(static_cast<size_t>(plan.scratch + 64)) {
    p = reinterpret_cast<T*>((reinterpret_cast<uintptr_t>(memory.data()) + 63) / 64 * 64);
  }
};

double loss_at(const Case& c, const std::vector<double>& w, const std::vector<int32_t>& index) {
  const dif::Plan& plan = c.program->plan(dif::layout_matrix);
  Rows<double> rows(c);
  dif::Batch<double> batch = rows.data.rows;
  batch.index = index.data();
  batch.count = static_cast<int64_t>(index.size());
  Scratch<double> scratch(plan);
  std::vector<double> losses(index.size());
  return dif::matrix_pass_f64(plan, w.data(), batch, nullptr, scratch.p, losses.data()) /
         static_cast<double>(index.size());
}

// Gradients of every layout and instruction set against central differences of the double loss.
void check_gradients(const Case& c, int64_t count) {
  const std::vector<int32_t> index = some_samples(count);
  const std::vector<float> w = normals(c.dim, 2);
  Rows<float> rows(c);
  dif::Batch<float> batch = rows.data.rows;
  batch.index = index.data();
  batch.count = count;
  std::vector<double> expected, wide(w.begin(), w.end());
  for (int64_t i = 0; i < c.dim; ++i) {
    const auto k = static_cast<size_t>(i);
    // Truncation h^2 and rounding 1e-16 / h are both far below float32's rounding.
    const double h = 1e-5, old = wide[k];
    wide[k] = old + h;
    const double above = loss_at(c, wide, index);
    wide[k] = old - h;
    expected.push_back((above - loss_at(c, wide, index)) / (2 * h));
    wide[k] = old;
  }
  double norm = 0;
  for (const double x : expected) norm += x * x;
  const auto close = [&](const float* g, int64_t step) {
    double error = 0;
    for (int64_t i = 0; i < c.dim; ++i)
      error += std::pow(static_cast<double>(g[i * step]) - expected[static_cast<size_t>(i)], 2);
    return std::sqrt(error) <= 1e-4 * std::sqrt(norm) + 1e-6;
  };
  for (int isa = 0; const dif::Kernels* k = dif::available(isa); ++isa) {
    CHECK(dif::use_kernels(k->name));
    std::vector<float> g(static_cast<size_t>(c.dim));
    std::vector<double> losses(static_cast<size_t>(count));
    const double want = loss_at(c, wide, index) * static_cast<double>(count);
    for (const auto layout : {dif::layout_matrix, dif::layout_samples}) {
      if (layout == dif::layout_samples && c.program->layout(dif::batch_full) != layout) continue;
      const dif::Plan& plan = c.program->plan(layout);
      Scratch<float> scratch(plan);
      const auto pass = layout == dif::layout_matrix ? dif::engine_kernels().matrix : dif::engine_kernels().samples;
      const double loss = pass(plan, w.data(), batch, g.data(), scratch.p, losses.data());
      CHECK(std::fabs(loss - want) <= 1e-5 * std::fabs(want));
      CHECK(close(g.data(), 1));
    }
    if (c.program->layout(dif::batch_shared) != dif::layout_chains) continue;
    const dif::Plan& plan = c.program->plan(dif::layout_chains);
    Scratch<float> scratch(plan);
    std::vector<float> w16(static_cast<size_t>(16 * c.dim)), g16(w16.size());
    for (size_t i = 0; i < w16.size(); ++i) w16[i] = w[i / 16];
    double sums[16];
    dif::engine_kernels().chains(plan, w16.data(), batch, g16.data(), scratch.p, sums);
    CHECK(std::fabs(sums[3] - want) <= 1e-5 * std::fabs(want));
    CHECK(close(g16.data() + 3, 16));
  }
}

struct Result {
  std::vector<float> w;
  std::vector<double> loss, baseline, energy, gauge;
  std::vector<int64_t> diverged;
};

Result run(const Case& c, int32_t mode, int64_t chains, int threads, double lr, int64_t cut) {
  const int64_t draws = 5, steps = 10;
  const Rows<float> rows(c);
  const std::vector<float> center = normals(c.dim, 2);
  const auto count = static_cast<size_t>(chains);
  const std::vector<double> rate(count, lr), pull(count, 1.0), nbeta(count, 10.0),
      baseline(static_cast<size_t>(n), 0.5);
  std::vector<uint8_t> mask(static_cast<size_t>(c.dim), 1);
  mask[1] = 0;
  Result r{{}, std::vector<double>(count * draws, -1), {}, {}, {}, std::vector<int64_t>(count, -1)};
  r.baseline = r.energy = r.gauge = r.loss;
  for (size_t i = 0; i < count; ++i) r.w.insert(r.w.end(), center.begin(), center.end());
  dif::SamplerSettings sampler{};  // SGLD
  sampler.box = HUGE_VAL;
  const dif::RunSettings settings{chains,
                                  0,
                                  11,
                                  mode,
                                  mode == dif::batch_full ? n : 9,
                                  1,
                                  2,
                                  rate.data(),
                                  pull.data(),
                                  nbeta.data(),
                                  center.data(),
                                  0,
                                  mask.data(),
                                  nullptr,
                                  baseline.data(),
                                  sampler};
  std::vector<double> mean(count * static_cast<size_t>(c.dim)), scatter(mean);
  const dif::Trace trace{r.loss.data(), r.baseline.data(), r.energy.data(), r.gauge.data(),
                         draws,         mean.data(),       scatter.data()};
  for (int64_t t = 0; t < steps; t += cut) {
    dif::run_chains(*c.program, rows.data, settings, r.w.data(), c.dim, t, t + cut < steps ? cut : steps - t, trace,
                    r.diverged.data(), threads);
  }
  return r;
}

bool same(const Result& a, const Result& b) {
  return std::memcmp(a.w.data(), b.w.data(), a.w.size() * sizeof(float)) == 0 && a.loss == b.loss &&
         a.baseline == b.baseline && a.energy == b.energy && a.diverged == b.diverged;
}

void check_runs(const Case& c) {
  for (const int32_t mode : {dif::batch_independent, dif::batch_shared, dif::batch_epoch, dif::batch_full}) {
    const Result whole = run(c, mode, 18, 1, 1e-3, 10);
    CHECK(same(whole, run(c, mode, 18, 2, 1e-3, 3)));
    for (const double x : whole.loss) CHECK(std::isfinite(x) && x > 0);
    for (const double x : whole.baseline) CHECK(std::fabs(x - 0.5) < 1e-12);
    CHECK(whole.w[1] == normals(c.dim, 2)[1]);
    const Result wild = run(c, mode, 18, 2, 1e32, 4);
    for (const int64_t t : wild.diverged) CHECK(t > 0);
  }
}

}  // namespace

// Threads that share a batch: the bits of one thread, at any number of parts.
void check_parts(const Case& c, dif::Layout layout) {
  const Rows<float> rows(c);
  const std::vector<float> w = normals(c.dim, 2);
  const std::vector<int32_t> index = some_samples(103);
  dif::Batch<float> batch = rows.data.rows;
  batch.index = index.data();
  batch.count = 103;
  const auto pass = layout == dif::layout_matrix ? dif::engine_kernels().matrix : dif::engine_kernels().samples;
  dif::Plan plan = c.program->plan(layout);
  Scratch<float> scratch(plan);
  std::vector<double> losses(103);
  std::vector<float> whole(static_cast<size_t>(c.dim)), alone(whole.size());
  const double want = pass(plan, w.data(), batch, whole.data(), scratch.p, losses.data());
  for (const int64_t part : {200, 40, 16, 3}) {
    plan.part = part;
    const double sum = dif::PartedPass(plan, pass, 103, 1).run(w.data(), batch, alone.data());
    CHECK(std::fabs(sum - want) <= 1e-6 * std::fabs(want));
    double off = 0, size = 0;
    for (size_t i = 0; i < whole.size(); ++i) {
      off += std::pow(static_cast<double>(alone[i] - whole[i]), 2);
      size += std::pow(static_cast<double>(whole[i]), 2);
    }
    CHECK(off <= 1e-10 * size);
    for (const int threads : {2, 3}) {
      dif::PartedPass shared(plan, pass, 103, threads);
      for (int again = 0; again < 3; ++again) {
        std::vector<float> g(whole.size());
        CHECK(shared.run(w.data(), batch, g.data()) == sum);
        CHECK(std::memcmp(g.data(), alone.data(), sizeof(float) * g.size()) == 0);
      }
    }
  }
}

int main() {
  check_parts(tied(2), dif::layout_samples);
  check_parts(tied(35), dif::layout_matrix);
  check_parts(attention(), dif::layout_matrix);
  for (const int64_t count : {1, 16, 33}) {
    check_gradients(tied(2), count);
    check_gradients(tied(35), count);
    check_gradients(attention(), count);
  }
  check_gradients(tied(2), 300);  // more than one block
  for (int i = 0; const dif::Kernels* k = dif::available(i); ++i) {
    CHECK(dif::use_kernels(k->name));
    check_runs(tied(2));
    check_runs(tied(35));
    check_runs(attention());
  }
  return check::summary("engine");
}
