// Attention under the R-operator (engine_second.hpp), head by head.
//
//   S = f q k^T, P = softmax S, o = P v;  dP = do v^T, dS = P (dP - c), c = sum P dP, by rows
//   R{P}  = P (R{S} - sum P R{S}),  R{o} = R{P} v + P R{v}
//   R{dS} = R{P} (dP - c) + P (R{dP} - sum(R{P} (dP - c) + P R{dP}))
// R{P} is kept for the way back. dP and dS are made again there, once for all probes.
#pragma once
#include "cpu/engine_second_pass.hpp"

namespace dif {

template <class L>
struct SecondAttention : SecondPass<L> {
  using Base = SecondPass<L>;
  using Base::hessian;
  using Base::job;
  using Base::r;
  using Base::x;
  using typename Base::F;
  using typename Base::G;
  using typename Base::M;
  using typename Base::T;
  using typename Base::View;
  using A = Attention<L>;

  // One head of one sample: where its rows and columns start.
  struct Place {
    int64_t i, n, row, column;
    const T* p;  // probabilities (t, ld)
  };
  template <class Fn>
  DIF_INLINE void each_head(const ProgramOp& op, const OpPlan& at, Fn fn) const {
    const typename A::Heads h = x.heads(op, at);
    for (int64_t i = 0; i < job.samples; ++i) {
      for (int64_t n = 0; n < op.heads; ++n) {
        fn(h, Place{i, n, i * h.t, n * h.d, x.s + at.extra + (i * op.heads + n) * h.t * h.ld});
      }
    }
  }
  DIF_INLINE T* tangent_p(const ProgramOp& op, const OpPlan& rat, const typename A::Heads& h, const Place& at,
                          int64_t probe) const {
    return r.s + rat.extra + ((probe * job.samples + at.i) * op.heads + at.n) * h.t * h.ld;
  }
  void attention(const ProgramOp& op, const OpPlan& at, const OpPlan& rat) const {
    const View q = x.view(op.a), k = x.view(op.b), v = x.view(op.c);
    const View rq = r.view(op.a), rk = r.view(op.b), rv = r.view(op.c), rout = r.view(op.out);
    const T factor = static_cast<T>(op.factor);
    each_head(op, at, [&](const typename A::Heads& h, const Place& here) {
      T *turned = job.work, *turned_r = turned + h.d * h.ld;
      transpose<L>(h.t, h.d, k.p + here.row * k.ld + here.column, k.ld, turned, h.ld);
      for (int64_t probe = 0; probe < job.probes; ++probe) {
        const int64_t rrow = probe * job.samples * h.t + here.row;
        T* rp = tangent_p(op, rat, h, here, probe);
        transpose<L>(h.t, h.d, rk.p + rrow * rk.ld + here.column, rk.ld, turned_r, h.ld);
        A::row_blocks(h, [&](int64_t e, int64_t count, int64_t wide) {
          T* to = rp + e * h.ld;
          const T* p = here.p + e * h.ld;
          G::run(count, wide, h.d, {rq.p + (rrow + e) * rq.ld + here.column, rq.ld, 1}, turned, h.ld, to, h.ld, nullptr,
                 false);
          G::run(count, wide, h.d, {q.p + (here.row + e) * q.ld + here.column, q.ld, 1}, turned_r, h.ld, to, h.ld,
                 nullptr, true);
          for (int64_t i = 0; i < count; ++i) A::softmax_row_back(p + i * h.ld, to + i * h.ld, wide, factor);
          T* o = rout.p + (rrow + e) * rout.ld + here.column;
          G::run(count, h.d, wide, {to, h.ld, 1}, v.p + here.row * v.ld + here.column, v.ld, o, rout.ld, nullptr,
                 false);
          G::run(count, h.d, wide, {p, h.ld, 1}, rv.p + rrow * rv.ld + here.column, rv.ld, o, rout.ld, nullptr, true);
        });
      }
    });
  }
  // d_p <- d_p - c and d_s <- f p (d_p - c), on a row
  static DIF_INLINE void center_row(const T* p, T* d_p, T* d_s, int64_t wide, T factor) {
    F sum = L::set(0);
    M::columns(wide, [&](int64_t j, int64_t n) { sum = L::fma(M::load(p + j, n), M::load(d_p + j, n), sum); });
    const F mean = L::set(L::total(sum)), k = L::set(factor);
    M::columns(wide, [&](int64_t j, int64_t n) {
      const F d = L::sub(M::load(d_p + j, n), mean);
      M::store(d_p + j, d, n);
      M::store(d_s + j, L::mul(L::mul(M::load(p + j, n), k), d), n);
    });
  }
  // r_d <- f R{dS}, from R{dP} in r_d; d_p centered, or null where its terms are left out
  static DIF_INLINE void tangent_row(const T* p, const T* rp, const T* d_p, T* r_d, int64_t wide, T factor) {
    if (!d_p) return A::softmax_row_back(p, r_d, wide, factor);
    F sum = L::set(0);
    M::columns(wide, [&](int64_t j, int64_t n) {
      sum = L::fma(M::load(p + j, n), M::load(r_d + j, n), sum);
      sum = L::fma(M::load(rp + j, n), M::load(d_p + j, n), sum);
    });
    const F mean = L::set(L::total(sum)), k = L::set(factor);
    M::columns(wide, [&](int64_t j, int64_t n) {
      const F inner = L::mul(M::load(p + j, n), L::sub(M::load(r_d + j, n), mean));
      M::store(r_d + j, L::mul(k, L::fma(M::load(rp + j, n), M::load(d_p + j, n), inner)), n);
    });
  }
  void attention_back(const ProgramOp& op, const OpPlan& at, const OpPlan& rat) const {
    const View q = x.view(op.a), k = x.view(op.b), v = x.view(op.c), out = x.view(op.out);
    const View rq = r.view(op.a), rk = r.view(op.b), rv = r.view(op.c), rout = r.view(op.out);
    const T factor = static_cast<T>(op.factor);
    const bool all = hessian();
    each_head(op, at, [&](const typename A::Heads& h, const Place& here) {
      T *turned = job.work, *turned_r = turned + h.d * h.ld;
      T *d_p = turned_r + h.d * h.ld, *d_s = d_p + h.t * h.ld, *r_d = d_s + h.t * h.ld;
      const T* d_out = out.d + here.row * out.ld + here.column;
      transpose<L>(h.t, h.d, v.p + here.row * v.ld + here.column, v.ld, turned, h.ld);
      if (all) {
        A::row_blocks(h, [&](int64_t e, int64_t count, int64_t wide) {
          G::run(count, wide, h.d, {d_out + e * out.ld, out.ld, 1}, turned, h.ld, d_p + e * h.ld, h.ld, nullptr, false);
          for (int64_t i = e; i < e + count; ++i) {
            center_row(here.p + i * h.ld, d_p + i * h.ld, d_s + i * h.ld, wide, factor);
          }
        });
      }
      for (int64_t probe = 0; probe < job.probes; ++probe) {
        const int64_t rrow = probe * job.samples * h.t + here.row;
        const T* rp = tangent_p(op, rat, h, here, probe);
        const T* rd_out = rout.d + rrow * rout.ld + here.column;
        if (all) transpose<L>(h.t, h.d, rv.p + rrow * rv.ld + here.column, rv.ld, turned_r, h.ld);
        A::row_blocks(h, [&](int64_t e, int64_t count, int64_t wide) {
          T* to = r_d + e * h.ld;
          G::run(count, wide, h.d, {rd_out + e * rout.ld, rout.ld, 1}, turned, h.ld, to, h.ld, nullptr, false);
          if (all) G::run(count, wide, h.d, {d_out + e * out.ld, out.ld, 1}, turned_r, h.ld, to, h.ld, nullptr, true);
          for (int64_t i = e; i < e + count; ++i) {
            tangent_row(here.p + i * h.ld, rp + i * h.ld, all ? d_p + i * h.ld : nullptr, r_d + i * h.ld, wide, factor);
          }
          if (!rq.d) return;
          T* back = rq.d + (rrow + e) * rq.ld + here.column;
          G::run(count, h.d, wide, {to, h.ld, 1}, k.p + here.row * k.ld + here.column, k.ld, back, rq.ld, nullptr,
                 at.add_a);
          if (all) {
            G::run(count, h.d, wide, {d_s + e * h.ld, h.ld, 1}, rk.p + rrow * rk.ld + here.column, rk.ld, back, rq.ld,
                   nullptr, true);
          }
        });
        // Columns c .. c + count of a causal square begin at row c.
        A::row_blocks(h, [&](int64_t c, int64_t count, int64_t) {
          const int64_t from = op.causal ? c : 0, deep = h.t - from, corner = from * h.ld + c;
          if (rk.d) {
            T* back = rk.d + (rrow + c) * rk.ld + here.column;
            G::run(count, h.d, deep, {r_d + corner, 1, h.ld}, q.p + (here.row + from) * q.ld + here.column, q.ld, back,
                   rk.ld, nullptr, at.add_b);
            if (all) {
              G::run(count, h.d, deep, {d_s + corner, 1, h.ld}, rq.p + (rrow + from) * rq.ld + here.column, rq.ld, back,
                     rk.ld, nullptr, true);
            }
          }
          if (rv.d) {
            T* back = rv.d + (rrow + c) * rv.ld + here.column;
            G::run(count, h.d, deep, {here.p + corner, 1, h.ld}, rd_out + from * rout.ld, rout.ld, back, rv.ld, nullptr,
                   at.add_c);
            if (all) {
              G::run(count, h.d, deep, {rp + corner, 1, h.ld}, d_out + from * out.ld, out.ld, back, rv.ld, nullptr,
                     true);
            }
          }
        });
      }
    });
  }
};

}  // namespace dif
