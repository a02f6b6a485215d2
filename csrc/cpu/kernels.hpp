// What an instruction set offers: one function for each operation, the same bits from each set.
#pragma once
#include <cstdint>

#include "core/blocks.hpp"
#include "core/update.hpp"

namespace dif {

// Where noise is drawn: everything of the Philox counter but the coordinate.
struct Address {
  uint64_t seed;
  uint32_t chain, step, stream;
};

struct StepArrays {
  float* state[3];
  const float *g, *center;
  const uint8_t* mask;
  const float* drawn = nullptr;  // for half a tile at coordinate 0: its normals, if they are known; or null
  bool summed = true;            // else the sums are not asked for
};

// sum weight d . (nbeta g) and sum weight d . d, of langevin sum p . p (core/update.hpp)
struct StepSums {
  double work, square;
};

struct Kernels {
  const char* name;
  int lanes;
  // out (size): normals, or words, of coordinates first .. first + size - 1 of one chain.
  void (*normals)(float* out, int64_t first, int64_t size, Address);
  void (*words)(uint32_t* out, int64_t first, int64_t size, Address);
  // One step of one chain, from coordinate `first`, inside one block: state[0] is w, then the sampler's own vectors
  // (core/update.hpp), all (size), updated in place; g, center, mask (size) alike; nothing overlaps. A null mask moves
  // all; a zero keeps the coordinate's bits. Returns sums over the moved coordinates.
  StepSums (*sgld)(const StepArrays&, int64_t first, int64_t size, const Sgld&, Address, bool noise);
  StepSums (*langevin)(const StepArrays&, int64_t first, int64_t size, const Langevin&, Address, bool noise);
  StepSums (*preconditioned)(const StepArrays&, int64_t first, int64_t size, const Preconditioned&, Address,
                             bool noise);
};

extern const Kernels kernels_baseline;
extern const Kernels kernels_avx2;
extern const Kernels kernels_avx512;

// The kernels in use: the widest set this processor runs, or the one named by `use_kernels`.
const Kernels& kernels();
// Chooses by name among `available(i)`; "" means the widest. Returns false if the name is not available here.
bool use_kernels(const char* name);
// The sets that this build has and this processor runs, narrowest first; null past the end.
const Kernels* available(int i);

}  // namespace dif
