// One step of many chains, for each sampler of core/update.hpp.
#include "core/update.hpp"
#include "cuda/update.cuh"

namespace dif::cuda {

using L = ThreadLane;

// Block p * chains + c: piece p of chain c, so that chains which share a center read it one after another.
// partial: (2, pieces of all launches, chains).
template <class Step, bool sums>
__global__ void __launch_bounds__(sums ? workers + warp : workers)
    step_kernel(Chains block, Tensors tensors, const Step* coefficients, Clock clock, bool noise, double* partial,
                int64_t all_pieces) {
  constexpr int states = Step::states;
  constexpr bool gauge_is_square = Step::gauge_is_square;
  DIF_SHARED(Factors, factors, sums ? 2 : 1);
  const int64_t index = blockIdx.x, chain = index % block.chains, number = index / block.chains;
  const Piece piece = find_piece(tensors, number);
  const int thread = static_cast<int>(threadIdx.x);
  const Step k = coefficients[chain];
  const PhiloxKeys key(static_cast<uint64_t>(*clock.seed));
  const uint32_t step = static_cast<uint32_t>(*clock.step), draws = clock.first_chain + static_cast<uint32_t>(chain);
  float* const rows[3] = {block.w + chain * block.w_ld, states > 1 ? block.first + chain * block.state_ld : nullptr,
                          states > 2 ? block.second + chain * block.state_ld : nullptr};
  const float* center = block.center + chain * block.center_ld;
  const uint8_t* mask = block.mask ? block.mask + chain * block.mask_ld : nullptr;
  const float* g = piece.tensor->g + chain * piece.tensor->ld;
  const int64_t first = piece.tensor->first;
  bool rows_aligned = aligned(center);
  for (int s = 0; s < states; ++s) rows_aligned = rows_aligned && aligned(rows[s]);
  const bool g_aligned = aligned(g, first), mask_aligned = aligned(mask);

  const int64_t begin = (piece.low - piece.start) / tile, end = (piece.high - piece.start + tile - 1) / tile;
  Running running;
  for (int64_t t = begin; t < end; ++t) {
    if (thread >= workers) {
      if (t > begin) running.add<gauge_is_square>(factors[(t - 1) & 1], thread - workers);
    } else {
      const int64_t at = piece.start + t * tile + 4 * thread;
      const unsigned bits = inside(piece, at);
      Quad weight{}, force{}, other{};
      if (bits) {
        Quad state[states], next[states], pull, slope;
        const bool whole = bits == 15u && rows_aligned && g_aligned;
        if (whole) {  // all on their way before the first is needed
          for (int s = 0; s < states; ++s) state[s] = load_whole(rows[s] + at);
          pull = load_whole(center + at);
          slope = load_whole(g + (at - first));
        } else {
          for (int s = 0; s < states; ++s) state[s] = load_parts(rows[s] + at, bits);
          pull = load_parts(center + at, bits);
          slope = load_parts(g + (at - first), bits);
        }
        const unsigned moved = mask ? load_mask(mask + at, bits, mask_aligned) : bits;
        float z[4];
        if (noise) normals<L>(key, static_cast<uint32_t>(at / 4), draws, step, update_noise, z);
        for (int i = 0; i < 4; ++i) {
          float now[states], drift = 0.0f;
          for (int s = 0; s < states; ++s) now[s] = state[s].v[i];
          if (noise) {
            k.template step<L, true>(now, slope.v[i], pull.v[i], z[i], drift, force.v[i], weight.v[i]);
          } else {
            k.template step<L, false>(now, slope.v[i], pull.v[i], 0.0f, drift, force.v[i], weight.v[i]);
          }
          other.v[i] = gauge_is_square ? now[states - 1] : drift;
          const bool moves = moved >> i & 1u;
          for (int s = 0; s < states; ++s) next[s].v[i] = moves ? now[s] : state[s].v[i];
          if (!moves) weight.v[i] = force.v[i] = other.v[i] = 0.0f;
        }
        for (int s = 0; s < states; ++s) store_quad(rows[s] + at, next[s], bits, whole);
      }
      if (sums) {
        Factors& f = factors[t & 1];
        share_quad(f.a + 4 * thread, weight);
        share_quad(f.b + 4 * thread, force);
        share_quad(f.c + 4 * thread, other);
      }
    }
    if (sums) __syncthreads();
  }
  if (sums && thread >= workers) {
    running.add<gauge_is_square>(factors[(end - 1) & 1], thread - workers);
    const double work = ordered_sum(running.work), gauge = ordered_sum(running.gauge);
    if (thread == workers) {
      partial[(tensors.first_piece + number) * block.chains + chain] = work;
      partial[(all_pieces + tensors.first_piece + number) * block.chains + chain] = gauge;
    }
  }
}

// out (chains) <- the sum of each chain's pieces, in their order; a block for each chain.
__global__ void __launch_bounds__(workers)
    ordered_sums_kernel(const double* partial, int64_t pieces, int64_t chains, double* out) {
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
  if (threadIdx.x == 0) out[blockIdx.x] = total;
}

// A thread for each chain.
__global__ void __launch_bounds__(workers)
    thermostat_kernel(const double* gauge, double moving, const double* friction, double inertia, double* zeta,
                      Langevin* coefficients, int64_t chains) {
  const int64_t c = static_cast<int64_t>(blockIdx.x) * workers + threadIdx.x;
  if (c >= chains) return;
  zeta[c] = thermostat_turn(zeta[c], gauge[c] / moving, inertia);
  balance(zeta[c], friction[c], coefficients[c].keep, coefficients[c].noise_size);
}

int64_t partial_sums(const Gradient* gradients, int64_t count, int64_t chains) {
  int64_t pieces = 0;
  for (int64_t i = 0; i < count; ++i) pieces += pieces_of(gradients[i]);
  return pieces * chains;
}

template <class Step>
const char* step_with(const Chains& block, const Gradient* gradients, int64_t count, const float* coefficients,
                      const Clock& clock, bool noise, const Statistics& out, void* stream) {
  static_assert(sizeof(Step) % sizeof(float) == 0, "coefficients are floats");
  const Step* each = reinterpret_cast<const Step*>(coefficients);
  const bool sums = out.work || out.gauge;
  const int64_t all_pieces = partial_sums(gradients, count, 1);
  const char* error = for_launches(gradients, count, [&](const Tensors& tensors, int64_t pieces) -> const char* {
    if (pieces * block.chains > most_blocks) return too_many_blocks;
    const auto blocks = static_cast<unsigned>(pieces * block.chains);
    if (sums) {
      const auto kernel = step_kernel<Step, true>;
      DIF_LAUNCH(kernel, blocks, workers + warp, 0, stream, block, tensors, each, clock, noise, out.partial,
                 all_pieces);
    } else {
      const auto kernel = step_kernel<Step, false>;
      DIF_LAUNCH(kernel, blocks, workers, 0, stream, block, tensors, each, clock, noise, out.partial, all_pieces);
    }
    return launched();
  });
  const double* partial = out.partial;
  for (double* sum : {out.work, out.gauge}) {
    if (!error && sum) {
      DIF_LAUNCH(ordered_sums_kernel, static_cast<unsigned>(block.chains), workers, 0, stream, partial, all_pieces,
                 block.chains, sum);
      error = launched();
    }
    if (partial) partial += all_pieces * block.chains;
  }
  return error;
}

const char* sampler_step(Sampler sampler, const Chains& block, const Gradient* gradients, int64_t count,
                         const float* coefficients, const Clock& clock, bool noise, const Statistics& out,
                         void* stream) {
  if (block.chains <= 0) return nullptr;
  switch (sampler) {
    case Sampler::sgld:
      return step_with<Sgld>(block, gradients, count, coefficients, clock, noise, out, stream);
    case Sampler::langevin:
      return step_with<Langevin>(block, gradients, count, coefficients, clock, noise, out, stream);
    case Sampler::preconditioned:
      return step_with<Preconditioned>(block, gradients, count, coefficients, clock, noise, out, stream);
  }
  return "no such sampler";
}

const char* thermostat(const double* gauge, int64_t moving, const double* friction, double inertia, double* zeta,
                       float* coefficients, int64_t chains, void* stream) {
  if (chains <= 0) return nullptr;
  if ((chains + workers - 1) / workers > most_blocks) return too_many_blocks;
  DIF_LAUNCH(thermostat_kernel, static_cast<unsigned>((chains + workers - 1) / workers), workers, 0, stream, gauge,
             static_cast<double>(moving), friction, inertia, zeta, reinterpret_cast<Langevin*>(coefficients), chains);
  return launched();
}

}  // namespace dif::cuda
