#include "cpu/engine.hpp"

#include <algorithm>
#include <cmath>
#include <memory>
#include <optional>

#include "core/moments.hpp"
#include "cpu/aligned.hpp"
#include "cpu/batches.hpp"
#include "cpu/in_use.hpp"
#include "cpu/kernels.hpp"
#include "cpu/parallel.hpp"
#include "cpu/parts.hpp"

namespace dif {
namespace {

constexpr int64_t tile = 128;  // the update works on whole tiles, or half of one; rows are padded to them

SgldCoefficients coefficients(const RunSettings& s, int64_t c) {
  return {static_cast<float>(s.nbeta[c]), static_cast<float>(s.localization[c]), static_cast<float>(-0.5 * s.lr[c]),
          static_cast<float>(std::sqrt(s.lr[c]))};
}

// What every walker needs: the batch of a step, its baseline, and where a draw goes.
class Steps {
 public:
  Steps(const Data<float>& data, const RunSettings& settings) : data_(data), settings_(settings) {}

  void begin(uint32_t chain, int64_t steps) {
    batches_.emplace(settings_.mode, settings_.seed, chain, data_.n, settings_.batch_size, steps);
  }
  Batch<float> batch(int64_t t) {
    Batch<float> batch = data_.rows;
    batch.count = settings_.batch_size;
    batch.index = batches_->at(static_cast<uint32_t>(t));
    return batch;
  }
  // Which draw step t is; < 0: not recorded.
  int64_t draw(int64_t t) const {
    const int64_t after = t - settings_.burn_in;
    return after >= 0 && after % settings_.thin == 0 ? after / settings_.thin : -1;
  }
  double baseline(const Batch<float>& batch) {
    if (settings_.mode == batch_full && has_full_) return full_;
    double sum[4] = {};
    for (int64_t i = 0; i < batch.count; ++i) sum[i % 4] += settings_.baseline[batch.index[i]];
    has_full_ = true;
    return full_ = (sum[0] + sum[1] + sum[2] + sum[3]) / static_cast<double>(settings_.batch_size);
  }

 private:
  const Data<float>& data_;
  const RunSettings& settings_;
  std::optional<Batches> batches_;
  double full_ = 0.0;  // the baseline of all samples
  bool has_full_ = false;
};

// What a run reads and writes, of all chains.
struct Run {
  const Plan& plan;
  const Data<float>& data;
  const RunSettings& settings;
  float* w;
  int64_t w_ld, first_step, steps;
  const Trace& trace;
  int64_t* diverged;
};

// One chain: its state and the memory of a pass, used again for the next chain of the same thread.
class Walker {
 public:
  Walker(const Run& run, Pass<float> pass, int threads)
      : run_(run),
        plan_(run.plan),
        pass_(plan_, pass, run.settings.batch_size, threads),
        settings_(run.settings),
        steps_(run.data, run.settings),
        padded_(plan_.dim <= tile / 2 ? tile / 2 : (plan_.dim + tile - 1) / tile * tile),
        w_(std::max(plan_.total, padded_)),
        g_(std::max(plan_.total, padded_)),
        center_(padded_),
        mask_(static_cast<size_t>(padded_), 0),
        anchor_(settings_.sampler.anchor ? std::max(plan_.total, padded_) : 0),
        start_(settings_.sampler.anchor ? std::max(plan_.total, padded_) : 0),
        mover_(settings_.sampler, vectors()) {}

  void begin(int64_t c) {
    const RunSettings& s = settings_;
    c_ = c;
    going_ = run_.diverged[c] < 0;
    if (!going_) return;
    const float *w = run_.w + c * run_.w_ld, *center = s.center + c * s.center_ld;
    // Frozen parameters may lie where the last tile is padded: the mask holds them still.
    std::copy(w, w + plan_.dim, w_.get());
    std::copy(s.frozen, s.frozen + (plan_.total - plan_.dim), w_.get() + plan_.dim);
    if (center != held_) {  // most often that of the chain before
      held_ = center;
      std::copy(center, center + plan_.dim, center_.get());
      if (s.sampler.anchor) {
        std::copy(center, center + plan_.dim, start_.get());
        std::copy(s.frozen, s.frozen + (plan_.total - plan_.dim), start_.get() + plan_.dim);
      }
    }
    mover_.load(c);
    steps_.begin(chain(), run_.steps);
  }

