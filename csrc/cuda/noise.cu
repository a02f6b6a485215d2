// Noise with an address, written to memory: normals, random signs, and the words they are made of.
#include "core/blocks.hpp"
#include "core/normal.hpp"
#include "cuda/cuda.hpp"
#include "cuda/lanes.cuh"
#include "cuda/launch.cuh"

namespace dif::cuda {

using L = ThreadLane;
constexpr int threads = 256;

struct Normals {
  static DIF_INLINE void quad(const PhiloxKeys& key, uint32_t quad, uint32_t chain, uint32_t step, uint32_t stream,
                              float (&out)[4]) {
    normals<L>(key, quad, chain, step, stream, out);
  }
};
struct Words {
  static DIF_INLINE void quad(const PhiloxKeys& key, uint32_t quad, uint32_t chain, uint32_t step, uint32_t stream,
                              float (&out)[4]) {
    const PhiloxWords<L> words = philox<L>(key, quad, chain, step, stream);
    for (int k = 0; k < 4; ++k) out[k] = float_of(words.word[k]);
  }
};
struct Signs {
  static DIF_INLINE void quad(const PhiloxKeys& key, uint32_t quad, uint32_t chain, uint32_t step, uint32_t stream,
                              float (&out)[4]) {
    const PhiloxWords<L> words = philox<L>(key, quad, chain, step, stream);
    for (int k = 0; k < 4; ++k) out[k] = float_of(0x3f800000u | (words.word[k] & 0x80000000u));
  }
};

// Block p * chains + c writes coordinates p * block_size ... of chain c; a thread one quad at a time.
template <class Kind>
__global__ void __launch_bounds__(threads)
    noise_kernel(float* out, int64_t chains, int64_t size, int64_t ld, uint32_t stream, Clock clock) {
  const int64_t index = blockIdx.x, chain = index % chains, first = index / chains * block_size;
  const int64_t stop = first + block_size < size ? first + block_size : size;
  const PhiloxKeys key(static_cast<uint64_t>(*clock.seed));
  const uint32_t step = static_cast<uint32_t>(*clock.step), draws = clock.first_chain + static_cast<uint32_t>(chain);
  float* row = out + chain * ld;
  const bool aligned = (reinterpret_cast<uintptr_t>(row) & 15) == 0;
  for (int64_t at = first + 4 * static_cast<int64_t>(threadIdx.x); at < stop; at += 4 * threads) {
    float z[4];
    Kind::quad(key, static_cast<uint32_t>(at / 4), draws, step, stream, z);
    if (aligned && at + 4 <= stop) {
      __stwb(reinterpret_cast<float4*>(row + at), make_float4(z[0], z[1], z[2], z[3]));  // or it becomes four stores
    } else {
      for (int k = 0; k < 4 && at + k < stop; ++k) row[at + k] = z[k];
    }
  }
}

const char* fill_noise(Noise kind, float* out, int64_t chains, int64_t size, int64_t ld, uint32_t stream_number,
                       const Clock& clock, void* stream) {
  const int64_t blocks = (size + block_size - 1) / block_size * chains;
  if (blocks <= 0) return nullptr;
  if (blocks > most_blocks) return too_many_blocks;
  const auto grid = static_cast<unsigned>(blocks);
  switch (kind) {
    case Noise::normals:
      DIF_LAUNCH(noise_kernel<Normals>, grid, threads, 0, stream, out, chains, size, ld, stream_number, clock);
      break;
    case Noise::signs:
      DIF_LAUNCH(noise_kernel<Signs>, grid, threads, 0, stream, out, chains, size, ld, stream_number, clock);
      break;
    case Noise::words:
      DIF_LAUNCH(noise_kernel<Words>, grid, threads, 0, stream, out, chains, size, ld, stream_number, clock);
      break;
  }
  return launched();
}

}  // namespace dif::cuda
