// Passes over a Program whose layers are too narrow to fill registers along a row: a register holds one
// number of sixteen samples, or of sixteen chains.
//
//   samples in the lanes  one chain, its weights broadcast; for batches of its own
//   chains in the lanes   sixteen chains, their weights in registers, inputs broadcast; for batches that
//   chains share
//
// A value is (cols, columns, 16): `columns` registers side by side, of samples by sixteens or of samples one
// by one. Weight gradients add up in one register each; with samples in the lanes they are summed over the
// lanes at the end of the batch. All products are one tile kernel with different operands.
#pragma once
#include "cpu/engine_pass.hpp"
#include "cpu/engine_tiles.hpp"

namespace dif {

template <class L, bool chains>
struct Small : Tiles<L, chains> {
  using Base = Tiles<L, chains>;
  using M = MatrixPass<L>;
  using Base::at;
  using Base::backward_weights;
  using Base::batch;
  using Base::columns;
  using Base::first;
  using Base::forward_weights;
  using Base::g;
  using Base::lanes;
  using Base::per;
  using Base::plan;
  using Base::rows;
  using Base::s;
  using Base::samples;
  using Base::stride;
  using Base::sums;
  using Base::tile;
  using Base::trains;
  using Base::view;
  using Base::w;
  using Base::weight;
  using typename Base::F;
  using typename Base::T;
  using typename Base::View;

  // ---- activation functions. relu joins the products and the loss; the others take a walk of their own. The
  // slope of an operation's relu joins its gradient where that is written last.
  template <int k>
  struct Kind {
    static constexpr int value = k;
  };
  template <class Fn>
  static DIF_INLINE void for_relu(int kind, Fn fn) {
    if (kind == act_relu) {
      fn(Kind<act_relu>{});
    } else {
      fn(Kind<act_none>{});
    }
  }
  template <class Fn>
  static DIF_INLINE void for_activation(int kind, Fn fn) {
    switch (kind) {
      case act_relu:
        fn(Kind<act_relu>{});
        break;
      case act_tanh:
        fn(Kind<act_tanh>{});
        break;
      case act_sigmoid:
        fn(Kind<act_sigmoid>{});
        break;
      case act_gelu:
        fn(Kind<act_gelu>{});
        break;
      case act_gelu_tanh:
        fn(Kind<act_gelu_tanh>{});
        break;
      case act_silu:
        fn(Kind<act_silu>{});
        break;
      default:
        break;
    }
  }
  // d act'(x), from the output y or from the slope kept at the same place.
  template <int kind>
  static DIF_INLINE F sloped(F d, const T* y, const T* slope) {
    if constexpr (kind == act_none) return d;
    if constexpr (kind > act_sigmoid) return L::mul(d, L::load(slope));
    const F o = L::load(y), one = L::set(1);
    if constexpr (kind == act_relu) return L::select(L::greater(o, L::set(0)), d, L::set(0));
    if constexpr (kind == act_tanh) return L::mul(d, L::fma(L::negate(o), o, one));
    return L::mul(d, L::mul(o, L::sub(one, o)));
  }
  DIF_INLINE int activation_of(int32_t producer) const {
    return producer < 0 ? act_none : plan.ops[producer].activation;
  }
  // d where y > 0 if the kind is relu
  template <int kind>
  static DIF_INLINE F masked(F d, F y) {
    if constexpr (kind == act_relu) return L::select(L::greater(y, L::set(0)), d, L::set(0));
    return d;
  }

