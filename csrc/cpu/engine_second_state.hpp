// The state of a block of samples for second derivatives: values and gradients by the engine's own passes, and
// act''(z) dy of activation functions that bend. Kept behind the slopes in OpPlan::extra.
#pragma once
#include "cpu/engine_matrix.hpp"

namespace dif {

// The transposed copies of the weights, as the plan places them behind `kept`.
template <class L>
void turn_weights(const Plan& plan, const typename L::T* w, typename L::T* to) {
  for (int32_t i = 0; i < plan.op_count; ++i) {
    const ProgramOp& op = plan.ops[i];
    const OpPlan& at = plan.steps[i];
    if (op.kind != op_linear || at.turned < 0) continue;
    const int64_t in = plan.values[op.a].cols, out = plan.values[op.out].cols;
    transpose<L>(op.transposed ? in : out, op.transposed ? out : in, w + op.weight, op.transposed ? out : in,
                 to + (at.turned - plan.kept), at.turned_ld);
  }
}

template <class L>
struct SecondState {
  using T = typename L::T;
  using F = typename L::F;
  using M = MatrixPass<L>;

  template <int kind>
  static DIF_INLINE F bend(F z) {
    const F one = L::set(1), two = L::set(2);
    if constexpr (kind == act_tanh) {
      const F t = tanh<L>(z);
      return L::mul(L::mul(L::set(-2), t), L::fma(L::negate(t), t, one));
    }
    if constexpr (kind == act_gelu) {
      F distribution, density;
      normal_distribution<L>(z, distribution, density);
      return L::mul(density, L::fma(L::negate(z), z, two));
    }
    if constexpr (kind == act_gelu_tanh) {  // x h(u(x)), h = (1 + tanh u) / 2, u = c (x + k x^3)
      const F c = L::set(static_cast<T>(0.79788456080286535588)), k = L::set(static_cast<T>(0.044715)),
              half = L::set(T(0.5)), zz = L::mul(z, z);
      const F t = tanh<L>(L::mul(L::mul(c, z), L::fma(k, zz, one)));
      const F u1 = L::mul(c, L::fma(L::mul(L::set(3), k), zz, one)), u2 = L::mul(L::mul(L::set(6), L::mul(c, k)), z);
      const F sech = L::fma(L::negate(t), t, one);  // 1 - t^2
      const F h2 = L::mul(half, L::mul(sech, L::fma(L::mul(L::set(-2), t), L::mul(u1, u1), u2)));
      return L::fma(z, h2, L::mul(sech, u1));
    }
    const F q = sigmoid<L>(z), p = L::sub(one, q), tilt = L::fma(L::set(-2), q, one);
    if constexpr (kind == act_sigmoid) return L::mul(L::mul(q, p), tilt);
    return L::mul(L::mul(q, p), L::fma(z, tilt, two));  // act_silu
  }
  template <int kind>
  static void bend_rows(const T* z, T* to, int64_t rows, int64_t ld, int64_t cols) {
    for (int64_t i = 0; i < rows; ++i) {
      M::columns(cols,
                 [&](int64_t j, int64_t n) { M::store(to + i * ld + j, bend<kind>(M::load(z + i * ld + j, n)), n); });
    }
  }
  static void bends(int kind, const T* z, T* to, int64_t rows, int64_t ld, int64_t cols) {
    switch (kind) {
      case act_tanh:
        return bend_rows<act_tanh>(z, to, rows, ld, cols);
      case act_sigmoid:
        return bend_rows<act_sigmoid>(z, to, rows, ld, cols);
      case act_gelu:
        return bend_rows<act_gelu>(z, to, rows, ld, cols);
      case act_gelu_tanh:
        return bend_rows<act_gelu_tanh>(z, to, rows, ld, cols);
      case act_silu:
        return bend_rows<act_silu>(z, to, rows, ld, cols);
      default:
        return;
    }
  }
  static DIF_INLINE bool smooth(const ProgramOp& op) { return op.activation > act_relu; }
  static DIF_INLINE int64_t behind_slopes(const Plan& plan, const ProgramOp& op) {
    return plan.block * plan.values[op.out].rows * plan.places[op.out].ld;
  }

  static DIF_INLINE int64_t loss_ld(const Plan& plan) {
    return (plan.values[plan.loss.prediction].cols + 15) / 16 * 16;
  }
  // On its way back the gradient of the prediction is multiplied by the slope of its activation function, in place.
  static void keep_loss_gradient(const Plan& plan, T* s, int64_t samples) {
    const int32_t value = plan.loss.prediction;
    const ValuePlan& at = plan.places[value];
    for (int64_t row = 0; row < samples * plan.values[value].rows; ++row) {
      M::columns(plan.values[value].cols, [&](int64_t j, int64_t n) {
        M::store(s + plan.loss_grad + row * loss_ld(plan) + j, M::load(s + at.grad + row * at.ld + j, n), n);
      });
    }
  }

  // The state of samples first ... in s (plan.scratch, weights already turned there), their losses, and their share
  // of the gradient onto g (total).
  static void state(const Plan& plan, const T* w, const Batch<T>& batch, T* g, T* s, int64_t first, int64_t samples,
                    double* losses) {
    // The engine's walk, one operation at a time.
    const auto walk = [&](const ProgramOp& op, int32_t i, auto go) {
      Plan one = plan;
      one.ops = &op;
      one.steps = plan.steps + i;
      one.op_count = 1;
      one.cleared = 0;
      go(Matrix<L>{{{{one, w, g, s, batch, first, samples}}}});
    };
    for (int32_t i = 0; i < plan.op_count; ++i) {
      const ProgramOp& op = plan.ops[i];
      ProgramOp plain = op;
      if (smooth(op)) plain.activation = act_none;
      walk(plain, i, [](const Matrix<L>& pass) { pass.forward(); });
      if (!smooth(op)) continue;
      T *z = s + plan.places[op.out].at, *slopes = s + plan.steps[i].extra;
      const int64_t rows = samples * plan.values[op.out].rows, ld = plan.places[op.out].ld,
                    cols = plan.values[op.out].cols;
      bends(op.activation, z, slopes + behind_slopes(plan, op), rows, ld, cols);
      M::act_forward(op.activation, z, slopes, rows, ld, cols);
    }
    const Matrix<L> whole{{{{plan, w, g, s, batch, first, samples}}}};
    if (plan.loss.kind == loss_squared) {
      whole.template elementwise<loss_squared>(losses);
    } else if (plan.loss.kind == loss_binary) {
      whole.template elementwise<loss_binary>(losses);
    } else {
      whole.cross_entropy(losses);
    }
    keep_loss_gradient(plan, s, samples);
    for (int64_t i = 0; i < plan.cleared; i += 16) L::store(s + i, L::set(0));
    for (int32_t i = plan.op_count - 1; i >= 0; --i) {
      const ProgramOp& op = plan.ops[i];
      const ValuePlan& out = plan.places[op.out];
      if (smooth(op) && out.grad >= 0) {
        T* to = s + plan.steps[i].extra + behind_slopes(plan, op);
        for (int64_t row = 0; row < samples * plan.values[op.out].rows; ++row) {
          M::columns(plan.values[op.out].cols, [&](int64_t j, int64_t n) {
            const int64_t e = row * out.ld + j;
            M::store(to + e, L::mul(M::load(to + e, n), M::load(s + out.grad + e, n)), n);
          });
        }
      }
      walk(op, i, [](const Matrix<L>& pass) { pass.backward(); });
    }
  }
};

}  // namespace dif
