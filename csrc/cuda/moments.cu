// Mean and scatter of every chain's draws, kept as they come: core/moments.hpp for each coordinate.
#include "core/blocks.hpp"
#include "core/moments.hpp"
#include "cuda/cuda.hpp"
#include "cuda/lanes.cuh"
#include "cuda/launch.cuh"

namespace dif::cuda {

constexpr int threads = 256;

// Block p * chains + c takes coordinates p * block_size ... of chain c; a thread four at a time.
__global__ void __launch_bounds__(threads) moments_kernel(Moments m, const int64_t* draws) {
  const int64_t index = blockIdx.x, chain = index % m.chains, first = index / m.chains * block_size;
  const int64_t stop = first + block_size < m.dim ? first + block_size : m.dim;
  const double n = static_cast<double>(*draws);
  const float* w = m.w + chain * m.w_ld;
  double *mean = m.mean + chain * m.ld, *scatter = m.scatter + chain * m.ld;
  const bool aligned = (reinterpret_cast<uintptr_t>(w) & 15) == 0 &&
                       ((reinterpret_cast<uintptr_t>(mean) | reinterpret_cast<uintptr_t>(scatter)) & 15) == 0;
  for (int64_t at = first + 4 * static_cast<int64_t>(threadIdx.x); at < stop; at += 4 * threads) {
    if (aligned && at + 4 <= stop) {
      const float4 x = *reinterpret_cast<const float4*>(w + at);
      auto *a = reinterpret_cast<double2*>(mean + at), *b = reinterpret_cast<double2*>(scatter + at);
      double2 a0 = a[0], a1 = a[1], b0 = b[0], b1 = b[1];
      add_draw(n, static_cast<double>(x.x), a0.x, b0.x);
      add_draw(n, static_cast<double>(x.y), a0.y, b0.y);
      add_draw(n, static_cast<double>(x.z), a1.x, b1.x);
      add_draw(n, static_cast<double>(x.w), a1.y, b1.y);
      a[0] = a0, a[1] = a1, b[0] = b0, b[1] = b1;
    } else {
      for (int k = 0; k < 4 && at + k < stop; ++k) {
        add_draw(n, static_cast<double>(w[at + k]), mean[at + k], scatter[at + k]);
      }
    }
  }
}

const char* add_draws(const Moments& m, const int64_t* draws, void* stream) {
  const int64_t blocks = (m.dim + block_size - 1) / block_size * m.chains;
  if (blocks <= 0) return nullptr;
  if (blocks > most_blocks) return too_many_blocks;
  DIF_LAUNCH(moments_kernel, static_cast<unsigned>(blocks), threads, 0, stream, m, draws);
  return launched();
}

}  // namespace dif::cuda
