// A Program as one block of threads runs it: all values of a block of samples in shared memory.
//
// A value is (columns, samples): a thread takes one number of one sample. Sums over samples are those of the CPU's
// layout with samples in the lanes (cpu/engine_small.hpp, cpu/engine_tied.hpp): sixteen running sums, sample s in sum
// s mod 16, even and odd sixteens apart, halved at the end; so the bits are the CPU's.
#pragma once
#include "core/math.hpp"
#include "core/program.hpp"
#include "cuda/cuda.hpp"
#include "cuda/lanes.cuh"
#include "cuda/launch.cuh"

namespace dif::cuda {

constexpr int sample_lanes = 16;
constexpr int resident_threads = 128;

// A block's shared memory; offsets in floats are those of ResidentPlan.
struct Resident {
  using L = ThreadLane;
  const ResidentPlan& plan;
  const ResidentData& data;
  float* s;          // the pool
  const float* w;    // (total)
  float* acc;        // (dim, 16): running sums of the gradient
  float* values;     // (rows, stride)
  float* loss;       // (stride)
  const int* index;  // (batch)
  double* sums;      // (16)
  int first, samples, columns, stride, batch, thread;

  // fn(row, sample) for `rows` rows, spread over the threads.
  template <class Fn>
  DIF_INLINE void each(int rows, Fn fn) const {
    const int width = columns * sample_lanes;
    for (int i = thread; i < rows * width; i += resident_threads) fn(i / width, i % width);
  }
  DIF_INLINE float& at(int row, int sample) const { return values[row * stride + sample]; }
  DIF_INLINE int64_t sample_of(int i) const { return index[first + (i < samples ? i : samples - 1)]; }
  DIF_INLINE bool trains(int64_t offset) const { return offset >= 0 && offset < plan.dim; }

  static DIF_INLINE float activate(int kind, float x) {
    if (kind == act_relu) return L::max(0.0f, x);
    if (kind == act_tanh) return tanh<L>(x);
    if (kind == act_sigmoid) return sigmoid<L>(x);
    return x;
  }
  static DIF_INLINE float sloped(int kind, float d, float y) {
    if (kind == act_relu) return y > 0.0f ? d : 0.0f;
    if (kind == act_tanh) return L::mul(d, L::fma(-y, y, 1.0f));
    if (kind == act_sigmoid) return L::mul(d, L::mul(y, L::sub(1.0f, y)));
    return d;
  }

  __device__ __forceinline__ void forward(const ResidentOp& op) const {
    each(op.height, [&](int r, int i) {
      float v = 0.0f;
      if (op.kind == op_input) {
        v = data.x[sample_of(i) * data.x_size + op.first + r];
      } else if (op.kind == op_linear) {
        const int64_t row = op.transposed ? 1 : op.inner, inner = op.transposed ? op.height : 1;
        const float* weight = w + op.weight + r * row;
        v = op.bias >= 0 ? w[op.bias + r] : 0.0f;
        for (int k = 0; k < op.inner; ++k) v = L::fma(weight[k * inner], at(op.a + k, i), v);
      } else if (op.kind == op_add) {
        v = L::add(at(op.a + r, i), at(op.b + r, i));
      } else if (op.kind == op_scale) {
        v = L::mul(op.factor, at(op.a + r, i));
      } else if (op.kind == op_position) {
        v = L::add(at(op.a + r, i), w[op.weight + r]);
      } else {
        v = at(op.a + r, i);
      }
      at(op.out + r, i) = activate(op.activation, v);
    });
  }

