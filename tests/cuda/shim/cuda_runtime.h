// A stand-in for CUDA's header of this name: with -Itests/cuda/shim a C++ compiler takes the project's .cu files as
// they are. The threads of a block become fibers of one thread of the processor (runtime.cpp), which meet at barriers
// and warp collectives and are resumed in random order.
//
// Only what the kernels use exists here: an unknown intrinsic does not compile, and neither do `__shared__` (DIF_SHARED
// it is), an atomic on floats (its order of sums would be the hardware's) or __activemask (its value would be).
#pragma once
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <tuple>
#include <type_traits>
#include <vector>

#define __host__
#define __device__
#define __global__
#define __constant__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)

struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(8) int2 {
  int x, y;
};
struct alignas(16) int4 {
  int x, y, z, w;
};
struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct alignas(4) uchar4 {
  unsigned char x, y, z, w;
};
struct alignas(16) double2 {
  double x, y;
};
struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
inline double2 make_double2(double x, double y) { return {x, y}; }

// --- the runtime's interface ---------------------------------------------------------------------------------------

using cudaStream_t = void*;
enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidValue = 1, cudaErrorLaunchFailure = 719 };
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize = 8 };

cudaError_t cudaGetLastError();               // and forgets it
const char* cudaGetErrorString(cudaError_t);  // of the last failed launch: what the shim found
inline cudaError_t cudaGetDeviceCount(int* count) { return *count = 1, cudaSuccess; }
inline cudaError_t cudaGetDevice(int* device) { return *device = 0, cudaSuccess; }
inline cudaError_t cudaSetDevice(int device) { return device == 0 ? cudaSuccess : cudaErrorInvalidValue; }

namespace shim {

struct Position {
  dim3 thread, block, threads, blocks;
};
extern Position now;  // of the thread that runs

enum class Collective { none, xor_lane, down, up, lane, ballot, sync };

void barrier(int line);
uint64_t collective(Collective, uint32_t mask, uint64_t value, int argument, int width, int line);
void* shared(const char* name, int line, size_t bytes);
void* dynamic_shared();
void allow_dynamic_shared(const void* kernel, size_t bytes);

struct Launch {
  const void* kernel;
  dim3 grid, block;
  size_t shared_bytes;
  std::vector<std::vector<unsigned char>> arguments;  // each as its parameter's bytes
  std::function<void()> thread;
};
void launch(Launch&&);

template <class T>
std::vector<unsigned char> bytes_of(const T& value) {
  static_assert(std::is_trivially_copyable_v<T>, "a kernel's parameters are copied as bytes");
  std::vector<unsigned char> bytes(sizeof(T));
  std::memcpy(bytes.data(), &value, sizeof(T));
  return bytes;
}

template <class... P, class... A>
void launch(void (*kernel)(P...), dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t, A... arguments) {
  const std::tuple<std::decay_t<P>...> values(static_cast<std::decay_t<P>>(arguments)...);
  Launch l{reinterpret_cast<const void*>(kernel), grid, block, shared_bytes, {}, {}};
  std::apply([&](const auto&... v) { (l.arguments.push_back(bytes_of(v)), ...); }, values);
  l.thread = [kernel, values] { std::apply(kernel, values); };
  launch(std::move(l));
}

template <class T>
T shuffle(Collective kind, uint32_t mask, T value, int argument, int width, int line) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8, "shuffles move 4 or 8 bytes");
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  bits = collective(kind, mask, bits, argument, width, line);
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}

template <class To, class From>
To cast_bits(From from) {
  static_assert(sizeof(To) == sizeof(From), "");
  To to;
  std::memcpy(&to, &from, sizeof(To));
  return to;
}

}  // namespace shim

template <class K>
cudaError_t cudaFuncSetAttribute(K* kernel, cudaFuncAttribute, int bytes) {
  shim::allow_dynamic_shared(reinterpret_cast<const void*>(kernel), static_cast<size_t>(bytes));
  return cudaSuccess;
}

// The three macros of cuda/launch.cuh.
#define DIF_LAUNCH(kernel, grid, block, shared_bytes, stream, ...) \
  shim::launch(kernel, (grid), (block), (shared_bytes), (stream), __VA_ARGS__)
