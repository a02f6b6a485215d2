// Chooses the instruction set at run time.
#include <cstring>

#include "cpu/kernels.hpp"

namespace dif {
namespace {

struct Entry {
  const Kernels* kernels;
  bool runs;
};

int list(Entry (&entries)[3]) {
  int n = 0;
  entries[n++] = {&kernels_baseline, true};
#if defined(DIF_HAVE_avx2)
  entries[n++] = {&kernels_avx2, __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")};
#endif
#if defined(DIF_HAVE_avx512)
  entries[n++] = {&kernels_avx512, __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
                                       __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl")};
#endif
  return n;
}

const Kernels* widest() {
  const Kernels* best = nullptr;
  for (int i = 0; const Kernels* k = available(i); ++i) best = k;
  return best;
}

// Set by `use_kernels` alone, which tests call; every set gives the same bits, so no result depends on it.
const Kernels* in_use = nullptr;

}  // namespace

const Kernels* available(int i) {
  Entry entries[3];
  const int n = list(entries);
  for (int k = 0; k < n; ++k) {
    if (entries[k].runs && i-- == 0) return entries[k].kernels;
  }
  return nullptr;
}

const Kernels& kernels() {
  static const Kernels* const best = widest();
  return in_use ? *in_use : *best;
}

bool use_kernels(const char* name) {
  if (*name == '\0') {
    in_use = nullptr;
    return true;
  }
  for (int i = 0; const Kernels* k = available(i); ++i) {
    if (std::strcmp(k->name, name) == 0) {
      in_use = k;
      return true;
    }
  }
  return false;
}

}  // namespace dif
