// Sums and updates of Gram-Schmidt for one instruction set: compiled once for each, under the same rules as isa.cpp.
// Thirty-two running sums on every set; products of two floats are exact in double, and no multiply-add is fused.
#include <cstdint>
#include <cstring>

#include "cpu/lanczos.hpp"

#if defined(DIF_ISA_avx512)
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

// Lanes in order, then sums in order.
double total(const Doubles (&sum)[sums]) {
  double out = 0.0;
  for (int k = 0; k < sums; ++k) {
    double lane[lanes];
    std::memcpy(lane, &sum[k], sizeof(lane));
    for (int i = 0; i < lanes; ++i) out += lane[i];
  }
  return out;
}

// The last coordinates of a tile, filled up with zeros.
template <class T>
const T* tail(const T* p, int64_t size, T (&room)[step]) {
  for (int64_t i = 0; i < step; ++i) room[i] = i < size ? p[i] : T(0);
  return room;
}

template <class T>
double dot(const T* q, const double* x, int64_t size) {
  Doubles sum[sums] = {};
  int64_t j = 0;
  const auto add = [&sum](const T* a, const double* b) {
    for (int k = 0; k < sums; ++k) {
      Doubles left, right;
      load(a + k * lanes, left);
      load(b + k * lanes, right);
      sum[k] += left * right;
    }
  };
  for (; j + step <= size; j += step) add(q + j, x + j);
  T room[step];
  if (j < size) add(tail(q + j, size - j, room), x + j);
  return total(sum);
}

template <class T>
void dots(const T* q, int64_t ld, int64_t count, const T* const* x, const int64_t* limits, int64_t vectors,
          int64_t size, double* out) {
  alignas(64) double wide[tile + step];
  for (int64_t i = 0; i < vectors * count; ++i) out[i] = 0.0;
  for (int64_t first = 0; first < size; first += tile) {
    const int64_t n = size - first < tile ? size - first : tile;
    for (int64_t r = 0; r < vectors; ++r) {
      for (int64_t j = 0; j < n + step; ++j) wide[j] = j < n ? static_cast<double>(x[r][first + j]) : 0.0;
      for (int64_t i = 0; i < limits[r]; ++i) out[r * count + i] += dot(q + i * ld + first, wide, n);
    }
  }
}

// wide <- wide - sum of C rows, one after the other
template <int C, class T>
void subtract_rows(double* wide, const T* q, int64_t ld, const double* c, int64_t size) {
  T room[C][step];
  for (int64_t j = 0; j < size; j += step) {
    for (int k = 0; k < sums; ++k) {
      Doubles u;
      load(wide + j + k * lanes, u);
      for (int i = 0; i < C; ++i) {
        const T* row = q + i * ld + j;
        if (j + step > size) row = k == 0 ? tail(row, size - j, room[i]) : room[i];
        Doubles v;
        load(row + k * lanes, v);
        u -= c[i] * v;
      }
      std::memcpy(wide + j + k * lanes, &u, sizeof(u));
    }
  }
}

template <class T>
double subtract(T* u, const T* q, int64_t ld, int64_t count, const double* c, int64_t size) {
  alignas(64) double wide[tile + step];
  Doubles sum[sums] = {};
  for (int64_t first = 0; first < size; first += tile) {
    const int64_t n = size - first < tile ? size - first : tile;
    for (int64_t j = 0; j < n + step; ++j) wide[j] = j < n ? static_cast<double>(u[first + j]) : 0.0;
    int64_t i = 0;
    for (; i + 4 <= count; i += 4) subtract_rows<4>(wide, q + i * ld + first, ld, c + i, n);
    for (; i < count; ++i) subtract_rows<1>(wide, q + i * ld + first, ld, c + i, n);
    for (int64_t j = 0; j < n; ++j) u[first + j] = static_cast<T>(wide[j]);
    for (int64_t j = 0; j < n; ++j) wide[j] = static_cast<double>(u[first + j]);
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
