// Which devices there are.
#include "cuda/cuda.hpp"
#include "cuda/launch.cuh"

namespace dif::cuda {

int device_count(const char** reason) {
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  *reason = error == cudaSuccess ? (count > 0 ? "" : "no CUDA device") : cudaGetErrorString(error);
  if (error == cudaSuccess) return count;
  cudaGetLastError();  // so that the next launch does not report this
  return 0;
}

}  // namespace dif::cuda
