// Loss and gradient of one chain on one batch, by parts of the batch that threads may share.
//
// A batch is cut into parts of equal size, at most `most` of them, each of plan.part samples or more: a function of the
// model and the batch's size alone. Each part's gradient is summed by itself and the parts are added in order,
// ((part 0 + part 1) + part 2) + ..., whoever computed them, so no bit depends on the number of threads. Memory: a
// vector of parameters and a pass's scratch for each thread; with several threads also one vector for each part.
#pragma once
#include <algorithm>
#include <cstdint>
#include <memory>
#include <vector>

#include "cpu/aligned.hpp"
#include "cpu/engine_isa.hpp"
#include "cpu/team.hpp"

namespace dif {

class PartedPass {
 public:
  static constexpr int64_t most = 16;

  static int64_t parts_of(const Plan& plan, int64_t count) { return std::clamp<int64_t>(count / plan.part, 1, most); }

  // For batches of `count` samples.
  PartedPass(const Plan& plan, Pass<float> pass, int64_t count, int threads)
      : plan_(plan),
        pass_(pass),
        parts_(parts_of(plan, count)),
        size_((count + parts_ - 1) / parts_),
        losses_(pass == engine_kernels().matrix ? static_cast<size_t>(count) : 0),
        team_(static_cast<int>(std::min<int64_t>(threads, parts_))) {
    if (losses_.empty()) size_ = (size_ + 15) / 16 * 16;  // samples in the lanes: whole registers
    parts_ = std::max<int64_t>(1, (count + size_ - 1) / size_);
    for (int m = 0; m < team_.size(); ++m) scratch_.push_back(std::make_unique<Aligned<float>>(plan.scratch));
    const int64_t vectors = parts_ == 1 ? 0 : team_.size() == 1 ? 1 : parts_ - 1;
    for (int64_t i = 0; i < vectors; ++i) others_.push_back(std::make_unique<Aligned<float>>(plan.total));
  }

  // The sum of the losses at w (total); g (total) becomes the gradient of their mean.
  double run(const float* w, const Batch<float>& batch, float* g) {
    if (parts_ == 1) return pass_(plan_, w, batch, g, scratch_[0]->get(), per_sample(0));
    double sums[most] = {};
    if (team_.size() == 1) {
      for (int64_t i = 0; i < parts_; ++i) {
        sums[i] = part(i, w, batch, i == 0 ? g : others_[0]->get(), 0);
        if (i > 0) add(g, others_[0]->get(), 0, plan_.dim);
      }
    } else {
      team_.run([&](int m) {
        const int64_t n = team_.size();
        for (int64_t i = parts_ * m / n; i < parts_ * (m + 1) / n; ++i) {
          sums[i] = part(i, w, batch, i == 0 ? g : others_[static_cast<size_t>(i - 1)]->get(), m);
        }
      });
      team_.run([&](int m) {
        const int64_t n = team_.size();
        for (const auto& other : others_) add(g, other->get(), plan_.dim * m / n, plan_.dim * (m + 1) / n);
      });
    }
    double total = 0.0;
    for (int64_t i = 0; i < parts_; ++i) total += sums[i];
    return total;
  }

 private:
  double* per_sample(int64_t first) { return losses_.empty() ? nullptr : losses_.data() + first; }
  double part(int64_t i, const float* w, const Batch<float>& batch, float* g, int member) {
    const int64_t first = std::min(i * size_, batch.count);
    Batch<float> piece = batch;
    piece.index += first;
    piece.count = std::min(size_, batch.count - first);
    piece.whole = batch.count;
    if (piece.x_turned) piece.x_turned += first * batch.x_size;
    if (piece.y_turned) piece.y_turned += first * batch.y_size;
    return pass_(plan_, w, piece, g, scratch_[static_cast<size_t>(member)]->get(), per_sample(first));
  }
  static void add(float* g, const float* other, int64_t low, int64_t high) {
    for (int64_t i = low; i < high; ++i) g[i] += other[i];
  }

  const Plan& plan_;
  Pass<float> pass_;
  int64_t parts_, size_;
  std::vector<double> losses_;
  std::vector<std::unique_ptr<Aligned<float>>> scratch_, others_;
  Team team_;
};

}  // namespace dif