  // ---- operations
  template <class X>
  DIF_INLINE void linear_from(const ProgramOp& op, const OpPlan& place, X x) const {
    const View a = view(op.a), out = view(op.out);
    for_relu(op.activation, [&](auto kind) {
      this->template product_rows<tile>(
          forward_weights(op, a.cols, out.cols), out.cols, a.cols, 0, x,
          [&](int64_t r) { return op.bias >= 0 ? weight(op.bias + r) : L::set(0); },
          [&](int64_t r, int64_t c, F v) {
            L::store(out.p + at(r, c), decltype(kind)::value == act_relu ? L::max(L::set(0), v) : v);
          });
    });
    if (op.activation > act_relu) activate(op, place, out.p);
  }
  // out = act(x), register by register; x may be out.
  void activate(const ProgramOp& op, const OpPlan& place, const T* x) const {
    const View out = view(op.out);
    T* slope = s + place.extra;
    for_activation(op.activation, [&](auto kind) {
      each(out.cols, [&](int64_t i) {
        F d = L::set(0);
        L::store(out.p + i, M::template act<decltype(kind)::value>(L::load(x + i), d));
        if constexpr (decltype(kind)::value > act_sigmoid) L::store(slope + i, d);
      });
    });
  }
  template <class X>
  DIF_INLINE void linear_gradient(const ProgramOp& op, X x) const {
    const View a = view(op.a), out = view(op.out);
    if (trains(op.weight))
      this->template outer_rows<tile>(forward_weights(op, a.cols, out.cols), out.cols, a.cols, 0, out.d, x);
    if (trains(op.bias)) row_sums(out.d, out.cols, op.bias);
  }
  void row_sums(const T* d, int64_t height, int64_t offset) const {
    for (int64_t r = 0; r < height; ++r) {
      F even = L::load(g + lanes * (offset + r)), odd = L::set(0);
      int64_t c = 0;
      for (; c + 2 <= columns; c += 2) {
        even = L::add(even, L::load(d + at(r, c)));
        odd = L::add(odd, L::load(d + at(r, c + 1)));
      }
      if (c < columns) even = L::add(even, L::load(d + at(r, c)));
      L::store(g + lanes * (offset + r), L::add(even, odd));
    }
  }
  DIF_INLINE bool reads_input(const ProgramOp& op) const { return chains && plan.places[op.a].ld == 0; }
  void linear(const ProgramOp& op, const OpPlan& place) const {
    const T* p = view(op.a).p;
    if (reads_input(op)) {
      const int64_t from = plan.places[op.a].at;
      linear_from(op, place, [&](int64_t k, int64_t c) { return L::set(rows[c][from + k]); });
    } else {
      linear_from(op, place, [&](int64_t k, int64_t c) { return L::load(p + at(k, c)); });
    }
  }
  void linear_back(const ProgramOp& op, const OpPlan& place) const {
    const View a = view(op.a), out = view(op.out);
    if (!place.sloped) apply_slope(op, place);
    if (reads_input(op)) {
      const int64_t from = plan.places[op.a].at;
      linear_gradient(op, [&](int64_t k, int64_t c) { return L::set(rows[c][from + k]); });
    } else {
      linear_gradient(op, [&](int64_t k, int64_t c) { return L::load(a.p + at(k, c)); });
    }
    if (!a.d) return;
    for_relu(activation_of(place.slope_a), [&](auto kind) {
      this->template product_rows<tile>(
          backward_weights(op, a.cols, out.cols), a.cols, out.cols, 0,
          [&](int64_t k, int64_t c) { return L::load(out.d + at(k, c)); }, [](int64_t) { return L::set(0); },
          [&](int64_t r, int64_t c, F v) {
            T* d = a.d + at(r, c);
            if (place.add_a) v = L::add(v, L::load(d));
            L::store(d, masked<decltype(kind)::value>(v, L::load(a.p + at(r, c))));
          });
    });
  }
  void apply_slope(const ProgramOp& op, const OpPlan& place) const {
    const View out = view(op.out);
    const T* slope = s + place.extra;
    for_activation(op.activation, [&](auto kind) {
      each(out.cols, [&](int64_t i) {
        L::store(out.d + i, sloped<decltype(kind)::value>(L::load(out.d + i), out.p + i, slope + i));
      });
    });
  }
  // fn(offset) for every register of a value
  template <class Fn>
  DIF_INLINE void each(int64_t height, Fn fn) const {
    for (int64_t r = 0; r < height; ++r) {
      for (int64_t c = 0; c < columns; ++c) fn(at(r, c));
    }
  }
  void activation(const ProgramOp& op, const OpPlan& place) const { activate(op, place, view(op.a).p); }
  void pass_back(const View& out, const View& a, T factor, bool join) const {
    if (!a.d) return;
    const F k = L::set(factor);
    each(out.cols, [&](int64_t i) {
      const F v = L::mul(k, L::load(out.d + i));
      L::store(a.d + i, join ? L::add(v, L::load(a.d + i)) : v);
    });
  }
  void add(const ProgramOp& op) const {
    const View a = view(op.a), b = view(op.b), out = view(op.out);
    each(out.cols, [&](int64_t i) { L::store(out.p + i, L::add(L::load(a.p + i), L::load(b.p + i))); });
  }
  void scale(const ProgramOp& op) const {
    const View a = view(op.a), out = view(op.out);
    const F k = L::set(static_cast<T>(op.factor));
    each(out.cols, [&](int64_t i) { L::store(out.p + i, L::mul(k, L::load(a.p + i))); });
  }
  void position(const ProgramOp& op) const {
    const View a = view(op.a), out = view(op.out);
    for (int64_t r = 0; r < out.cols; ++r) {
      const F b = weight(op.weight + r);
      for (int64_t c = 0; c < columns; ++c) L::store(out.p + at(r, c), L::add(L::load(a.p + at(r, c)), b));
    }
  }

