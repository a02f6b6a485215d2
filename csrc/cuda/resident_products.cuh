// The R-operator on a Program in a block's shared memory: cpu/engine_second.hpp, a thread for each number.
//
//   R{z} = R{a} W^T + a V^T + c,   R{da} = R{d} W + d V,   R{dW} = R{d}^T a + d^T R{a},   v = (V, c, ...)
//
// The values of a tile of samples and their gradients are made once for all probes. A parameter's sum over the samples
// is one thread's, in the order of the samples, so the bits are those of the CPU's matrix products. Rows are one float
// longer than the tile: threads on different rows of one sample do not wait for each other.
// Source: Pearlmutter (1994), Fast exact multiplication by the Hessian.
#pragma once
#include "cuda/resident.cuh"

namespace dif::cuda {

struct ResidentSecond {
  using L = ThreadLane;
  const ResidentProducts& plan;
  const Resident& x;  // values and their gradients
  const float* v;     // (probes, dim)
  float* t;           // (probes, rows, tile + 1): tangents
  float* out;         // (probes, dim)
  int probes;

  static DIF_INLINE bool smooth(const ResidentOp& op) { return op.activation > act_relu; }
  DIF_INLINE float& at(int probe, int row, int sample) const {
    return t[(probe * plan.rows + row) * x.stride + sample];
  }
  // The tangent of a value: zero where no parameter moves it.
  DIF_INLINE float tangent(int probe, int row, int grad, int sample) const {
    return grad < 0 ? 0.0f : at(probe, row, sample);
  }
  DIF_INLINE float direction(int probe, int64_t offset) const {
    return x.trains(offset) ? v[probe * plan.values.dim + offset] : 0.0f;
  }
  // fn(probe, row, sample) for `rows` rows of all probes, spread over the threads.
  template <class Fn>
  DIF_INLINE void each(int rows, Fn fn) const {
    for (int i = x.thread; i < probes * rows * x.samples; i += resident_threads) {
      const int of = i / x.samples;
      fn(of / rows, of % rows, i % x.samples);
    }
  }
  static DIF_INLINE float slope(int kind, float y) {
    if (kind == act_relu) return y > 0.0f ? 1.0f : 0.0f;
    if (kind == act_tanh) return L::fma(-y, y, 1.0f);
    return L::mul(y, L::sub(1.0f, y));
  }
  // act''(z), from y = act(z)
  static DIF_INLINE float bend(int kind, float y) {
    if (kind == act_tanh) return L::mul(L::mul(-2.0f, y), L::fma(-y, y, 1.0f));
    return L::mul(L::mul(y, L::sub(1.0f, y)), L::fma(-2.0f, y, 1.0f));
  }
  // Sixteen running sums of numbers 0 ... count - 1 (at most 32), halving.
  template <class Term>
  static DIF_INLINE float sixteen(int count, Term term) {
    float sum[sample_lanes];
    DIF_UNROLL
    for (int i = 0; i < sample_lanes; ++i) {
      sum[i] = i < count ? term(i, 0.0f) : 0.0f;
      if (i + sample_lanes < count) sum[i] = term(i + sample_lanes, sum[i]);
    }
    DIF_UNROLL
    for (int i = 0; i < 8; ++i) sum[i] = L::add(sum[i], sum[i + 8]);
    DIF_UNROLL
    for (int i = 0; i < 4; ++i) sum[i] = L::add(sum[i], sum[i + 4]);
    return L::add(L::add(sum[0], sum[2]), L::add(sum[1], sum[3]));
  }

