// Passes over a Program with rows of samples: values are row-major matrices, products are packed-free GEMMs.
// The layout of networks whose layers are wide enough to fill registers along a row.
//
// A pass works on blocks of `plan.block` samples, forward and back, so that a block's values stay in cache;
// gradients add up over blocks in order. One function per operation and direction; a further derivative is a
// further column.
#pragma once
#include "cpu/engine_rows.hpp"
#include "cpu/engine_stream.hpp"

namespace dif {

template <class L>
struct Matrix : Rows<L> {
  using Base = Rows<L>;
  using Base::act_backward;
  using Base::act_forward;
  using Base::attention;
  using Base::attention_back;
  using Base::batch;
  using Base::columns;
  using Base::first;
  using Base::g;
  using Base::joined;
  using Base::load;
  using Base::plan;
  using Base::rows;
  using Base::s;
  using Base::sample;
  using Base::samples;
  using Base::store;
  using Base::trains;
  using Base::view;
  using Base::w;
  using typename Base::F;
  using typename Base::G;
  using typename Base::T;
  using typename Base::View;
  using S = Streamed<L>;

  // ---- linear
  void linear(const ProgramOp& op, const OpPlan& at) const {
    const View a = view(op.a), out = view(op.out);
    const T* weight = op.transposed ? w + op.weight : s + at.turned;
    const int64_t m = rows(op.out);
    const T* bias = op.bias >= 0 ? w + op.bias : nullptr;
    if (at.streamed && op.transposed) {
      S::along(m, out.cols, a.cols, a.p, a.ld, w + op.weight, out.p, out.ld, bias, false);
    } else if (at.streamed) {
      S::across(m, out.cols, a.cols, a.p, a.ld, w + op.weight, out.p, out.ld, bias, false, s + at.turned, at.turned_ld);
    } else {
      G::run(m, out.cols, a.cols, {a.p, a.ld, 1}, weight, op.transposed ? out.cols : at.turned_ld, out.p, out.ld, bias,
             false);
    }
    act_forward(op.activation, out.p, s + at.extra, m, out.ld, out.cols);
  }
  void linear_back(const ProgramOp& op, const OpPlan& at) const {
    const View a = view(op.a), out = view(op.out);
    const int64_t m = rows(op.out);
    act_backward(op.activation, out.d, out.p, s + at.extra, m, out.ld, out.cols,
                 trains(op.bias) ? g + op.bias : nullptr);
    const bool onto = !at.fresh || first > 0;  // else this is the first that g's place hears
    if (trains(op.weight)) {
      const View &up = op.transposed ? a : out, &down = op.transposed ? out : a;  // W (up, down)
      const T *x = op.transposed ? a.p : out.d, *y = op.transposed ? out.d : a.p;
      if (at.streamed) {
        S::outer(up.cols, down.cols, m, x, up.ld, y, down.ld, g + op.weight, onto);
      } else {
        G::run(up.cols, down.cols, m, {x, 1, up.ld}, y, down.ld, g + op.weight, down.cols, nullptr, onto);
      }
    }
    if (a.d && at.streamed) {
      if (op.transposed) {
        S::across(m, a.cols, out.cols, out.d, out.ld, w + op.weight, a.d, a.ld, nullptr, at.add_a, s + at.turned,
                  at.turned_ld);
      } else {
        S::along(m, a.cols, out.cols, out.d, out.ld, w + op.weight, a.d, a.ld, nullptr, at.add_a);
      }
    } else if (a.d) {
      const T* weight = op.transposed ? s + at.turned : w + op.weight;
      G::run(m, a.cols, out.cols, {out.d, out.ld, 1}, weight, op.transposed ? at.turned_ld : a.cols, a.d, a.ld, nullptr,
             at.add_a);
    }
  }

