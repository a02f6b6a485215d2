// Whole chains on the chip: a block of threads runs one chain for many steps, from choosing the batch to recording the
// draw, and touches global memory for the data, the draws and the chain's first and last state alone.
#include "core/blocks.hpp"
#include "core/normal.hpp"
#include "core/update.hpp"
#include "cuda/resident.cuh"

namespace dif::cuda {

using L = ThreadLane;

// Which sample a batch's place j holds: floor(word_j n / 2^32), or j of a full batch.
__device__ __forceinline__ void choose(int* index, int batch, bool full, int64_t n, const PhiloxKeys& key,
                                       uint32_t chain, uint32_t step) {
  for (int quad = static_cast<int>(threadIdx.x); 4 * quad < batch; quad += resident_threads) {
    const PhiloxWords<L> words = philox<L>(key, static_cast<uint32_t>(quad), chain, step, batch_indices);
    for (int k = 0; k < 4 && 4 * quad + k < batch; ++k) {
      const uint64_t product = static_cast<uint64_t>(words.word[k]) * static_cast<uint64_t>(n);
      index[4 * quad + k] = full ? 4 * quad + k : static_cast<int>(product >> 32);
    }
  }
}

// A warp: the sum of sixteen running sums, halving, for parameter p (lane 0 of its half).
__device__ __forceinline__ float halved(float v) {
  for (int h = sample_lanes / 2; h > 0; h /= 2) v = L::add(v, __shfl_down_sync(all_lanes, v, h, sample_lanes));
  return v;
}

__global__ void __launch_bounds__(resident_threads, 6)
    resident_kernel(ResidentPlan plan, ResidentData data, ResidentRun run, Clock clock, int64_t steps) {
  DIF_SHARED_POOL(float, pool);
  DIF_SHARED(double, sums, sample_lanes);
  DIF_SHARED(double, baselines, 4);
  DIF_SHARED(double, virials, 4);
  const int64_t chain = blockIdx.x;
  if (run.diverged[chain] >= 0) return;
  const int thread = static_cast<int>(threadIdx.x), lane = thread % warp, batch = static_cast<int>(run.batch);
  const PhiloxKeys key(static_cast<uint64_t>(*clock.seed));
  const uint32_t draws = clock.first_chain + static_cast<uint32_t>(chain);
  const int64_t first_step = *clock.step;
  const auto k = reinterpret_cast<const Sgld*>(run.coefficients)[chain];
  const float* center = run.center + chain * run.center_ld;
  const int dim = static_cast<int>(plan.dim), total = static_cast<int>(plan.total);

  float *const w = pool + plan.w_at, *const g = pool + plan.g_at, *const acc = pool + plan.acc_at;
  int* const index = reinterpret_cast<int*>(pool + plan.index_at);
  Resident pass{plan,  data, pool, w, acc, pool + plan.values_at,         pool + plan.loss_at,
                index, sums, 0,    0, 0,   static_cast<int>(plan.stride), batch,
                thread};
  for (int i = thread; i < total; i += resident_threads) {
    w[i] = i < dim ? run.w[chain * run.w_ld + i] : run.frozen[i - dim];
  }
  __syncthreads();
  for (int64_t t = first_step; t < first_step + steps; ++t) {
    const auto step = static_cast<uint32_t>(t);
    choose(index, batch, run.full, data.n, key, draws, step);
    const int running = dim * sample_lanes * (plan.tied ? 2 : 1);
    for (int i = thread; i < running; i += resident_threads) acc[i] = 0.0f;
    if (thread < sample_lanes) sums[thread] = 0.0;
    __syncthreads();

    for (int first = 0; first < batch; first += static_cast<int>(plan.stride)) {
      pass.first = first;
      pass.samples = batch - first < plan.stride ? batch - first : static_cast<int>(plan.stride);
      pass.columns = (pass.samples + sample_lanes - 1) / sample_lanes;
      for (int i = 0; i < plan.count; ++i) {
        pass.forward(plan.ops[i]);
        __syncthreads();
      }
      pass.losses();
      __syncthreads();
      pass.add_losses();
      for (int i = plan.count - 1; i >= 0; --i) {
        if (plan.ops[i].out_d >= 0) pass.backward(plan.ops[i]);
        __syncthreads();
      }
    }

    // the gradient; whole warps, so that every lane has a partner
    const float slope = static_cast<float>(2.0 * plan.loss_factor / static_cast<double>(batch));
    for (int i = thread - lane; i < dim * sample_lanes; i += resident_threads) {
      const int at = i + lane;
      float sum = at < dim * sample_lanes ? acc[at] : 0.0f;
      if (plan.tied && at < dim * sample_lanes) sum = L::add(sum, acc[dim * sample_lanes + at]);
      sum = halved(sum);
      if (at < dim * sample_lanes && at % sample_lanes == 0) {
        g[at / sample_lanes] = plan.tied ? L::mul(slope, sum) : sum;
      }
    }
    double loss = 0.0;
    for (int i = 0; i < sample_lanes; ++i) loss += product(sums[i], plan.loss_factor);
    loss /= static_cast<double>(batch);
    if (!(loss - loss == 0.0)) {  // the same for all threads
      if (thread == 0) run.diverged[chain] = t;
      break;
    }
    __syncthreads();
    const bool recorded = t >= run.burn_in && (t - run.burn_in) % run.thin == 0;
    if (recorded) {  // four running sums each, a thread a sum
      const int baseline = thread - warp, virial = thread - 2 * warp;
      if (run.baseline && baseline >= 0 && baseline < 4) {
        double sum = 0.0;
        for (int i = baseline; i < batch; i += 4) sum += run.baseline[index[i]];
        baselines[baseline] = sum;
      }
      if (virial >= 0 && virial < 4) {
        double sum = 0.0;
        for (int i = virial; i < dim; i += 4) {
          const bool moves = !run.mask || run.mask[i] != 0;
          const double x = moves ? static_cast<double>(w[i]) - static_cast<double>(center[i]) : 0.0;
          sum += product(x, static_cast<double>(g[i]));
        }
        virials[virial] = sum;
      }
      __syncthreads();
    }

    // the update; what its sums are made of goes where the running sums were
    for (int quad = thread; 4 * quad < dim; quad += resident_threads) {
      float z[4];
      normals<L>(key, static_cast<uint32_t>(quad), draws, step, update_noise, z);
      for (int i = 0; i < 4 && 4 * quad + i < dim; ++i) {
        const int at = 4 * quad + i;
        float state[1] = {w[at]}, drift, force, weight;
        k.step<L, true>(state, g[at], center[at], z[i], drift, force, weight);
        const bool moves = !run.mask || run.mask[at] != 0;
        if (moves) w[at] = state[0];
        acc[at] = moves ? weight : 0.0f;
        acc[dim + at] = moves ? force : 0.0f;
      }
    }
    __syncthreads();
    if (recorded && thread < warp) {
      const int64_t draw = chain * run.trace_ld + (t - run.burn_in) / run.thin;
      float work = 0.0f;
      for (int i = lane; i < dim; i += running_sums) work = L::fma(acc[i], acc[dim + i], work);
      const double energy = ordered_sum(work);
      if (thread == 0) {
        const double virial = virials[0] + virials[1] + virials[2] + virials[3];
        const double baseline = baselines[0] + baselines[1] + baselines[2] + baselines[3];
        run.loss[draw] = loss;
        run.energy[draw] = energy;
        run.gauge[draw] = product(run.nbeta[chain], virial);
        if (run.baseline) run.baselines[draw] = baseline / static_cast<double>(batch);
      }
    }
    __syncthreads();
  }
  for (int i = thread; i < dim; i += resident_threads) run.w[chain * run.w_ld + i] = w[i];
}

const char* run_resident(const ResidentPlan& plan, const ResidentData& data, const ResidentRun& run, const Clock& clock,
                         int64_t steps, void* stream) {
  if (run.chains <= 0 || steps <= 0) return nullptr;
  if (run.chains > most_blocks) return too_many_blocks;
  const auto bytes = static_cast<size_t>(plan.shared_bytes);
  if (const char* error = allow_shared(resident_kernel, bytes)) return error;
  DIF_LAUNCH(resident_kernel, static_cast<unsigned>(run.chains), resident_threads, bytes, stream, plan, data, run,
             clock, steps);
  return launched();
}

}  // namespace dif::cuda
