// devinterp_fast._cuda: the launchers of cuda/cuda.hpp. Each call names its device and its stream, and returns None or
// the text of what went wrong.
#include "cuda/cuda.hpp"

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <cstdint>
#include <cstring>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

namespace py = pybind11;
namespace cuda = dif::cuda;

namespace {

// Classes are module_local: a test loads this module twice, the second built to run without a GPU.

template <class T>
T* at(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

// Runs a launcher on a device, without Python's lock.
template <class Launch>
const char* on(int device, Launch launch) {
  const py::gil_scoped_release unlocked;
  const cuda::OnDevice guard(device);
  return guard.error ? guard.error : launch();
}

using Gradients = std::vector<std::tuple<int64_t, int64_t, uintptr_t, int64_t>>;

void bind_steps(py::module_& m) {
  m.def(
      "sampler_step_f32",
      [](int device, uintptr_t stream, int sampler, uintptr_t w, int64_t w_ld, uintptr_t center, int64_t center_ld,
         uintptr_t mask, int64_t mask_ld, uintptr_t first, uintptr_t second, int64_t state_ld, int64_t chains,
         const Gradients& gradients, uintptr_t coefficients, uintptr_t seed, uintptr_t step, uint32_t first_chain,
         bool noise, uintptr_t partial, uintptr_t work, uintptr_t gauge) {
        return on(device, [&] {
          std::vector<cuda::Gradient> list;
          list.reserve(gradients.size());
          for (const auto& [from, size, g, ld] : gradients) list.push_back({from, size, at<const float>(g), ld});
          return cuda::sampler_step(static_cast<cuda::Sampler>(sampler),
                                    {at<float>(w), w_ld, at<const float>(center), center_ld, at<const uint8_t>(mask),
                                     mask_ld, at<float>(first), at<float>(second), state_ld, chains},
                                    list.data(), static_cast<int64_t>(list.size()), at<const float>(coefficients),
                                    {at<const int64_t>(seed), at<const int64_t>(step), first_chain}, noise,
                                    {at<double>(partial), at<double>(work), at<double>(gauge)}, at<void>(stream));
        });
      },
      py::arg("device"), py::arg("stream"), py::arg("sampler"), py::arg("w"), py::arg("w_ld"), py::arg("center"),
      py::arg("center_ld"), py::arg("mask"), py::arg("mask_ld"), py::arg("first"), py::arg("second"),
      py::arg("state_ld"), py::arg("chains"), py::arg("gradients"), py::arg("coefficients"), py::arg("seed"),
      py::arg("step"), py::arg("first_chain"), py::arg("noise"), py::arg("partial"), py::arg("work"), py::arg("gauge"),
      "One step of `chains` rows; gradients = [(first, size, address, ld), ...].");
  m.def(
      "thermostat_f64",
      [](int device, uintptr_t stream, uintptr_t gauge, int64_t moving, uintptr_t friction, double inertia,
         uintptr_t zeta, uintptr_t coefficients, int64_t chains) {
        return on(device, [&] {
          return cuda::thermostat(at<const double>(gauge), moving, at<const double>(friction), inertia,
                                  at<double>(zeta), at<float>(coefficients), chains, at<void>(stream));
        });
      },
      py::arg("device"), py::arg("stream"), py::arg("gauge"), py::arg("moving"), py::arg("friction"),
      py::arg("inertia"), py::arg("zeta"), py::arg("coefficients"), py::arg("chains"),
      "Friction of langevin for the next step, of each chain.");
  m.def(
      "fill_noise_f32",
      [](int device, uintptr_t stream, int kind, uintptr_t out, int64_t chains, int64_t size, int64_t ld,
         uint32_t stream_number, uintptr_t seed, uintptr_t step, uint32_t first_chain) {
        return on(device, [&] {
          return cuda::fill_noise(static_cast<cuda::Noise>(kind), at<float>(out), chains, size, ld, stream_number,
                                  {at<const int64_t>(seed), at<const int64_t>(step), first_chain}, at<void>(stream));
        });
      },
      py::arg("device"), py::arg("stream"), py::arg("kind"), py::arg("out"), py::arg("chains"), py::arg("size"),
      py::arg("ld"), py::arg("stream_number"), py::arg("seed"), py::arg("step"), py::arg("first_chain"),
      "out (chains, size) <- 0 normals, 1 signs, 2 words.");
  m.def(
      "add_draws_f64",
      [](int device, uintptr_t stream, uintptr_t w, int64_t w_ld, uintptr_t mean, uintptr_t scatter, int64_t ld,
         int64_t chains, int64_t dim, uintptr_t draws) {
        return on(device, [&] {
          return cuda::add_draws({at<const float>(w), w_ld, at<double>(mean), at<double>(scatter), ld, chains, dim},
                                 at<const int64_t>(draws), at<void>(stream));
        });
      },
      py::arg("device"), py::arg("stream"), py::arg("w"), py::arg("w_ld"), py::arg("mean"), py::arg("scatter"),
      py::arg("ld"), py::arg("chains"), py::arg("dim"), py::arg("draws"), "Running mean and scatter of each chain.");
}

void bind_curvature(py::module_& m) {
  m.def(
      "add_gram_f64",
      [](int device, uintptr_t stream, uintptr_t x, uintptr_t d, int64_t samples, int64_t positions, int64_t inputs,
         int64_t outputs, bool bias, uintptr_t gram, int64_t ld) {
        return on(device, [&] {
          return cuda::add_gram({at<const float>(x), at<const float>(d), samples, positions, inputs, outputs, bias},
                                at<double>(gram), ld, at<void>(stream));
        });
      },
      py::arg("device"), py::arg("stream"), py::arg("x"), py::arg("d"), py::arg("samples"), py::arg("positions"),
      py::arg("inputs"), py::arg("outputs"), py::arg("bias"), py::arg("gram"), py::arg("ld"),
      "gram (samples, samples) += products of one layer's per-sample gradients.");
  m.def("orthogonalize_partial", &cuda::orthogonalize_partial, py::arg("chains"), py::arg("vectors"), py::arg("dim"),
        "Doubles that `partial` must hold.");
  m.def(
      "orthogonalize_f32",
      [](int device, uintptr_t stream, uintptr_t basis, int64_t chain_ld, int64_t ld, int64_t chains, int64_t vectors,
         int64_t dim, uintptr_t v, int64_t v_ld, uintptr_t partial, uintptr_t gram, int64_t gram_ld,
         int64_t gram_chain_ld, uintptr_t coefficients) {
        return on(device, [&] {
          return cuda::orthogonalize(
              {at<const float>(basis), chain_ld, ld, chains, vectors, dim}, at<float>(v), v_ld,
              {at<double>(partial), at<double>(gram), gram_ld, gram_chain_ld, at<double>(coefficients)},
              at<void>(stream));
        });
      },
      py::arg("device"), py::arg("stream"), py::arg("basis"), py::arg("chain_ld"), py::arg("ld"), py::arg("chains"),
      py::arg("vectors"), py::arg("dim"), py::arg("v"), py::arg("v_ld"), py::arg("partial"), py::arg("gram"),
      py::arg("gram_ld"), py::arg("gram_chain_ld"), py::arg("coefficients"),
      "Two passes of Gram-Schmidt of each v against its basis.");
  m.def(
      "normalize_f32",
      [](int device, uintptr_t stream, int64_t chains, int64_t vectors, int64_t dim, uintptr_t v, int64_t v_ld,
         uintptr_t partial, uintptr_t coefficients, uintptr_t next, int64_t next_ld, uintptr_t alpha, uintptr_t beta) {
        return on(device, [&] {
          return cuda::normalize({nullptr, 0, 0, chains, vectors, dim}, at<const float>(v), v_ld,
                                 {at<double>(partial), nullptr, 0, 0, at<double>(coefficients)}, at<float>(next),
                                 next_ld, at<double>(alpha), at<double>(beta), at<void>(stream));
        });
      },
      py::arg("device"), py::arg("stream"), py::arg("chains"), py::arg("vectors"), py::arg("dim"), py::arg("v"),
      py::arg("v_ld"), py::arg("partial"), py::arg("coefficients"), py::arg("next"), py::arg("next_ld"),
      py::arg("alpha"), py::arg("beta"), "The next vector of each basis, and the scalars of Lanczos.");
}

// The host's half of the detector: which candidates each step adds, merges and looks at.
class Planner {
 public:
  Planner(int model, int per_octave, int side) : grid_(static_cast<dif::GlrModel>(model), per_octave, side) {}
  py::bytes plan(const std::vector<double>& x, const std::vector<double>& weight, bool own) {
    std::vector<dif::GlrStep> steps(x.size());
    dif::GlrStep before;
    before.blocks = grid_.blocks;
    before.total = grid_.total;
    for (size_t i = 0; i < x.size(); ++i) grid_.advance(x[i], weight[i], steps[i]);
    if (!steps.empty()) last_ = steps.back().walk.size();
    const std::vector<unsigned char> packed = cuda::glr_pack(steps, own ? &before : nullptr);
    return py::bytes(reinterpret_cast<const char*>(packed.data()), packed.size());
  }
  int slots() const { return grid_.slots; }
  int64_t candidates() const { return static_cast<int64_t>(last_); }

 private:
  dif::GlrGrid grid_;
  size_t last_ = 0;
};

cuda::GlrChannels channels_at(int64_t channels, uintptr_t rows, uintptr_t totals, uintptr_t base, uintptr_t statistic,
                              uintptr_t peak, uintptr_t own, uintptr_t own_totals, uintptr_t is_own) {
  return {channels,        at<float>(rows), at<double>(totals),     at<double>(base),   at<float>(statistic),
          at<float>(peak), at<double>(own), at<double>(own_totals), at<int32_t>(is_own)};
}

void bind_detector(py::module_& m) {
  py::class_<Planner>(m, "GlrPlanner", py::module_local(), "Shared candidate times of a detector on a GPU.")
      .def(py::init<int, int, int>(), py::arg("model"), py::arg("per_octave"), py::arg("side"))
      .def("plan", &Planner::plan, py::arg("x"), py::arg("weight"), py::arg("own"),
           "The next steps, packed for the device; own: for channels with weights of their own too.")
      .def_property_readonly("slots", &Planner::slots, "Rows that a channel needs so far.")
      .def_property_readonly("candidates", &Planner::candidates, "That the last planned step looks at.");
  m.def(
      "glr_follow_f32",
      [](int device, uintptr_t stream, int model, int side, int64_t channels, uintptr_t rows, uintptr_t totals,
         uintptr_t base, uintptr_t statistic, uintptr_t peak, uintptr_t own, uintptr_t own_totals, uintptr_t is_own,
         uintptr_t plan, int64_t steps, uintptr_t y, int64_t ld, uintptr_t weights) {
        return on(device, [&] {
          return cuda::glr_follow(static_cast<dif::GlrModel>(model), side,
                                  channels_at(channels, rows, totals, base, statistic, peak, own, own_totals, is_own),
                                  at<const void>(plan), steps, at<const float>(y), ld, at<const double>(weights),
                                  at<void>(stream));
        });
      },
      py::arg("device"), py::arg("stream"), py::arg("model"), py::arg("side"), py::arg("channels"), py::arg("rows"),
      py::arg("totals"), py::arg("base"), py::arg("statistic"), py::arg("peak"), py::arg("own"), py::arg("own_totals"),
      py::arg("is_own"), py::arg("plan"), py::arg("steps"), py::arg("y"), py::arg("ld"), py::arg("weights"),
      "Follows a plan with the observations y (steps, channels).");
  m.def(
      "glr_squares_f32",
      [](int device, uintptr_t stream, int model, int side, int64_t channels, uintptr_t rows, uintptr_t totals,
         uintptr_t base, uintptr_t statistic, uintptr_t peak, uintptr_t own, uintptr_t own_totals, uintptr_t is_own,
         uintptr_t plan, int64_t steps, int64_t candidates, uintptr_t squares) {
        return on(device, [&] {
          return cuda::glr_squares(static_cast<dif::GlrModel>(model), side,
                                   channels_at(channels, rows, totals, base, statistic, peak, own, own_totals, is_own),
                                   at<const void>(plan), steps, candidates, at<float>(squares), at<void>(stream));
        });
      },
      py::arg("device"), py::arg("stream"), py::arg("model"), py::arg("side"), py::arg("channels"), py::arg("rows"),
      py::arg("totals"), py::arg("base"), py::arg("statistic"), py::arg("peak"), py::arg("own"), py::arg("own_totals"),
      py::arg("is_own"), py::arg("plan"), py::arg("steps"), py::arg("candidates"), py::arg("squares"),
      "squares (candidates, channels) of the last step.");
  m.def(
      "glr_reduce_f32",
      [](int device, uintptr_t stream, int64_t groups, uintptr_t members, uintptr_t start, uintptr_t squares,
         int64_t rows, int64_t channels, uintptr_t largest, uintptr_t total, uintptr_t mixture) {
        return on(device, [&] {
          return cuda::glr_reduce({groups, at<const int64_t>(members), at<const int64_t>(start)},
                                  at<const float>(squares), rows, channels, at<double>(largest), at<double>(total),
                                  at<double>(mixture), at<void>(stream));
        });
      },
      py::arg("device"), py::arg("stream"), py::arg("groups"), py::arg("members"), py::arg("start"), py::arg("squares"),
      py::arg("rows"), py::arg("channels"), py::arg("largest"), py::arg("total"), py::arg("mixture"),
      "Sums over groups of channels, (rows, groups) each.");
}

using Values = std::vector<std::array<int32_t, 4>>;
using Ops = std::vector<std::pair<std::array<int64_t, 13>, double>>;
using Loss = std::tuple<int32_t, int32_t, double, int64_t>;

// A Program for a block's shared memory, from the tuples that _cpu.Program takes: laid out by `plan`, which says why
// not.
template <class Layout, class Plan>
Layout laid_out(const Values& values, const Ops& ops, const Loss& loss, Plan plan) {
  std::vector<dif::ProgramValue> v;
  for (const auto& x : values) v.push_back({x[0], x[1], x[2], x[3]});
  std::vector<dif::ProgramOp> o;
  for (const auto& [x, factor] : ops) {
    const auto n = [&x](size_t i) { return static_cast<int32_t>(x[i]); };
    o.push_back({n(0), n(1), n(2), n(3), n(4), n(5), x[6], x[7], x[8], n(9), n(10), n(11), n(12), factor});
  }
  const auto [kind, prediction, factor, importance] = loss;
  Layout layout;
  const char* error = plan(v, o, dif::ProgramLoss{kind, prediction, factor, importance}, layout);
  if (error) throw py::value_error(error);
  return layout;
}

cuda::ResidentPlan resident(const Values& values, const Ops& ops, const Loss& loss, int64_t dim, int64_t total,
                            int64_t batch) {
  return laid_out<cuda::ResidentPlan>(values, ops, loss, [&](const auto& v, const auto& o, const auto& l, auto& plan) {
    return cuda::plan_resident(v, o, l, dim, total, batch, plan);
  });
}

cuda::ResidentProducts products(const Values& values, const Ops& ops, const Loss& loss, int64_t dim, int64_t total) {
  return laid_out<cuda::ResidentProducts>(values, ops, loss,
                                          [&](const auto& v, const auto& o, const auto& l, auto& plan) {
                                            return cuda::plan_products(v, o, l, dim, total, plan);
                                          });
}

void bind_products(py::module_& m) {
  using Products = cuda::ResidentProducts;
  py::class_<Products>(m, "ResidentProducts", py::module_local(),
                       "Products with the Hessian of a small Program that run in shared memory.")
      .def(py::init(&products), py::arg("values"), py::arg("ops"), py::arg("loss"), py::arg("dim"), py::arg("total"))
      .def_static(
          "unpacked",
          [](uintptr_t address) {
            Products plan;
            std::memcpy(&plan, at<const void>(address), sizeof plan);
            return plan;
          },
          py::arg("address"), "What `packed` gave, from the processor's memory.")
      .def(
          "packed", [](const Products& p) { return py::bytes(reinterpret_cast<const char*>(&p), sizeof p); },
          "The plan as bytes.")
      .def("segments", &cuda::product_segments, py::arg("n"), "Parts that n samples are summed in.")
      .def_property_readonly("shared_bytes", [](const Products& p) { return p.values.shared_bytes; })
      .def_readonly("tile", &Products::tile, "Samples at a time.")
      .def_readonly("group", &Products::group, "Probes at a time.")
      .def_property_readonly("dim", [](const Products& p) { return p.values.dim; })
      .def(
          "run",
          [](const Products& plan, int device, uintptr_t stream, uintptr_t x, uintptr_t y, uintptr_t classes,
             int64_t x_size, int64_t y_size, int64_t class_size, int64_t n, uintptr_t w, int64_t w_ld, uintptr_t frozen,
             uintptr_t v, uintptr_t out, uintptr_t partial, int64_t checkpoints, int64_t probes) {
            return on(device, [&] {
              return cuda::resident_products(
                  plan,
                  {at<const float>(x), at<const float>(y), at<const int32_t>(classes), x_size, y_size, class_size, n},
                  {at<const float>(w), w_ld, at<const float>(frozen), at<const float>(v), at<float>(out),
                   at<float>(partial), checkpoints, probes},
                  at<void>(stream));
            });
          },
          py::arg("device"), py::arg("stream"), py::arg("x"), py::arg("y"), py::arg("classes"), py::arg("x_size"),
          py::arg("y_size"), py::arg("class_size"), py::arg("n"), py::arg("w"), py::arg("w_ld"), py::arg("frozen"),
          py::arg("v"), py::arg("out"), py::arg("partial"), py::arg("checkpoints"), py::arg("probes"),
          "out = H v, both (checkpoints, probes, dim).");
}

void bind_resident(py::module_& m) {
  py::class_<cuda::ResidentPlan>(m, "ResidentPlan", py::module_local(),
                                 "Chains of a small Program that live in shared memory.")
      .def(py::init(&resident), py::arg("values"), py::arg("ops"), py::arg("loss"), py::arg("dim"), py::arg("total"),
           py::arg("batch"))
      .def_readonly("shared_bytes", &cuda::ResidentPlan::shared_bytes)
      .def(
          "run",
          [](const cuda::ResidentPlan& plan, int device, uintptr_t stream, uintptr_t x, uintptr_t y, uintptr_t classes,
             int64_t x_size, int64_t y_size, int64_t class_size, int64_t n, uintptr_t w, int64_t w_ld, int64_t chains,
             int64_t batch, bool full, uintptr_t coefficients, uintptr_t nbeta, uintptr_t center, int64_t center_ld,
             uintptr_t mask, uintptr_t frozen, uintptr_t baseline, int64_t burn_in, int64_t thin, uintptr_t loss,
             uintptr_t baselines, uintptr_t energy, uintptr_t gauge, int64_t trace_ld, uintptr_t diverged,
             uintptr_t seed, uintptr_t step, uint32_t first_chain, int64_t steps) {
            return on(device, [&] {
              return cuda::run_resident(
                  plan,
                  {at<const float>(x), at<const float>(y), at<const int32_t>(classes), x_size, y_size, class_size, n},
                  {at<float>(w),
                   w_ld,
                   chains,
                   batch,
                   full,
                   at<const float>(coefficients),
                   at<const double>(nbeta),
                   at<const float>(center),
                   center_ld,
                   at<const uint8_t>(mask),
                   at<const float>(frozen),
                   at<const double>(baseline),
                   burn_in,
                   thin,
                   at<double>(loss),
                   at<double>(baselines),
                   at<double>(energy),
                   at<double>(gauge),
                   trace_ld,
                   at<int64_t>(diverged)},
                  {at<const int64_t>(seed), at<const int64_t>(step), first_chain}, steps, at<void>(stream));
            });
          },
          py::arg("device"), py::arg("stream"), py::arg("x"), py::arg("y"), py::arg("classes"), py::arg("x_size"),
          py::arg("y_size"), py::arg("class_size"), py::arg("n"), py::arg("w"), py::arg("w_ld"), py::arg("chains"),
          py::arg("batch"), py::arg("full"), py::arg("coefficients"), py::arg("nbeta"), py::arg("center"),
          py::arg("center_ld"), py::arg("mask"), py::arg("frozen"), py::arg("baseline"), py::arg("burn_in"),
          py::arg("thin"), py::arg("loss"), py::arg("baselines"), py::arg("energy"), py::arg("gauge"),
          py::arg("trace_ld"), py::arg("diverged"), py::arg("seed"), py::arg("step"), py::arg("first_chain"),
          py::arg("steps"), "Advances every chain by `steps` steps.");
}

}  // namespace

PYBIND11_MODULE(_cuda, m) {
  m.doc() =
      "CUDA kernels of devinterp_fast. Use them through devinterp_fast._native_cuda, which checks what is passed.";
  m.attr("version") = DIF_CUDA_VERSION;
  m.attr("architectures") = DIF_CUDA_ARCHITECTURES;
  m.def(
      "device_count",
      [] {
        const char* reason = "";
        const int count = cuda::device_count(&reason);
        return py::make_tuple(count, std::string(reason));
      },
      "(number of devices, why there is none).");
  bind_steps(m);
  bind_curvature(m);
  bind_detector(m);
  bind_resident(m);
  bind_products(m);
}
