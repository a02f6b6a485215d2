// The samples of each step's batches.
#include "cpu/batches.hpp"

#include <algorithm>
#include <cstdint>
#include <vector>

#include "bind/bind.hpp"

namespace py = pybind11;

namespace {

class ChainBatches {
 public:
  ChainBatches(int32_t mode, uint64_t seed, uint32_t first_chain, int64_t chains, int64_t n, int64_t size)
      : size_(size) {
    for (int64_t c = 0; c < chains; ++c)
      chains_.emplace_back(mode, seed, first_chain + static_cast<uint32_t>(c), n, size, 1);
  }
  void fill(uint32_t step, uintptr_t out) {
    const py::gil_scoped_release unlocked;
    auto* to = reinterpret_cast<int64_t*>(out);
    for (dif::Batches& chain : chains_) {
      to = std::copy_n(chain.at(step), size_, to);
    }
  }

 private:
  std::vector<dif::Batches> chains_;
  int64_t size_;
};

}  // namespace

void bind_batches(py::module_& m) {
  py::class_<ChainBatches>(m, "Batches", "Which samples a step sees; modes 0 independent, 1 shared, 2 epoch, 3 full.")
      .def(py::init<int32_t, uint64_t, uint32_t, int64_t, int64_t, int64_t>(), py::arg("mode"), py::arg("seed"),
           py::arg("first_chain"), py::arg("chains"), py::arg("n"), py::arg("size"))
      .def("fill", &ChainBatches::fill, py::arg("step"), py::arg("out"), "out (chains, size) int64.");
}
