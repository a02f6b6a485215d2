#include "cpu/engine.hpp"

#include <algorithm>
#include <cmath>
#include <memory>

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

  // Calls step(t, batch, draw) for each step; draw < 0: not recorded. Stops when step returns false.
  template <class Step>
  void walk(uint32_t chain, int64_t first_step, int64_t steps, Step step) {
    const RunSettings& s = settings_;
    Batches batches(s.mode, s.seed, chain, data_.n, s.batch_size, steps);
    Batch<float> batch = data_.rows;
    batch.count = s.batch_size;
    for (int64_t t = first_step; t < first_step + steps; ++t) {
      batch.index = batches.at(static_cast<uint32_t>(t));
      const bool recorded = t >= s.burn_in && (t - s.burn_in) % s.thin == 0;
      if (!step(t, batch, recorded ? (t - s.burn_in) / s.thin : -1)) return;
    }
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
  double full_ = 0.0;  // the baseline of all samples
  bool has_full_ = false;
};

// One chain at a time: its state and the memory of a pass, used again for the next chain of the same thread.
class Walker {
 public:
  Walker(const Plan& plan, Pass<float> pass, const Data<float>& data, const RunSettings& settings, int threads)
      : plan_(plan),
        pass_(plan, pass, settings.batch_size, threads),
        settings_(settings),
        steps_(data, settings),
        padded_(plan.dim <= tile / 2 ? tile / 2 : (plan.dim + tile - 1) / tile * tile),
        w_(std::max(plan.total, padded_)),
        g_(std::max(plan.total, padded_)),
        center_(padded_),
        mask_(static_cast<size_t>(padded_), 0),
        anchor_(settings.sampler.anchor ? std::max(plan.total, padded_) : 0),
        start_(settings.sampler.anchor ? std::max(plan.total, padded_) : 0),
        mover_(settings.sampler, vectors()) {}

  void run(int64_t c, float* w, int64_t first_step, int64_t steps, const Trace& trace, int64_t& diverged) {
    const RunSettings& s = settings_;
    const uint32_t chain = s.first_chain + static_cast<uint32_t>(c);
    const float* center = s.center + c * s.center_ld;
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
    steps_.walk(chain, first_step, steps, [&](int64_t t, const Batch<float>& batch, int64_t draw) {
      const auto pass = [&] { return gradient(batch); };
      const double loss = mover_.knows_gradient() ? mover_.loss() : pass();
      if (!std::isfinite(loss)) {
        diverged = t;
        return false;
      }
      if (draw >= 0 && trace.mean) moments(trace, c, draw);
      const StepReport report =
          mover_.step(c, chain, t, s.nbeta[c], s.localization[c], s.lr[c], s.seed, loss, draw >= 0, pass);
      if (draw >= 0) {
        trace.loss[c * trace.ld + draw] = loss;
        trace.energy[c * trace.ld + draw] = report.work;
        trace.gauge[c * trace.ld + draw] = report.gauge;
        if (s.baseline) trace.baseline[c * trace.ld + draw] = steps_.baseline(batch);
      }
      return true;
    });
    std::copy(w_.get(), w_.get() + plan_.dim, w);
    mover_.save(c);
  }

 private:
  // The mean loss at w, its gradient to g; with an anchor, g(w) - g(center) + anchor on this batch.
  double gradient(const Batch<float>& batch) {
    const double loss = pass_.run(w_.get(), batch, g_.get());
    if (const float* anchor = settings_.sampler.anchor) {
      pass_.run(start_.get(), batch, anchor_.get());
      for (int64_t i = 0; i < plan_.dim; ++i) g_.get()[i] = g_.get()[i] - anchor_.get()[i] + anchor[i];
    }
    return loss / static_cast<double>(settings_.batch_size);
  }

  void moments(const Trace& trace, int64_t c, int64_t draw) const {
    double *mean = trace.mean + c * plan_.dim, *scatter = trace.scatter + c * plan_.dim;
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
};

// Sixteen chains in the lanes, on batches they share.
class GroupWalker {
 public:
  GroupWalker(const Plan& plan, const Data<float>& data, const RunSettings& settings)
      : plan_(plan),
        settings_(settings),
        steps_(data, settings),
        w_(16 * plan.total),
        g_(16 * plan.total),
        center_(16 * plan.dim),
        scratch_(plan.scratch),
        coefficients_(64) {
    engine_kernels().lane_order(order_);
  }

