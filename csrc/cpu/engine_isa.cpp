// The engine's passes for one instruction set: compiled once for each, under the same rules as isa.cpp.
#include "cpu/engine_isa.hpp"

#include <cstring>

#include "core/normal.hpp"
#include "cpu/engine_lanes_isa.hpp"
#include "cpu/engine_matrix.hpp"
#include "cpu/engine_small.hpp"
#include "cpu/engine_tied.hpp"

namespace dif {
namespace {

#if defined(DIF_ISA_avx512)
using Noise = Avx512Lanes;
#elif defined(DIF_ISA_avx2)
using Noise = Twice<Avx2Lanes>;
#else
using Noise = PortableLanes<16, FileTag>;
#endif

void indices(const uint32_t* words, int64_t count, int64_t n, int32_t* out) {
  for (int64_t i = 0; i < count; ++i) {
    out[i] = static_cast<int32_t>((static_cast<uint64_t>(words[i]) * static_cast<uint64_t>(n)) >> 32);
  }
}

// Two quads side by side: their rounds fill each other's waits (core/lanes_twice.hpp).
using Pair = Twice<Noise>;

// Calls make(words, z) on the four words of each quad, in the lanes of sixteen steps; z then goes to the rows of `out`.
template <class T, class Make>
DIF_INLINE void for_steps(const Address& at, int64_t quads, T* out, int64_t ld, Make make) {
  const PhiloxKeys key(at.seed);
  for (int64_t q = 0; q < quads; q += 2) {
    const Noise::W steps = Noise::counters(at.step);
    Pair::W words[4] = {{Noise::wide(static_cast<uint32_t>(q)), Noise::wide(static_cast<uint32_t>(q + 1))},
                        Pair::wide(at.chain),
                        {steps, steps},
                        Pair::wide(at.stream)};
    philox_mix<Pair>(key, words[0], words[1], words[2], words[3]);
    Pair::F z[4];
    make(words, z);
    Noise::F first[4], second[4];
    for (int k = 0; k < 4; ++k) {
      first[k] = z[k].a;
      second[k] = z[k].b;
    }
    Noise::transpose(first);
    Noise::transpose(second);
    float rows[8 * steps_ahead];
    for (int k = 0; k < 4; ++k) {
      Noise::store(rows + 16 * k, first[k]);
      Noise::store(rows + 64 + 16 * k, second[k]);
    }
    for (int64_t step = 0; step < steps_ahead; ++step) {
      std::memcpy(out + step * ld + 4 * q, rows + 4 * step, 16);
      if (q + 1 < quads) std::memcpy(out + step * ld + 4 * q + 4, rows + 64 + 4 * step, 16);
    }
  }
}

void samples_ahead(const Address& at, int64_t quads, int64_t n, int32_t* out, int64_t ld) {
  for_steps(at, quads, out, ld, [n](const Pair::W(&words)[4], Pair::F(&z)[4]) {
    for (int k = 0; k < 4; ++k) {
      z[k] = Pair::floats(Pair::narrow(Pair::high(Pair::product(words[k], static_cast<uint32_t>(n)))));
    }
  });
}

void normals_ahead(const Address& at, int64_t quads, float* out, int64_t ld) {
  for_steps(at, quads, out, ld, [](const Pair::W(&words)[4], Pair::F(&z)[4]) {
    for (int k = 0; k < 4; k += 2) {
      box_muller<Pair>(Pair::narrow(words[k]), Pair::narrow(words[k + 1]), z[k], z[k + 1]);
    }
  });
}

template <bool chains, int hidden>
void tied_pass(const Plan& plan, const float* w, const Batch<float>& batch, float* g, float* s, double* losses,
               double* sums) {
  if (plan.loss.importance >= 0) {
    Tied<L, chains, hidden, true>::run(plan, w, batch, g, s, losses, sums);
  } else {
    Tied<L, chains, hidden, false>::run(plan, w, batch, g, s, losses, sums);
  }
}

template <bool chains>
void small_pass(const Plan& plan, const float* w, const Batch<float>& batch, float* g, float* s, double* losses,
                double* sums) {
  switch (g ? plan.tied : 0) {
    case 1:
      return tied_pass<chains, 1>(plan, w, batch, g, s, losses, sums);
    case 2:
      return tied_pass<chains, 2>(plan, w, batch, g, s, losses, sums);
    case 3:
      return tied_pass<chains, 3>(plan, w, batch, g, s, losses, sums);
    case 4:
      return tied_pass<chains, 4>(plan, w, batch, g, s, losses, sums);
    default:
      return Small<L, chains>::run(plan, w, batch, g, s, losses, sums);
  }
}

double samples_pass(const Plan& plan, const float* w, const Batch<float>& batch, float* g, float* s, double* losses) {
  double sums[16], total = 0.0;
  small_pass<false>(plan, w, batch, g, s, losses, sums);
  for (const double x : sums) total += x;
  return total;
}

void chains_pass(const Plan& plan, const float* w, const Batch<float>& batch, float* g, float* s, double* sums) {
  small_pass<true>(plan, w, batch, g, s, nullptr, sums);
}

// Counters are chains here: all lanes draw for the same four coordinates.
void lane_order(uint32_t* out) { Noise::store_words(out, Noise::narrow(Noise::counters(0))); }

void update_chains(const ChainsBlock& block, uint64_t seed, uint32_t first_chain, uint32_t step, double* energy) {
  const PhiloxKeys key(seed);
  const L::F nbeta = L::load(block.nbeta), localization = L::load(block.localization);
  const L::F minus_half_lr = L::load(block.minus_half_lr), noise = L::load(block.noise);
  for (int i = 0; i < 32; ++i) energy[i] = 0.0;
  for (int64_t quad = 0; 4 * quad < block.dim; ++quad) {
    const PhiloxWords<Noise> words =
        philox_rounds<Noise>(key, Noise::wide(static_cast<uint32_t>(quad)), Noise::counters(first_chain),
                             Noise::wide(step), Noise::wide(update_noise));
    Noise::F z[4];
    box_muller<Noise>(words.word[0], words.word[1], z[0], z[1]);
    box_muller<Noise>(words.word[2], words.word[3], z[2], z[3]);
    for (int64_t k = 0; k < 4 && 4 * quad + k < block.dim; ++k) {
      const int64_t i = 4 * quad + k;
      if (block.mask && !block.mask[i]) continue;
      float draw[16], drift[16], force[16], away[16];
      Noise::store(draw, z[k]);
      const L::F w = L::load(block.w + 16 * i);
      const L::F f = L::mul(nbeta, L::load(block.g + 16 * i));
      const L::F off = L::sub(w, L::load(block.center + 16 * i));
      const L::F d = L::fma(localization, off, f);
      L::store(block.w + 16 * i, L::fma(noise, L::load(draw), L::fma(minus_half_lr, d, w)));
      L::store(drift, d);
      L::store(force, f);
      L::store(away, off);
      for (int j = 0; j < 16; ++j) {
        energy[j] += static_cast<double>(drift[j]) * static_cast<double>(force[j]);
        energy[16 + j] += static_cast<double>(away[j]) * static_cast<double>(force[j]);
      }
    }
  }
}

double multiply_adds(int64_t rounds, float* out) {
  using P = L::Panel;
  constexpr int sums = P::rows * P::panels;
  P::F sum[sums];
  for (int i = 0; i < sums; ++i) sum[i] = P::set(out[0] + static_cast<float>(i));
  const P::F factor = P::set(out[1]), term = P::set(out[2]);
  for (int64_t k = 0; k < rounds; ++k) {
#pragma GCC unroll 32
    for (int i = 0; i < sums; ++i) sum[i] = P::fma(sum[i], factor, term);
  }
  for (int i = 1; i < sums; ++i) sum[0] = P::fma(sum[0], factor, sum[i]);  // so that none is left out
  P::store(out, sum[0]);
  return 2.0 * sums * P::width * static_cast<double>(rounds);
}

}  // namespace

extern const EngineKernels DIF_OF_ISA(engine);
const EngineKernels DIF_OF_ISA(engine) = {isa_name,   Matrix<L>::run, samples_pass,  chains_pass,   update_chains,
                                          lane_order, indices,        samples_ahead, normals_ahead, multiply_adds};

#if defined(DIF_ISA_baseline)
double matrix_pass_f64(const Plan& plan, const double* w, const Batch<double>& batch, double* g, double* s,
                       double* losses) {
  return Matrix<PortableEngine<double, FileTag>>::run(plan, w, batch, g, s, losses);
}
#endif

}  // namespace dif
