// Second derivatives of a Program: the R-operator over the matrix layout.
//
//   R{f}(w) = d/de f(w + e v) at e = 0, applied to the forward and to the backward pass:
//     z  = a W^T + b        R{z}  = R{a} W^T + a V^T + c         v = (V, c, ...)
//     da = d W              R{da} = R{d} W + d V
//     dW = d^T a            R{dW} = R{d}^T a + d^T R{a}
//   The values and gradients of a block of samples (its state) are those of engine_matrix.hpp; they do not depend on
//   v, so one state serves any number of directions (probes), which lie below each other: products with W itself are
//   one GEMM over the rows of all probes.
//
//   hessian   all terms: the exact Hessian of the mean loss times v
//   ggn       terms with d left out, between J v and J^T only the loss's own Hessian: J^T H_loss J v
//   fisher    1/n sum_samples g (g . v), g = a sample's own gradient: R-forward to the loss, then the weight gradients
//             of d scaled by g . v, since d is linear in the loss
//
// Values that depend on no trainable parameter have tangent zero: their places stay as they were allocated.
// Source: Pearlmutter (1994), Fast exact multiplication by the Hessian; Schraudolph (2002) for the Gauss-Newton.
#pragma once
#include "cpu/engine_second_norm.hpp"

namespace dif {

template <class L>
struct Second : SecondNorm<L> {
  using Base = SecondNorm<L>;
  using Base::count;
  using Base::each_row;
  using Base::hessian;
  using Base::job;
  using Base::r;
  using Base::x;
  using State = SecondState<L>;
  using typename Base::F;
  using typename Base::G;
  using typename Base::M;
  using typename Base::T;
  using typename Base::View;

  // ---- activation functions
  DIF_INLINE F slope(int kind, const T* y, const T* slopes, int64_t n) const {
    const F one = L::set(1), o = M::load(y, n);
    if (kind == act_relu) return L::select(L::greater(o, L::set(0)), one, L::set(0));
    if (kind == act_tanh) return L::fma(L::negate(o), o, one);
    if (kind == act_sigmoid) return L::mul(o, L::sub(one, o));
    return M::load(slopes, n);
  }
  // R{y} = act'(z) R{z} on R{z} in place; act''(z) d R{z} is kept for the way back.
  void activate(const ProgramOp& op, const OpPlan& at, const OpPlan& rat) const {
    if (op.activation == act_none) return;
    const View out = x.view(op.out), rout = r.view(op.out);
    const T *slopes = x.s + at.extra, *bent = slopes + State::behind_slopes(x.plan, op);
    const bool keep = State::smooth(op) && hessian();
    T* kept = r.s + rat.extra;
    each_row(op.out, [&](int64_t, int64_t row, int64_t rrow) {
      M::columns(out.cols, [&](int64_t j, int64_t n) {
        const int64_t e = row * out.ld + j, to = rrow * out.ld + j;
        const F z = M::load(rout.p + to, n);
        if (keep) M::store(kept + to, L::mul(M::load(bent + e, n), z), n);
        M::store(rout.p + to, L::mul(slope(op.activation, out.p + e, slopes + e, n), z), n);
      });
    });
  }
  // R{dz} = act'(z) R{dy} + act''(z) dy R{z} on R{dy} in place.
  void activate_back(const ProgramOp& op, const OpPlan& at, const OpPlan& rat) const {
    if (op.activation == act_none) return;
    const View out = x.view(op.out), rout = r.view(op.out);
    const T *slopes = x.s + at.extra, *kept = r.s + rat.extra;
    const bool bent = State::smooth(op) && hessian();
    each_row(op.out, [&](int64_t, int64_t row, int64_t rrow) {
      M::columns(out.cols, [&](int64_t j, int64_t n) {
        const int64_t e = row * out.ld + j, to = rrow * out.ld + j;
        const F k = slope(op.activation, out.p + e, slopes + e, n);
        const F d = M::load(rout.d + to, n);
        M::store(rout.d + to, bent ? L::fma(k, d, M::load(kept + to, n)) : L::mul(k, d), n);
      });
    });
  }

