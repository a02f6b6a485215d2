// Layer norm and RMS norm under the R-operator (engine_second.hpp).
#pragma once
#include "cpu/engine_second_attention.hpp"

namespace dif {

template <class L>
struct SecondNorm : SecondAttention<L> {
  using Base = SecondAttention<L>;
  using Base::each_row;
  using Base::hessian;
  using Base::job;
  using Base::r;
  using Base::x;
  using typename Base::F;
  using typename Base::M;
  using typename Base::T;
  using typename Base::View;

  // h = (a - mean) scale: with u = R{a} - mean R{a} and k = mean(h u),
  //   R{h} = scale (u - h k),  R{scale} / scale = -scale k;  the RMS norm has no means. (mean R{a}, k) of each row are
  //   kept for the way back.
  template <bool centered>
  void norm(const ProgramOp& op, const OpPlan& at, const OpPlan& rat) const {
    const View a = x.view(op.a), ra = r.view(op.a), rout = r.view(op.out);
    const T inverse = T(1) / static_cast<T>(a.cols);
    each_row(op.out, [&](int64_t i, int64_t row, int64_t rrow) {
      const T *p = a.p + row * a.ld, *rp = ra.p + rrow * ra.ld, *v = job.v + i * job.v_ld;
      const F mean = L::set(x.s[at.extra + 2 * row]), scale = L::set(x.s[at.extra + 2 * row + 1]);
      F sum = L::set(0), sum_h = L::set(0), sum_hu = L::set(0);
      M::columns(a.cols, [&](int64_t j, int64_t n) {
        const auto live = L::first(static_cast<int>(n));
        const F h = L::select(live, L::mul(L::sub(M::load(p + j, n), mean), scale), L::set(0)), u = M::load(rp + j, n);
        sum = L::add(sum, u);
        sum_h = L::add(sum_h, h);
        sum_hu = L::fma(h, u, sum_hu);
      });
      const T shift = centered ? L::total(sum) * inverse : T(0);
      const T k = (L::total(sum_hu) - shift * L::total(sum_h)) * inverse;
      r.s[rat.extra + 2 * rrow] = shift;
      r.s[rat.extra + 2 * rrow + 1] = k;
      M::columns(a.cols, [&](int64_t j, int64_t n) {
        const F h = L::mul(L::sub(M::load(p + j, n), mean), scale);
        F y = normalized(h, M::load(rp + j, n), scale, shift, k);
        if (op.weight >= 0) {
          y = L::mul(y, M::load(x.w + op.weight + j, n));
          y = L::fma(h, M::load(v + op.weight + j, n), y);
        }
        if (op.bias >= 0) y = L::add(y, M::load(v + op.bias + j, n));
        M::store(rout.p + rrow * rout.ld + j, y, n);
      });
    });
  }
  static DIF_INLINE F normalized(F h, F ra, F scale, T shift, T k) {  // R{h}
    return L::mul(scale, L::fma(L::negate(h), L::set(k), L::sub(ra, L::set(shift))));
  }
  void norm_gradient(const ProgramOp& op, const OpPlan& at, const OpPlan& rat) const {
    const View a = x.view(op.a), out = x.view(op.out), ra = r.view(op.a), rout = r.view(op.out);
    const bool train_w = x.trains(op.weight), train_b = x.trains(op.bias);
    if (!train_w && !train_b) return;
    each_row(op.out, [&](int64_t i, int64_t row, int64_t rrow) {
      const F mean = L::set(x.s[at.extra + 2 * row]), scale = L::set(x.s[at.extra + 2 * row + 1]);
      const T shift = r.s[rat.extra + 2 * rrow], k = r.s[rat.extra + 2 * rrow + 1];
      T* to = job.out + i * job.out_ld;
      M::columns(a.cols, [&](int64_t j, int64_t n) {
        const F rd = M::load(rout.d + rrow * rout.ld + j, n);
        if (train_w) {
          const F h = L::mul(L::sub(M::load(a.p + row * a.ld + j, n), mean), scale);
          F sum = L::fma(rd, h, M::load(to + op.weight + j, n));
          if (hessian()) {
            const F rh = normalized(h, M::load(ra.p + rrow * ra.ld + j, n), scale, shift, k);
            sum = L::fma(M::load(out.d + row * out.ld + j, n), rh, sum);
          }
          M::store(to + op.weight + j, sum, n);
        }
        if (train_b) M::store(to + op.bias + j, L::add(rd, M::load(to + op.bias + j, n)), n);
      });
    });
  }
  // With q = W d: da = scale (q - mean q - h mean(q h)), and
  //   R{da} = R{scale} / scale da + scale (R{q} - mean R{q} - R{h} mean(q h) - h mean(R{q} h + q R{h})).
  template <bool centered>
  void norm_back(const ProgramOp& op, const OpPlan& at, const OpPlan& rat) const {
    const View a = x.view(op.a), out = x.view(op.out), ra = r.view(op.a), rout = r.view(op.out);
    if (!ra.d) return;
    const T inverse = T(1) / static_cast<T>(a.cols);
    each_row(op.out, [&](int64_t i, int64_t row, int64_t rrow) {
      const T *p = a.p + row * a.ld, *d = out.d + row * out.ld, *rp = ra.p + rrow * ra.ld,
              *rd = rout.d + rrow * rout.ld, *v = job.v + i * job.v_ld;
      const F mean = L::set(x.s[at.extra + 2 * row]), scale = L::set(x.s[at.extra + 2 * row + 1]);
      const T shift = r.s[rat.extra + 2 * rrow], k = r.s[rat.extra + 2 * rrow + 1];
      // fn(column, columns left, h, R{h}, q, R{q}); beyond the row, all are zero
      const auto each = [&](auto fn) {
        M::columns(a.cols, [&](int64_t j, int64_t n) {
          const auto live = L::first(static_cast<int>(n));
          const F zero = L::set(0);
          const F h = L::select(live, L::mul(L::sub(M::load(p + j, n), mean), scale), zero);
          const F weight = op.weight >= 0 ? M::load(x.w + op.weight + j, n) : L::set(1);
          F q = zero, rq = L::mul(M::load(rd + j, n), weight), rh = zero;
          if (hessian()) {
            const F delta = M::load(d + j, n);
            q = L::mul(delta, weight);
            if (op.weight >= 0) rq = L::fma(delta, M::load(v + op.weight + j, n), rq);
            rh = L::select(live, normalized(h, M::load(rp + j, n), scale, shift, k), zero);
          }
          fn(j, n, h, rh, q, rq);
        });
      };
      F sum_q = L::set(0), sum_qh = L::set(0), sum_rq = L::set(0), sum_rqh = L::set(0);
      each([&](int64_t, int64_t, F h, F rh, F q, F rq) {
        sum_q = L::add(sum_q, q);
        sum_qh = L::fma(q, h, sum_qh);
        sum_rq = L::add(sum_rq, rq);
        sum_rqh = L::fma(q, rh, L::fma(rq, h, sum_rqh));
      });
      const F mean_q = L::set(centered ? L::total(sum_q) * inverse : T(0)),
              mean_qh = L::set(L::total(sum_qh) * inverse),
              mean_rq = L::set(centered ? L::total(sum_rq) * inverse : T(0)),
              mean_rqh = L::set(L::total(sum_rqh) * inverse), growth = L::mul(L::negate(scale), L::set(k));
      T* to = ra.d + rrow * ra.ld;
      each([&](int64_t j, int64_t n, F h, F rh, F q, F rq) {
        F back = L::sub(L::sub(rq, mean_rq), L::mul(h, mean_rqh));
        if (hessian()) {
          back = L::sub(back, L::mul(rh, mean_qh));
          back = L::fma(growth, L::sub(L::sub(q, mean_q), L::mul(h, mean_qh)), back);
        }
        M::store(to + j, M::joined(L::mul(scale, back), to + j, n, at.add_a), n);
      });
    });
  }
};

}  // namespace dif
