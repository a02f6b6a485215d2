// Programs, passes over them, and runs of whole chains.
#include "cpu/engine.hpp"

#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <memory>
#include <new>
#include <tuple>
#include <vector>

#include "bind/bind.hpp"
#include "bind/data.hpp"
#include "cpu/chain_losses.hpp"

namespace py = pybind11;

namespace {

using dif::CompiledProgram;
using Integers = std::vector<int64_t>;
// (kind, leapfrog, beta1, beta2, epsilon, adapt, inertia, box) and addresses of (friction, thermostat, first, second,
// anchor), with the row stride of the two in between: SamplerSettings
using SamplerTuple = std::tuple<int32_t, int32_t, double, double, double, int64_t, double, double, uintptr_t, uintptr_t,
                                uintptr_t, uintptr_t, int64_t, uintptr_t>;

dif::SamplerSettings sampler_of(const SamplerTuple& s) {
  return {std::get<0>(s),
          std::get<1>(s),
          std::get<2>(s),
          std::get<3>(s),
          std::get<4>(s),
          std::get<5>(s),
          std::get<6>(s),
          std::get<7>(s),
          reinterpret_cast<const double*>(std::get<8>(s)),
          reinterpret_cast<double*>(std::get<9>(s)),
          reinterpret_cast<float*>(std::get<10>(s)),
          reinterpret_cast<float*>(std::get<11>(s)),
          std::get<12>(s),
          reinterpret_cast<const float*>(std::get<13>(s))};
}

// An operation is 13 integers in the order of ProgramOp, and its factor.
std::unique_ptr<CompiledProgram> make(const std::vector<std::array<int32_t, 4>>& values,
                                      const std::vector<std::pair<std::array<int64_t, 13>, double>>& ops,
                                      std::vector<int32_t> maps,
                                      const std::tuple<int32_t, int32_t, double, int64_t>& loss, int64_t dim,
                                      int64_t total) {
  std::vector<dif::ProgramValue> v;
  for (const auto& x : values) v.push_back({x[0], x[1], x[2], x[3]});
  std::vector<dif::ProgramOp> o;
  for (const auto& [x, factor] : ops) {
    const auto n = [&x](size_t i) { return static_cast<int32_t>(x[i]); };
    o.push_back({n(0), n(1), n(2), n(3), n(4), n(5), x[6], x[7], x[8], n(9), n(10), n(11), n(12), factor});
  }
  const auto [kind, prediction, factor, importance] = loss;
  return std::make_unique<CompiledProgram>(std::move(v), std::move(o), std::move(maps),
                                           dif::ProgramLoss{kind, prediction, factor, importance}, dim, total);
}

template <class T>
void pass(dif::Pass<T> run, const dif::Plan& plan, uintptr_t w, const DataTuple& data, uintptr_t index, int64_t count,
          uintptr_t g, uintptr_t losses) {
  const py::gil_scoped_release unlocked;
  dif::Batch<T> batch = data_of<T>(data).rows;
  batch.index = reinterpret_cast<const int32_t*>(index);
  batch.count = count;
  std::vector<T> scratch(static_cast<size_t>(plan.scratch + 16));
  // Rows start on cache lines, as the plan lays them out.
  auto* s = reinterpret_cast<T*>((reinterpret_cast<uintptr_t>(scratch.data()) + 63) / 64 * 64);
  run(plan, reinterpret_cast<const T*>(w), batch, reinterpret_cast<T*>(g), s, reinterpret_cast<double*>(losses));
}

}  // namespace