  // ---- linear
  DIF_INLINE const T* turned(const OpPlan& at) const { return job.turned + (at.turned - x.plan.kept); }
  DIF_INLINE const T* turned(const OpPlan& at, int64_t probe) const {
    return job.v_turned + probe * job.v_turned_ld + (at.turned - x.plan.kept);
  }
  void linear(const ProgramOp& op, const OpPlan& at, const OpPlan& rat) const {
    const View a = x.view(op.a), ra = r.view(op.a), rout = r.view(op.out);
    const int64_t m = count(op.out), out_ld = op.transposed ? rout.cols : at.turned_ld;
    for (int64_t i = 0; i < job.probes; ++i) {
      const T* v = job.v + i * job.v_ld;
      const T* bias = op.bias >= 0 ? v + op.bias : nullptr;
      const int64_t depth = x.trains(op.weight) ? a.cols : 0;
      T* to = rout.p + i * m * rout.ld;
      if (depth == 0) start_rows(to, rout.ld, rout.cols, m, bias);
      G::run(m, rout.cols, depth, {a.p, a.ld, 1}, op.transposed ? v + op.weight : turned(at, i), out_ld, to, rout.ld,
             bias, false);
    }
    if (ra.d) {
      G::run(job.probes * m, rout.cols, ra.cols, {ra.p, ra.ld, 1}, op.transposed ? x.w + op.weight : turned(at), out_ld,
             rout.p, rout.ld, nullptr, true);
    }
    activate(op, at, rat);
  }
  static void start_rows(T* to, int64_t ld, int64_t cols, int64_t rows, const T* bias) {
    for (int64_t i = 0; i < rows; ++i) {
      M::columns(cols,
                 [&](int64_t j, int64_t n) { M::store(to + i * ld + j, bias ? M::load(bias + j, n) : L::set(0), n); });
    }
  }
  void linear_gradient(const ProgramOp& op) const {
    const View a = x.view(op.a), out = x.view(op.out), ra = r.view(op.a), rout = r.view(op.out);
    const int64_t m = count(op.out);
    for (int64_t i = 0; i < job.probes; ++i) {
      T* to = job.out + i * job.out_ld;
      const T *rd = rout.d + i * m * rout.ld, *rp = ra.p + i * m * ra.ld;
      if (x.trains(op.bias)) {
        // with act_none this only adds up the columns
        M::act_backward(act_none, rout.d + i * m * rout.ld, nullptr, nullptr, m, rout.ld, rout.cols, to + op.bias);
      }
      if (!x.trains(op.weight)) continue;
      const bool both = hessian() && ra.d;
      to += op.weight;
      if (op.transposed) {
        G::run(a.cols, out.cols, m, {a.p, 1, a.ld}, rd, rout.ld, to, out.cols, nullptr, true);
        if (both) G::run(a.cols, out.cols, m, {rp, 1, ra.ld}, out.d, out.ld, to, out.cols, nullptr, true);
      } else {
        G::run(out.cols, a.cols, m, {rd, 1, rout.ld}, a.p, a.ld, to, a.cols, nullptr, true);
        if (both) G::run(out.cols, a.cols, m, {out.d, 1, out.ld}, rp, ra.ld, to, a.cols, nullptr, true);
      }
    }
  }
  void linear_back(const ProgramOp& op, const OpPlan& at) const {
    const View out = x.view(op.out), ra = r.view(op.a), rout = r.view(op.out);
    if (!ra.d) return;
    const int64_t m = count(op.out), ld = op.transposed ? at.turned_ld : ra.cols;
    G::run(job.probes * m, ra.cols, out.cols, {rout.d, rout.ld, 1}, op.transposed ? turned(at) : x.w + op.weight, ld,
           ra.d, ra.ld, nullptr, at.add_a);
    if (!hessian() || !x.trains(op.weight)) return;
    for (int64_t i = 0; i < job.probes; ++i) {
      const T* v = op.transposed ? turned(at, i) : job.v + i * job.v_ld + op.weight;
      G::run(m, ra.cols, out.cols, {out.d, out.ld, 1}, v, ld, ra.d + i * m * ra.ld, ra.ld, nullptr, true);
    }
  }

