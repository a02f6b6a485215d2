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

OnDevice::OnDevice(int device) {
  int current = 0;
  cudaError_t status = cudaGetDevice(&current);
  if (status == cudaSuccess && current != device) {
    status = cudaSetDevice(device);
    if (status == cudaSuccess) before_ = current;
  }
  if (status == cudaSuccess) return;
  error = cudaGetErrorString(status);
  cudaGetLastError();
}

OnDevice::~OnDevice() {
  if (before_ >= 0) cudaSetDevice(before_);
}

}  // namespace dif::cuda