  // ---- elementwise
  void activation(const ProgramOp& op, const OpPlan& at) const {
    const View a = view(op.a), out = view(op.out);
    for (int64_t r = 0; r < rows(op.out); ++r) {
      columns(out.cols, [&](int64_t j, int64_t n) { store(out.p + r * out.ld + j, load(a.p + r * a.ld + j, n), n); });
    }
    act_forward(op.activation, out.p, s + at.extra, rows(op.out), out.ld, out.cols);
  }
  // d_a (+)= factor d_out
  void pass_back(const View& out, const View& a, int64_t count, T factor, bool join) const {
    if (!a.d) return;
    const F k = L::set(factor);
    for (int64_t r = 0; r < count; ++r) {
      columns(out.cols, [&](int64_t j, int64_t n) {
        T* d = a.d + r * a.ld + j;
        store(d, joined(L::mul(k, load(out.d + r * out.ld + j, n)), d, n, join), n);
      });
    }
  }
  void activation_back(const ProgramOp& op, const OpPlan& at) const {
    const View a = view(op.a), out = view(op.out);
    act_backward(op.activation, out.d, out.p, s + at.extra, rows(op.out), out.ld, out.cols, nullptr);
    pass_back(out, a, rows(op.out), T(1), at.add_a);
  }
  void add(const ProgramOp& op) const {
    const View a = view(op.a), b = view(op.b), out = view(op.out);
    for (int64_t r = 0; r < rows(op.out); ++r) {
      columns(out.cols, [&](int64_t j, int64_t n) {
        store(out.p + r * out.ld + j, L::add(load(a.p + r * a.ld + j, n), load(b.p + r * b.ld + j, n)), n);
      });
    }
  }
  void scale(const ProgramOp& op) const {
    const View a = view(op.a), out = view(op.out);
    const F k = L::set(static_cast<T>(op.factor));
    for (int64_t r = 0; r < rows(op.out); ++r) {
      columns(out.cols,
              [&](int64_t j, int64_t n) { store(out.p + r * out.ld + j, L::mul(k, load(a.p + r * a.ld + j, n)), n); });
    }
  }

  // ---- reading inputs, tokens, positions, any order of elements
  void input(const ProgramOp& op) const {
    const View out = view(op.out);
    const int64_t height = plan.values[op.out].rows;
    for (int64_t i = 0; i < samples; ++i) {
      const T* x = batch.x + sample(i) * batch.x_size + op.first;
      for (int64_t r = 0; r < height; ++r) {
        columns(out.cols, [&](int64_t j, int64_t n) {
          store(out.p + (i * height + r) * out.ld + j, load(x + r * out.cols + j, n), n);
        });
      }
    }
  }
  template <class Fn>
  DIF_INLINE void each_token(const ProgramOp& op, Fn fn) const {
    const int64_t height = plan.values[op.out].rows;
    for (int64_t i = 0; i < samples; ++i) {
      const int32_t* tokens = batch.tokens + sample(i) * batch.token_size + op.first;
      for (int64_t r = 0; r < height; ++r) fn(i * height + r, static_cast<int64_t>(tokens[r]));
    }
  }
  void embedding(const ProgramOp& op) const {
    const View out = view(op.out);
    each_token(op, [&](int64_t r, int64_t token) {
      const T* row = w + op.weight + token * out.cols;
      columns(out.cols, [&](int64_t j, int64_t n) { store(out.p + r * out.ld + j, load(row + j, n), n); });
    });
  }
  void embedding_back(const ProgramOp& op) const {
    if (!trains(op.weight)) return;
    const View out = view(op.out);
    each_token(op, [&](int64_t r, int64_t token) {
      T* row = g + op.weight + token * out.cols;
      columns(out.cols, [&](int64_t j, int64_t n) {
        store(row + j, L::add(load(row + j, n), load(out.d + r * out.ld + j, n)), n);
      });
    });
  }
  void position(const ProgramOp& op) const {
    const View a = view(op.a), out = view(op.out);
    const int64_t height = plan.values[op.out].rows;
    for (int64_t r = 0; r < rows(op.out); ++r) {
      const T* p = w + op.weight + r % height * out.cols;
      columns(out.cols, [&](int64_t j, int64_t n) {
        store(out.p + r * out.ld + j, L::add(load(a.p + r * a.ld + j, n), load(p + j, n)), n);
      });
    }
  }
  void position_back(const ProgramOp& op, const OpPlan& at) const {
    const View a = view(op.a), out = view(op.out);
    const int64_t height = plan.values[op.out].rows;
    if (trains(op.weight)) {
      for (int64_t r = 0; r < rows(op.out); ++r) {
        T* p = g + op.weight + r % height * out.cols;
        columns(out.cols, [&](int64_t j, int64_t n) {
          store(p + j, L::add(load(p + j, n), load(out.d + r * out.ld + j, n)), n);
        });
      }
    }
    pass_back(out, a, rows(op.out), T(1), at.add_a);
  }
  // fn(element of out, element of a or -1), as offsets from the first row; extra is the map in offsets of one sample.
  template <class Fn>
  DIF_INLINE void each_mapped(const ProgramOp& op, const OpPlan& at, Fn fn) const {
    const View a = view(op.a), out = view(op.out);
    const int64_t from = plan.values[op.a].rows * a.ld, height = plan.values[op.out].rows;
    for (int64_t i = 0; i < samples; ++i) {
      const int32_t* map = plan.maps + at.extra;
      for (int64_t r = 0; r < height; ++r, map += out.cols) {
        const int64_t to = (i * height + r) * out.ld;
        for (int64_t j = 0; j < out.cols; ++j) fn(to + j, map[j] < 0 ? -1 : i * from + map[j]);
      }
    }
  }
  void gather(const ProgramOp& op, const OpPlan& at) const {
    const View a = view(op.a), out = view(op.out);
    each_mapped(op, at, [&](int64_t to, int64_t from) { out.p[to] = from < 0 ? T(0) : a.p[from]; });
  }
  void gather_back(const ProgramOp& op, const OpPlan& at) const {
    const View a = view(op.a), out = view(op.out);
    if (!a.d) return;
    if (!at.add_a) {
      for (int64_t r = 0; r < rows(op.a); ++r) {
        columns(a.cols, [&](int64_t j, int64_t n) { store(a.d + r * a.ld + j, L::set(0), n); });
      }
    }
    each_mapped(op, at, [&](int64_t to, int64_t from) {
      if (from >= 0) a.d[from] = a.d[from] + out.d[to];
    });
  }