void bind_engine(py::module_& m) {
  py::class_<CompiledProgram>(m, "Program", "A model as a list of operations, laid out in memory.")
      .def(py::init(&make), py::arg("values"), py::arg("ops"), py::arg("maps"), py::arg("loss"), py::arg("dim"),
           py::arg("total"))
      .def(
          "layout", [](const CompiledProgram& p, int32_t mode) { return static_cast<int32_t>(p.layout(mode)); },
          py::arg("mode"), "0 matrix, 1 samples in the lanes, 2 chains in the lanes.")
      .def(
          "scratch",
          [](const CompiledProgram& p, int32_t layout) { return p.plan(static_cast<dif::Layout>(layout)).scratch; },
          py::arg("layout"), "Floats that a thread needs beside a chain's own vectors.")
      .def(
          "pass_f32",
          [](const CompiledProgram& p, int32_t layout, uintptr_t w, const DataTuple& data, uintptr_t index,
             int64_t count, uintptr_t g, uintptr_t losses) {
            const dif::EngineKernels& k = dif::engine_kernels();
            pass<float>(layout == dif::layout_matrix ? k.matrix : k.samples, p.plan(static_cast<dif::Layout>(layout)),
                        w, data, index, count, g, losses);
          },
          py::arg("layout"), py::arg("w"), py::arg("data"), py::arg("index"), py::arg("count"), py::arg("g"),
          py::arg("losses"), "losses (count), g (total) or null, at w (total), in the layout 0 or 1.")
      .def(
          "pass_f64",
          [](const CompiledProgram& p, uintptr_t w, const DataTuple& data, uintptr_t index, int64_t count, uintptr_t g,
             uintptr_t losses) {
            pass<double>(dif::matrix_pass_f64, p.plan(dif::layout_matrix), w, data, index, count, g, losses);
          },
          py::arg("w"), py::arg("data"), py::arg("index"), py::arg("count"), py::arg("g"), py::arg("losses"),
          "The same in double.")
      .def(
          "chain_losses",
          [](const CompiledProgram& p, const DataTuple& data, uintptr_t w, int64_t w_ld, int64_t chains,
             uintptr_t frozen, uintptr_t index, int64_t count, uintptr_t losses, uintptr_t g, int64_t g_ld,
             int threads) {
            const py::gil_scoped_release unlocked;
            const dif::ChainRows rows{reinterpret_cast<const float*>(w), w_ld, chains,
                                      reinterpret_cast<const float*>(frozen)};
            dif::chain_losses(p, data_of<float>(data), rows, reinterpret_cast<const int32_t*>(index), count,
                              reinterpret_cast<double*>(losses), count, reinterpret_cast<float*>(g), g_ld, threads);
          },
          py::arg("data"), py::arg("w"), py::arg("w_ld"), py::arg("chains"), py::arg("frozen"), py::arg("index"),
          py::arg("count"), py::arg("losses"), py::arg("g"), py::arg("g_ld"), py::arg("threads"),
          "losses (chains, count) of chains w (chains, dim), and unless g is 0 the gradients of their means.")
      .def(
          "run",
          [](const CompiledProgram& p, const DataTuple& data, int64_t chains, uint32_t first_chain, uint64_t seed,
             int32_t mode, int64_t batch_size, int64_t burn_in, int64_t thin, uintptr_t lr, uintptr_t localization,
             uintptr_t nbeta, uintptr_t center, int64_t center_ld, uintptr_t mask, uintptr_t frozen, uintptr_t baseline,
             uintptr_t w, int64_t w_ld, int64_t first_step, int64_t steps, uintptr_t trace_loss,
             uintptr_t trace_baseline, uintptr_t trace_energy, uintptr_t trace_gauge, int64_t trace_ld,
             uintptr_t diverged, uintptr_t mean, uintptr_t scatter, const SamplerTuple& sampler, int threads) {
            const py::gil_scoped_release unlocked;
            const dif::RunSettings settings{chains,
                                            first_chain,
                                            seed,
                                            mode,
                                            batch_size,
                                            burn_in,
                                            thin,
                                            reinterpret_cast<const double*>(lr),
                                            reinterpret_cast<const double*>(localization),
                                            reinterpret_cast<const double*>(nbeta),
                                            reinterpret_cast<const float*>(center),
                                            center_ld,
                                            reinterpret_cast<const uint8_t*>(mask),
                                            reinterpret_cast<const float*>(frozen),
                                            reinterpret_cast<const double*>(baseline),
                                            sampler_of(sampler)};
            const dif::Trace trace{reinterpret_cast<double*>(trace_loss),
                                   reinterpret_cast<double*>(trace_baseline),
                                   reinterpret_cast<double*>(trace_energy),
                                   reinterpret_cast<double*>(trace_gauge),
                                   trace_ld,
                                   reinterpret_cast<double*>(mean),
                                   reinterpret_cast<double*>(scatter)};
            dif::run_chains(p, data_of<float>(data), settings, reinterpret_cast<float*>(w), w_ld, first_step, steps,
                            trace, reinterpret_cast<int64_t*>(diverged), threads);
          },
          py::arg("data"), py::arg("chains"), py::arg("first_chain"), py::arg("seed"), py::arg("mode"),
          py::arg("batch_size"), py::arg("burn_in"), py::arg("thin"), py::arg("lr"), py::arg("localization"),
          py::arg("nbeta"), py::arg("center"), py::arg("center_ld"), py::arg("mask"), py::arg("frozen"),
          py::arg("baseline"), py::arg("w"), py::arg("w_ld"), py::arg("first_step"), py::arg("steps"),
          py::arg("trace_loss"), py::arg("trace_baseline"), py::arg("trace_energy"), py::arg("trace_gauge"),
          py::arg("trace_ld"), py::arg("diverged"), py::arg("mean"), py::arg("scatter"), py::arg("sampler"),
          py::arg("threads"), "Advances all chains by `steps` steps.");
  m.attr("LARGE_MODEL") = dif::large_model;
  m.attr("FEW_ROWS") = dif::few_rows;
  m.def(
      "multiply_adds",
      [](int64_t rounds) {
        const py::gil_scoped_release unlocked;
        float out[16] = {0.1f, 0.999f, 1e-3f};
        return dif::engine_kernels().multiply_adds(rounds, out);
      },
      py::arg("rounds"), "Independent fused multiply-adds and nothing else; returns how many flops they are.");
}
