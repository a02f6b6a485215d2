// The Gram matrix of per-sample gradients, parameter by parameter: K = 1/n G G^T, G (n, dim) never formed.
//
// One sample's gradient of a weight W (rows, cols) is a sum of outer products l r^T over its uses and positions.
//   one position a sample   K += sum over pairs of uses (L L'^T) o (R R'^T), L (n, rows), R (n, cols)   [o:
//   elementwise] several positions, tables, norms, biases   a slice of rows of W at a time: S (n, slice) written down,
//   K += S S^T
#include <algorithm>
#include <vector>

#include "cpu/curvature.hpp"
#include "cpu/parallel.hpp"

namespace dif {
namespace {

constexpr int64_t slice_numbers = 1 << 23;  // of S
constexpr int64_t tile = 64;                // rows of K worked on together

// A parameter, or a bias, and the operations that use it.
struct Parameter {
  int64_t offset, rows, cols;
  bool bias;
  std::vector<int32_t> uses;
};

std::vector<Parameter> parameters_of(const Plan& plan) {
  std::vector<Parameter> found;
  const auto note = [&](int64_t offset, int64_t rows, int64_t cols, bool bias, int32_t op) {
    if (offset < 0 || offset >= plan.dim || plan.places[plan.ops[op].out].grad < 0) return;
    for (Parameter& p : found) {
      if (p.offset == offset) return p.uses.push_back(op);
    }
    found.push_back({offset, rows, cols, bias, {op}});
  };
  for (int32_t i = 0; i < plan.op_count; ++i) {
    const ProgramOp& op = plan.ops[i];
    const int64_t in = op.a >= 0 ? plan.values[op.a].cols : 0, out = plan.values[op.out].cols;
    if (op.kind == op_linear) note(op.weight, op.transposed ? in : out, op.transposed ? out : in, false, i);
    if (op.kind == op_embedding) note(op.weight, op.size, out, false, i);
    if (op.kind == op_position) note(op.weight, plan.values[op.out].rows, out, false, i);
    if (op.kind == op_layer_norm || op.kind == op_rms_norm) note(op.weight, 1, out, false, i);
    note(op.bias, 1, out, true, i);
  }
  return found;
}

bool factored(const Plan& plan, const Parameter& p) {
  if (p.bias || p.rows * p.cols <= p.rows + p.cols) return false;
  return std::all_of(p.uses.begin(), p.uses.end(), [&](int32_t i) {
    return plan.ops[i].kind == op_linear && plan.values[plan.ops[i].out].rows == 1;
  });
}

// A parameter's place in one block's state.
template <class T>
struct Block {
  const Plan& plan;
  const Batch<T>& batch;
  const T* s;
  int64_t first, samples;

  const T* values(int32_t v) const { return s + plan.places[v].at; }
  const T* deltas(int32_t v) const { return s + plan.places[v].grad; }