  // ---- norms over a row; extra holds (mean, 1 / deviation) of each row
  template <bool centered>
  void norm(const ProgramOp& op, const OpPlan& at) const {
    const View a = view(op.a), out = view(op.out);
    const T inverse = T(1) / static_cast<T>(a.cols);
    for (int64_t r = 0; r < rows(op.out); ++r) {
      const T* x = a.p + r * a.ld;
      T mean = 0;
      if (centered) {
        F sum = L::set(0);
        columns(a.cols, [&](int64_t j, int64_t n) { sum = L::add(sum, load(x + j, n)); });
        mean = L::total(sum) * inverse;
      }
      F sum = L::set(0);
      columns(a.cols, [&](int64_t j, int64_t n) {
        const F d = L::select(L::first(static_cast<int>(n)), L::sub(load(x + j, n), L::set(mean)), L::set(0));
        sum = L::fma(d, d, sum);
      });
      const T scale = T(1) / root(L::total(sum) * inverse + static_cast<T>(op.factor));
      s[at.extra + 2 * r] = mean;
      s[at.extra + 2 * r + 1] = scale;
      columns(a.cols, [&](int64_t j, int64_t n) {
        F v = L::mul(L::sub(load(x + j, n), L::set(mean)), L::set(scale));
        if (op.weight >= 0) v = L::mul(v, load(w + op.weight + j, n));
        if (op.bias >= 0) v = L::add(v, load(w + op.bias + j, n));
        store(out.p + r * out.ld + j, v, n);
      });
    }
  }
  static DIF_INLINE float root(float x) { return __builtin_sqrtf(x); }
  static DIF_INLINE double root(double x) { return __builtin_sqrt(x); }
  // With h the normalized row and u = W d_out: d_a = scale (u - mean u - h mean(u h)); the RMS norm has no
  // mean u.
  template <bool centered>
  void norm_back(const ProgramOp& op, const OpPlan& at) const {
    const View a = view(op.a), out = view(op.out);
    const T inverse = T(1) / static_cast<T>(a.cols);
    const bool train_w = trains(op.weight), train_b = trains(op.bias);
    for (int64_t r = 0; r < rows(op.out); ++r) {
      const T* x = a.p + r * a.ld;
      const T* d = out.d + r * out.ld;
      const F mean = L::set(s[at.extra + 2 * r]), scale = L::set(s[at.extra + 2 * r + 1]);
      F sum_u = L::set(0), sum_uh = L::set(0);
      columns(a.cols, [&](int64_t j, int64_t n) {
        const F h = L::mul(L::sub(load(x + j, n), mean), scale);
        const F v = load(d + j, n);
        const F u = op.weight >= 0 ? L::mul(v, load(w + op.weight + j, n)) : v;
        sum_u = L::add(sum_u, u);
        sum_uh = L::fma(u, h, sum_uh);
        if (train_w) store(g + op.weight + j, L::fma(v, h, load(g + op.weight + j, n)), n);
        if (train_b) store(g + op.bias + j, L::add(v, load(g + op.bias + j, n)), n);
      });
      if (!a.d) continue;
      const F mean_u = L::set(centered ? L::total(sum_u) * inverse : T(0)),
              mean_uh = L::set(L::total(sum_uh) * inverse);
      T* to = a.d + r * a.ld;
      columns(a.cols, [&](int64_t j, int64_t n) {
        const F h = L::mul(L::sub(load(x + j, n), mean), scale);
        const F v = load(d + j, n);
        const F u = op.weight >= 0 ? L::mul(v, load(w + op.weight + j, n)) : v;
        const F back = L::mul(scale, L::sub(L::sub(u, mean_u), L::mul(h, mean_uh)));
        store(to + j, joined(back, to + j, n, at.add_a), n);
      });
    }
  }

