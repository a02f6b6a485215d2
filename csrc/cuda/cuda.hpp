// What the CUDA backend offers: launchers. Each takes device addresses, sizes and a stream (a cudaStream_t), starts its
// kernels on that stream of the current device, and returns null or the text of what went wrong. None allocates, waits
// or reads device memory on the host, so all can be captured in a CUDA graph; a step's number and the seed lie in
// device memory, so a replay draws fresh noise once the caller has advanced them there.
//
// A row stride (ld) is in elements; 0 shares one row among the chains. Rows that start at multiples of 16 bytes are
// read four numbers at a time, others one by one: the same bits.
#pragma once
#include <cstdint>

namespace dif::cuda {

// The number of devices; if 0, `reason` (a static text) says why.
int device_count(const char** reason);

// Makes a device the current one, and puts the former one back.
struct OnDevice {
  explicit OnDevice(int device);
  ~OnDevice();
  OnDevice(const OnDevice&) = delete;
  const char* error = nullptr;

 private:
  int before_ = -1;
};

// One tensor of a model, for all chains: g (chains, size; row stride ld), its first number being coordinate `first`.
struct Gradient {
  int64_t first, size;
  const float* g;
  int64_t ld;
};

struct Chains {
  float* w;  // (chains, dim), updated in place
  int64_t w_ld;
  const float* center;  // (chains, dim) or (dim)
  int64_t center_ld;
  const uint8_t* mask;  // (chains, dim), (dim) or null: zero keeps a coordinate
  int64_t mask_ld;
  int64_t chains;
};

// Noise addresses: chain c draws as chain first_chain + c.
struct Clock {
  const int64_t *seed, *step;  // (1) each
  uint32_t first_chain;
};

struct SgldSettings {
  const double *lr, *localization, *nbeta;  // (chains)
  bool noise;
};

// Doubles that `partial` must hold when an energy is asked for.
int64_t partial_sums(const Gradient* gradients, int64_t count, int64_t chains);

// w <- w - (lr / 2) d + sqrt(lr) xi,  d = nbeta g + localization (w - center);  energy (chains) <- sum d . (nbeta g).
// The tensors must not overlap. energy and partial may be null. Same bits as the CPU's step.
const char* sgld_step(const Chains&, const Gradient* gradients, int64_t count, const SgldSettings&, const Clock&,
                      double* partial, double* energy, void* stream);

// out (chains, size; row stride ld) <- numbers whose address is (seed; coordinate, first_chain + row, step,
// stream_number). signs: 1 or -1, the sign being the word's highest bit. words: Philox words, their bits in the floats'
// place.
enum class Noise : int32_t { normals, signs, words };
const char* fill_noise(Noise, float* out, int64_t chains, int64_t size, int64_t ld, uint32_t stream_number,
                       const Clock&, void* stream);

}  // namespace dif::cuda
