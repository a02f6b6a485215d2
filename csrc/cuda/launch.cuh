// The three ways in which our kernels need the CUDA language beyond a C++ compiler's reach. Whoever defines them before
// this file is included runs the unmodified kernels elsewhere; nothing else in this folder knows.
//
//   DIF_LAUNCH(kernel, grid, block, shared_bytes, stream, arguments...)   stream: void*
//   DIF_SHARED(type, name, count)      an array of a block's shared memory, of a length known to the compiler
//   DIF_SHARED_POOL(type, name)        the shared_bytes of the launch
#pragma once
#include <cuda_runtime.h>

#ifndef DIF_LAUNCH
#define DIF_LAUNCH(kernel, grid, block, shared_bytes, stream, ...) \
  kernel<<<(grid), (block), (shared_bytes), static_cast<cudaStream_t>(stream)>>>(__VA_ARGS__)
#endif
#ifndef DIF_SHARED
#define DIF_SHARED(type, name, count) __shared__ type name[count]
#endif
#ifndef DIF_SHARED_POOL
#define DIF_SHARED_POOL(type, name) extern __shared__ __align__(16) type name[]
#endif

namespace dif::cuda {

constexpr int warp = 32;
constexpr unsigned all_lanes = 0xffffffffu;
constexpr int64_t most_blocks = 2147483647;  // of a launch
constexpr const char* too_many_blocks = "the block of chains is larger than one launch can walk";

// The text of the last launch's error, or null. Of launching alone: nothing waits for the kernel.
inline const char* launched() {
  const cudaError_t error = cudaGetLastError();
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

// Lets a kernel's blocks have so much shared memory. Null, or why they cannot.
template <class Kernel>
const char* allow_shared(Kernel kernel, size_t bytes) {
  if (bytes <= 48 * 1024) return nullptr;
  const auto most = static_cast<int>(bytes);
  if (cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, most) == cudaSuccess) return nullptr;
  cudaGetLastError();  // said once, here
  return "program: its chains need more shared memory than a block of this device can have";
}

// A warp's running sums in one double, in the order of the lanes.
__device__ __forceinline__ double ordered_sum(float sum) {
  double total = 0.0;
  for (int i = 0; i < warp; ++i) total += static_cast<double>(__shfl_sync(all_lanes, sum, i));
  return total;
}

}  // namespace dif::cuda
