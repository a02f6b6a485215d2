#include "cpu/engine.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <new>

#include "cpu/batches.hpp"
#include "cpu/kernels.hpp"
#include "cpu/parallel.hpp"

namespace dif {
namespace {

constexpr int64_t tile = 128;  // the update works on whole tiles; rows are padded to them

// Zeroed memory on cache lines.
template <class T>
class Aligned {
 public:
  explicit Aligned(int64_t n) : p_(static_cast<T*>(::operator new(bytes(n), std::align_val_t{64}))) {
    std::memset(p_, 0, bytes(n));
  }
  ~Aligned() { ::operator delete(p_, std::align_val_t{64}); }
  Aligned(const Aligned&) = delete;
  T* get() const { return p_; }

 private:
  static size_t bytes(int64_t n) { return static_cast<size_t>(n + 64) * sizeof(T); }
  T* p_;
};

// One chain at a time: its state and the memory of a pass, used again for the next chain of the same thread.
class Walker {
 public:
  Walker(const Plan& plan, const Data<float>& data, const RunSettings& settings)
      : plan_(plan),
        data_(data),
        settings_(settings),
        padded_((plan.dim + tile - 1) / tile * tile),
        w_(std::max(plan.total, padded_)),
        g_(std::max(plan.total, padded_)),
        center_(padded_),
        scratch_(plan.scratch),
        masked_(settings.mask || padded_ != plan.dim),
        mask_(static_cast<size_t>(padded_), 0),
        index_(static_cast<size_t>(settings.batch_size)),
        losses_(static_cast<size_t>(settings.batch_size)) {
    for (int64_t i = 0; i < plan.dim; ++i)
      mask_[static_cast<size_t>(i)] = settings.mask ? settings.mask[i] : 1;
  }

  void run(int64_t c, float* w, int64_t first_step, int64_t steps, const Trace& trace, int64_t& diverged) {
    const RunSettings& s = settings_;
    const uint32_t chain = s.first_chain + static_cast<uint32_t>(c);
    std::copy(w, w + plan_.dim, w_.get());
    // Frozen parameters may lie where the last tile is padded: the mask holds them still.
    std::copy(s.frozen, s.frozen + (plan_.total - plan_.dim), w_.get() + plan_.dim);
    std::copy(s.center + c * s.center_ld, s.center + c * s.center_ld + plan_.dim, center_.get());
    const SgldCoefficients k{static_cast<float>(s.nbeta[c]), static_cast<float>(s.localization[c]),
                             static_cast<float>(-0.5 * s.lr[c]), static_cast<float>(std::sqrt(s.lr[c]))};
    Batches batches(s.mode, s.seed, chain, data_.n, s.batch_size);
    Batch<float> batch = data_.rows;
    batch.index = index_.data();
    batch.count = s.batch_size;
    const Pass<float> pass = engine_kernels().matrix;
    for (int64_t t = first_step; t < first_step + steps; ++t) {
      if (s.mode != batch_full || t == first_step) batches.fill(static_cast<uint32_t>(t), index_.data());
      pass(plan_, w_.get(), batch, g_.get(), scratch_.get(), losses_.data());
      double loss = 0.0;
      for (const double x : losses_) loss += x;
      loss /= static_cast<double>(s.batch_size);
      if (!std::isfinite(loss)) {
        diverged = t;
        break;
      }
      const double energy = update(k, {s.seed, chain, static_cast<uint32_t>(t), update_noise});
      if (t >= s.burn_in && (t - s.burn_in) % s.thin == 0) {
        const int64_t at = c * trace.ld + (t - s.burn_in) / s.thin;
        trace.loss[at] = loss;
        trace.energy[at] = energy;
        if (s.baseline) trace.baseline[at] = baseline();
      }
    }
    std::copy(w_.get(), w_.get() + plan_.dim, w);
  }

 private:
  double update(const SgldCoefficients& k, const Address& at) {
    double energy = 0.0;
    for (int64_t first = 0; first < padded_; first += block_size) {
      const int64_t size = std::min(block_size, padded_ - first);
      energy += kernels().sgld(w_.get() + first, g_.get() + first, center_.get() + first,
                               masked_ ? mask_.data() + first : nullptr, first, size, k, at, true);
    }
    return energy;
  }
  double baseline() const {
    double sum = 0.0;
    for (const int32_t i : index_) sum += settings_.baseline[i];
    return sum / static_cast<double>(settings_.batch_size);
  }

  const Plan& plan_;
  const Data<float>& data_;
  const RunSettings& settings_;
  int64_t padded_;
  Aligned<float> w_, g_, center_, scratch_;
  bool masked_;
  std::vector<uint8_t> mask_;
  std::vector<int32_t> index_;
  std::vector<double> losses_;
};

}  // namespace

const EngineKernels& engine_kernels() {
#if defined(DIF_HAVE_avx512)
  if (std::strcmp(kernels().name, "avx512") == 0) return engine_avx512;
#endif
#if defined(DIF_HAVE_avx2)
  if (std::strcmp(kernels().name, "avx2") == 0) return engine_avx2;
#endif
  return engine_baseline;
}

void choose_batch(int32_t mode, uint64_t seed, uint32_t chain, uint32_t step, int64_t n, int64_t batch_size,
                   int32_t* out) {
  Batches(mode, seed, chain, n, batch_size).fill(step, out);
}

void run_chains(const Plan& plan, const Data<float>& data, const RunSettings& settings, float* w,
                int64_t w_ld, int64_t first_step, int64_t steps, const Trace& trace, int64_t* diverged,
                int threads) {
  parallel(threads, settings.chains, [&](int64_t low, int64_t high) {
    Walker walker(plan, data, settings);
    for (int64_t c = low; c < high; ++c) {
      if (diverged[c] < 0) walker.run(c, w + c * w_ld, first_step, steps, trace, diverged[c]);
    }
  });
}

}  // namespace dif
