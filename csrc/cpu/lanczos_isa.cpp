// Sums and updates of Gram-Schmidt for one instruction set: compiled once for each, under the same rules as isa.cpp.
// Thirty-two running sums on every set; products of two floats are exact in double, and no multiply-add is fused.
#include <cstdint>
#include <cstring>

#include "cpu/lanczos.hpp"

#if defined(DIF_ISA_avx512)
#include <immintrin.h>
#define DIF_LANCZOS lanczos_avx512
#elif defined(DIF_ISA_avx2)
#define DIF_LANCZOS lanczos_avx2
#else
#define DIF_LANCZOS lanczos_baseline
#endif

namespace dif {
namespace {

#if defined(DIF_ISA_avx512)
constexpr const char* isa_name = "avx512";
#elif defined(DIF_ISA_avx2)
constexpr const char* isa_name = "avx2";
#else
constexpr const char* isa_name = "baseline";
#endif

constexpr int64_t tile = 2048;  // coordinates whose doubles stay in the first cache
constexpr int lanes = 8, sums = 4, step = lanes * sums;

typedef double Doubles __attribute__((vector_size(lanes * sizeof(double))));
template <class T>
struct Narrow;
template <>
struct Narrow<float> {
  typedef float V __attribute__((vector_size(lanes * sizeof(float))));
};
template <>
struct Narrow<double> {
  typedef Doubles V;
};

template <class T>
inline __attribute__((always_inline)) void load(const T* p, Doubles& out) {
  typename Narrow<T>::V v;
  std::memcpy(&v, p, sizeof(v));
  out = __builtin_convertvector(v, Doubles);
}

#if defined(DIF_ISA_avx512)
template <>
inline __attribute__((always_inline)) void load(const float* p, Doubles& out) {
  out = _mm512_cvtps_pd(_mm256_loadu_ps(p));  // compilers split the generic form in two
}
#endif

double total(const Doubles (&sum)[sums]) {
  const Doubles all = (sum[0] + sum[1]) + (sum[2] + sum[3]);
  double v[lanes];
  std::memcpy(v, &all, sizeof(v));
  return ((v[0] + v[4]) + (v[2] + v[6])) + ((v[1] + v[5]) + (v[3] + v[7]));
}

// Rows are read a tile at a time, too short for the hardware to see it coming: the next row's numbers are asked for.
inline int64_t ahead_of(int64_t ld, int64_t i, int64_t count) { return i + 1 < count ? ld : 0; }
template <class T>
inline __attribute__((always_inline)) void fetch(const T* p) {
  for (int64_t i = 0; i < step; i += 64 / static_cast<int64_t>(sizeof(T))) __builtin_prefetch(p + i);
}

// The last coordinates of a tile, filled up with zeros.
template <class T>
const T* tail(const T* p, int64_t size, T (&room)[step]) {
  for (int64_t i = 0; i < step; ++i) room[i] = i < size ? p[i] : T(0);
  return room;
}

// out[r] = q . x[r] for X vectors of doubles, zero behind their end.
template <int X, class T>
void dot(const T* q, int64_t ahead, const double* const (&x)[X], int64_t size, double (&out)[X]) {
  Doubles sum[X][sums] = {};
  const auto add = [&](const T* a, int64_t j) {
    for (int k = 0; k < sums; ++k) {
      Doubles left;
      load(a + k * lanes, left);
      for (int r = 0; r < X; ++r) {
        Doubles right;
        load(x[r] + j + k * lanes, right);
        sum[r][k] += left * right;
      }
    }
  };
  int64_t j = 0;
  for (; j + step <= size; j += step) {
    fetch(q + j + ahead);
    add(q + j, j);
  }
  T room[step];
  if (j < size) add(tail(q + j, size - j, room), j);
  for (int r = 0; r < X; ++r) out[r] = total(sum[r]);
}

template <class T>
void widen(const T* x, int64_t n, double* wide) {
  for (int64_t j = 0; j < n; ++j) wide[j] = static_cast<double>(x[j]);
  for (int64_t j = n; j < n + step; ++j) wide[j] = 0.0;
}

// Vectors two by two, since each number of q is made a double once for both.
template <class T>
void dots(const T* q, int64_t ld, int64_t count, const T* const* x, const int64_t* limits, int64_t vectors,
          int64_t size, double* out) {
  alignas(64) double wide[2][tile + step];
  for (int64_t i = 0; i < vectors * count; ++i) out[i] = 0.0;
  for (int64_t first = 0; first < size; first += tile) {
    const int64_t n = size - first < tile ? size - first : tile;
    for (int64_t r = 0; r < vectors; r += 2) {
      const bool pair = r + 1 < vectors;
      widen(x[r] + first, n, wide[0]);
      if (pair) widen(x[r + 1] + first, n, wide[1]);
      double* to = out + r * count;
      for (int64_t i = 0; i < count; ++i) {
        const T* row = q + i * ld + first;
        const int64_t ahead = ahead_of(ld, i, count);
        double part[2], one[1];
        if (pair && i < limits[r] && i < limits[r + 1]) {
          dot<2>(row, ahead, {wide[0], wide[1]}, n, part);
          to[i] += part[0];
          to[count + i] += part[1];
          continue;
        }
        for (int64_t k = 0; k < 1 + pair; ++k) {
          if (i >= limits[r + k]) continue;
          dot<1>(row, ahead, {wide[k]}, n, one);
          to[k * count + i] += one[0];
        }
      }
    }
  }
}

// wide <- wide - c q
template <class T>
void subtract_row(double* wide, const T* q, int64_t ahead, double c, int64_t n) {
  const auto part = [&](double* to, const T* from) {
    for (int k = 0; k < sums; ++k) {
      Doubles u, v;
      load(to + k * lanes, u);
      load(from + k * lanes, v);
      u -= c * v;
      std::memcpy(to + k * lanes, &u, sizeof(u));
    }
  };
  int64_t j = 0;
  for (; j + step <= n; j += step) {
    fetch(q + j + ahead);
    part(wide + j, q + j);
  }
  T room[step];
  if (j < n) part(wide + j, tail(q + j, n - j, room));
}

template <class T>
double subtract(T* u, const T* q, int64_t ld, int64_t count, const double* c, int64_t size) {
  alignas(64) double wide[tile + step];
  Doubles sum[sums] = {};
  for (int64_t first = 0; first < size; first += tile) {
    const int64_t n = size - first < tile ? size - first : tile;
    widen(u + first, n, wide);
    for (int64_t i = 0; i < count; ++i) {
      subtract_row(wide, q + i * ld + first, ahead_of(ld, i, count), c[i], n);
    }
    for (int64_t j = 0; j < n; ++j) u[first + j] = static_cast<T>(wide[j]);
    widen(u + first, n, wide);
    for (int64_t j = 0; j < n; j += step) {
      for (int k = 0; k < sums; ++k) {
        Doubles v;
        load(wide + j + k * lanes, v);
        sum[k] += v * v;
      }
    }
  }
  return total(sum);
}

}  // namespace

extern const LanczosIsa DIF_LANCZOS;
const LanczosIsa DIF_LANCZOS = {isa_name, {dots<float>, subtract<float>}, {dots<double>, subtract<double>}};

}  // namespace dif
