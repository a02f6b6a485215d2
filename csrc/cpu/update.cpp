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

// Adds each chain's pieces, in their order.
void add_up(const std::vector<StepSums>& part, int64_t chains, double* work, double* square) {
  const size_t stride = static_cast<size_t>(chains);
  for (size_t c = 0; c < stride; ++c) {
    StepSums all{0.0, 0.0};
    for (size_t p = c; p < part.size(); p += stride) {
      all.work += part[p].work;
      all.square += part[p].square;
    }
    if (work) work[c] = all.work;
    if (square) square[c] = all.square;
  }
}

template <class Step>
void step_all(StepSums (*kernel)(const StepArrays&, int64_t, int64_t, const Step&, Address, bool),
              const SgldBlock& block, const StateRows& rows, const SgldTensor* tensors, int64_t tensor_count,
              const Step* coefficients, uint64_t seed, uint32_t step, uint32_t first_chain, bool noise, double* work,
              double* gauge, int threads) {
  const std::vector<Piece> pieces = cut(tensors, tensor_count);
  std::vector<StepSums> part(pieces.size() * static_cast<size_t>(block.chains));
  // Pieces outside, chains inside: a shared center stays in cache while all chains read it.
  parallel(threads, static_cast<int64_t>(pieces.size()), [&](int64_t low, int64_t high) {
    for (int64_t p = low; p < high; ++p) {
      const Piece& piece = pieces[static_cast<size_t>(p)];
      for (int64_t c = 0; c < block.chains; ++c) {
        const int64_t state = c * rows.ld + piece.first;
        const StepArrays at{{block.w + c * block.w_ld + piece.first, rows.first ? rows.first + state : nullptr,
                             rows.second ? rows.second + state : nullptr},
                            piece.tensor->g + c * piece.tensor->g_ld + piece.first - piece.tensor->first,
                            block.center + c * block.center_ld + piece.first,
                            block.mask ? block.mask + c * block.mask_ld + piece.first : nullptr};
        part[static_cast<size_t>(p * block.chains + c)] =
            kernel(at, piece.first, piece.size, coefficients[c],
                   {seed, first_chain + static_cast<uint32_t>(c), step, update_noise}, noise);
      }
    }
  });
  add_up(part, block.chains, work, gauge);
}

}  // namespace

void sgld_step(const SgldBlock& block, const SgldTensor* tensors, int64_t tensor_count, const SgldSettings& settings,
               double* energy, double* square, int threads) {
  std::vector<Sgld> coefficients(static_cast<size_t>(block.chains));
  for (int64_t c = 0; c < block.chains; ++c) {
    coefficients[static_cast<size_t>(c)] = {
        {static_cast<float>(settings.nbeta[c]), static_cast<float>(settings.localization[c]),
         static_cast<float>(-0.5 * settings.lr[c]), static_cast<float>(std::sqrt(settings.lr[c]))}};
  }
  step_all(kernels().sgld, block, {}, tensors, tensor_count, coefficients.data(), settings.seed, settings.step,
           settings.first_chain, settings.noise, energy, square, threads);
}

bool sampler_step(int sampler, const SgldBlock& block, const StateRows& rows, const SgldTensor* tensors,
                  int64_t tensor_count, const float* coefficients, uint64_t seed, uint32_t step, uint32_t first_chain,
                  bool noise, double* work, double* gauge, int threads) {
  const auto run = [&](auto kernel, auto* each) {
    step_all(kernel, block, rows, tensors, tensor_count, each, seed, step, first_chain, noise, work, gauge, threads);
    return true;
  };
  if (sampler == 0) return run(kernels().sgld, reinterpret_cast<const Sgld*>(coefficients));
  if (sampler == 1) return run(kernels().langevin, reinterpret_cast<const Langevin*>(coefficients));
  if (sampler == 2) return run(kernels().preconditioned, reinterpret_cast<const Preconditioned*>(coefficients));
  return false;
}

}  // namespace dif
