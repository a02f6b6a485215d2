// What each file of this folder offers to module.cpp. Bindings know addresses and shapes; arithmetic is
// elsewhere.
#pragma once
#include <pybind11/pybind11.h>

void bind_batches(pybind11::module_&);
void bind_changepoint(pybind11::module_&);
void bind_curvature(pybind11::module_&);
void bind_engine(pybind11::module_&);
void bind_glr(pybind11::module_&);
void bind_info(pybind11::module_&);
void bind_lanczos(pybind11::module_&);
void bind_noise(pybind11::module_&);
void bind_update(pybind11::module_&);