  // ---- tables of weights
  void embedding(const ProgramOp& op) const {
    const View rout = r.view(op.out);
    x.each_token(op, [&](int64_t row, int64_t token) {
      for (int64_t i = 0; i < job.probes; ++i) {
        const T* v = job.v + i * job.v_ld + op.weight + token * rout.cols;
        T* to = rout.p + (i * count(op.out) + row) * rout.ld;
        M::columns(rout.cols, [&](int64_t j, int64_t n) { M::store(to + j, M::load(v + j, n), n); });
      }
    });
  }
  void embedding_gradient(const ProgramOp& op) const {
    if (!x.trains(op.weight)) return;
    const View rout = r.view(op.out);
    x.each_token(op, [&](int64_t row, int64_t token) {
      for (int64_t i = 0; i < job.probes; ++i) {
        T* to = job.out + i * job.out_ld + op.weight + token * rout.cols;
        const T* d = rout.d + (i * count(op.out) + row) * rout.ld;
        M::columns(rout.cols,
                   [&](int64_t j, int64_t n) { M::store(to + j, L::add(M::load(to + j, n), M::load(d + j, n)), n); });
      }
    });
  }
  void position(const ProgramOp& op) const {
    const View ra = r.view(op.a), rout = r.view(op.out);
    const int64_t height = x.plan.values[op.out].rows;
    each_row(op.out, [&](int64_t i, int64_t row, int64_t rrow) {
      const T* v = job.v + i * job.v_ld + op.weight + row % height * rout.cols;
      M::columns(rout.cols, [&](int64_t j, int64_t n) {
        M::store(rout.p + rrow * rout.ld + j, L::add(M::load(ra.p + rrow * ra.ld + j, n), M::load(v + j, n)), n);
      });
    });
  }
  void position_gradient(const ProgramOp& op) const {
    if (!x.trains(op.weight)) return;
    const View rout = r.view(op.out);
    const int64_t height = x.plan.values[op.out].rows;
    each_row(op.out, [&](int64_t i, int64_t row, int64_t rrow) {
      T* to = job.out + i * job.out_ld + op.weight + row % height * rout.cols;
      M::columns(rout.cols, [&](int64_t j, int64_t n) {
        M::store(to + j, L::add(M::load(to + j, n), M::load(rout.d + rrow * rout.ld + j, n)), n);
      });
    });
  }

  // The rows that were the largest; each probe's copy of which they are serves the way back.
  void max_rows(const ProgramOp& op, const OpPlan& at, const OpPlan& rat) const {
    const View ra = r.view(op.a), rout = r.view(op.out);
    T* const chosen = r.s + rat.turned;
    each_row(op.out, [&](int64_t, int64_t row, int64_t rrow) {
      M::columns(rout.cols, [&](int64_t j, int64_t n) {
        M::store(chosen + rrow * rout.ld + j, M::load(x.s + at.turned + row * rout.ld + j, n), n);
      });
    });
    const F near = L::set(T(0.25));
    r.each_window(op, rat, [&](int64_t to, int64_t from, const int32_t* map) {
      M::columns(rout.cols, [&](int64_t j, int64_t n) {
        F v = L::set(0);
        for (int32_t q = 0; q < op.size; ++q) {
          if (map[q] < 0) continue;
          const F off = L::sub(M::load(chosen + to * rout.ld + j, n), L::set(static_cast<T>(q)));
          v = L::select(L::greater(near, L::mul(off, off)), M::load(ra.p + (from + map[q]) * ra.ld + j, n), v);
        }
        M::store(rout.p + to * rout.ld + j, v, n);
      });
    });
  }

