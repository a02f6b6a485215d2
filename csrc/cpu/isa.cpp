// The operations for one instruction set: this file is compiled once for each (csrc/CMakeLists.txt).
// It must not instantiate anything that another file could share by name: the linker keeps one copy, and that
// could be the one with too many instructions. So no std:: containers here; all templates carry the lane
// type.
#include "core/lanes_twice.hpp"
#include "core/normal.hpp"
#include "cpu/kernels.hpp"

#if defined(DIF_ISA_avx512)
#include "cpu/lanes_avx512.hpp"
#define DIF_KERNELS kernels_avx512
#elif defined(DIF_ISA_avx2)
#include "cpu/lanes_avx2.hpp"
#define DIF_KERNELS kernels_avx2
#else
#define DIF_KERNELS kernels_baseline
#endif

namespace dif {
namespace {

#if defined(DIF_ISA_avx512)
using L = Twice<Avx512Lanes>;
constexpr const char* isa_name = "avx512";
#elif defined(DIF_ISA_avx2)
using L = Avx2Lanes;
constexpr const char* isa_name = "avx2";
#else
struct BaselineTag {};
using L = PortableLanes<8, BaselineTag>;
constexpr const char* isa_name = "baseline";
#endif

using F = L::F;
constexpr int tile = 128;                   // coordinates: whole quads, whole registers on every set
constexpr int registers = tile / L::width;  // of a tile
constexpr int draws = registers / 4;        // calls of `normals` a tile
constexpr int ahead = 8 * tile;             // how far a tile asks memory for the next ones
constexpr int sums = running_sums / L::width;

DIF_INLINE void tile_normals(int64_t coordinate, const Address& at, const PhiloxKeys& key, F (&z)[registers]) {
  for (int i = 0; i < draws; ++i) {
    F part[4];
    normals<L>(key, static_cast<uint32_t>(coordinate / 4 + i * L::width), at.chain, at.step, at.stream, part);
    for (int k = 0; k < 4; ++k) z[4 * i + k] = part[k];
  }
}

DIF_INLINE void tile_words(int64_t coordinate, const Address& at, const PhiloxKeys& key, uint32_t* out) {
  for (int i = 0; i < draws; ++i) {
    const auto w = philox<L>(key, static_cast<uint32_t>(coordinate / 4 + i * L::width), at.chain, at.step, at.stream);
    F part[4];
    for (int k = 0; k < 4; ++k) part[k] = L::floats(w.word[k]);
    L::transpose(part);
    for (int k = 0; k < 4; ++k) L::store_words(out + (4 * i + k) * L::width, L::words(part[k]));
  }
}

// Walks the tiles of [first, first + size): whole ones as they lie, ragged ends by way of a copy.
template <class Whole, class Ragged>
DIF_INLINE void for_tiles(int64_t first, int64_t size, Whole whole, Ragged ragged) {
  const int64_t end = first + size;
  int64_t at = first;
  if (at < end && at % tile != 0) {
    const int64_t stop = at / tile * tile + tile < end ? at / tile * tile + tile : end;
    ragged(at / tile * tile, at, stop);
    at = stop;
  }
  for (; at + tile <= end; at += tile) whole(at);
  if (at < end) ragged(at, at, end);
}

void normals_run(float* out, int64_t first, int64_t size, Address at) {
  const PhiloxKeys key(at.seed);
  out -= first;
  for_tiles(
      first, size,
      [&](int64_t t) {
        F z[registers];
        tile_normals(t, at, key, z);
        for (int k = 0; k < registers; ++k) L::store(out + t + k * L::width, z[k]);
      },
      [&](int64_t t, int64_t low, int64_t high) {
        F z[registers];
        float buffer[tile];
        tile_normals(t, at, key, z);
        for (int k = 0; k < registers; ++k) L::store(buffer + k * L::width, z[k]);
        for (int64_t i = low; i < high; ++i) out[i] = buffer[i - t];
      });
}

void words_run(uint32_t* out, int64_t first, int64_t size, Address at) {
  const PhiloxKeys key(at.seed);
  out -= first;
  for_tiles(
      first, size, [&](int64_t t) { tile_words(t, at, key, out + t); },
      [&](int64_t t, int64_t low, int64_t high) {
        uint32_t buffer[tile];
        tile_words(t, at, key, buffer);
        for (int64_t i = low; i < high; ++i) out[i] = buffer[i - t];
      });
}

template <bool noise, bool masked>
DIF_INLINE void sgld_tile(float* w, const float* g, const float* center, const uint8_t* mask, int64_t t,
                          const SgldCoefficients& k, const Address& at, const PhiloxKeys& key, F (&sum)[sums]) {
  // The arithmetic of one tile fills the out-of-order window, so memory must be asked for ahead of it.
  for (int i = 0; i < tile; i += 16) {
    __builtin_prefetch(w + i + ahead, 1);
    __builtin_prefetch(g + i + ahead, 0);
  }
  F z[registers];
  if (noise) tile_normals(t, at, key, z);
  for (int i = 0; i < registers; ++i) {
    F drift, force;
    const F old = L::load(w + i * L::width);
    F next = sgld<L>(old, L::load(g + i * L::width), L::load(center + i * L::width), k, drift, force);
    if (noise) next = L::fma(L::set(k.noise), z[i], next);
    if (masked) {
      const auto moves = L::load_mask(mask + i * L::width);
      next = L::select(moves, next, old);
      drift = L::select(moves, drift, L::set(0.0f));
      force = L::select(moves, force, L::set(0.0f));
    }
    L::store(w + i * L::width, next);
    sum[i % sums] = L::fma(drift, force, sum[i % sums]);
  }
}

template <bool noise, bool masked>
double sgld_block(float* w, const float* g, const float* center, const uint8_t* mask, int64_t first, int64_t size,
                  const SgldCoefficients& k, const Address& at) {
  const PhiloxKeys key(at.seed);
  F sum[sums];
  for (int i = 0; i < sums; ++i) sum[i] = L::set(0.0f);
  for_tiles(
      first, size,
      [&](int64_t t) {
        const int64_t o = t - first;
        sgld_tile<noise, masked>(w + o, g + o, center + o, masked ? mask + o : nullptr, t, k, at, key, sum);
      },
      [&](int64_t t, int64_t low, int64_t high) {
        float buffer[3][tile] = {};
        uint8_t flags[tile] = {};
        for (int64_t i = low; i < high; ++i) {
          buffer[0][i - t] = w[i - first];
          buffer[1][i - t] = g[i - first];
          buffer[2][i - t] = center[i - first];
          flags[i - t] = masked ? mask[i - first] : 1;
        }
        sgld_tile<noise, true>(buffer[0], buffer[1], buffer[2], flags, t, k, at, key, sum);
        for (int64_t i = low; i < high; ++i) w[i - first] = buffer[0][i - t];
      });
  float lanes[running_sums];
  for (int i = 0; i < sums; ++i) L::store(lanes + i * L::width, sum[i]);
  double total = 0.0;
  for (int i = 0; i < running_sums; ++i) total += static_cast<double>(lanes[i]);
  return total;
}

double sgld_run(float* w, const float* g, const float* center, const uint8_t* mask, int64_t first, int64_t size,
                SgldCoefficients k, Address at, bool noise) {
  if (noise) {
    return mask ? sgld_block<true, true>(w, g, center, mask, first, size, k, at)
                : sgld_block<true, false>(w, g, center, mask, first, size, k, at);
  }
  return mask ? sgld_block<false, true>(w, g, center, mask, first, size, k, at)
              : sgld_block<false, false>(w, g, center, mask, first, size, k, at);
}

}  // namespace

extern const Kernels DIF_KERNELS;
const Kernels DIF_KERNELS = {isa_name, L::width, normals_run, words_run, sgld_run};

}  // namespace dif
