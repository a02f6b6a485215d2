// The samples of each step's batch, by address: the one place that says which they are, for every engine.
//
//   independent  sample j = floor(word_j n / 2^32), word_j = word j % 4 of quad j / 4 at (chain, step, stream 1)
//   shared       the same with chain = 2^32 - 1
//   epoch        places step size + j of an endless row of permutations of the samples; permutation e is the
//                Fisher-Yates shuffle that swaps i = n - 1, ..., 1 with floor(word_i (i + 1) / 2^32), words at
//                (chain, e, stream 1). Every sample comes once an epoch, whatever the batch size.
//   full         0, ..., n - 1
//
// Keeps the permutation of the epoch it is in, so that following steps cost one look-up a sample; and draws small
// batches for several steps at once.
#pragma once
#include <cstdint>
#include <numeric>
#include <utility>
#include <vector>

#include "core/philox.hpp"
#include "cpu/engine.hpp"
#include "cpu/kernels.hpp"

namespace dif {

class Batches {
 public:
  // `steps`: how many steps will be asked for, one after the other.
  Batches(int32_t mode, uint64_t seed, uint32_t chain, int64_t n, int64_t size, int64_t steps)
      : mode_(mode), seed_(seed), chain_(mode == batch_shared ? 0xffffffffu : chain), n_(n), size_(size) {
    const bool drawn = mode == batch_independent || mode == batch_shared;
    ahead_ = drawn && size <= most_ahead && steps >= few;
    ld_ = (size + 3) / 4 * 4;
    rows_.resize(static_cast<size_t>(ahead_ ? steps_ahead * ld_ : size));
    words_.resize(static_cast<size_t>(mode == batch_epoch ? n : drawn && !ahead_ ? size : 0));
    if (mode == batch_full) std::iota(rows_.begin(), rows_.end(), 0);
  }

  // The samples of a step (size), until the next call.
  const int32_t* at(uint32_t step) {
    if (mode_ == batch_full) return rows_.data();
    if (ahead_) {
      if (!begun_ || step - first_ >= steps_ahead) {
        engine_kernels().samples_ahead({seed_, chain_, step, Stream::batch_indices}, ld_ / 4, n_, rows_.data(), ld_);
        first_ = step;
        begun_ = true;
      }
      return rows_.data() + static_cast<int64_t>(step - first_) * ld_;
    }
    if (mode_ == batch_epoch) {
      for (int64_t j = 0; j < size_; ++j) {
        const int64_t place = static_cast<int64_t>(step) * size_ + j;
        if (place / n_ != epoch_) shuffle(place / n_);
        rows_[static_cast<size_t>(j)] = order_[static_cast<size_t>(place % n_)];
      }
    } else {
      kernels().words(words_.data(), 0, size_, {seed_, chain_, step, Stream::batch_indices});
      engine_kernels().indices(words_.data(), size_, n_, rows_.data());
    }
    return rows_.data();
  }

 private:
  static constexpr int64_t most_ahead = 256;  // samples, so that the first cache holds them
  static constexpr int64_t few = 4;           // steps, not worth drawing ahead

  void shuffle(int64_t epoch) {
    epoch_ = epoch;
    order_.resize(static_cast<size_t>(n_));
    std::iota(order_.begin(), order_.end(), 0);
    kernels().words(words_.data(), 0, n_, {seed_, chain_, static_cast<uint32_t>(epoch), Stream::batch_indices});
    for (int64_t i = n_ - 1; i > 0; --i) {
      const uint64_t k = (static_cast<uint64_t>(words_[static_cast<size_t>(i)]) * static_cast<uint64_t>(i + 1)) >> 32;
      std::swap(order_[static_cast<size_t>(i)], order_[k]);
    }
  }

  int32_t mode_;
  uint64_t seed_;
  uint32_t chain_;
  int64_t n_, size_, epoch_ = -1;
  std::vector<uint32_t> words_;
  std::vector<int32_t> order_, rows_;
  int64_t ld_ = 0;
  bool ahead_ = false, begun_ = false;
  uint32_t first_ = 0;
};

}  // namespace dif