  // Step t; false if the chain has diverged.
  bool step(int64_t t) {
    if (!going_) return false;
    const RunSettings& s = settings_;
    const Trace& trace = run_.trace;
    const Batch<float> batch = steps_.batch(t);
    const int64_t draw = steps_.draw(t);
    const auto pass = [&] { return gradient(batch); };
    const double loss = mover_.knows_gradient() ? mover_.loss() : pass();
    if (!std::isfinite(loss)) {
      run_.diverged[c_] = t;
      end();
      return going_ = false;
    }
    if (draw >= 0 && trace.mean) moments(trace, draw);
    const StepReport report =
        mover_.step(c_, chain(), t, s.nbeta[c_], s.localization[c_], s.lr[c_], s.seed, loss, draw >= 0, pass);
    if (draw >= 0) {
      const int64_t at = c_ * trace.ld + draw;
      trace.loss[at] = loss;
      trace.energy[at] = report.work;
      trace.gauge[at] = report.gauge;
      if (s.baseline) trace.baseline[at] = steps_.baseline(batch);
    }
    return true;
  }

  void end() const {
    if (!going_) return;
    std::copy(w_.get(), w_.get() + plan_.dim, run_.w + c_ * run_.w_ld);
    mover_.save(c_);
  }

 private:
  uint32_t chain() const { return settings_.first_chain + static_cast<uint32_t>(c_); }

  // The mean loss at w, its gradient to g; with an anchor, g(w) - g(center) + anchor on this batch.
  double gradient(const Batch<float>& batch) {
    const double loss = pass_.run(w_.get(), batch, g_.get());
    if (const float* anchor = settings_.sampler.anchor) {
      pass_.run(start_.get(), batch, anchor_.get());
      for (int64_t i = 0; i < plan_.dim; ++i) g_.get()[i] = g_.get()[i] - anchor_.get()[i] + anchor[i];
    }
    return loss / static_cast<double>(settings_.batch_size);
  }

  void moments(const Trace& trace, int64_t draw) const {
    double *mean = trace.mean + c_ * plan_.dim, *scatter = trace.scatter + c_ * plan_.dim;
    add_draw(static_cast<double>(draw + 1), w_.get(), 1, plan_.dim, mean, scatter);
  }

  // The mask also holds the padding still.
  ChainVectors vectors() {
    int64_t moving = 0;
    for (int64_t i = 0; i < plan_.dim; ++i) {
      mask_[static_cast<size_t>(i)] = settings_.mask ? settings_.mask[i] : 1;
      moving += mask_[static_cast<size_t>(i)] != 0;
    }
    const bool masked = settings_.mask || padded_ != plan_.dim;
    return {w_.get(), g_.get(), center_.get(), masked ? mask_.data() : nullptr, plan_.dim, padded_, moving};
  }

  const Run& run_;
  const Plan& plan_;
  PartedPass pass_;
  const RunSettings& settings_;
  Steps steps_;
  int64_t padded_;
  Aligned<float> w_, g_, center_;
  std::vector<uint8_t> mask_;
  Aligned<float> anchor_, start_;
  const float* held_ = nullptr;  // the center that center_ and start_ hold
  Mover mover_;
  int64_t c_ = 0;
  bool going_ = false;
};

// Sixteen chains in the lanes, on batches they share.
class GroupWalker {
 public:
  explicit GroupWalker(const Run& run)
      : run_(run),
        plan_(run.plan),
        settings_(run.settings),
        steps_(run.data, run.settings),
        w_(16 * plan_.total),
        g_(16 * plan_.total),
        center_(16 * plan_.dim),
        scratch_(plan_.scratch),
        coefficients_(64) {
    engine_kernels().lane_order(order_);
  }