  // S (samples, (high - low) cols), zero before: rows low ... high of each sample's gradient.
  void write(const SecondKernels<T>& kernels, const Parameter& p, int64_t low, int64_t high, T* to, int64_t ld) const {
    for (const int32_t i : p.uses) {
      const ProgramOp& op = plan.ops[i];
      const int64_t height = plan.values[op.out].rows, d_ld = plan.places[op.out].ld;
      for (int64_t n = 0; n < samples; ++n) {
        const T* d = deltas(op.out) + n * height * d_ld;
        T* row = to + n * ld;
        if (op.kind == op_linear && !p.bias) {
          const int64_t a_ld = plan.places[op.a].ld;
          const T* a = values(op.a) + n * height * a_ld;
          if (op.transposed) {
            kernels.multiply(high - low, p.cols, height, a + low, 1, a_ld, d, d_ld, row, p.cols, true);
          } else {
            kernels.multiply(high - low, p.cols, height, d + low, 1, d_ld, a, a_ld, row, p.cols, true);
          }
          continue;
        }
        for (int64_t r = 0; r < height; ++r) add_row(op, i, p, low, high, n, r, d + r * d_ld, row);
      }
    }
  }
  // One position of what is no product: the whole row goes to one row of the parameter.
  void add_row(const ProgramOp& op, int32_t i, const Parameter& p, int64_t low, int64_t high, int64_t n, int64_t r,
               const T* d, T* to) const {
    int64_t target = 0;
    if (op.kind == op_position && p.rows > 1) target = r;
    if (op.kind == op_embedding) target = batch.tokens[batch.index[first + n] * batch.token_size + op.first + r];
    if (target < low || target >= high) return;
    to += (target - low) * p.cols;
    if (!p.bias && (op.kind == op_layer_norm || op.kind == op_rms_norm)) {
      const int64_t row = n * plan.values[op.out].rows + r;
      const T *a = values(op.a) + row * plan.places[op.a].ld, *extra = s + plan.steps[i].extra + 2 * row;
      for (int64_t j = 0; j < p.cols; ++j) to[j] = to[j] + d[j] * ((a[j] - extra[0]) * extra[1]);
      return;
    }
    for (int64_t j = 0; j < p.cols; ++j) to[j] = to[j] + d[j];
  }
};

// K (n, n) on and right of the diagonal's tiles += (A B) o (C D) or A B; A, C (n, .) and B, D (., n).
template <class T>
struct Factors {
  std::vector<T> rows, columns;  // (n, depth) and its transposed copy
  int64_t depth;
  Factors(int64_t n, int64_t d) : rows(static_cast<size_t>(n * d)), columns(rows.size()), depth(d) {}
  void turn(int64_t n) {
    for (int64_t i = 0; i < n; ++i) {
      for (int64_t j = 0; j < depth; ++j)
        columns[static_cast<size_t>(j * n + i)] = rows[static_cast<size_t>(i * depth + j)];
    }
  }
};

template <class T>
void add_products(const SecondKernels<T>& kernels, int64_t n, T* k, const Factors<T>& a, const Factors<T>& b,
                  const Factors<T>* c, const Factors<T>* d, int threads) {
  parallel(threads, (n + tile - 1) / tile, [&](int64_t low, int64_t high) {
    std::vector<T> first(static_cast<size_t>(c ? tile * n : 0)), second(first.size());
    for (int64_t t = low; t < high; ++t) {
      const int64_t i = t * tile, rows = std::min(tile, n - i), columns = n - i;
      const auto multiply = [&](const Factors<T>& left, const Factors<T>& right, T* to, int64_t to_ld, bool onto) {
        kernels.multiply(rows, columns, left.depth, left.rows.data() + i * left.depth, left.depth, 1,
                         right.columns.data() + i, n, to, to_ld, onto);
      };
      if (!c) {
        multiply(a, b, k + i * n + i, n, true);
        continue;
      }
      multiply(a, b, first.data(), columns, false);
      multiply(*c, *d, second.data(), columns, false);
      for (int64_t r = 0; r < rows; ++r) {
        T* to = k + (i + r) * n + i;
        const T *x = first.data() + r * columns, *y = second.data() + r * columns;
        for (int64_t j = 0; j < columns; ++j) to[j] = to[j] + x[j] * y[j];
      }
    }
  });
}

}  // namespace

template <class T>
template <class Fn>
void Curvature<T>::each_state(int64_t checkpoint, Fn fn) {
  const Plan& plan = state_.plan();
  std::unique_ptr<Scratch> mine = borrow();
  for (int64_t b = 0; b < blocks_; ++b) {
    const T* s = state_at(checkpoint, b, *mine);
    fn(Block<T>{plan, batch_, s, b * plan.block, std::min(plan.block, batch_.count - b * plan.block)});
  }
  give_back(std::move(mine));
}

template <class T>
void Curvature<T>::gram(T* out, int threads) {
  const std::lock_guard<std::mutex> lock(product_mutex_);
  const Plan& plan = state_.plan();
  const SecondKernels<T>& kernels = second_kernels<T>();
  const int64_t n = batch_.count;
  std::fill_n(out, checkpoints_ * n * n, T(0));
  for (int64_t checkpoint = 0; checkpoint < checkpoints_; ++checkpoint) {
    T* k = out + checkpoint * n * n;
    for (const Parameter& p : parameters_of(plan)) {
      if (factored(plan, p)) {
        std::vector<Factors<T>> left(p.uses.size(), {n, p.rows}), right(p.uses.size(), {n, p.cols});
        each_state(checkpoint, [&](const Block<T>& block) {
          for (size_t u = 0; u < p.uses.size(); ++u) {
            const ProgramOp& op = plan.ops[p.uses[u]];
            for (int64_t i = 0; i < block.samples; ++i) {
              const T *a = block.values(op.a) + i * plan.places[op.a].ld,
                      *d = block.deltas(op.out) + i * plan.places[op.out].ld;
              std::copy_n(op.transposed ? a : d, p.rows, left[u].rows.data() + (block.first + i) * p.rows);
              std::copy_n(op.transposed ? d : a, p.cols, right[u].rows.data() + (block.first + i) * p.cols);
            }
          }
        });
        for (size_t u = 0; u < p.uses.size(); ++u) {
          left[u].turn(n);
          right[u].turn(n);
        }
        for (size_t u = 0; u < p.uses.size(); ++u) {
          for (size_t v = 0; v < p.uses.size(); ++v) {
            add_products(kernels, n, k, left[u], left[v], &right[u], &right[v], threads);
          }
        }
        continue;
      }
      const int64_t together = std::clamp<int64_t>(slice_numbers / (n * p.cols), 1, p.rows);
      for (int64_t low = 0; low < p.rows; low += together) {
        const int64_t high = std::min(low + together, p.rows);
        Factors<T> slice(n, (high - low) * p.cols);
        each_state(checkpoint, [&](const Block<T>& block) {
          block.write(kernels, p, low, high, slice.rows.data() + block.first * slice.depth, slice.depth);
        });
        slice.turn(n);
        add_products<T>(kernels, n, k, slice, slice, nullptr, nullptr, threads);
      }
    }
    // deltas carry 1 / n, so K = (1/n) (n d) (n d')
    for (int64_t i = 0; i < n; ++i) {
      for (int64_t j = i; j < n; ++j) k[j * n + i] = k[i * n + j] = k[i * n + j] * static_cast<T>(n);
    }
  }
}

template void Curvature<float>::gram(float*, int);
template void Curvature<double>::gram(double*, int);

}  // namespace dif
