// The guards' own test subjects: three sound kernels, and the same mistakes that a kernel of ours could make, one each.
// tests/test_cuda_faults.py says which guard finds which.
#include <cstdint>

#include "cuda/launch.cuh"

namespace {

constexpr int block = 64;

// --- sound ---------------------------------------------------------------------------------------------------------

// to <- from (n), four at a time and the rest one by one.
__global__ void copy(float* to, const float* from, int64_t n) {
  const int64_t i = blockIdx.x * int64_t{block} + threadIdx.x, quads = n / 4;
  if (i < quads) reinterpret_cast<float4*>(to)[i] = reinterpret_cast<const float4*>(from)[i];
  if (i < n % 4) to[4 * quads + i] = from[4 * quads + i];
}

// to[b] <- the sum of block b's part of x (n): a warp's by shuffles, the warps' through shared memory.
__global__ void sum(float* to, const float* x, int64_t n) {
  DIF_SHARED(float, warps, block / 32);
  const int64_t i = blockIdx.x * int64_t{block} + threadIdx.x;
  float a = i < n ? x[i] : 0.0f;
  for (int o = 16; o; o >>= 1) a += __shfl_xor_sync(0xffffffffu, a, o);
  if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = a;
#ifndef DIF_PLANT_MISSING_BARRIER
  __syncthreads();
#endif
  if (threadIdx.x == 0) {
    for (int w = 1; w < block / 32; ++w) a += warps[w];
    to[blockIdx.x] = a;
  }
}

// to (block) <- from reversed, through the pool; two rounds, so that the second barrier matters too.
__global__ void reverse(float* to, const float* from, int rounds) {
  DIF_SHARED_POOL(float, pool);
  const unsigned t = threadIdx.x;
  float x = from[t];
  for (int r = 0; r < rounds; ++r) {
    pool[t] = x;
    __syncthreads();
    x = pool[block - 1 - t];
#ifndef DIF_PLANT_MISSING_SECOND_BARRIER
    __syncthreads();
#endif
  }
  to[t] = x;
}

// --- mistaken ------------------------------------------------------------------------------------------------------

// The last thread reads behind x (n).
__global__ void global_out_of_bounds(float* to, const float* x, int64_t n) {
  const int64_t i = blockIdx.x * int64_t{block} + threadIdx.x;
  if (i <= n - 1) to[i] = x[i + 1];
}

__global__ void global_store_out_of_bounds(float* to, const float* x, int64_t n) {
  const int64_t i = blockIdx.x * int64_t{block} + threadIdx.x;
  if (i <= n) to[i] = i < n ? x[i] : 1.0f;
}

__global__ void shared_out_of_bounds(float* to) {
  DIF_SHARED(float, s, block);
  s[threadIdx.x + 1] = 1.0f;
  __syncthreads();
  to[threadIdx.x] = threadIdx.x ? s[threadIdx.x] : 1.0f;
}

// Rows of n floats taken four at a time where n is not divisible by four.
__global__ void misaligned(float* to, const float* x, int64_t n) {
  const float4 a = *reinterpret_cast<const float4*>(x + blockIdx.x * n);
  if (threadIdx.x == 0) to[blockIdx.x] = a.x + a.y + a.z + a.w;
}

__global__ void blocks_race(float* to) { to[threadIdx.x] = static_cast<float>(blockIdx.x); }

// One block reads what another writes.
__global__ void blocks_exchange(float* to) {
  const float before = to[(blockIdx.x + 1) % gridDim.x];
  if (threadIdx.x == 0) to[blockIdx.x] = before + 1.0f;
}

__global__ void lost_update(int* to) { to[0] = to[0] + 1; }

__global__ void partial_barrier(float* to) {
  if (threadIdx.x < 40) __syncthreads();
  to[threadIdx.x] = 1.0f;
}

__global__ void exited_lane(float* to) {
  if (threadIdx.x < 20) to[threadIdx.x] = __shfl_xor_sync(0xffffffffu, 1.0f, 1);
}

__global__ void exited_voter(float* to) {
  if (threadIdx.x < 20) to[threadIdx.x] = static_cast<float>(__ballot_sync(0xffffffffu, threadIdx.x % 2));
}

__global__ void lane_outside_mask(float* to) {
  if (threadIdx.x < 16) to[threadIdx.x] = __shfl_xor_sync(0x0000ffffu, static_cast<float>(threadIdx.x), 16);
}

// Lanes of a warp exchange through shared memory without __syncwarp.
__global__ void missing_syncwarp(float* to) {
  DIF_SHARED(float, s, block);
  s[threadIdx.x] = static_cast<float>(threadIdx.x);
  to[threadIdx.x] = s[threadIdx.x ^ 1u];
}

__global__ void uninitialized_shared(float* to) {
  DIF_SHARED(float, s, block);
  if (threadIdx.x) s[threadIdx.x] = 1.0f;
  __syncthreads();
  to[threadIdx.x] = s[threadIdx.x];
}

unsigned blocks_of(int64_t n) { return static_cast<unsigned>((n + block - 1) / block); }

}  // namespace

#define DIF_EXPORT extern "C" __attribute__((visibility("default"))) const char*

DIF_EXPORT run_copy(float* to, const float* from, int64_t n) {
  DIF_LAUNCH(copy, blocks_of((n + 3) / 4 + 3), block, 0, nullptr, to, from, n);
  return dif::cuda::launched();
}
DIF_EXPORT run_sum(float* to, const float* x, int64_t n) {
  DIF_LAUNCH(sum, blocks_of(n), block, 0, nullptr, to, x, n);
  return dif::cuda::launched();
}
DIF_EXPORT run_reverse(float* to, const float* from, int64_t rounds) {
  DIF_LAUNCH(reverse, 1, block, block * sizeof(float), nullptr, to, from, static_cast<int>(rounds));
  return dif::cuda::launched();
}
DIF_EXPORT run_global_out_of_bounds(float* to, const float* x, int64_t n) {
  DIF_LAUNCH(global_out_of_bounds, blocks_of(n), block, 0, nullptr, to, x, n);
  return dif::cuda::launched();
}
DIF_EXPORT run_global_store_out_of_bounds(float* to, const float* x, int64_t n) {
  DIF_LAUNCH(global_store_out_of_bounds, blocks_of(n + 1), block, 0, nullptr, to, x, n);
  return dif::cuda::launched();
}
DIF_EXPORT run_misaligned(float* to, const float* x, int64_t n) {
  DIF_LAUNCH(misaligned, 2, block, 0, nullptr, to, x, n);
  return dif::cuda::launched();
}
#define DIF_FAULT(name, type, blocks)                \
  DIF_EXPORT run_##name(type* to) {                  \
    DIF_LAUNCH(name, blocks, block, 0, nullptr, to); \
    return dif::cuda::launched();                    \
  }
DIF_FAULT(shared_out_of_bounds, float, 1)
DIF_FAULT(blocks_race, float, 2)
DIF_FAULT(blocks_exchange, float, 2)
DIF_FAULT(lost_update, int, 1)
DIF_FAULT(partial_barrier, float, 1)
DIF_FAULT(exited_lane, float, 1)
DIF_FAULT(exited_voter, float, 1)
DIF_FAULT(lane_outside_mask, float, 1)
DIF_FAULT(missing_syncwarp, float, 1)
DIF_FAULT(uninitialized_shared, float, 1)