  // ---- operations without parameters that are linear in their operands: the engine's own, on the rows of all probes
  struct One {
    Plan plan;
    const Matrix<L>& r;
    void forward() const { on(plan).forward(); }
    void backward() const { on(plan).backward(); }
    DIF_INLINE Matrix<L> on(const Plan& p) const { return {{{{p, r.w, r.g, r.s, r.batch, r.first, r.samples}}}}; }
  };
  DIF_INLINE One linear_in_values(const ProgramOp& op, int32_t i) const {
    One one{r.plan, r};
    one.plan.ops = &op;
    one.plan.steps = r.plan.steps + i;
    one.plan.op_count = 1;
    one.plan.cleared = 0;
    return one;
  }

  // ---- losses
  // R{d} = H_loss R{prediction}, row by row; for cross-entropy, with p = softmax,
  //   H u = p (u - p.u), u counted from that of the right class, so that no 1 - p is rounded.
  void loss_hessian() const {
    const int32_t value = x.plan.loss.prediction;
    const View p = x.view(value), rp = r.view(value);
    const int64_t height = x.plan.values[value].rows;
    const T n_samples = static_cast<T>(x.batch.count), factor = static_cast<T>(x.plan.loss.factor);
    if (x.plan.loss.kind != loss_cross_entropy) {
      const bool binary = x.plan.loss.kind == loss_binary;
      const F k = L::set((binary ? T(1) : T(2)) * factor / n_samples);
      const T* importance = x.plan.loss.importance >= 0 ? x.w + x.plan.loss.importance : nullptr;
      each_row(value, [&](int64_t, int64_t row, int64_t rrow) {
        M::columns(p.cols, [&](int64_t j, int64_t n) {
          F u = M::load(rp.p + rrow * rp.ld + j, n);
          if (binary) {
            const F z = M::load(p.p + row * p.ld + j, n);
            u = L::mul(u, L::mul(sigmoid<L>(z), sigmoid<L>(L::negate(z))));
          }
          if (importance) u = L::mul(u, M::load(importance + row % height * p.cols + j, n));
          M::store(rp.d + rrow * rp.ld + j, L::mul(k, u), n);
        });
      });
      return;
    }
    const T slope = factor / n_samples;
    each_row(value, [&](int64_t, int64_t row, int64_t rrow) {
      const int32_t y = x.batch.classes[x.sample(row / height) * x.batch.class_size + row % height];
      const T *d = x.s + x.plan.loss_grad + row * State::loss_ld(x.plan), *u = rp.p + rrow * rp.ld;
      T* to = rp.d + rrow * rp.ld;
      if (y < 0) {
        M::columns(p.cols, [&](int64_t j, int64_t n) { M::store(to + j, L::set(0), n); });
        return;
      }
      const F from = L::set(u[y]);
      F sum = L::set(0);
      M::columns(p.cols, [&](int64_t j, int64_t n) {
        sum = L::fma(M::load(d + j, n), L::sub(M::load(u + j, n), from), sum);  // d is zero beyond the row
      });
      const T mean = L::total(sum) / slope;
      M::columns(p.cols, [&](int64_t j, int64_t n) {
        const F centered = L::sub(L::sub(M::load(u + j, n), from), L::set(mean));
        M::store(to + j, L::mul(M::load(d + j, n), centered), n);
      });
      to[y] = (d[y] + slope) * -mean;
    });
  }
  // job.weights (probes, samples) <- g . v of each sample
  void directional() const {
    const int32_t value = x.plan.loss.prediction;
    const View p = x.view(value), rp = r.view(value);
    const int64_t height = x.plan.values[value].rows;
    const T n_samples = static_cast<T>(x.batch.count);
    for (int64_t i = 0; i < job.probes * job.samples; ++i) job.weights[i] = 0;
    each_row(value, [&](int64_t i, int64_t row, int64_t rrow) {
      const T* d = x.s + x.plan.loss_grad + row * State::loss_ld(x.plan);
      F sum = L::set(0);
      M::columns(p.cols, [&](int64_t j, int64_t n) {
        sum = L::fma(M::load(d + j, n), M::load(rp.p + rrow * rp.ld + j, n), sum);
      });
      T& weight = job.weights[i * job.samples + row / height];
      weight = weight + L::total(sum) * n_samples;
    });
  }
  // R{d} <- weight d
  void weigh(int32_t value) const {
    const View p = x.view(value), rp = r.view(value);
    const int64_t height = x.plan.values[value].rows;
    each_row(value, [&](int64_t i, int64_t row, int64_t rrow) {
      const F k = L::set(job.weights[i * job.samples + row / height]);
      M::columns(p.cols, [&](int64_t j, int64_t n) {
        M::store(rp.d + rrow * rp.ld + j, L::mul(k, M::load(p.d + row * p.ld + j, n)), n);
      });
    });
  }

