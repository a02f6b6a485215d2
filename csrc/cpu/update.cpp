#include "cpu/update.hpp"

#include <cmath>
#include <vector>

#include "core/philox.hpp"
#include "cpu/kernels.hpp"
#include "cpu/parallel.hpp"

namespace dif {
namespace {

struct Piece {
  const SgldTensor* tensor;
  int64_t first, size;
};

// Tensors cut at multiples of block_size: the unit of work, and of summation.
std::vector<Piece> cut(const SgldTensor* tensors, int64_t count) {
  std::vector<Piece> pieces;
  for (const SgldTensor* t = tensors; t != tensors + count; ++t) {
    const int64_t end = t->first + t->size;
    for (int64_t at = t->first; at < end;) {
      const int64_t next = at / block_size * block_size + block_size;
      const int64_t stop = next < end ? next : end;
      pieces.push_back({t, at, stop - at});
      at = stop;
    }
  }
  return pieces;
}

}  // namespace

void sgld_step(const SgldBlock& block, const SgldTensor* tensors, int64_t tensor_count, const SgldSettings& settings,
               double* energy, double* square, int threads) {
  const std::vector<Piece> pieces = cut(tensors, tensor_count);
  std::vector<Sgld> coefficients(static_cast<size_t>(block.chains));
  for (int64_t c = 0; c < block.chains; ++c) {
    coefficients[static_cast<size_t>(c)] = {
        {static_cast<float>(settings.nbeta[c]), static_cast<float>(settings.localization[c]),
         static_cast<float>(-0.5 * settings.lr[c]), static_cast<float>(std::sqrt(settings.lr[c]))}};
  }
  std::vector<StepSums> part(pieces.size() * static_cast<size_t>(block.chains));
  const Kernels& run = kernels();
  // Pieces outside, chains inside: a shared center stays in cache while all chains read it.
  parallel(threads, static_cast<int64_t>(pieces.size()), [&](int64_t low, int64_t high) {
    for (int64_t p = low; p < high; ++p) {
      const Piece& piece = pieces[static_cast<size_t>(p)];
      for (int64_t c = 0; c < block.chains; ++c) {
        const Address at{settings.seed, settings.first_chain + static_cast<uint32_t>(c), settings.step, update_noise};
        part[static_cast<size_t>(p * block.chains + c)] =
            run.sgld({{block.w + c * block.w_ld + piece.first, nullptr, nullptr},
                      piece.tensor->g + c * piece.tensor->g_ld + piece.first - piece.tensor->first,
                      block.center + c * block.center_ld + piece.first,
                      block.mask ? block.mask + c * block.mask_ld + piece.first : nullptr},
                     piece.first, piece.size, coefficients[static_cast<size_t>(c)], at, settings.noise);
      }
    }
  });
  for (int64_t c = 0; c < block.chains; ++c) {
    StepSums all{0.0, 0.0};
    for (size_t p = 0; p < pieces.size(); ++p) {
      const StepSums& one = part[p * static_cast<size_t>(block.chains) + static_cast<size_t>(c)];
      all.work += one.work;
      all.square += one.square;
    }
    if (energy) energy[c] = all.work;
    if (square) square[c] = all.square;
  }
}

}  // namespace dif