  // Chains low ... min(low + 16, chains) - 1.
  void run(int64_t low, float* w, int64_t w_ld, int64_t first_step, int64_t steps, const Trace& trace,
           int64_t* diverged) {
    const RunSettings& s = settings_;
    bool live[16];
    float* const k = coefficients_.get();
    for (int64_t lane = 0; lane < 16; ++lane) {
      const int64_t c = chain_of(low, lane), from = std::min(c, s.chains - 1);  // spare lanes repeat the last chain
      live[lane] = c < s.chains && diverged[c] < 0;
      for (int64_t i = 0; i < plan_.dim; ++i) {
        w_.get()[16 * i + lane] = w[from * w_ld + i];
        center_.get()[16 * i + lane] = s.center[from * s.center_ld + i];
      }
      for (int64_t i = plan_.dim; i < plan_.total; ++i) w_.get()[16 * i + lane] = s.frozen[i - plan_.dim];
      const SgldCoefficients one = coefficients(s, from);
      k[lane] = one.nbeta;
      k[16 + lane] = one.localization;
      k[32 + lane] = one.minus_half_lr;
      k[48 + lane] = one.noise;
    }
    const ChainsBlock block{w_.get(), g_.get(), center_.get(), s.mask, plan_.dim, k, k + 16, k + 32, k + 48};
    const uint32_t first_chain = s.first_chain + static_cast<uint32_t>(low);
    steps_.walk(first_chain, first_step, steps, [&](int64_t t, const Batch<float>& batch, int64_t draw) {
      double sums[16], energy[32];
      engine_kernels().chains(plan_, w_.get(), batch, g_.get(), scratch_.get(), sums);
      for (int64_t lane = 0; lane < 16; ++lane) {
        sums[lane] /= static_cast<double>(s.batch_size);
        if (live[lane] && !std::isfinite(sums[lane])) {
          diverged[chain_of(low, lane)] = t;
          live[lane] = false;
          save(low, lane, w, w_ld);
        }
      }
      for (int64_t lane = 0; draw >= 0 && trace.mean && lane < 16; ++lane) {
        const int64_t at = chain_of(low, lane) * plan_.dim;
        if (live[lane])
          add_draw(static_cast<double>(draw + 1), w_.get() + lane, 16, plan_.dim, trace.mean + at, trace.scatter + at);
      }
      engine_kernels().update_chains(block, s.seed, first_chain, static_cast<uint32_t>(t), energy);
      if (draw < 0) return true;
      const double baseline = s.baseline ? steps_.baseline(batch) : 0.0;
      for (int64_t lane = 0; lane < 16; ++lane) {
        if (!live[lane]) continue;
        const int64_t at = chain_of(low, lane) * trace.ld + draw;
        trace.loss[at] = sums[lane];
        trace.energy[at] = energy[lane];
        trace.gauge[at] = energy[16 + lane];
        if (s.baseline) trace.baseline[at] = baseline;
      }
      return true;
    });
    for (int64_t lane = 0; lane < 16; ++lane) {
      if (live[lane]) save(low, lane, w, w_ld);
    }
  }

 private:
  int64_t chain_of(int64_t low, int64_t lane) const { return low + order_[lane]; }
  void save(int64_t low, int64_t lane, float* w, int64_t w_ld) const {
    for (int64_t i = 0; i < plan_.dim; ++i) w[chain_of(low, lane) * w_ld + i] = w_.get()[16 * i + lane];
  }

  const Plan& plan_;
  const RunSettings& settings_;
  Steps steps_;
  Aligned<float> w_, g_, center_, scratch_, coefficients_;
  uint32_t order_[16];
};

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
    parallel(threads, (settings.chains + 15) / 16, [&](int64_t low, int64_t high) {
      GroupWalker walker(plan, data, settings);
      for (int64_t i = low; i < high; ++i) walker.run(16 * i, w, w_ld, first_step, steps, trace, diverged);
    });
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
  parallel(threads, settings.chains, [&](int64_t low, int64_t high) {
    Walker walker(plan, pass, rows, settings, for_each_chain);
    for (int64_t c = low; c < high; ++c) {
      if (diverged[c] < 0) walker.run(c, w + c * w_ld, first_step, steps, trace, diverged[c]);
    }
  });
}

}  // namespace dif
