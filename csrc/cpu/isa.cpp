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
using Half = Avx512Lanes;
constexpr const char* isa_name = "avx512";
#elif defined(DIF_ISA_avx2)
using L = Avx2Lanes;
using Half = L;
constexpr const char* isa_name = "avx2";
#else
struct BaselineTag {};
using L = PortableLanes<8, BaselineTag>;
using Half = L;
constexpr const char* isa_name = "baseline";
#endif

using F = L::F;
constexpr int tile = 128;                   // coordinates: whole quads, whole registers on every set
constexpr int registers = tile / L::width;  // of a tile
constexpr int draws = registers / 4;        // calls of `normals` a tile
constexpr int ahead = 8 * tile;             // how far a tile asks memory for the next ones
constexpr int half_tile = 64;               // for vectors no longer than that: half the noise to draw

template <class V, int count>
DIF_INLINE void tile_normals(int64_t coordinate, const Address& at, const PhiloxKeys& key, typename V::F (&z)[count]) {
  for (int i = 0; i < count / 4; ++i) {
    typename V::F part[4];
    normals<V>(key, static_cast<uint32_t>(coordinate / 4 + i * V::width), at.chain, at.step, at.stream, part);
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
        tile_normals<L, registers>(t, at, key, z);
        for (int k = 0; k < registers; ++k) L::store(out + t + k * L::width, z[k]);
      },
      [&](int64_t t, int64_t low, int64_t high) {
        F z[registers];
        float buffer[tile];
        tile_normals<L, registers>(t, at, key, z);
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

template <class V>
struct Running {
  static constexpr int sums = running_sums / V::width;
  typename V::F work[sums], square[sums];
  Running() {
    for (int i = 0; i < sums; ++i) work[i] = square[i] = V::set(0.0f);
  }
  static DIF_INLINE double total(const typename V::F (&sum)[sums]) {
    float lanes[running_sums];
    for (int i = 0; i < sums; ++i) V::store(lanes + i * V::width, sum[i]);
    double all = 0.0;
    for (int i = 0; i < running_sums; ++i) all += static_cast<double>(lanes[i]);
    return all;
  }
  StepSums totals() const { return {total(work), total(square)}; }
};

template <class V, class Step, bool noise, bool masked, int count>
DIF_INLINE void step_registers(float* const (&state)[3], const float* g, const float* center, const uint8_t* mask,
                               const Step& step, const typename V::F (&z)[count], Running<V>& sum) {
  using F = typename V::F;
  constexpr int sums = Running<V>::sums;
  for (int i = 0; i < count; ++i) {
    F old[Step::states], next[Step::states], drift, force, weight;
    for (int k = 0; k < Step::states; ++k) next[k] = old[k] = V::load(state[k] + i * V::width);
    step.template step<V, noise>(next, V::load(g + i * V::width), V::load(center + i * V::width), z[i], drift, force,
                                 weight);
    if (masked) {
      const auto moves = V::load_mask(mask + i * V::width);
      for (int k = 0; k < Step::states; ++k) next[k] = V::select(moves, next[k], old[k]);
      weight = V::select(moves, weight, V::set(0.0f));
      drift = V::select(moves, drift, V::set(0.0f));
      force = V::select(moves, force, V::set(0.0f));
    }
    for (int k = 0; k < Step::states; ++k) V::store(state[k] + i * V::width, next[k]);
    sum.work[i % sums] = V::fma(weight, force, sum.work[i % sums]);
    if constexpr (Step::gauge_is_square) {
      F p = next[Step::states - 1];
      if (masked) p = V::select(V::load_mask(mask + i * V::width), p, V::set(0.0f));
      sum.square[i % sums] = V::fma(p, p, sum.square[i % sums]);
    } else {
      sum.square[i % sums] = V::fma(weight, drift, sum.square[i % sums]);
    }
  }
}

template <class Step, bool noise, bool masked>
DIF_INLINE void step_tile(float* const (&state)[3], const float* g, const float* center, const uint8_t* mask, int64_t t,
                          const Step& step, const Address& at, const PhiloxKeys& key, Running<L>& sum) {
  // The arithmetic of one tile fills the out-of-order window, so memory must be asked for ahead of it.
  for (int i = 0; i < tile; i += 16) {
    for (int k = 0; k < Step::states; ++k) __builtin_prefetch(state[k] + i + ahead, 1);
    __builtin_prefetch(g + i + ahead, 0);
  }
  F z[registers];
  if (noise) {
    tile_normals<L, registers>(t, at, key, z);
  } else {
    for (int i = 0; i < registers; ++i) z[i] = L::set(0.0f);
  }
  step_registers<L, Step, noise, masked>(state, g, center, mask, step, z, sum);
}

template <class Step, bool noise, bool masked>
StepSums step_half_tile(const StepArrays& a, int64_t first, const Step& step, const Address& at) {
  constexpr int count = half_tile / Half::width;
  Half::F z[count];
  if (noise && !a.drawn) {
    tile_normals<Half, count>(first, at, PhiloxKeys(at.seed), z);
  } else {
    for (int i = 0; i < count; ++i) z[i] = noise ? Half::load(a.drawn + i * Half::width) : Half::set(0.0f);
  }
  Running<Half> sum;
  step_registers<Half, Step, noise, masked>(a.state, a.g, a.center, a.mask, step, z, sum);
  return a.summed ? sum.totals() : StepSums{0.0, 0.0};
}

template <class Step, bool noise, bool masked>
StepSums step_block(const StepArrays& a, int64_t first, int64_t size, const Step& step, const Address& at) {
  if (size == half_tile && first % tile == 0) return step_half_tile<Step, noise, masked>(a, first, step, at);
  const PhiloxKeys key(at.seed);
  Running<L> sum;
  for_tiles(
      first, size,
      [&](int64_t t) {
        const int64_t o = t - first;
        float* state[3] = {};
        for (int k = 0; k < Step::states; ++k) state[k] = a.state[k] + o;
        step_tile<Step, noise, masked>(state, a.g + o, a.center + o, masked ? a.mask + o : nullptr, t, step, at, key,
                                       sum);
      },
      [&](int64_t t, int64_t low, int64_t high) {
        float buffer[5][tile] = {};
        uint8_t flags[tile] = {};
        float* const state[3] = {buffer[2], buffer[3], buffer[4]};
        for (int64_t i = low; i < high; ++i) {
          buffer[0][i - t] = a.g[i - first];
          buffer[1][i - t] = a.center[i - first];
          for (int k = 0; k < Step::states; ++k) state[k][i - t] = a.state[k][i - first];
          flags[i - t] = masked ? a.mask[i - first] : 1;
        }
        step_tile<Step, noise, true>(state, buffer[0], buffer[1], flags, t, step, at, key, sum);
        for (int64_t i = low; i < high; ++i) {
          for (int k = 0; k < Step::states; ++k) a.state[k][i - first] = state[k][i - t];
        }
      });
  return a.summed ? sum.totals() : StepSums{0.0, 0.0};
}

template <class Step>
StepSums step_run(const StepArrays& a, int64_t first, int64_t size, const Step& step, Address at, bool noise) {
  if (noise) {
    return a.mask ? step_block<Step, true, true>(a, first, size, step, at)
                  : step_block<Step, true, false>(a, first, size, step, at);
  }
  return a.mask ? step_block<Step, false, true>(a, first, size, step, at)
                : step_block<Step, false, false>(a, first, size, step, at);
}

}  // namespace

extern const Kernels DIF_KERNELS;
const Kernels DIF_KERNELS = {
    isa_name, L::width, normals_run, words_run, step_run<Sgld>, step_run<Langevin>, step_run<Preconditioned>};

}  // namespace dif
