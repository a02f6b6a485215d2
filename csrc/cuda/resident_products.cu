// Products with the Hessian of a small Program on the chip: a block of threads takes a part of the samples and some of
// the probes of one checkpoint, and touches global memory for data, weights, directions and sums alone.
#include "cuda/resident_products.cuh"

namespace dif::cuda {

// Block (checkpoint * groups + group) * segments + segment.
__global__ void __launch_bounds__(resident_threads, 4)
    products_kernel(ResidentProducts plan, ResidentData data, ProductArrays arrays, int64_t segments, float* sums) {
  DIF_SHARED_POOL(float, pool);
  const int64_t groups = (arrays.probes + plan.group - 1) / plan.group, segment = blockIdx.x % segments,
                row = blockIdx.x / segments, checkpoint = row / groups, first_probe = row % groups * plan.group;
  const int64_t left = arrays.probes - first_probe;
  const int probes = static_cast<int>(left < plan.group ? left : plan.group), thread = static_cast<int>(threadIdx.x);
  const int dim = static_cast<int>(plan.values.dim), total = static_cast<int>(plan.values.total);
  float *const w = pool + plan.values.w_at, *const v = pool + plan.v_at, *const out = pool + plan.out_at;
  int* const index = reinterpret_cast<int*>(pool + plan.values.index_at);
  for (int i = thread; i < total; i += resident_threads) {
    w[i] = i < dim ? arrays.w[checkpoint * arrays.w_ld + i] : arrays.frozen[i - dim];
  }
  const int64_t at = (checkpoint * arrays.probes + first_probe) * dim;
  for (int i = thread; i < probes * dim; i += resident_threads) {
    v[i] = arrays.v[at + i];
    out[i] = 0.0f;
  }
  Resident x{plan.values,
             data,
             pool,
             w,
             nullptr,
             pool + plan.values.values_at,
             pool + plan.values.loss_at,
             index,
             nullptr,
             0,
             0,
             0,
             plan.tile + 1,
             static_cast<int>(data.n),
             thread};
  const ResidentSecond pass{plan, x, v, pool + plan.tangents_at, out, probes};
  const int count = plan.values.count;
  const ResidentOp* ops = plan.values.ops;
  const int64_t tiles = (data.n + plan.tile - 1) / plan.tile;
  for (int64_t tile = tiles * segment / segments; tile < tiles * (segment + 1) / segments; ++tile) {
    const int64_t first = tile * plan.tile, rest = data.n - first;
    x.samples = static_cast<int>(rest < plan.tile ? rest : plan.tile);
    x.columns = (x.samples + sample_lanes - 1) / sample_lanes;
    for (int i = thread; i < x.samples; i += resident_threads) index[i] = static_cast<int>(first) + i;
    __syncthreads();
    for (int i = 0; i < count; ++i) {
      x.forward(ops[i]);
      __syncthreads();
    }
    pass.losses();
    __syncthreads();
    for (int i = count - 1; i >= 0; --i) {
      if (ops[i].out_d >= 0) pass.values_back(ops[i], plan.bent[i]);
      __syncthreads();
    }
    for (int i = 0; i < count; ++i) {
      if (ops[i].out_d >= 0) pass.forward(ops[i], plan.bent[i]);
      __syncthreads();
    }
    pass.loss_hessian();
    __syncthreads();
    for (int i = count - 1; i >= 0; --i) {
      if (ops[i].out_d >= 0) pass.backward(ops[i], plan.bent[i]);
      __syncthreads();
    }
  }
  const int64_t numbers = arrays.checkpoints * arrays.probes * dim;
  for (int i = thread; i < probes * dim; i += resident_threads) sums[segment * numbers + at + i] = out[i];
}

// out (numbers) <- the sum of the segments', in their order.
__global__ void __launch_bounds__(resident_threads)
    add_segments_kernel(const float* partial, int64_t segments, int64_t numbers, float* out) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * resident_threads + threadIdx.x;
  if (i >= numbers) return;
  float total = partial[i];
  for (int64_t s = 1; s < segments; ++s) total = ThreadLane::add(total, partial[s * numbers + i]);
  out[i] = total;
}

int64_t product_segments(const ResidentProducts& plan, int64_t n) {
  constexpr int64_t most_segments = 8, least_samples = 256;
  const int64_t tiles = (n + plan.tile - 1) / plan.tile;
  int64_t segments = 1;
  while (2 * segments <= most_segments && 2 * segments <= tiles && 2 * segments <= n / least_samples) segments *= 2;
  return segments;
}

const char* resident_products(const ResidentProducts& plan, const ResidentData& data, const ProductArrays& arrays,
                              void* stream) {
  const int64_t numbers = arrays.checkpoints * arrays.probes * plan.values.dim;
  if (numbers <= 0 || data.n <= 0) return nullptr;
  const int64_t segments = product_segments(plan, data.n);
  const int64_t blocks = arrays.checkpoints * ((arrays.probes + plan.group - 1) / plan.group) * segments;
  const int64_t adders = (numbers + resident_threads - 1) / resident_threads;
  if (blocks > most_blocks || adders > most_blocks) return too_many_blocks;
  const auto bytes = static_cast<size_t>(plan.values.shared_bytes);
  if (const char* error = allow_shared(products_kernel, bytes)) return error;
  float* sums = segments > 1 ? arrays.partial : arrays.out;
  DIF_LAUNCH(products_kernel, static_cast<unsigned>(blocks), resident_threads, bytes, stream, plan, data, arrays,
             segments, sums);
  const char* error = launched();
  if (error || segments == 1) return error;
  const float* partial = sums;
  DIF_LAUNCH(add_segments_kernel, static_cast<unsigned>(adders), resident_threads, 0, stream, partial, segments,
             numbers, arrays.out);
  return launched();
}

}  // namespace dif::cuda
