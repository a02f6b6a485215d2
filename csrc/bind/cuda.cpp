// devinterp_fast._cuda: the launchers of cuda/cuda.hpp. Each call names its device and its stream, and returns None or
// the text of what went wrong.
#include "cuda/cuda.hpp"

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <string>
#include <tuple>
#include <vector>

namespace py = pybind11;
namespace cuda = dif::cuda;

namespace {

template <class T>
T* at(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

using Gradients = std::vector<std::tuple<int64_t, int64_t, uintptr_t, int64_t>>;

std::vector<cuda::Gradient> listed(const Gradients& gradients) {
  std::vector<cuda::Gradient> list;
  list.reserve(gradients.size());
  for (const auto& [first, size, address, ld] : gradients) list.push_back({first, size, at<const float>(address), ld});
  return list;
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
  m.def(
      "partial_sums",
      [](const std::vector<std::tuple<int64_t, int64_t>>& tensors, int64_t chains) {
        std::vector<cuda::Gradient> list;
        for (const auto& [first, size] : tensors) list.push_back({first, size, nullptr, 0});
        return cuda::partial_sums(list.data(), static_cast<int64_t>(list.size()), chains);
      },
      py::arg("tensors"), py::arg("chains"),
      "Doubles that sgld_step_f32's `partial` must hold; tensors = [(first, size)].");
  m.def(
      "sgld_step_f32",
      [](int device, uintptr_t stream, uintptr_t w, int64_t w_ld, uintptr_t center, int64_t center_ld, uintptr_t mask,
         int64_t mask_ld, int64_t chains, const Gradients& gradients, uintptr_t lr, uintptr_t localization,
         uintptr_t nbeta, uintptr_t seed, uintptr_t step, uint32_t first_chain, bool noise, uintptr_t partial,
         uintptr_t energy) {
        const py::gil_scoped_release unlocked;
        const cuda::OnDevice guard(device);
        if (guard.error) return guard.error;
        const std::vector<cuda::Gradient> list = listed(gradients);
        return cuda::sgld_step(
            {at<float>(w), w_ld, at<const float>(center), center_ld, at<const uint8_t>(mask), mask_ld, chains},
            list.data(), static_cast<int64_t>(list.size()),
            {at<const double>(lr), at<const double>(localization), at<const double>(nbeta), noise},
            {at<const int64_t>(seed), at<const int64_t>(step), first_chain}, at<double>(partial), at<double>(energy),
            at<void>(stream));
      },
      py::arg("device"), py::arg("stream"), py::arg("w"), py::arg("w_ld"), py::arg("center"), py::arg("center_ld"),
      py::arg("mask"), py::arg("mask_ld"), py::arg("chains"), py::arg("gradients"), py::arg("lr"),
      py::arg("localization"), py::arg("nbeta"), py::arg("seed"), py::arg("step"), py::arg("first_chain"),
      py::arg("noise"), py::arg("partial"), py::arg("energy"),
      "One SGLD step of `chains` rows; gradients = [(first, size, address, ld), ...].");
}