  // ---- values and gradients
  __device__ __forceinline__ void losses() const {
    const ResidentPlan& p = plan.values;
    if (p.loss_kind == loss_squared) {
      x.losses();
      return;
    }
    const float slope = static_cast<float>(p.loss_factor / static_cast<double>(x.batch));
    x.each(1, [&](int, int i) { cross_entropy(i, slope); });
  }
  DIF_INLINE void cross_entropy(int i, float slope) const {
    const ResidentPlan& p = plan.values;
    const int y = x.data.classes[x.sample_of(i) * x.data.class_size];
    float peak = x.at(p.prediction, i);
    for (int r = 1; r < p.width; ++r) peak = L::max(x.at(p.prediction + r, i), peak);
    for (int r = 0; r < p.width; ++r) x.at(plan.loss_d + r, i) = exp<L>(L::sub(x.at(p.prediction + r, i), peak));
    const float total = sixteen(p.width, [&](int r, float sum) { return L::add(sum, x.at(plan.loss_d + r, i)); });
    const float scale = L::div(slope, total);
    for (int r = 0; r < p.width; ++r) {
      const float d = L::sub(L::mul(scale, x.at(plan.loss_d + r, i)), r == y ? slope : 0.0f);
      x.at(plan.loss_d + r, i) = x.at(p.prediction_d + r, i) = y < 0 ? 0.0f : d;
    }
  }
  __device__ __forceinline__ void values_back(const ResidentOp& op, int bent) const {
    if (op.activation != act_none) {
      x.each(op.height, [&](int r, int i) {
        const float d = x.at(op.out_d + r, i), y = x.at(op.out + r, i);
        if (smooth(op)) x.at(bent + r, i) = L::mul(bend(op.activation, y), d);
        x.at(op.out_d + r, i) = Resident::sloped(op.activation, d, y);
      });
      __syncthreads();
    }
    if (op.kind == op_linear) {
      if (op.a_d < 0) return;
      const int64_t row = op.transposed ? 1 : op.inner, inner = op.transposed ? op.height : 1;
      x.each(op.inner, [&](int k, int i) {
        float sum = op.add_a ? x.at(op.a_d + k, i) : 0.0f;
        for (int r = 0; r < op.height; ++r) {
          sum = L::fma(x.at(op.out_d + r, i), x.w[op.weight + r * row + k * inner], sum);
        }
        x.at(op.a_d + k, i) = sum;
      });
      return;
    }
    x.pass_back(op.out_d, op.a_d, op.height, op.kind == op_scale ? op.factor : 1.0f, op.add_a);
    if (op.kind != op_add) return;
    __syncthreads();  // a and b may be one value
    x.pass_back(op.out_d, op.b_d, op.height, 1.0f, op.add_b);
  }