  // ---- the walk
  void forward() const {
    for (int32_t i = 0; i < x.plan.op_count; ++i) {
      const ProgramOp& op = x.plan.ops[i];
      const OpPlan &at = x.plan.steps[i], &rat = r.plan.steps[i];
      if (x.plan.places[op.out].grad < 0) continue;
      switch (op.kind) {
        case op_linear:
          linear(op, at, rat);
          break;
        case op_activation:
          r.scale(copying(op));
          activate(op, at, rat);
          break;
        case op_embedding:
          embedding(op);
          break;
        case op_position:
          position(op);
          break;
        case op_layer_norm:
          this->template norm<true>(op, at, rat);
          break;
        case op_rms_norm:
          this->template norm<false>(op, at, rat);
          break;
        case op_attention:
          this->attention(op, at, rat);
          break;
        case op_max_rows:
          max_rows(op, at, rat);
          break;
        default:  // linear in its operands: its own tangent
          linear_in_values(op, i).forward();
          break;
      }
    }
  }
  static DIF_INLINE ProgramOp copying(ProgramOp op) {
    op.kind = op_scale;
    op.factor = 1.0;
    return op;
  }
  void gradient(const ProgramOp& op, const OpPlan& at, const OpPlan& rat) const {
    if (op.kind == op_linear) linear_gradient(op);
    if (op.kind == op_embedding) embedding_gradient(op);
    if (op.kind == op_position) position_gradient(op);
    if (op.kind == op_layer_norm || op.kind == op_rms_norm) this->norm_gradient(op, at, rat);
  }
  void backward() const {
    for (int64_t i = 0; i < r.plan.cleared; i += 16) L::store(r.s + i, L::set(0));
    for (int32_t i = x.plan.op_count - 1; i >= 0; --i) {
      const ProgramOp& op = x.plan.ops[i];
      const OpPlan &at = x.plan.steps[i], &rat = r.plan.steps[i];
      if (x.plan.places[op.out].grad < 0) continue;
      if (op.kind == op_linear || op.kind == op_activation) activate_back(op, at, rat);
      gradient(op, at, rat);
      switch (op.kind) {
        case op_linear:
          linear_back(op, at);
          break;
        case op_activation:
        case op_position:
          r.pass_back(r.view(op.out), r.view(op.a), r.rows(op.out), T(1), at.add_a);
          break;
        case op_embedding:
          break;
        case op_layer_norm:
          this->template norm_back<true>(op, at, rat);
          break;
        case op_rms_norm:
          this->template norm_back<false>(op, at, rat);
          break;
        case op_attention:
          this->attention_back(op, at, rat);
          break;
        default:
          linear_in_values(op, i).backward();
          break;
      }
    }
  }

  static void run(const SecondJob<T>& job) {
    const Matrix<L> x{{{{*job.plan, job.w, job.out, job.state, *job.batch, job.first, job.samples}}}};
    const Matrix<L> r{{{{*job.tangent, job.w, job.out, job.scratch, *job.batch, 0, job.probes * job.samples}}}};
    const Second pass{{{{job, x, r}}}};
    pass.forward();
    if (job.product != product_fisher) {
      pass.loss_hessian();
      pass.backward();
      return;
    }
    pass.directional();
    for (int32_t i = job.plan->op_count - 1; i >= 0; --i) {
      const ProgramOp& op = job.plan->ops[i];
      if (job.plan->places[op.out].grad < 0) continue;
      pass.weigh(op.out);
      pass.gradient(op, job.plan->steps[i], job.tangent->steps[i]);
    }
  }
};

}  // namespace dif
