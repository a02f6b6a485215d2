// Normals and SGLD steps at sizes that straddle the lanes, on one and on three threads and every instruction set:
// small enough for the thread sanitizer, odd enough for the address sanitizer. Buffers are exactly as long as
// promised, so a write past the end is seen.
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <vector>

#include "cpu/kernels.hpp"
#include "cpu/parallel.hpp"
#include "cpu/update.hpp"

namespace {

constexpr int64_t sizes[] = {1, 2, 3, 7, 15, 16, 17, 63, 64, 65, 1000, dif::block_size + 1};
constexpr int64_t chains = 3;

bool equal(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

// (chains, size) standard normals; threads share the rows.
std::vector<float> normals(int64_t size, int threads) {
  std::vector<float> out(static_cast<size_t>(chains * size));
  dif::parallel(threads, chains, [&](int64_t low, int64_t high) {
    for (int64_t c = low; c < high; ++c) {
      dif::kernels().normals(out.data() + c * size, 0, size, {7, static_cast<uint32_t>(c), 5, 0});
    }
  });
  return out;
}

// (chains, size + 1) after two steps of two tensors, the second masked.
std::vector<float> walk(int64_t size, int threads, std::vector<double>& energy) {
  const int64_t dim = size + 1;
  std::vector<float> w(static_cast<size_t>(chains * dim), 1.0f);
  const std::vector<float> center(static_cast<size_t>(dim), 0.5f);
  std::vector<uint8_t> mask(static_cast<size_t>(dim), 1);
  mask[static_cast<size_t>(size)] = 0;
  const std::vector<float> first(static_cast<size_t>(chains), 0.25f);
  const std::vector<float> rest(static_cast<size_t>(chains * size), -0.125f);
  const std::vector<double> lr = {1e-3, 1e-2, 1e-1}, localization = {0, 1, 2}, nbeta = {1, 10, 100};
  const dif::SgldTensor tensors[] = {{0, 1, first.data(), 1}, {1, size, rest.data(), size}};
  energy.assign(static_cast<size_t>(chains), 0.0);
  for (uint32_t step = 0; step < 2; ++step) {
    dif::sgld_step({w.data(), dim, center.data(), 0, mask.data(), 0, chains}, tensors, 2,
                   {lr.data(), localization.data(), nbeta.data(), 11, step, 0, true}, energy.data(), nullptr, threads);
  }
  return w;
}

}  // namespace

int main() {
  int checks = 0, failures = 0;
  const auto check = [&](bool passed, const char* what, const char* isa, int64_t size) {
    ++checks;
    if (passed) return;
    ++failures;
    std::printf("smoke: %s differ on %s at size %lld\n", what, isa, static_cast<long long>(size));
  };
  for (const int64_t size : sizes) {
    dif::use_kernels("baseline");
    std::vector<double> energy, wanted_energy;
    const std::vector<float> wanted = normals(size, 1), wanted_walk = walk(size, 1, wanted_energy);
    check(wanted_walk[static_cast<size_t>(size)] == 1.0f, "masked coordinates", "baseline", size);
    for (int i = 0; const dif::Kernels* set = dif::available(i); ++i) {
      dif::use_kernels(set->name);
      for (const int threads : {1, 3}) {
        check(equal(normals(size, threads), wanted), "normals", set->name, size);
        check(equal(walk(size, threads, energy), wanted_walk), "steps", set->name, size);
        check(energy == wanted_energy, "energies", set->name, size);
      }
    }
  }
  std::printf("smoke: %d checks, %d failures\n", checks, failures);
  return failures != 0;
}
