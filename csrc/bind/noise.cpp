// Noise with an address, written to memory.
#include <cstdint>

#include "bind/bind.hpp"
#include "core/philox.hpp"
#include "cpu/kernels.hpp"
#include "cpu/parallel.hpp"

namespace py = pybind11;

namespace {

// One row for each chain; rows are cut into blocks for the threads, which no value depends on.
template <class T>
void fill(void (*kernel)(T*, int64_t, int64_t, dif::Address), uintptr_t out, int64_t chains, int64_t size, int64_t ld,
          uint64_t seed, uint32_t first_chain, uint32_t step, uint32_t stream, int threads) {
  const py::gil_scoped_release unlocked;
  const int64_t blocks = (size + dif::block_size - 1) / dif::block_size;
  dif::parallel(threads, blocks * chains, [=](int64_t low, int64_t high) {
    for (int64_t i = low; i < high; ++i) {
      const int64_t chain = i / blocks, first = i % blocks * dif::block_size;
      const int64_t length = first + dif::block_size < size ? dif::block_size : size - first;
      kernel(reinterpret_cast<T*>(out) + chain * ld + first, first, length,
             {seed, first_chain + static_cast<uint32_t>(chain), step, stream});
    }
  });
}

}  // namespace

void bind_noise(py::module_& m) {
  m.def(
      "normals_f32",
      [](uintptr_t out, int64_t chains, int64_t size, int64_t ld, uint64_t seed, uint32_t first_chain, uint32_t step,
         uint32_t stream, int threads) {
        fill(dif::kernels().normals, out, chains, size, ld, seed, first_chain, step, stream, threads);
      },
      py::arg("out"), py::arg("chains"), py::arg("size"), py::arg("ld"), py::arg("seed"), py::arg("first_chain"),
      py::arg("step"), py::arg("stream"), py::arg("threads"), "out (chains, size): standard normals.");
  m.def(
      "words_u32",
      [](uintptr_t out, int64_t chains, int64_t size, int64_t ld, uint64_t seed, uint32_t first_chain, uint32_t step,
         uint32_t stream,
         int threads) { fill(dif::kernels().words, out, chains, size, ld, seed, first_chain, step, stream, threads); },
      py::arg("out"), py::arg("chains"), py::arg("size"), py::arg("ld"), py::arg("seed"), py::arg("first_chain"),
      py::arg("step"), py::arg("stream"), py::arg("threads"), "out (chains, size): Philox words.");
}
