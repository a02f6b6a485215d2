// The SGLD step of many chains.
#include <cmath>

#include "core/update.hpp"
#include "cuda/update.cuh"

namespace dif::cuda {

using L = ThreadLane;

// Block p * chains + c: piece p of chain c, so that chains which share a center read it one after another.
// partial: (pieces of all launches, chains).
template <bool energy>
__global__ void __launch_bounds__(energy ? workers + warp : workers)
    sgld_kernel(Chains block, Tensors tensors, SgldSettings settings, Clock clock, double* partial) {
  DIF_SHARED(SgldCoefficients, shared_coefficients, 1);
  DIF_SHARED(Factors, factors, energy ? 2 : 1);
  const int64_t index = blockIdx.x, chain = index % block.chains, number = index / block.chains;
  const Piece piece = find_piece(tensors, number);
  const int thread = static_cast<int>(threadIdx.x);
  if (thread == 0) {
    const double lr = settings.lr[chain];
    shared_coefficients[0] = {static_cast<float>(settings.nbeta[chain]),
                              static_cast<float>(settings.localization[chain]), static_cast<float>(-0.5 * lr),
                              static_cast<float>(sqrt(lr))};
  }
  __syncthreads();
  const SgldCoefficients k = shared_coefficients[0];
  const PhiloxKeys key(static_cast<uint64_t>(*clock.seed));
  const uint32_t step = static_cast<uint32_t>(*clock.step), draws = clock.first_chain + static_cast<uint32_t>(chain);
  float* w = block.w + chain * block.w_ld;
  const float* center = block.center + chain * block.center_ld;
  const uint8_t* mask = block.mask ? block.mask + chain * block.mask_ld : nullptr;
  const float* g = piece.tensor->g + chain * piece.tensor->ld;
  const int64_t first = piece.tensor->first;
  const bool rows_aligned = aligned(w) && aligned(center) && (!mask || aligned(mask)), g_aligned = aligned(g, first);

  const int64_t tiles = (piece.high - piece.start + tile - 1) / tile;
  float running = 0.0f;
  for (int64_t t = (piece.low - piece.start) / tile; t < tiles; ++t) {
    const int64_t at = piece.start + t * tile + 4 * thread;
    if (thread >= workers) {
      if (t > (piece.low - piece.start) / tile) running = add_tile(factors[(t - 1) & 1], thread - workers, running);
    } else {
      const unsigned bits = inside(piece, at);
      Quad next{}, drift{}, force{};
      if (bits) {
        const Quad old = load_quad(w + at, bits, rows_aligned), pull = load_quad(center + at, bits, rows_aligned);
        const Quad slope = load_quad(g + (at - first), bits, g_aligned);
        const unsigned moved = mask ? load_mask(mask + at, bits, rows_aligned) : bits;
        float z[4];
        if (settings.noise) normals<L>(key, static_cast<uint32_t>(at / 4), draws, step, update_noise, z);
        for (int i = 0; i < 4; ++i) {
          next.v[i] = sgld<L>(old.v[i], slope.v[i], pull.v[i], k, drift.v[i], force.v[i]);
          if (settings.noise) next.v[i] = L::fma(k.noise, z[i], next.v[i]);
          if (!(moved >> i & 1u)) next.v[i] = old.v[i], drift.v[i] = force.v[i] = 0.0f;
        }
        store_quad(w + at, next, bits, rows_aligned);
      }
      if (energy) {
        store_quad(factors[t & 1].a + 4 * thread, drift, 15u, true);
        store_quad(factors[t & 1].b + 4 * thread, force, 15u, true);
      }
    }
    if (energy) __syncthreads();
  }
  if (energy && thread >= workers) {
    running = add_tile(factors[(tiles - 1) & 1], thread - workers, running);
    const double total = ordered_sum(running);
    if (thread == workers) partial[(tensors.first_piece + number) * block.chains + chain] = total;
  }
}

// energy (chains) <- the sum of each chain's pieces, in their order; a block for each chain.
__global__ void __launch_bounds__(workers)
    ordered_sums_kernel(const double* partial, int64_t pieces, int64_t chains, double* energy) {
  DIF_SHARED(double, some, workers);
  double total = 0.0;
  for (int64_t first = 0; first < pieces; first += workers) {
    const int64_t count = pieces - first < workers ? pieces - first : workers;
    if (threadIdx.x < count) some[threadIdx.x] = partial[(first + threadIdx.x) * chains + blockIdx.x];
    __syncthreads();
    if (threadIdx.x == 0) {
      for (int64_t i = 0; i < count; ++i) total += some[i];
    }
    __syncthreads();
  }
  if (threadIdx.x == 0) energy[blockIdx.x] = total;
}

int64_t partial_sums(const Gradient* gradients, int64_t count, int64_t chains) {
  int64_t pieces = 0;
  for (int64_t i = 0; i < count; ++i) pieces += pieces_of(gradients[i]);
  return pieces * chains;
}

const char* sgld_step(const Chains& block, const Gradient* gradients, int64_t count, const SgldSettings& settings,
                      const Clock& clock, double* partial, double* energy, void* stream) {
  if (block.chains <= 0) return nullptr;
  const char* error = for_launches(gradients, count, [&](const Tensors& tensors, int64_t pieces) -> const char* {
    if (pieces * block.chains > most_blocks) return too_many_blocks;
    const auto blocks = static_cast<unsigned>(pieces * block.chains);
    if (energy) {
      DIF_LAUNCH(sgld_kernel<true>, blocks, workers + warp, 0, stream, block, tensors, settings, clock, partial);
    } else {
      DIF_LAUNCH(sgld_kernel<false>, blocks, workers, 0, stream, block, tensors, settings, clock, partial);
    }
    return launched();
  });
  if (error || !energy) return error;
  const int64_t pieces = partial_sums(gradients, count, 1);
  DIF_LAUNCH(ordered_sums_kernel, static_cast<unsigned>(block.chains), workers, 0, stream, partial, pieces,
             block.chains, energy);
  return launched();
}

}  // namespace dif::cuda
