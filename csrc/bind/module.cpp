#include "bind/bind.hpp"

PYBIND11_MODULE(_cpu, m) {
  m.doc() = "Native code of devinterp_fast. Use it through devinterp_fast._native, which checks what is passed.";
  bind_batches(m);
  bind_changepoint(m);
  bind_engine(m);
  bind_curvature(m);  // takes a Program
  bind_glr(m);
  bind_info(m);
  bind_lanczos(m);
  bind_noise(m);
  bind_update(m);
}