  // Chains 16 group ... min(16 group + 16, chains) - 1.
  void begin(int64_t group) {
    const RunSettings& s = settings_;
    low_ = 16 * group;
    float* const k = coefficients_.get();
    for (int64_t lane = 0; lane < 16; ++lane) {
      const int64_t c = chain_of(lane), from = std::min(c, s.chains - 1);  // spare lanes repeat the last chain
      live_[lane] = c < s.chains && run_.diverged[c] < 0;
      for (int64_t i = 0; i < plan_.dim; ++i) {
        w_.get()[16 * i + lane] = run_.w[from * run_.w_ld + i];
        center_.get()[16 * i + lane] = s.center[from * s.center_ld + i];
      }
      for (int64_t i = plan_.dim; i < plan_.total; ++i) w_.get()[16 * i + lane] = s.frozen[i - plan_.dim];
      const SgldCoefficients one = coefficients(s, from);
      k[lane] = one.nbeta;
      k[16 + lane] = one.localization;
      k[32 + lane] = one.minus_half_lr;
      k[48 + lane] = one.noise;
    }
    steps_.begin(first_chain(), run_.steps);
  }

  bool step(int64_t t) {
    const RunSettings& s = settings_;
    const Trace& trace = run_.trace;
    const Batch<float> batch = steps_.batch(t);
    const int64_t draw = steps_.draw(t);
    double sums[16], energy[32];
    engine_kernels().chains(plan_, w_.get(), batch, g_.get(), scratch_.get(), sums);
    for (int64_t lane = 0; lane < 16; ++lane) {
      sums[lane] /= static_cast<double>(s.batch_size);
      if (live_[lane] && !std::isfinite(sums[lane])) {
        run_.diverged[chain_of(lane)] = t;
        save(lane);
        live_[lane] = false;
      }
    }
    for (int64_t lane = 0; draw >= 0 && trace.mean && lane < 16; ++lane) {
      const int64_t at = chain_of(lane) * plan_.dim;
      if (live_[lane])
        add_draw(static_cast<double>(draw + 1), w_.get() + lane, 16, plan_.dim, trace.mean + at, trace.scatter + at);
    }
    const float* const k = coefficients_.get();
    const ChainsBlock block{w_.get(), g_.get(), center_.get(), s.mask, plan_.dim, k, k + 16, k + 32, k + 48};
    engine_kernels().update_chains(block, s.seed, first_chain(), static_cast<uint32_t>(t), energy);
    if (draw < 0) return true;
    const double baseline = s.baseline ? steps_.baseline(batch) : 0.0;
    for (int64_t lane = 0; lane < 16; ++lane) {
      if (!live_[lane]) continue;
      const int64_t at = chain_of(lane) * trace.ld + draw;
      trace.loss[at] = sums[lane];
      trace.energy[at] = energy[lane];
      trace.gauge[at] = energy[16 + lane];
      if (s.baseline) trace.baseline[at] = baseline;
    }
    return true;
  }

  void end() const {
    for (int64_t lane = 0; lane < 16; ++lane) {
      if (live_[lane]) save(lane);
    }
  }

 private:
  uint32_t first_chain() const { return settings_.first_chain + static_cast<uint32_t>(low_); }
  int64_t chain_of(int64_t lane) const { return low_ + order_[lane]; }
  void save(int64_t lane) const {
    for (int64_t i = 0; i < plan_.dim; ++i) run_.w[chain_of(lane) * run_.w_ld + i] = w_.get()[16 * i + lane];
  }