  // ---- losses: one number for each sample, and the gradient of their mean over the batch
  template <int kind>
  void elementwise(double* losses) const {
    const View p = view(plan.loss.prediction);
    const int64_t height = plan.values[plan.loss.prediction].rows;
    const T factor = static_cast<T>(plan.loss.factor);
    const F slope = L::set(static_cast<T>((kind == loss_squared ? 2 : 1) * plan.loss.factor / batch.samples()));
    const T* importance = plan.loss.importance >= 0 ? w + plan.loss.importance : nullptr;
    for (int64_t i = 0; i < samples; ++i) {
      const T* y = batch.y + sample(i) * batch.y_size;
      F sum = L::set(0);
      for (int64_t r = 0; r < height; ++r) {
        const int64_t at = (i * height + r) * p.ld;
        columns(p.cols, [&](int64_t j, int64_t n) {
          const F weight = importance ? load(importance + r * p.cols + j, n) : L::set(1);
          const F u = Base::template element<kind>(load(p.p + at + j, n), load(y + r * p.cols + j, n),
                                                   L::first(static_cast<int>(n)), weight, sum);
          if (p.d) store(p.d + at + j, L::mul(slope, u), n);
        });
      }
      losses[first + i] = static_cast<double>(L::total(sum)) * static_cast<double>(factor);
    }
  }
  void cross_entropy(double* losses) const {
    const View p = view(plan.loss.prediction);
    const int64_t height = plan.values[plan.loss.prediction].rows;
    const T slope = static_cast<T>(plan.loss.factor / batch.samples());
    const F low = L::set(static_cast<T>(-3e38));
    for (int64_t i = 0; i < samples; ++i) {
      const int32_t* classes = batch.classes + sample(i) * batch.class_size;
      double loss = 0.0;
      for (int64_t r = 0; r < height; ++r) {
        const T* x = p.p + (i * height + r) * p.ld;
        T* d = p.d ? p.d + (i * height + r) * p.ld : nullptr;
        const int32_t y = classes[r];
        if (y < 0) {
          if (d) columns(p.cols, [&](int64_t j, int64_t n) { store(d + j, L::set(0), n); });
          continue;
        }
        F top = low;
        columns(p.cols, [&](int64_t j, int64_t n) {
          top = L::max(L::select(L::first(static_cast<int>(n)), load(x + j, n), low), top);
        });
        const T peak = L::largest(top), chosen = x[y];
        const F shift = L::set(peak);
        F sum = L::set(0);
        columns(p.cols, [&](int64_t j, int64_t n) {
          const F e = L::select(L::first(static_cast<int>(n)), exp<L>(L::sub(load(x + j, n), shift)), L::set(0));
          sum = L::add(sum, e);
          if (d) store(d + j, e, n);
        });
        const T total = L::total(sum);
        T logarithm[16];
        L::store(logarithm, log<L>(L::set(total)));
        loss += static_cast<double>(logarithm[0]) + (static_cast<double>(peak) - static_cast<double>(chosen));
        if (d) {
          const F k = L::set(slope / total);
          columns(p.cols, [&](int64_t j, int64_t n) { store(d + j, L::mul(k, load(d + j, n)), n); });
          d[y] = d[y] - slope;
        }
      }
      losses[first + i] = loss * plan.loss.factor;
    }
  }