  // Each sample's loss to `loss`, its gradient by the prediction to that place.
  __device__ __forceinline__ void losses() const {
    const float slope = plan.tied ? 1.0f
                                  : static_cast<float>((plan.loss_kind == loss_squared ? 2.0 : 1.0) * plan.loss_factor /
                                                       static_cast<double>(batch));
    each(1,
         [&](int, int i) { loss[i] = plan.loss_kind == loss_squared ? squared(i, slope) : cross_entropy(i, slope); });
  }
  DIF_INLINE float squared(int i, float slope) const {
    const float* y = data.y + sample_of(i) * data.y_size;
    float sum = 0.0f;
    for (int r = 0; r < plan.width; ++r) {
      const float v = at(plan.prediction + r, i), e = i < samples ? L::sub(v, y[r]) : 0.0f;
      const float u = plan.importance >= 0 ? L::mul(e, w[plan.importance + r]) : e;
      sum = L::fma(u, e, sum);
      at(plan.prediction_d + r, i) = plan.tied ? u : L::mul(slope, u);
    }
    return sum;
  }
  DIF_INLINE float cross_entropy(int i, float slope) const {
    const int y = i < samples ? data.classes[sample_of(i) * data.class_size] : -1;
    float peak = at(plan.prediction, i), chosen = 0.0f, total = 0.0f;
    for (int r = 1; r < plan.width; ++r) peak = L::max(at(plan.prediction + r, i), peak);
    for (int r = 0; r < plan.width; ++r) {
      const float x = at(plan.prediction + r, i);
      total = L::add(total, exp<L>(L::sub(x, peak)));
      chosen = r == y ? x : chosen;
    }
    const float scaled = y >= 0 ? L::div(slope, total) : 0.0f, unit = y >= 0 ? slope : 0.0f;
    for (int r = 0; r < plan.width; ++r) {
      const float e = L::mul(exp<L>(L::sub(at(plan.prediction + r, i), peak)), scaled);
      at(plan.prediction_d + r, i) = L::sub(e, r == y ? unit : 0.0f);
    }
    return y >= 0 ? L::add(log<L>(total), L::sub(peak, chosen)) : 0.0f;
  }
  // Adds the block's losses, sixteen by sixteen.
  __device__ __forceinline__ void add_losses() const {
    if (thread >= sample_lanes) return;
    for (int c = 0; c < columns; ++c) sums[thread] += static_cast<double>(loss[c * sample_lanes + thread]);
  }

  // Running sum `lane` of parameter `to`: sum over samples of term(sample, sum so far). A tied pair's sums run on in
  // order, those of its first use of the weight behind the others.
  template <class Term>
  DIF_INLINE void add_up(int64_t to, int lane, bool apart, Term term) const {
    float& sum = acc[(to + (apart ? plan.dim : 0)) * sample_lanes + lane];
    float even = sum, odd = 0.0f;
    const int apart_by = plan.tied ? 1 : 2;
    for (int c = 0; c < columns; c += apart_by) {
      even = term(c * sample_lanes + lane, even);
      if (!plan.tied && c + 1 < columns) odd = term((c + 1) * sample_lanes + lane, odd);
    }
    sum = plan.tied ? even : L::add(even, odd);
  }
  DIF_INLINE void add_rows(int64_t to, int from, int rows) const {
    for (int i = thread; i < rows * sample_lanes; i += resident_threads) {
      const int r = i / sample_lanes;
      add_up(to + r, i % sample_lanes, false, [&](int o, float sum) { return L::add(sum, at(from + r, o)); });
    }
  }
  __device__ __forceinline__ void pass_back(int from, int to, int rows, float factor, bool join) const {
    if (to < 0) return;
    each(rows, [&](int r, int i) {
      const float v = L::mul(factor, at(from + r, i));
      at(to + r, i) = join ? L::add(v, at(to + r, i)) : v;
    });
  }

  // From the gradient of `out` to those of its parameters and operands. Barriers: before and after by the caller.
  __device__ __forceinline__ void backward(const ResidentOp& op) const {
    if (op.activation != act_none) {
      each(op.height,
           [&](int r, int i) { at(op.out_d + r, i) = sloped(op.activation, at(op.out_d + r, i), at(op.out + r, i)); });
      __syncthreads();
    }
    if (op.kind == op_linear) {
      const int64_t row = op.transposed ? 1 : op.inner, inner = op.transposed ? op.height : 1;
      if (trains(op.weight)) {
        for (int i = thread; i < op.height * op.inner * sample_lanes; i += resident_threads) {
          const int p = i / sample_lanes, r = p / op.inner, k = p % op.inner;
          add_up(op.weight + r * row + k * inner, i % sample_lanes, op.apart != 0,
                 [&](int o, float sum) { return L::fma(at(op.out_d + r, o), at(op.a + k, o), sum); });
        }
      }
      if (trains(op.bias)) add_rows(op.bias, op.out_d, op.height);
      if (op.a_d < 0) return;
      each(op.inner, [&](int k, int i) {
        float v = 0.0f;
        for (int r = 0; r < op.height; ++r) {
          v = L::fma(w[op.weight + r * row + k * inner], at(op.out_d + r, i), v);
        }
        at(op.a_d + k, i) = op.add_a ? L::add(v, at(op.a_d + k, i)) : v;
      });
      return;
    }
    if (op.kind == op_position && trains(op.weight)) add_rows(op.weight, op.out_d, op.height);
    pass_back(op.out_d, op.a_d, op.height, op.kind == op_scale ? op.factor : 1.0f, op.add_a);
    if (op.kind != op_add) return;
    __syncthreads();  // a and b may be one value
    pass_back(op.out_d, op.b_d, op.height, 1.0f, op.add_b);
  }
};

}  // namespace dif::cuda
