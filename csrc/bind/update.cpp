// The fused step of all chains.
#include "cpu/update.hpp"

#include <pybind11/stl.h>

#include <cstdint>
#include <tuple>
#include <vector>

#include "bind/bind.hpp"

namespace py = pybind11;

void bind_update(py::module_& m) {
  m.def(
      "sgld_step_f32",
      [](uintptr_t w, int64_t w_ld, uintptr_t center, int64_t center_ld, uintptr_t mask, int64_t mask_ld,
         int64_t chains, const std::vector<std::tuple<int64_t, int64_t, uintptr_t, int64_t>>& gradients, uintptr_t lr,
         uintptr_t localization, uintptr_t nbeta, uint64_t seed, uint32_t step, uint32_t first_chain, bool noise,
         uintptr_t energy, uintptr_t square, int threads) {
        const py::gil_scoped_release unlocked;
        std::vector<dif::SgldTensor> tensors;
        tensors.reserve(gradients.size());
        for (const auto& [first, size, address, ld] : gradients) {
          tensors.push_back({first, size, reinterpret_cast<const float*>(address), ld});
        }
        dif::sgld_step({reinterpret_cast<float*>(w), w_ld, reinterpret_cast<const float*>(center), center_ld,
                        reinterpret_cast<const uint8_t*>(mask), mask_ld, chains},
                       tensors.data(), static_cast<int64_t>(tensors.size()),
                       {reinterpret_cast<const double*>(lr), reinterpret_cast<const double*>(localization),
                        reinterpret_cast<const double*>(nbeta), seed, step, first_chain, noise},
                       reinterpret_cast<double*>(energy), reinterpret_cast<double*>(square), threads);
      },
      py::arg("w"), py::arg("w_ld"), py::arg("center"), py::arg("center_ld"), py::arg("mask"), py::arg("mask_ld"),
      py::arg("chains"), py::arg("gradients"), py::arg("lr"), py::arg("localization"), py::arg("nbeta"),
      py::arg("seed"), py::arg("step"), py::arg("first_chain"), py::arg("noise"), py::arg("energy"), py::arg("square"),
      py::arg("threads"), "One SGLD step of `chains` rows; gradients = [(first, size, address, ld), ...].");
  m.def(
      "sampler_step_f32",
      [](int sampler, uintptr_t w, int64_t w_ld, uintptr_t center, int64_t center_ld, uintptr_t mask, int64_t mask_ld,
         uintptr_t first, uintptr_t second, int64_t state_ld, int64_t chains,
         const std::vector<std::tuple<int64_t, int64_t, uintptr_t, int64_t>>& gradients, uintptr_t coefficients,
         uint64_t seed, uint32_t step, uint32_t first_chain, bool noise, uintptr_t work, uintptr_t gauge, int threads) {
        const py::gil_scoped_release unlocked;
        std::vector<dif::SgldTensor> tensors;
        for (const auto& [at, size, address, ld] : gradients) {
          tensors.push_back({at, size, reinterpret_cast<const float*>(address), ld});
        }
        return dif::sampler_step(sampler,
                                 {reinterpret_cast<float*>(w), w_ld, reinterpret_cast<const float*>(center), center_ld,
                                  reinterpret_cast<const uint8_t*>(mask), mask_ld, chains},
                                 {reinterpret_cast<float*>(first), reinterpret_cast<float*>(second), state_ld},
                                 tensors.data(), static_cast<int64_t>(tensors.size()),
                                 reinterpret_cast<const float*>(coefficients), seed, step, first_chain, noise,
                                 reinterpret_cast<double*>(work), reinterpret_cast<double*>(gauge), threads);
      },
      py::arg("sampler"), py::arg("w"), py::arg("w_ld"), py::arg("center"), py::arg("center_ld"), py::arg("mask"),
      py::arg("mask_ld"), py::arg("first"), py::arg("second"), py::arg("state_ld"), py::arg("chains"),
      py::arg("gradients"), py::arg("coefficients"), py::arg("seed"), py::arg("step"), py::arg("first_chain"),
      py::arg("noise"), py::arg("work"), py::arg("gauge"), py::arg("threads"),
      "One step of a sampler with ready coefficients; False if there is no such sampler.");
}
