// Which instruction sets there are, and which one runs.
#include <pybind11/stl.h>

#include <string>
#include <vector>

#include "bind/bind.hpp"
#include "cpu/kernels.hpp"

namespace py = pybind11;

void bind_info(py::module_& m) {
  m.def("isa", [] { return std::string(dif::kernels().name); }, "Name of the instruction set in use.");
  m.def(
      "isa_available",
      [] {
        std::vector<std::string> names;
        for (int i = 0; const dif::Kernels* k = dif::available(i); ++i) names.emplace_back(k->name);
        return names;
      },
      "Instruction sets that this build has and this processor runs, narrowest first.");
  m.def(
      "use_isa", [](const std::string& name) { return dif::use_kernels(name.c_str()); }, py::arg("name"),
      "Use the named set, or the widest for ''. False if it is not available. All sets give the same bits.");
  m.def("compiler", [] { return std::string(__VERSION__); }, "The compiler that built this module.");
}
