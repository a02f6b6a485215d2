#include "cpu/curvature.hpp"

#include <algorithm>

#include "cpu/in_use.hpp"
#include "cpu/kernels.hpp"
#include "cpu/parallel.hpp"

namespace dif {
namespace {

constexpr int64_t block_floats = 45000;      // of a block of samples: values, gradients and what hangs on them
constexpr int64_t block_samples = 256;       // at most
constexpr int64_t group_probes = 4;          // stacked below each other
constexpr int64_t most_segments = 8;         // parallel work of one checkpoint
constexpr int64_t segment_rows = 256;        // at least, so that adding up segments is a small part
constexpr int64_t segment_floats = 1 << 23;  // sums of a probe's segments
constexpr int64_t wave_floats = 1 << 25;     // sums of all checkpoints at work together

int64_t samples_of(const CompiledProgram& program) {
  return std::clamp<int64_t>(block_floats / program.second(1).plan().kept, 1, block_samples);
}

// Segments of the samples: a power of two, for an even share of the threads.
int64_t segments_of(const Plan& plan, int64_t count) {
  int64_t height = 1;
  for (int32_t v = 0; v < plan.value_count; ++v) height = std::max<int64_t>(height, plan.values[v].rows);
  const int64_t blocks = (count + plan.block - 1) / plan.block;
  const int64_t most = std::min({most_segments, blocks, count * height / segment_rows, segment_floats / plan.total});
  int64_t segments = 1;
  while (2 * segments <= most) segments *= 2;
  return segments;
}

// Working memory of attention's tangents: two transposed blocks and three squares.
int64_t work_of(const Plan& plan) {
  int64_t most = 0;
  for (int32_t i = 0; i < plan.op_count; ++i) {
    const ProgramOp& op = plan.ops[i];
    if (op.kind != op_attention) continue;
    const int64_t t = plan.values[op.a].rows, d = plan.values[op.a].cols / op.heads, ld = (t + 15) / 16 * 16;
    most = std::max(most, (2 * d + 3 * t) * ld);
  }
  return most;
}

}  // namespace

bool has_second(const CompiledProgram& program) {
  const Plan& plan = program.plan(layout_matrix);
  for (int32_t i = 0; i < plan.op_count; ++i) {
    if (plan.ops[i].kind > op_join || plan.ops[i].activation > act_silu) return false;
  }
  return plan.loss.kind <= loss_binary;
}

template <>
const SecondKernels<float>& second_kernels() {
  return DIF_IN_USE(second);
}
template <>
const SecondKernels<double>& second_kernels() {
  return DIF_IN_USE(second_f64);
}

template <class T>
Curvature<T>::Curvature(const CompiledProgram& program, const Data<T>& data, const int32_t* index, int64_t count,
                        const T* w, int64_t checkpoints, int64_t cache, int threads)
    : batch_(data.rows),
      index_(index, index + count),
      checkpoints_(checkpoints),
      state_(program.second(samples_of(program))),
      tangent_(program.second(group_probes * state_.plan().block)),
      blocks_((count + state_.plan().block - 1) / state_.plan().block),
      segments_(segments_of(state_.plan(), count)),
      cached_(std::min<int64_t>(checkpoints * blocks_, cache / (state_.plan().kept * static_cast<int64_t>(sizeof(T))))),
      turned_(state_.plan().scratch - state_.plan().kept),
      w_(checkpoints * state_.plan().total),
      turned_w_(checkpoints * turned_),
      gradient_(checkpoints * state_.plan().total),
      cache_(cached_ * state_.plan().kept),
      losses_(static_cast<size_t>(checkpoints * count)) {
  batch_.index = index_.data();
  batch_.count = count;
  std::copy_n(w, checkpoints * state_.plan().total, w_.get());
  make_states(threads);
}

// s (plan.scratch): the state, and the transposed weights behind it.
template <class T>
void Curvature<T>::make_state(int64_t checkpoint, int64_t block, T* g, T* s, double* losses) const {
  const Plan& plan = state_.plan();
  const int64_t first = block * plan.block;
  std::copy_n(turned_w_.get() + checkpoint * turned_, turned_, s + plan.kept);
  second_kernels<T>().state(plan, w_.get() + checkpoint * plan.total, batch_, g, s, first,
                            std::min(plan.block, batch_.count - first), losses);
}

template <class T>
void Curvature<T>::make_states(int threads) {
  const Plan& plan = state_.plan();
  Aligned<T> sums(checkpoints_ * segments_ * plan.total);
  for (int64_t c = 0; c < checkpoints_; ++c) {
    second_kernels<T>().turn(plan, w_.get() + c * plan.total, turned_w_.get() + c * turned_);
  }
  parallel(threads, checkpoints_ * segments_, [&](int64_t low, int64_t high) {
    Aligned<T> s(plan.scratch);
    for (int64_t item = low; item < high; ++item) {
      const int64_t c = item / segments_, segment = item % segments_;
      for (int64_t b = segment_begin(segment); b < segment_begin(segment + 1); ++b) {
        make_state(c, b, sums.get() + item * plan.total, s.get(), losses_.data() + c * batch_.count);
        const int64_t state = c * blocks_ + b;
        if (state < cached_) std::copy_n(s.get(), plan.kept, cache_.get() + state * plan.kept);
      }
    }
  });
  for (int64_t item = 0; item < checkpoints_ * segments_; ++item) {
    T* to = gradient_.get() + item / segments_ * plan.total;
    const T* from = sums.get() + item * plan.total;
    for (int64_t i = 0; i < plan.total; ++i) to[i] = to[i] + from[i];
  }
}

// What is worked on together: `probes` directions of `checkpoints` checkpoints.
template <class T>
struct Curvature<T>::Group {
  int64_t checkpoint, checkpoints, probes;
};

template <class T>
Curvature<T>::Scratch::Scratch(const Curvature& c)
    : tangents(c.tangent_.plan().kept),
      work(work_of(c.state_.plan())),
      weights(c.tangent_.plan().block),
      again(c.cached_ < c.states() ? c.state_.plan().scratch : 0),
      g(c.cached_ < c.states() ? c.state_.plan().total : 0),
      losses(c.cached_ < c.states() ? static_cast<size_t>(c.batch_.count) : 0) {}

template <class T>
T* Curvature<T>::state_at(int64_t checkpoint, int64_t block, Scratch& mine) {
  const int64_t state = checkpoint * blocks_ + block;
  if (state < cached_) return cache_.get() + state * state_.plan().kept;
  make_state(checkpoint, block, mine.g.get(), mine.again.get(), mine.losses.data());
  return mine.again.get();
}

template <class T>
Curvature<T>::~Curvature() = default;

template <class T>
T* Curvature<T>::buffer(int which, int64_t count) {
  if (sizes_[which] < count) {
    buffers_[which].reset();
    buffers_[which] = std::make_unique<Aligned<T>>(count);
    sizes_[which] = count;
  }
  return buffers_[which]->get();
}

template <class T>
std::unique_ptr<typename Curvature<T>::Scratch> Curvature<T>::borrow() {
  const std::lock_guard<std::mutex> lock(idle_mutex_);
  if (idle_.empty()) return std::make_unique<Scratch>(*this);
  auto scratch = std::move(idle_.back());
  idle_.pop_back();
  return scratch;
}

template <class T>
void Curvature<T>::give_back(std::unique_ptr<Scratch> scratch) {
  const std::lock_guard<std::mutex> lock(idle_mutex_);
  idle_.push_back(std::move(scratch));
}

// v, out: of the group's first checkpoint and probe, rows of dim numbers, v_ld from one checkpoint to the next.
template <class T>
void Curvature<T>::group(Product product, const T* v, int64_t v_ld, const Group& at, T* out, int threads) {
  const Plan &plan = state_.plan(), &tangent = tangent_.plan();
  const int64_t rows = at.checkpoints * at.probes, items = at.checkpoints * segments_;
  T *whole = buffer(0, rows * plan.total), *turned = buffer(1, rows * turned_);
  T* sums = buffer(2, items * at.probes * plan.total);
  const SecondKernels<T>& kernels = second_kernels<T>();
  parallel(threads, rows, [&](int64_t low, int64_t high) {
    for (int64_t row = low; row < high; ++row) {
      T* to = whole + row * plan.total;
      std::copy_n(v + row / at.probes * v_ld + row % at.probes * plan.dim, plan.dim, to);
      kernels.turn(plan, to, turned + row * turned_);
    }
  });
  parallel(threads, items, [&](int64_t low, int64_t high) {
    std::unique_ptr<Scratch> mine = borrow();
    for (int64_t item = low; item < high; ++item) {
      const int64_t c = item / segments_, segment = item % segments_, checkpoint = at.checkpoint + c;
      T* to = sums + item * at.probes * plan.total;
      std::fill_n(to, at.probes * plan.total, T(0));
      for (int64_t b = segment_begin(segment); b < segment_begin(segment + 1); ++b) {
        const int64_t first = b * plan.block;
        T* s = state_at(checkpoint, b, *mine);
        kernels.product({&plan, &tangent, &batch_, first, std::min(plan.block, batch_.count - first), at.probes,
                         product, w_.get() + checkpoint * plan.total, turned_w_.get() + checkpoint * turned_,
                         whole + c * at.probes * plan.total, turned + c * at.probes * turned_, plan.total, turned_, s,
                         mine->tangents.get(), mine->work.get(), mine->weights.get(), to, plan.total});
      }
    }
    give_back(std::move(mine));
  });
  parallel(threads, rows, [&](int64_t low, int64_t high) {
    for (int64_t row = low; row < high; ++row) {
      const int64_t c = row / at.probes, probe = row % at.probes;
      T* to = out + c * v_ld + probe * plan.dim;
      for (int64_t segment = 0; segment < segments_; ++segment) {
        const T* from = sums + ((c * segments_ + segment) * at.probes + probe) * plan.total;
        for (int64_t i = 0; i < plan.dim; ++i) to[i] = segment == 0 ? from[i] : to[i] + from[i];
      }
    }
  });
}

template <class T>
void Curvature<T>::product(Product product, const T* v, int64_t probes, T* out, int threads) {
  const std::lock_guard<std::mutex> lock(product_mutex_);
  const Plan& plan = state_.plan();
  const int64_t together = tangent_.plan().block / plan.block;
  const int64_t wave =
      std::clamp<int64_t>(wave_floats / (segments_ * together * plan.total), 1, std::max<int64_t>(checkpoints_, 1));
  for (int64_t c = 0; c < checkpoints_; c += wave) {
    for (int64_t i = 0; i < probes; i += together) {
      const int64_t at = (c * probes + i) * plan.dim;
      group(product, v + at, probes * plan.dim,
            Group{c, std::min(wave, checkpoints_ - c), std::min(together, probes - i)}, out + at, threads);
    }
  }
}

template class Curvature<float>;
template class Curvature<double>;

}  // namespace dif