  // ---- the walk
  void forward() const {
    for (int32_t i = 0; i < plan.op_count; ++i) {
      const ProgramOp& op = plan.ops[i];
      const OpPlan& at = plan.steps[i];
      switch (op.kind) {
        case op_input:
          input(op);
          break;
        case op_linear:
          linear(op, at);
          break;
        case op_activation:
          activation(op, at);
          break;
        case op_add:
          add(op);
          break;
        case op_scale:
          scale(op);
          break;
        case op_embedding:
          embedding(op);
          break;
        case op_position:
          position(op);
          break;
        case op_layer_norm:
          norm<true>(op, at);
          break;
        case op_rms_norm:
          norm<false>(op, at);
          break;
        case op_attention:
          attention(op, at);
          break;
        case op_gather:
          gather(op, at);
          break;
        case op_mean_rows:
          this->mean_rows(op, at);
          break;
        case op_max_rows:
          this->max_rows(op, at);
          break;
        case op_join:
          this->join(op);
          break;
        default:
          break;
      }
    }
  }
  void backward() const {
    for (int64_t i = 0; i < plan.cleared; i += 16) L::store(s + i, L::set(0));
    for (int32_t i = plan.op_count - 1; i >= 0; --i) {
      const ProgramOp& op = plan.ops[i];
      const OpPlan& at = plan.steps[i];
      if (plan.places[op.out].grad < 0) continue;
      switch (op.kind) {
        case op_linear:
          linear_back(op, at);
          break;
        case op_activation:
          activation_back(op, at);
          break;
        case op_add:
          pass_back(view(op.out), view(op.a), rows(op.out), T(1), at.add_a);
          pass_back(view(op.out), view(op.b), rows(op.out), T(1), at.add_b);
          break;
        case op_scale:
          pass_back(view(op.out), view(op.a), rows(op.out), static_cast<T>(op.factor), at.add_a);
          break;
        case op_embedding:
          embedding_back(op);
          break;
        case op_position:
          position_back(op, at);
          break;
        case op_layer_norm:
          norm_back<true>(op, at);
          break;
        case op_rms_norm:
          norm_back<false>(op, at);
          break;
        case op_attention:
          attention_back(op, at);
          break;
        case op_gather:
          gather_back(op, at);
          break;
        case op_mean_rows:
          this->mean_rows_back(op, at);
          break;
        case op_max_rows:
          this->max_rows_back(op, at);
          break;
        case op_join:
          this->join_back(op, at);
          break;
        default:
          break;
      }
    }
  }

  // Per-sample losses (batch.count), their sum, and the gradient (total) of their mean unless g is null.
  static double run(const Plan& plan, const T* w, const Batch<T>& batch, T* g, T* s, double* losses) {
    for (int32_t i = 0; i < plan.op_count; ++i) {
      const ProgramOp& op = plan.ops[i];
      const OpPlan& at = plan.steps[i];
      if (op.kind != op_linear || at.turned < 0 || at.streamed) continue;
      const int64_t in = plan.values[op.a].cols, out = plan.values[op.out].cols;
      transpose<L>(op.transposed ? in : out, op.transposed ? out : in, w + op.weight, op.transposed ? out : in,
                   s + at.turned, at.turned_ld);
    }
    for (int32_t z = 0; g && z < plan.zero_count; ++z) {
      for (int64_t i = plan.zeros[2 * z]; i < plan.zeros[2 * z + 1]; ++i) g[i] = 0;
    }
    for (int64_t first = 0; first < batch.count; first += plan.block) {
      const int64_t samples = batch.count - first < plan.block ? batch.count - first : plan.block;
      const Matrix pass{{{{plan, w, g, s, batch, first, samples}}}};
      pass.forward();
      if (plan.loss.kind == loss_cross_entropy) {
        pass.cross_entropy(losses);
      } else if (plan.loss.kind == loss_binary) {
        pass.template elementwise<loss_binary>(losses);
      } else {
        pass.template elementwise<loss_squared>(losses);
      }
      if (g) pass.backward();
    }
    double total = 0.0;
    for (int64_t i = 0; i < batch.count; ++i) total += losses[i];
    return total;
  }
};

}  // namespace dif
