#include "cpu/chain_losses.hpp"

#include <algorithm>
#include <vector>

#include "cpu/parallel.hpp"

namespace dif {
namespace {

constexpr int64_t samples_a_task = 1024;

// A thread's memory: one chain's parameters and what a pass needs.
class Evaluator {
 public:
  Evaluator(const Plan& plan, Pass<float> pass, const Data<float>& data, const ChainRows& rows, bool gradient)
      : plan_(plan),
        pass_(pass),
        rows_(rows),
        batch_(data.rows),
        w_(static_cast<size_t>(plan.total)),
        g_(static_cast<size_t>(gradient ? plan.total : 0)),
        scratch_(static_cast<size_t>(plan.scratch + 16)) {
    std::copy(rows.frozen, rows.frozen + (plan.total - plan.dim), w_.begin() + plan.dim);
  }

  void run(int64_t chain, const int32_t* index, int64_t count, double* losses, float* g) {
    const float* w = rows_.w + chain * rows_.w_ld;
    std::copy(w, w + plan_.dim, w_.begin());
    batch_.index = index;
    batch_.count = count;
    // Rows of a pass start on cache lines.
    auto* s = reinterpret_cast<float*>((reinterpret_cast<uintptr_t>(scratch_.data()) + 63) / 64 * 64);
    pass_(plan_, w_.data(), batch_, g ? g_.data() : nullptr, s, losses);
    if (g) std::copy(g_.begin(), g_.begin() + plan_.dim, g);
  }

 private:
  const Plan& plan_;
  Pass<float> pass_;
  const ChainRows& rows_;
  Batch<float> batch_;
  std::vector<float> w_, g_, scratch_;
};

}  // namespace

void chain_losses(const CompiledProgram& program, const Data<float>& data, const ChainRows& rows, const int32_t* index,
                  int64_t count, double* losses, int64_t losses_ld, float* g, int64_t g_ld, int threads) {
  const Layout layout = program.layout(batch_full);
  const Plan& plan = program.plan(layout);
  const Pass<float> pass = layout == layout_matrix ? engine_kernels().matrix : engine_kernels().samples;
  const int64_t size = g ? std::max(count, int64_t{1}) : samples_a_task, tasks = (count + size - 1) / size;
  parallel(threads, rows.chains * tasks, [&](int64_t low, int64_t high) {
    Evaluator at(plan, pass, data, rows, g != nullptr);
    for (int64_t item = low; item < high; ++item) {
      const int64_t chain = item / tasks, first = item % tasks * size;
      at.run(chain, index + first, std::min(size, count - first), losses + chain * losses_ld + first,
             g ? g + chain * g_ld : nullptr);
    }
  });
}

}  // namespace dif