  // ---- their tangents
  __device__ __forceinline__ void forward(const ResidentOp& op, int bent) const {
    const int64_t row = op.transposed ? 1 : op.inner, inner = op.transposed ? op.height : 1;
    each(op.height, [&](int p, int r, int i) {
      float z;
      if (op.kind == op_linear) {
        const float *weight = x.w + op.weight + r * row, *of = v + p * plan.values.dim + op.weight + r * row;
        z = direction(p, op.bias < 0 ? plan.values.dim : op.bias + r);
        if (x.trains(op.weight)) {
          for (int k = 0; k < op.inner; ++k) z = L::fma(x.at(op.a + k, i), of[k * inner], z);
        }
        if (op.a_d >= 0) {
          for (int k = 0; k < op.inner; ++k) z = L::fma(at(p, op.a + k, i), weight[k * inner], z);
        }
      } else {
        z = tangent(p, op.a + r, op.a_d, i);
        if (op.kind == op_add) z = L::add(z, tangent(p, op.b + r, op.b_d, i));
        if (op.kind == op_scale) z = L::mul(op.factor, z);
        if (op.kind == op_position) z = L::add(z, direction(p, op.weight + r));
      }
      if (smooth(op)) at(p, bent + r, i) = L::mul(x.at(bent + r, i), z);
      if (op.activation != act_none) z = L::mul(slope(op.activation, x.at(op.out + r, i)), z);
      at(p, op.out + r, i) = z;
    });
  }
  // R{d} = H_loss R{prediction}; of cross-entropy q (u - q.u), q = softmax, u counted from that of the right class.
  __device__ __forceinline__ void loss_hessian() const {
    const ResidentPlan& p = plan.values;
    const float n = static_cast<float>(x.batch), factor = static_cast<float>(p.loss_factor);
    if (p.loss_kind == loss_squared) {
      const float k = L::div(L::mul(2.0f, factor), n);
      each(p.width, [&](int probe, int r, int i) {
        const float u = at(probe, p.prediction + r, i);
        at(probe, p.prediction_d + r, i) = L::mul(k, p.importance < 0 ? u : L::mul(u, x.w[p.importance + r]));
      });
      return;
    }
    const float slope = L::div(factor, n);
    each(1, [&](int probe, int, int i) {
      const int y = x.data.classes[x.sample_of(i) * x.data.class_size];
      const float from = y < 0 ? 0.0f : at(probe, p.prediction + y, i);
      const float sum = sixteen(p.width, [&](int r, float so_far) {
        return L::fma(x.at(plan.loss_d + r, i), L::sub(at(probe, p.prediction + r, i), from), so_far);
      });
      const float mean = L::div(sum, slope);
      for (int r = 0; r < p.width; ++r) {
        const float d = x.at(plan.loss_d + r, i), u = L::sub(L::sub(at(probe, p.prediction + r, i), from), mean);
        at(probe, p.prediction_d + r, i) = y < 0 ? 0.0f : r == y ? L::mul(L::add(d, slope), -mean) : L::mul(d, u);
      }
    });
  }
  // fn(probe, number) for `count` parameters of all probes, a thread each.
  template <class Fn>
  DIF_INLINE void add_up(int count, Fn fn) const {
    for (int i = x.thread; i < probes * count; i += resident_threads) fn(i / count, i % count);
  }
  __device__ __forceinline__ void gradient(const ResidentOp& op) const {
    const int64_t dim = plan.values.dim;
    if (op.kind == op_linear && x.trains(op.bias)) {
      add_up(op.height, [&](int p, int r) {
        float sum = 0.0f;
        for (int i = 0; i < x.samples; ++i) sum = L::add(sum, at(p, op.out_d + r, i));
        float& to = out[p * dim + op.bias + r];
        to = L::add(to, sum);
      });
    }
    if (!x.trains(op.weight)) return;
    if (op.kind == op_position) {
      add_up(op.height, [&](int p, int r) {
        float& to = out[p * dim + op.weight + r];
        for (int i = 0; i < x.samples; ++i) to = L::add(to, at(p, op.out_d + r, i));
      });
    } else if (op.kind == op_linear) {
      const int64_t row = op.transposed ? 1 : op.inner, inner = op.transposed ? op.height : 1;
      add_up(op.height * op.inner, [&](int p, int j) {
        const int r = j / op.inner, k = j % op.inner;
        float& to = out[p * dim + op.weight + r * row + k * inner];
        float sum = to;
        for (int i = 0; i < x.samples; ++i) sum = L::fma(at(p, op.out_d + r, i), x.at(op.a + k, i), sum);
        if (op.a_d >= 0) {
          for (int i = 0; i < x.samples; ++i) sum = L::fma(x.at(op.out_d + r, i), at(p, op.a + k, i), sum);
        }
        to = sum;
      });
    }
  }
  DIF_INLINE void pass_back(int from, int to, int rows, float factor, bool join) const {
    if (to < 0) return;
    each(rows, [&](int p, int r, int i) {
      const float d = L::mul(factor, at(p, from + r, i));
      at(p, to + r, i) = join ? L::add(d, at(p, to + r, i)) : d;
    });
  }
  // Barriers: before and after by the caller.
  __device__ __forceinline__ void backward(const ResidentOp& op, int bent) const {
    if (op.activation != act_none) {
      each(op.height, [&](int p, int r, int i) {
        const float k = slope(op.activation, x.at(op.out + r, i)), d = at(p, op.out_d + r, i);
        at(p, op.out_d + r, i) = smooth(op) ? L::fma(k, d, at(p, bent + r, i)) : L::mul(k, d);
      });
      __syncthreads();
    }
    gradient(op);
    if (op.kind == op_linear) {
      if (op.a_d < 0) return;
      const int64_t row = op.transposed ? 1 : op.inner, inner = op.transposed ? op.height : 1;
      each(op.inner, [&](int p, int k, int i) {
        const float *weight = x.w + op.weight + k * inner, *of = v + p * plan.values.dim + op.weight + k * inner;
        float sum = op.add_a ? at(p, op.a_d + k, i) : 0.0f;
        for (int r = 0; r < op.height; ++r) sum = L::fma(at(p, op.out_d + r, i), weight[r * row], sum);
        if (x.trains(op.weight)) {
          for (int r = 0; r < op.height; ++r) sum = L::fma(x.at(op.out_d + r, i), of[r * row], sum);
        }
        at(p, op.a_d + k, i) = sum;
      });
      return;
    }
    pass_back(op.out_d, op.a_d, op.height, op.kind == op_scale ? op.factor : 1.0f, op.add_a);
    if (op.kind != op_add) return;
    __syncthreads();  // a and b may be one value
    pass_back(op.out_d, op.b_d, op.height, 1.0f, op.add_b);
  }
};

}  // namespace dif::cuda
