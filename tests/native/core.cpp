// The arithmetic of core/ and the kernels of every instruction set, without Python, so that sanitizers can watch.
//
// Prints the largest errors found of the logarithm and of sine and cosine, in units of the last place of float32
// (2^-23 relative), against the double-precision library.
#include <cmath>
#include <cstring>
#include <vector>

#include "check.hpp"
#include "core/lanes.hpp"
#include "core/normal.hpp"
#include "core/philox.hpp"
#include "cpu/kernels.hpp"
#include "cpu/update.hpp"

namespace {

struct Tag {};
using L = dif::PortableLanes<8, Tag>;
constexpr double pi = 3.14159265358979323846;
constexpr double ulp = 0x1p-23;

// One counter and key with known words. `PortableLanes` counts up the first word; lane 0 is the counter itself.
void known_answer(uint32_t c0, uint32_t c1, uint32_t c2, uint32_t c3, uint64_t key, const uint32_t (&words)[4]) {
  const auto w = dif::philox<L>(dif::PhiloxKeys(key), c0, c1, c2, c3);
  for (int k = 0; k < 4; ++k) CHECK(w.word[k].v[0] == words[k]);
}

void philox_answers() {
  known_answer(0, 0, 0, 0, 0, {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8});
  known_answer(~0u, ~0u, ~0u, ~0u, ~uint64_t{0}, {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd});
  known_answer(0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344, 0x299f31d0a4093822u,
               {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1});
}

// Every mantissa of u, in the binades next to 1 (where cancellation is worst), in the middle and at the far end.
void logarithm() {
  double worst = 0.0;
  for (const int exponent : {-1, -2, -3, -12, -33}) {
    for (uint32_t m = 0; m < (1u << 23); m += 8) {
      float u[8];
      for (uint32_t i = 0; i < 8; ++i) u[i] = dif::float_of((static_cast<uint32_t>(127 + exponent) << 23) | (m + i));
      const L::F got = dif::minus_two_log<L>(L::load(u));
      for (int i = 0; i < 8; ++i) {
        const double want = -2.0 * std::log(static_cast<double>(u[i]));
        const double error = std::fabs(static_cast<double>(got.v[i]) / want - 1.0);
        if (!(error <= worst)) worst = error;
      }
    }
  }
  std::printf("logarithm: largest relative error %.2f ulp\n", worst / ulp);
  CHECK(worst < 1.5 * ulp);
  CHECK(dif::minus_two_log<L>(L::set(1.0f)).v[0] == 0.0f);
}

// Angles on a grid of all words, and every float of the last binade.
void sine_and_cosine() {
  double worst = 0.0;
  const auto look = [&](const float (&x)[8]) {
    L::F c, s;
    dif::cos_sin_pi<L>(L::load(x), c, s);
    for (int i = 0; i < 8; ++i) {
      const double angle = pi * static_cast<double>(x[i]), sine = std::sin(angle);
      const double of_sine =
          sine == 0.0 ? std::fabs(static_cast<double>(s.v[i])) : std::fabs(static_cast<double>(s.v[i]) / sine - 1.0);
      const double of_cosine = std::fabs(static_cast<double>(c.v[i]) / std::cos(angle) - 1.0);
      if (!(of_sine <= worst)) worst = of_sine;
      if (!(of_cosine <= worst)) worst = of_cosine;
    }
  };
  float x[8];
  for (int64_t word = -(int64_t{1} << 31); word < (int64_t{1} << 31); word += 8 * 1021) {
    for (int i = 0; i < 8; ++i) x[i] = static_cast<float>(word + 1021 * i) * 0x1p-33f;
    look(x);
  }
  for (uint32_t m = 0; m < (1u << 23); m += 8) {
    for (uint32_t i = 0; i < 8; ++i) x[i] = dif::float_of((124u << 23) | (m + i));  // [1/8, 1/4)
    look(x);
  }
  std::printf("sine, cosine: largest relative error %.2f ulp\n", worst / ulp);
  CHECK(worst < 1.25 * ulp);
}

// Every instruction set writes the same bits as the baseline, wherever a range begins and ends.
void same_bits_everywhere() {
  constexpr int64_t longest = 1000, guard = 64;
  for (int i = 0; const dif::Kernels* k = dif::available(i); ++i) {
    for (const int64_t first : {0, 1, 5, 127, 128, 8191}) {
      for (const int64_t size : {0, 1, 2, 3, 7, 15, 16, 17, 63, 64, 65, 127, 128, 129, 1000}) {
        const dif::Address at{0x123456789abcdef0u, 3, 9, 0};
        std::vector<float> want(longest + guard, -7.0f), got(longest + guard, -7.0f);
        dif::kernels_baseline.normals(want.data(), first, size, at);
        k->normals(got.data(), first, size, at);
        CHECK(std::memcmp(want.data(), got.data(), want.size() * sizeof(float)) == 0);
        CHECK(got[static_cast<size_t>(size)] == -7.0f);
        std::vector<uint32_t> words(longest + guard, 7u), expected(longest + guard, 7u);
        dif::kernels_baseline.words(expected.data(), first, size, at);
        k->words(words.data(), first, size, at);
        CHECK(words == expected);
      }
    }
  }
}

// A step on every set, odd sizes, 1 and 3 threads: one path and one energy.
void same_step_everywhere() {
  constexpr int64_t chains = 3, dim = 8192 + 131, ld = dim + 5;
  const double lr[] = {1e-3, 2e-3, 3e-3}, localization[] = {1.0, 0.0, 2.0}, nbeta[] = {10.0, 20.0, 30.0};
  std::vector<float> start(chains * ld), g(chains * dim), center(dim);
  std::vector<uint8_t> mask(dim);
  for (size_t i = 0; i < start.size(); ++i) start[i] = std::sin(static_cast<float>(i));
  for (size_t i = 0; i < g.size(); ++i) g[i] = std::cos(static_cast<float>(3 * i));
  for (size_t i = 0; i < center.size(); ++i) center[i] = 0.1f, mask[i] = i % 5 != 0;
  const dif::SgldTensor tensors[] = {{0, 7, g.data(), dim}, {7, dim - 7, g.data() + 7, dim}};
  std::vector<float> want;
  double wanted[chains] = {};
  for (int i = 0; const dif::Kernels* k = dif::available(i); ++i) {
    for (const int threads : {1, 3}) {
      CHECK(dif::use_kernels(k->name));
      std::vector<float> w = start;
      double energy[chains];
      dif::sgld_step({w.data(), ld, center.data(), 0, mask.data(), 0, chains}, tensors, 2,
                     {lr, localization, nbeta, 42, 7, 0, true}, energy, nullptr, threads);
      if (want.empty()) {
        want = w;
        std::memcpy(wanted, energy, sizeof energy);
      }
      CHECK(std::memcmp(want.data(), w.data(), w.size() * sizeof(float)) == 0);
      CHECK(std::memcmp(wanted, energy, sizeof energy) == 0);
      CHECK(w[0] == start[0] && w[1] != start[1] && w[dim] == start[dim]);
    }
  }
  CHECK(dif::use_kernels(""));
  CHECK(!dif::use_kernels("abacus"));
}

}  // namespace

int main() {
  philox_answers();
  logarithm();
  sine_and_cosine();
  same_bits_everywhere();
  same_step_everywhere();
  return check::summary("core");
}
