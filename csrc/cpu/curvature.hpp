// Products with the Hessian, the generalized Gauss-Newton matrix and the empirical Fisher matrix of a Program's mean
// loss, for a stack of checkpoints.
#pragma once
#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "cpu/aligned.hpp"
#include "cpu/engine.hpp"
#include "cpu/engine_second_isa.hpp"

namespace dif {

// False if the Program has an operation or a loss without an R-pass.
bool has_second(const CompiledProgram&);

// The states of all blocks of samples at K checkpoints are made once, and kept as far as `cache` bytes reach; beyond,
// a block's state is made again for each product. Blocks and segments of blocks are functions of the Program and the
// number of samples; a product adds up over a segment's blocks and then over segments, in order: its bits depend
// neither on threads nor on which checkpoints or probes come together nor on the cache.
template <class T>
class Curvature {
 public:
  // w (K, total) dense; index (count): the samples, copied. The Program and the data must outlive this.
  Curvature(const CompiledProgram&, const Data<T>&, const int32_t* index, int64_t count, const T* w,
            int64_t checkpoints, int64_t cache, int threads);
  ~Curvature();

  const std::vector<double>& losses() const { return losses_; }  // (K, count)
  const T* gradient() const { return gradient_.get(); }          // (K, total), of the mean loss
  int64_t cached() const { return cached_; }                     // states kept, of checkpoints() x blocks
  int64_t states() const { return checkpoints_ * blocks_; }

  // v, out (K, probes, dim) dense, not overlapping: out = A v for each row. One call at a time; others wait.
  void product(Product, const T* v, int64_t probes, T* out, int threads);
  // out (K, n, n): G G^T / n, G = the gradients of the n samples; its nonzero eigenvalues are those of G^T G / n.
  void gram(T* out, int threads);

 private:
  struct Group;
  // What a thread works with; kept from one product to the next, since new memory is slow.
  struct Scratch {
    Aligned<T> tangents, work, weights, again, g;
    std::vector<double> losses;
    explicit Scratch(const Curvature&);
  };
  int64_t segment_begin(int64_t segment) const { return blocks_ * segment / segments_; }
  void make_state(int64_t checkpoint, int64_t block, T* g, T* s, double* losses) const;
  void make_states(int threads);
  void group(Product, const T* v, int64_t v_ld, const Group&, T* out, int threads);
  T* state_at(int64_t checkpoint, int64_t block, Scratch&);
  template <class Fn>
  void each_state(int64_t checkpoint, Fn fn);
  T* buffer(int which, int64_t count);  // at least `count` numbers, whatever they were
  std::unique_ptr<Scratch> borrow();
  void give_back(std::unique_ptr<Scratch>);

  Batch<T> batch_;
  std::vector<int32_t> index_;
  int64_t checkpoints_;
  LaidOut state_, tangent_;
  int64_t blocks_, segments_, cached_, turned_;
  Aligned<T> w_, turned_w_, gradient_, cache_;
  std::vector<double> losses_;
  std::mutex product_mutex_, idle_mutex_;
  std::unique_ptr<Aligned<T>> buffers_[3];
  int64_t sizes_[3] = {};
  std::vector<std::unique_ptr<Scratch>> idle_;
};

extern template class Curvature<float>;
extern template class Curvature<double>;

}  // namespace dif
