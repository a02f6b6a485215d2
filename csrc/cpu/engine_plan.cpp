// Lays a Program out in memory: blocks of samples, values, gradients, and what forward leaves for backward.
#include <algorithm>
#include <utility>

#include "cpu/engine.hpp"

namespace dif {
namespace {

constexpr int64_t block_rows = 256;  // rows of the tallest value in one block of samples

int64_t round16(int64_t n) { return (n + 15) / 16 * 16; }

int32_t root(const std::vector<ProgramValue>& values, int32_t v) {
  return values[static_cast<size_t>(v)].base < 0 ? v : values[static_cast<size_t>(v)].base;
}

}  // namespace

CompiledProgram::CompiledProgram(std::vector<ProgramValue> values, std::vector<ProgramOp> ops,
                                 std::vector<int32_t> maps, ProgramLoss loss, int64_t dim, int64_t total)
    : values_(std::move(values)), ops_(std::move(ops)), maps_(std::move(maps)) {
  const size_t count = values_.size();
  int64_t tallest = 1;
  for (const ProgramValue& v : values_) tallest = std::max<int64_t>(tallest, v.rows);
  const int64_t block = std::max<int64_t>(1, block_rows / tallest);

  // Which values depend on a trainable parameter, and which of their gradients meet in slices.
  std::vector<char> needs(count, 0), sliced(count, 0), written(count, 0);
  const auto trains = [dim](int64_t offset) { return offset >= 0 && offset < dim; };
  for (const ProgramOp& op : ops_) {
    bool need = trains(op.weight) || trains(op.bias);
    for (const int32_t v : {op.a, op.b, op.c})
      need = need || (v >= 0 && needs[static_cast<size_t>(root(values_, v))]);
    needs[static_cast<size_t>(op.out)] = need;
  }
  for (size_t v = 0; v < count; ++v) {
    if (values_[v].base >= 0) {
      needs[v] = needs[static_cast<size_t>(values_[v].base)];
      sliced[static_cast<size_t>(values_[v].base)] = sliced[v] = 1;
    }
  }

  // Backward order decides who writes a gradient first and who adds; values nobody asks about get none.
  steps_.assign(ops_.size(), OpPlan{-1, -1, 0, false, false, false});
  const auto ask = [&](int32_t v, bool& add) {
    if (v < 0 || !needs[static_cast<size_t>(v)]) return;
    add = written[static_cast<size_t>(v)] || sliced[static_cast<size_t>(v)];
    written[static_cast<size_t>(v)] = 1;
    written[static_cast<size_t>(root(values_, v))] = 1;
  };
  bool ignored = false;
  ask(loss.prediction, ignored);
  for (size_t i = ops_.size(); i-- > 0;) {
    if (!written[static_cast<size_t>(ops_[i].out)]) continue;
    ask(ops_[i].a, steps_[i].add_a);
    ask(ops_[i].b, steps_[i].add_b);
    ask(ops_[i].c, steps_[i].add_c);
  }

  int64_t at = 0;
  const auto take = [&at](int64_t floats) {
    const int64_t here = at;
    at += round16(floats);
    return here;
  };
  places_.assign(count, ValuePlan{0, -1, 0});
  const auto size = [&](size_t v) { return block * values_[v].rows * round16(values_[v].cols); };
  for (size_t v = 0; v < count; ++v) places_[v].ld = round16(values_[v].cols);
  // Gradients that begin at zero lie together at the front.
  for (const bool front : {true, false}) {
    for (size_t v = 0; v < count; ++v) {
      if (values_[v].base < 0 && needs[v] && written[v] && static_cast<bool>(sliced[v]) == front)
        places_[v].grad = take(size(v));
    }
    if (front) plan_.cleared = at;
  }
  for (size_t v = 0; v < count; ++v) {
    if (values_[v].base < 0) places_[v].at = take(size(v));
  }
  for (size_t v = 0; v < count; ++v) {
    const ProgramValue& value = values_[v];
    if (value.base < 0) continue;
    const ValuePlan& base = places_[static_cast<size_t>(value.base)];
    places_[v] = {base.at + value.column, base.grad < 0 ? -1 : base.grad + value.column, base.ld};
  }
  plan_.activations = at;
  for (size_t i = 0; i < ops_.size(); ++i) {
    const ProgramOp& op = ops_[i];
    const auto height = [&](int32_t v) { return block * values_[static_cast<size_t>(v)].rows; };
    if (op.kind == op_linear || op.kind == op_activation) {
      if (op.activation > act_sigmoid) steps_[i].extra = take(size(static_cast<size_t>(op.out)));
    } else if (op.kind == op_layer_norm || op.kind == op_rms_norm) {
      steps_[i].extra = take(2 * height(op.out));
    } else if (op.kind == op_attention) {
      const int64_t t = values_[static_cast<size_t>(op.a)].rows,
                    d = values_[static_cast<size_t>(op.a)].cols / op.heads;
      steps_[i].extra = take(block * op.heads * t * round16(t) + (d + t) * round16(t));
    }
    if (op.kind != op_linear) continue;
    // W is used as it lies in one direction, transposed in the other.
    if (op.transposed && places_[static_cast<size_t>(op.a)].grad < 0) continue;
    for (size_t k = 0; k < i; ++k) {
      if (ops_[k].kind == op_linear && ops_[k].weight == op.weight && ops_[k].transposed == op.transposed &&
          steps_[k].turned >= 0) {
        steps_[i].turned = steps_[k].turned;
        steps_[i].turned_ld = steps_[k].turned_ld;
      }
    }
    if (steps_[i].turned >= 0) continue;
    const int64_t in = values_[static_cast<size_t>(op.a)].cols,
                  out = values_[static_cast<size_t>(op.out)].cols;
    steps_[i].turned_ld = round16(op.transposed ? in : out);
    steps_[i].turned = take((op.transposed ? out : in) * steps_[i].turned_ld);
  }
  const int64_t cleared = plan_.cleared, activations = plan_.activations;
  plan_ = Plan{values_.data(),
               ops_.data(),
               places_.data(),
               steps_.data(),
               maps_.data(),
               static_cast<int32_t>(count),
               static_cast<int32_t>(ops_.size()),
               loss,
               dim,
               total,
               block,
               activations,
               cleared,
               at + 64};
}

}  // namespace dif
