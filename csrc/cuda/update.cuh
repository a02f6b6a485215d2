// The frame of a fused step: how chains and tensors are cut among blocks of threads, and how statistics are summed.
//
// A block of threads takes one piece, the part of one tensor inside one block of core/blocks.hpp, of one chain. A
// thread takes a quad of coordinates, which share one Philox counter, in each tile of the piece. The statistic of a
// tile goes to shared memory, where one more warp adds it to the running sums while the others work on the next tile:
// the order of sums is that of core/blocks.hpp, so it is the CPU's.
#pragma once
#include "core/blocks.hpp"
#include "core/normal.hpp"
#include "cuda/cuda.hpp"
#include "cuda/lanes.cuh"
#include "cuda/launch.cuh"

namespace dif::cuda {

constexpr int workers = 256;          // threads with a quad each
constexpr int tile = 4 * workers;     // coordinates
constexpr int tensors_a_launch = 64;  // they travel in the kernel's arguments, of 4 KB

// Tensors as the kernels see them. before[i]: pieces of the tensors before i.
struct Tensors {
  int64_t count, first_piece;
  Gradient tensor[tensors_a_launch];
  int64_t before[tensors_a_launch];
};

inline int64_t pieces_of(const Gradient& t) {
  return t.size > 0 ? (t.first + t.size - 1) / block_size - t.first / block_size + 1 : 0;
}

// Calls start(tensors, pieces) for as many tensors as one launch takes, until all are done or one reports an error.
template <class Start>
const char* for_launches(const Gradient* gradients, int64_t count, Start start) {
  Tensors some;
  int64_t first_piece = 0, pieces = 0;
  some.count = 0;
  for (int64_t i = 0; i < count; ++i) {
    if (gradients[i].size <= 0) continue;
    some.tensor[some.count] = gradients[i];
    some.before[some.count++] = pieces;
    pieces += pieces_of(gradients[i]);
    if (some.count < tensors_a_launch && i + 1 < count) continue;
    some.first_piece = first_piece;
    if (const char* error = start(some, pieces)) return error;
    first_piece += pieces;
    some.count = pieces = 0;
  }
  if (some.count == 0) return nullptr;
  some.first_piece = first_piece;
  return start(some, pieces);
}

// The coordinates low .. high - 1 of one tensor, inside the block of coordinates that starts at `start`.
struct Piece {
  const Gradient* tensor;
  int64_t start, low, high;
};

DIF_INLINE Piece find_piece(const Tensors& tensors, int64_t index) {
  int64_t i = 0, end = tensors.count;  // the last tensor with before <= index
  while (end - i > 1) {
    const int64_t middle = (i + end) / 2;
    (tensors.before[middle] <= index ? i : end) = middle;
  }
  const Gradient& t = tensors.tensor[i];
  const int64_t start = (t.first / block_size + index - tensors.before[i]) * block_size;
  const int64_t stop = start + block_size, end_of_tensor = t.first + t.size;
  return {&t, start, t.first > start ? t.first : start, end_of_tensor < stop ? end_of_tensor : stop};
}

// Whether coordinates 0, 4, 8, ... of a row lie at multiples of four elements; the row begins with coordinate `first`.
template <class T>
DIF_INLINE bool aligned(const T* row, int64_t first = 0) {
  const uintptr_t origin = reinterpret_cast<uintptr_t>(row) - static_cast<uintptr_t>(first) * sizeof(T);
  return (origin & (4 * sizeof(T) - 1)) == 0;
}

// Which of the coordinates at .. at + 3 lie inside the piece: bit k for coordinate at + k.
DIF_INLINE unsigned inside(const Piece& piece, int64_t at) {
  if (at >= piece.low && at + 4 <= piece.high) return 15u;
  unsigned bits = 0;
  for (int k = 0; k < 4; ++k) bits |= at + k >= piece.low && at + k < piece.high ? 1u << k : 0u;
  return bits;
}

// Four neighbors in memory, of which those in `bits` are there; in one access if all are and `aligned`.
struct Quad {
  float v[4];
};
DIF_INLINE Quad load_whole(const float* p) {
  const float4 x = *reinterpret_cast<const float4*>(p);
  return {{x.x, x.y, x.z, x.w}};
}
DIF_INLINE Quad load_parts(const float* p, unsigned bits) {
  Quad q;
  for (int k = 0; k < 4; ++k) q.v[k] = bits >> k & 1u ? p[k] : 0.0f;
  return q;
}
// To shared memory.
DIF_INLINE void share_quad(float* p, const Quad& q) {
  *reinterpret_cast<float4*>(p) = make_float4(q.v[0], q.v[1], q.v[2], q.v[3]);
}
// To global memory. __stwb is an ordinary store that the compiler cannot take apart: beside a branch that stores the
// parts, it makes four of a plain one.
__device__ __forceinline__ void store_quad(float* p, const Quad& q, unsigned bits, bool aligned) {
  if (bits == 15u && aligned) {
    __stwb(reinterpret_cast<float4*>(p), make_float4(q.v[0], q.v[1], q.v[2], q.v[3]));
    return;
  }
  for (int k = 0; k < 4; ++k) {
    if (bits >> k & 1u) p[k] = q.v[k];
  }
}
// Those of `bits` that the mask moves.
DIF_INLINE unsigned load_mask(const uint8_t* p, unsigned bits, bool aligned) {
  if (bits == 15u && aligned) {
    const uchar4 m = *reinterpret_cast<const uchar4*>(p);
    return (m.x ? 1u : 0u) | (m.y ? 2u : 0u) | (m.z ? 4u : 0u) | (m.w ? 8u : 0u);
  }
  unsigned moved = 0;
  for (int k = 0; k < 4; ++k) moved |= bits >> k & 1u && p[k] != 0 ? 1u << k : 0u;
  return moved;
}

// What a tile's statistics are made of, on its way to the running sums: sum a . b, and sum a . c or c . c.
struct Factors {
  float a[tile], b[tile], c[tile];
};

// The last warp's running sums, of its lane's coordinates.
struct Running {
  float work = 0.0f, gauge = 0.0f;
  template <bool squared>
  DIF_INLINE void add(const Factors& f, int lane) {
    for (int k = lane; k < tile; k += running_sums) {
      const float a = f.a[k], c = f.c[k];
      work = ThreadLane::fma(a, f.b[k], work);
      gauge = ThreadLane::fma(squared ? c : a, c, gauge);
    }
  }
};

}  // namespace dif::cuda
