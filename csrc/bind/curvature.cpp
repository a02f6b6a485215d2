// Products with the curvature of a Program's loss.
#include "cpu/curvature.hpp"

#include <pybind11/stl.h>

#include <algorithm>
#include <cstdint>
#include <memory>

#include "bind/bind.hpp"
#include "bind/data.hpp"

namespace py = pybind11;

namespace {

template <class T>
void bind_curvature_of(py::module_& m, const char* name) {
  using C = dif::Curvature<T>;
  py::class_<C>(m, name, "The mean loss of a Program at a stack of checkpoints: gradients and curvature products.")
      .def(py::init([](const dif::CompiledProgram& program, const DataTuple& data, uintptr_t index, int64_t count,
                       uintptr_t w, int64_t checkpoints, int64_t cache, int threads) {
             const py::gil_scoped_release unlocked;
             return std::make_unique<C>(program, data_of<T>(data), reinterpret_cast<const int32_t*>(index), count,
                                        reinterpret_cast<const T*>(w), checkpoints, cache, threads);
           }),
           py::arg("program"), py::arg("data"), py::arg("index"), py::arg("count"), py::arg("w"),
           py::arg("checkpoints"), py::arg("cache"), py::arg("threads"), py::keep_alive<1, 2>())
      .def_property_readonly("cached", &C::cached, "Blocks of samples whose values and gradients are kept.")
      .def_property_readonly("states", &C::states, "Blocks of samples, over all checkpoints.")
      .def(
          "losses",
          [](const C& c, uintptr_t out) {
            std::copy(c.losses().begin(), c.losses().end(), reinterpret_cast<double*>(out));
          },
          py::arg("out"), "out (checkpoints, count) float64: per-sample losses.")
      .def(
          "gradient",
          [](const C& c, uintptr_t out, int64_t count) { std::copy_n(c.gradient(), count, reinterpret_cast<T*>(out)); },
          py::arg("out"), py::arg("count"), "out (checkpoints, total): gradients of the mean loss.")
      .def(
          "product",
          [](C& c, int32_t kind, uintptr_t v, int64_t probes, uintptr_t out, int threads) {
            const py::gil_scoped_release unlocked;
            c.product(static_cast<dif::Product>(kind), reinterpret_cast<const T*>(v), probes, reinterpret_cast<T*>(out),
                      threads);
          },
          py::arg("kind"), py::arg("v"), py::arg("probes"), py::arg("out"), py::arg("threads"),
          "out = A v, both (checkpoints, probes, dim); kind 0 Hessian, 1 Gauss-Newton, 2 empirical Fisher.")
      .def(
          "gram",
          [](C& c, uintptr_t out, int threads) {
            const py::gil_scoped_release unlocked;
            c.gram(reinterpret_cast<T*>(out), threads);
          },
          py::arg("out"), py::arg("threads"), "out (checkpoints, n, n): products of per-sample gradients over n.");
}

}  // namespace

void bind_curvature(py::module_& m) {
  m.def("has_second", &dif::has_second, py::arg("program"), "Whether every operation has a second derivative here.");
  bind_curvature_of<float>(m, "Curvature32");
  bind_curvature_of<double>(m, "Curvature64");
}