#define DIF_SHARED(type, name, count) \
  type* const name = static_cast<type*>(shim::shared(#name, __LINE__, sizeof(type) * static_cast<size_t>(count)))
#define DIF_SHARED_POOL(type, name) type* const name = static_cast<type*>(shim::dynamic_shared())

#define threadIdx (shim::now.thread)
#define blockIdx (shim::now.block)
#define blockDim (shim::now.threads)
#define gridDim (shim::now.blocks)

// --- barriers and warp collectives: `line` tells one from another --------------------------------------------------

inline void __syncthreads(int line = __builtin_LINE()) { shim::barrier(line); }
inline void __syncwarp(unsigned mask = 0xffffffffu, int line = __builtin_LINE()) {
  shim::collective(shim::Collective::sync, mask, 0, 0, 32, line);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T v, int lanes, int width = 32, int line = __builtin_LINE()) {
  return shim::shuffle(shim::Collective::xor_lane, mask, v, lanes, width, line);
}
template <class T>
T __shfl_down_sync(unsigned mask, T v, unsigned delta, int width = 32, int line = __builtin_LINE()) {
  return shim::shuffle(shim::Collective::down, mask, v, static_cast<int>(delta), width, line);
}
template <class T>
T __shfl_up_sync(unsigned mask, T v, unsigned delta, int width = 32, int line = __builtin_LINE()) {
  return shim::shuffle(shim::Collective::up, mask, v, static_cast<int>(delta), width, line);
}
template <class T>
T __shfl_sync(unsigned mask, T v, int lane, int width = 32, int line = __builtin_LINE()) {
  return shim::shuffle(shim::Collective::lane, mask, v, lane, width, line);
}
inline unsigned __ballot_sync(unsigned mask, int predicate, int line = __builtin_LINE()) {
  return static_cast<unsigned>(shim::collective(shim::Collective::ballot, mask, predicate != 0, 0, 32, line));
}
inline int __any_sync(unsigned mask, int predicate, int line = __builtin_LINE()) {
  return __ballot_sync(mask, predicate, line) != 0;
}
inline int __all_sync(unsigned mask, int predicate, int line = __builtin_LINE()) {
  return __ballot_sync(mask, predicate, line) == mask;
}

// --- atomics on integers; acquire and release stand for the fence that a kernel puts beside them ---------------------

inline void __threadfence() {}
inline void __threadfence_block() {}
template <class T, class U>
T atomicAdd(T* p, U v) {
  static_assert(std::is_integral_v<T>, "no float atomics");
  return __atomic_fetch_add(p, static_cast<T>(v), __ATOMIC_ACQ_REL);
}
template <class T, class U>
T atomicOr(T* p, U v) {
  static_assert(std::is_integral_v<T>, "no float atomics");
  return __atomic_fetch_or(p, static_cast<T>(v), __ATOMIC_ACQ_REL);
}
template <class T, class U>
T atomicExch(T* p, U v) {
  return __atomic_exchange_n(p, static_cast<T>(v), __ATOMIC_ACQ_REL);
}
template <class T>
T atomicCAS(T* p, T expected, T desired) {
  __atomic_compare_exchange_n(p, &expected, desired, false, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE);
  return expected;
}
template <class T, class U>
T atomicMax(T* p, U v) {
  static_assert(std::is_integral_v<T>, "no float atomics");
  T old = __atomic_load_n(p, __ATOMIC_ACQUIRE);
  while (old < static_cast<T>(v) &&
         !__atomic_compare_exchange_n(p, &old, static_cast<T>(v), false, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE)) {
  }
  return old;
}

// --- arithmetic that names its rounding (the build sets -ffp-contract=off) -----------------------------------------

inline float __fmaf_rn(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fsqrt_rn(float a) { return __builtin_sqrtf(a); }
inline double __fma_rn(double a, double b, double c) { return __builtin_fma(a, b, c); }
inline double __dadd_rn(double a, double b) { return a + b; }
inline double __dsub_rn(double a, double b) { return a - b; }
inline double __dmul_rn(double a, double b) { return a * b; }
inline double __ddiv_rn(double a, double b) { return a / b; }
inline double __dsqrt_rn(double a) { return __builtin_sqrt(a); }
inline float __uint2float_rn(unsigned a) { return static_cast<float>(a); }
inline float __int2float_rn(int a) { return static_cast<float>(a); }
inline float __double2float_rn(double a) { return static_cast<float>(a); }
inline unsigned __float_as_uint(float a) { return shim::cast_bits<unsigned>(a); }
inline int __float_as_int(float a) { return shim::cast_bits<int>(a); }
inline float __uint_as_float(unsigned a) { return shim::cast_bits<float>(a); }
inline float __int_as_float(int a) { return shim::cast_bits<float>(a); }
inline long long __double_as_longlong(double a) { return shim::cast_bits<long long>(a); }
inline double __longlong_as_double(long long a) { return shim::cast_bits<double>(a); }
inline unsigned __umulhi(unsigned a, unsigned b) { return static_cast<unsigned>(uint64_t{a} * b >> 32); }
inline int __clz(int a) { return a ? __builtin_clz(static_cast<unsigned>(a)) : 32; }
inline int __popc(unsigned a) { return __builtin_popcount(a); }
inline int __ffs(int a) { return __builtin_ffs(a); }
template <class T>
T __ldg(const T* p) {
  return *p;
}
template <class T>
T __ldcs(const T* p) {
  return *p;
}
template <class T>
void __stcs(T* p, T v) {
  *p = v;
}
template <class T>
void __stwb(T* p, T v) {
  *p = v;
}
