// The samples of each step's batch, by address: the one place that says which they are, for every engine.
//
//   independent  sample j = floor(word_j n / 2^32), word_j = word j % 4 of quad j / 4 at (chain, step, stream 1)
//   shared       the same with chain = 2^32 - 1
//   epoch        places step size + j of an endless row of permutations of the samples; permutation e is the
//                Fisher-Yates shuffle that swaps i = n - 1, ..., 1 with floor(word_i (i + 1) / 2^32), words at
//                (chain, e, stream 1). Every sample comes once an epoch, whatever the batch size.
//   full         0, ..., n - 1
//
// Keeps the permutation of the epoch it is in, so that following steps cost one look-up a sample.
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
  Batches(int32_t mode, uint64_t seed, uint32_t chain, int64_t n, int64_t size)
      : mode_(mode), seed_(seed), chain_(mode == batch_shared ? 0xffffffffu : chain), n_(n), size_(size) {
    words_.resize(static_cast<size_t>(mode == batch_full ? 0 : mode == batch_epoch ? n : size));
  }

  void fill(uint32_t step, int32_t* out) {
    if (mode_ == batch_full) {
      std::iota(out, out + size_, 0);
    } else if (mode_ == batch_epoch) {
      for (int64_t j = 0; j < size_; ++j) {
        const int64_t place = static_cast<int64_t>(step) * size_ + j;
        if (place / n_ != epoch_) shuffle(place / n_);
        out[j] = order_[static_cast<size_t>(place % n_)];
      }
    } else {
      kernels().words(words_.data(), 0, size_, {seed_, chain_, step, Stream::batch_indices});
      engine_kernels().indices(words_.data(), size_, n_, out);
    }
  }

 private:
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
  std::vector<int32_t> order_;
};

}  // namespace dif