  // ---- data
  // Element i of the chosen rows, for the sixteen samples of register c; past the last sample, that sample
  // again.
  template <class Row>
  DIF_INLINE void columns_of(int64_t c, int64_t count, Row row_at, T* to) const {
    const T* row[16];
    for (int i = 0; i < 16; ++i) row[i] = row_at(i);
    for (int64_t f = 0; f < count; f += 4) {
      F four[4];
      L::columns4([&](int i) { return row[i] + f; }, four);
      for (int64_t k = 0; k < 4 && f + k < count; ++k) L::store(to + at(f + k, c), four[k]);
    }
  }
  DIF_INLINE const T* row_of(const T* data, int64_t size, int64_t i) const {
    const int64_t last = samples - 1;
    return data + static_cast<int64_t>(batch.index[first + (i < last ? i : last)]) * size;
  }
  void input(const ProgramOp& op) const {
    if constexpr (!chains) {
      const View out = view(op.out);
      for (int64_t c = 0; c < columns; ++c) {
        if (batch.x_turned) {
          const T* from = batch.x_turned + ((first / per + c) * batch.x_size + op.first) * lanes;
          for (int64_t f = 0; f < out.cols; ++f) L::store(out.p + at(f, c), L::load(from + f * lanes));
        } else {
          columns_of(c, out.cols, [&](int i) { return row_of(batch.x, batch.x_size, c * 16 + i) + op.first; }, out.p);
        }
      }
    }
  }
  DIF_INLINE int live(int64_t c) const {  // samples in register c
    const int64_t n = samples - c * 16;
    return n < 16 ? static_cast<int>(n) : 16;
  }

  // ---- losses; adds to `sums`, and writes per-sample ones with samples in the lanes if asked
  DIF_INLINE void record(F loss, int64_t c, double* losses) const {
    L::accumulate(sums, loss);
    if (losses && !chains) {
      T v[lanes];
      L::store(v, loss);
      for (int i = 0; i < live(c); ++i) losses[first + c * 16 + i] = static_cast<double>(v[i]) * plan.loss.factor;
    }
  }
  template <int loss>
  void elementwise(double* losses) const {
    const View p = view(plan.loss.prediction);
    const T* targets = s + plan.targets;
    const bool own = plan.loss_input >= 0 && batch.y == batch.x;  // the target is the input
    if constexpr (!chains) {
      if (own) {
        targets = view(plan.loss_input).p;
      } else {
        for (int64_t c = 0; c < columns; ++c) {
          columns_of(c, p.cols, [&](int i) { return row_of(batch.y, batch.y_size, c * 16 + i); }, s + plan.targets);
        }
      }
    }
    for_relu(activation_of(plan.loss_slope), [&](auto kind) {
      if (plan.loss.importance >= 0) {
        elementwise_columns<loss, decltype(kind)::value, true>(p, targets, losses);
      } else {
        elementwise_columns<loss, decltype(kind)::value, false>(p, targets, losses);
      }
    });
  }
  template <int loss, int kind, bool weighted>
  DIF_INLINE void elementwise_columns(const View& p, const T* targets, double* losses) const {
    const F slope = L::set(static_cast<T>((loss == loss_squared ? 2 : 1) * plan.loss.factor / batch.samples()));
    const int64_t step = stride * lanes;  // from row to row
    T* const gradient = p.d ? p.d : s + plan.targets;
    for (int64_t c = 0; c < columns; ++c) {
      const auto alive = L::first(chains ? 16 : live(c));
      const T* y = chains ? row_of(batch.y, batch.y_size, c) : targets + at(0, c);
      const T* v_at = p.p + at(0, c);
      T* d_at = gradient + at(0, c);
      F sum = L::set(0);
      for (int64_t r = 0; r < p.cols; ++r) {
        const F v = L::load(v_at);
        const F size = weighted ? weight(plan.loss.importance + r) : L::set(1);
        const F u = M::template element<loss>(v, chains ? L::set(*y) : L::load(y), alive, size, sum);
        L::store(d_at, masked<kind>(L::mul(slope, u), v));
        v_at += step;
        d_at += step;
        y += chains ? 1 : step;
      }
      record(sum, c, losses);
    }
  }
  void cross_entropy(double* losses) const {
    const View p = view(plan.loss.prediction);
    const F zero = L::set(0), one = L::set(1);
    const F slope = L::set(static_cast<T>(plan.loss.factor / batch.samples()));
    for_relu(activation_of(plan.loss_slope), [&](auto kind) {
      for (int64_t c = 0; c < columns; ++c) {
        T classes[lanes];
        const int64_t last = samples - 1;
        for (int64_t i = 0; i < lanes; ++i) {
          const int64_t k = chains ? c : c * 16 + i;
          classes[i] =
              k <= last ? static_cast<T>(batch.classes[static_cast<int64_t>(batch.index[first + k]) * batch.class_size])
                        : T(-1);
        }
        const F y = L::load(classes);
        F peak = L::load(p.p + at(0, c)), chosen = zero, total = zero;
        for (int64_t r = 1; r < p.cols; ++r) peak = L::max(L::load(p.p + at(r, c)), peak);
        for (int64_t r = 0; r < p.cols; ++r) {
          const F x = L::load(p.p + at(r, c));
          total = L::add(total, exp<L>(L::sub(x, peak)));
          chosen = L::select(is(y, r), x, chosen);
        }
        const auto counted = L::greater(y, L::set(T(-0.5)));
        record(L::select(counted, L::add(log<L>(total), L::sub(peak, chosen)), zero), c, losses);
        if (!p.d) continue;
        const F scaled = L::select(counted, L::div(slope, total), zero), unit = L::select(counted, slope, zero);
        for (int64_t r = 0; r < p.cols; ++r) {
          const F e = L::mul(exp<L>(L::sub(L::load(p.p + at(r, c)), peak)), scaled);
          const F d = L::sub(e, L::select(is(y, r), unit, zero));
          L::store(p.d + at(r, c), masked<decltype(kind)::value>(d, L::load(p.p + at(r, c))));
        }
      }
    });
    static_cast<void>(one);
  }
  static DIF_INLINE typename L::M is(F y, int64_t r) {  // |y - r| < 1 / 2
    const F d = L::sub(y, L::set(static_cast<T>(r)));
    return L::greater(L::set(T(0.25)), L::mul(d, d));
  }