  const Run& run_;
  const Plan& plan_;
  const RunSettings& settings_;
  Steps steps_;
  Aligned<float> w_, g_, center_, scratch_, coefficients_;
  uint32_t order_[16];
  int64_t low_ = 0;
  bool live_[16] = {};
};

// Runs units low ... high - 1 (chains, or groups of them), `together` at a time, which take turns step by step: where a
// step is short, one's update would wait for its sums, and the other's batch is at hand meanwhile.
template <class Walker, class... Rest>
void walk(const Run& run, int64_t low, int64_t high, int64_t together, const Rest&... rest) {
  std::vector<std::unique_ptr<Walker>> walkers;
  for (int64_t i = 0; i < std::min(together, high - low); ++i)
    walkers.push_back(std::make_unique<Walker>(run, rest...));
  for (int64_t first = low; first < high; first += together) {
    const int64_t count = std::min(together, high - first);
    for (int64_t i = 0; i < count; ++i) walkers[static_cast<size_t>(i)]->begin(first + i);
    bool going = true;
    for (int64_t t = run.first_step; going && t < run.first_step + run.steps; ++t) {
      going = false;
      for (int64_t i = 0; i < count; ++i) going = walkers[static_cast<size_t>(i)]->step(t) || going;
    }
    for (int64_t i = 0; i < count; ++i) walkers[static_cast<size_t>(i)]->end();
  }
}

// Rows (n, size) as (columns, size, 16), whole registers on cache lines of their own; past the last row, that row
// again.
std::unique_ptr<Aligned<float>> turned(const float* rows, int64_t size, int64_t n) {
  const int64_t columns = (n + 15) / 16;
  auto out = std::make_unique<Aligned<float>>(columns * size * 16);
  for (int64_t i = 0; i < columns * 16; ++i) {
    for (int64_t j = 0; j < size; ++j) {
      out->get()[(i / 16 * size + j) * 16 + i % 16] = rows[std::min(i, n - 1) * size + j];
    }
  }
  return out;
}

}  // namespace

const EngineKernels& engine_kernels() { return DIF_IN_USE(engine); }

void run_chains(const CompiledProgram& program, const Data<float>& data, const RunSettings& settings, float* w,
                int64_t w_ld, int64_t first_step, int64_t steps, const Trace& trace, int64_t* diverged, int threads) {
  Layout layout = program.layout(settings.mode);
  // Chains in the lanes are for plain SGLD, which is most of what many chains do.
  if (layout == layout_chains &&
      (settings.sampler.kind != sampler_sgld || settings.sampler.anchor || std::isfinite(settings.sampler.box)))
    layout = layout_samples;
  const Plan& plan = program.plan(layout);
  if (layout == layout_chains) {
    const Run run{plan, data, settings, w, w_ld, first_step, steps, trace, diverged};
    parallel(threads, (settings.chains + 15) / 16,
             [&](int64_t low, int64_t high) { walk<GroupWalker>(run, low, high, 2); });
    return;
  }
  const Pass<float> pass = layout == layout_samples ? engine_kernels().samples : engine_kernels().matrix;
  Data<float> rows = data;
  std::unique_ptr<Aligned<float>> x, y;
  if (layout == layout_samples && settings.mode == batch_full) {  // all chains and steps read the same columns
    x = turned(data.rows.x, data.rows.x_size, data.n);
    rows.rows.x_turned = x->get();
    if (data.rows.y && data.rows.y != data.rows.x) y = turned(data.rows.y, data.rows.y_size, data.n);
    if (y) rows.rows.y_turned = y->get();
  }
  const int for_each_chain = static_cast<int>(std::max<int64_t>(1, threads / settings.chains));
  const int64_t together = layout == layout_samples ? 2 : 1;  // a larger model's chains would share the cache
  const Run run{plan, rows, settings, w, w_ld, first_step, steps, trace, diverged};
  parallel(threads, settings.chains,
           [&](int64_t low, int64_t high) { walk<Walker>(run, low, high, together, pass, for_each_chain); });
}

}  // namespace dif
