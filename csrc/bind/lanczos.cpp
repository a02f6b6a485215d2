// Gram-Schmidt against a basis, and random signs.
#include "cpu/lanczos.hpp"

#include <cstdint>
#include <vector>

#include "bind/bind.hpp"

namespace py = pybind11;

namespace {

template <class T>
void bind_of(py::module_& m, const char* gram_schmidt, const char* rademacher, const char* dot) {
  m.def(
      gram_schmidt,
      [](uintptr_t u, int64_t u_ld, uintptr_t basis, int64_t chain_ld, int64_t vector_ld, int64_t chains, int64_t dim,
         int64_t count, int64_t known, uintptr_t gram, int64_t gram_chain_ld, int64_t gram_ld, uintptr_t coefficients,
         int64_t coefficients_ld, uintptr_t norms, int threads) {
        const py::gil_scoped_release unlocked;
        const dif::GramSchmidt<T> at{reinterpret_cast<T*>(u),
                                     reinterpret_cast<const T*>(basis),
                                     reinterpret_cast<double*>(gram),
                                     reinterpret_cast<double*>(coefficients),
                                     reinterpret_cast<double*>(norms),
                                     chains,
                                     dim,
                                     count,
                                     known,
                                     u_ld,
                                     chain_ld,
                                     vector_ld,
                                     gram_chain_ld,
                                     gram_ld,
                                     coefficients_ld};
        std::vector<double> work(static_cast<size_t>(dif::gram_schmidt_work(at)));
        dif::gram_schmidt(at, work.data(), threads);
      },
      py::arg("u"), py::arg("u_ld"), py::arg("basis"), py::arg("chain_ld"), py::arg("vector_ld"), py::arg("chains"),
      py::arg("dim"), py::arg("count"), py::arg("known"), py::arg("gram"), py::arg("gram_chain_ld"), py::arg("gram_ld"),
      py::arg("coefficients"), py::arg("coefficients_ld"), py::arg("norms"), py::arg("threads"),
      "u (chains, dim) made orthogonal to the first `count` rows of its chain's basis, and normalized.");
  m.def(
      rademacher,
      [](uintptr_t out, int64_t probes, int64_t dim, int64_t ld, uint64_t seed, uint32_t first_probe, uint32_t step,
         int threads) {
        const py::gil_scoped_release unlocked;
        dif::rademacher(reinterpret_cast<T*>(out), probes, dim, ld, seed, first_probe, step, threads);
      },
      py::arg("out"), py::arg("probes"), py::arg("dim"), py::arg("ld"), py::arg("seed"), py::arg("first_probe"),
      py::arg("step"), py::arg("threads"), "out (probes, dim): random signs.");
  m.def(
      dot,
      [](uintptr_t x, int64_t probes, int64_t dim, int64_t ld, uint64_t seed, uint32_t first_probe, uint32_t step,
         uintptr_t out, int threads) {
        const py::gil_scoped_release unlocked;
        dif::rademacher_dot(reinterpret_cast<const T*>(x), probes, dim, ld, seed, first_probe, step,
                            reinterpret_cast<double*>(out), threads);
      },
      py::arg("x"), py::arg("probes"), py::arg("dim"), py::arg("ld"), py::arg("seed"), py::arg("first_probe"),
      py::arg("step"), py::arg("out"), py::arg("threads"), "out (probes): each row's sum with random signs.");
}

}  // namespace

void bind_lanczos(py::module_& m) {
  bind_of<float>(m, "gram_schmidt_f32", "rademacher_f32", "rademacher_dot_f32");
  bind_of<double>(m, "gram_schmidt_f64", "rademacher_f64", "rademacher_dot_f64");
}