  // ---- the walk
  void forward() const {
    for (int32_t i = 0; i < plan.op_count; ++i) {
      const ProgramOp& op = plan.ops[i];
      switch (op.kind) {
        case op_input:
          input(op);
          break;
        case op_linear:
          linear(op, plan.steps[i]);
          break;
        case op_activation:
          activation(op, plan.steps[i]);
          break;
        case op_add:
          add(op);
          break;
        case op_scale:
          scale(op);
          break;
        case op_position:
          position(op);
          break;
        default:
          break;
      }
    }
  }
  void backward() const {
    for (int32_t i = plan.op_count - 1; i >= 0; --i) {
      const ProgramOp& op = plan.ops[i];
      const OpPlan& place = plan.steps[i];
      if (plan.places[op.out].grad < 0) continue;
      const View out = view(op.out);
      switch (op.kind) {
        case op_linear:
          linear_back(op, place);
          break;
        case op_activation:
          apply_slope(op, place);
          pass_back(out, view(op.a), T(1), place.add_a);
          break;
        case op_add:
          pass_back(out, view(op.a), T(1), place.add_a);
          pass_back(out, view(op.b), T(1), place.add_b);
          break;
        case op_scale:
          pass_back(out, view(op.a), static_cast<T>(op.factor), place.add_a);
          break;
        case op_position:
          if (trains(op.weight)) row_sums(out.d, out.cols, op.weight);
          pass_back(out, view(op.a), T(1), place.add_a);
          break;
        default:
          break;
      }
    }
  }

  // g: (total) with samples in the lanes, (total, 16) with chains in the lanes. sums (16): losses summed over
  // samples in each lane.
  static void run(const Plan& plan, const T* w, const Batch<T>& batch, T* g, T* s, double* losses, double* sums) {
    T* sum = g && !chains ? s + plan.sums : g;
    if (g) {
      for (int64_t i = 0; i < plan.dim; ++i) L::store(sum + lanes * i, L::set(0));
    }
    const T* rows[block_columns];
    for (int i = 0; i < lanes; ++i) sums[i] = 0.0;
    for (int64_t first = 0; first < batch.count; first += plan.block) {
      const int64_t samples = batch.count - first < plan.block ? batch.count - first : plan.block;
      const int64_t columns = (samples + per - 1) / per;
      if (chains) {
        for (int64_t c = 0; c < columns; ++c)
          rows[c] = batch.x + static_cast<int64_t>(batch.index[first + c]) * batch.x_size;
      }
      const Small pass{{plan, w, sum, s, batch, first, samples, columns, plan.block / per, rows, sums}};
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
    for (int i = 0; i < lanes; ++i) sums[i] *= plan.loss.factor;
    if (g && !chains) {
      int64_t i = 0;
      for (; i + lanes <= plan.dim; i += lanes) L::store(g + i, L::totals(sum + lanes * i));
      if (i < plan.dim) L::store_first(g + i, L::totals(sum + lanes * i), static_cast<int>(plan.dim - i));
    }
  }
  static constexpr int64_t block_columns = 64;  // plan.block / per stays below
};

}  // namespace dif
