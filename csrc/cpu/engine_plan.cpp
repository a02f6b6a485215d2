// Lays a Program out in memory: blocks of samples, values, gradients, and what forward leaves for backward.
#include <algorithm>
#include <utility>

#include "cpu/engine.hpp"

namespace dif {
namespace {

constexpr int64_t matrix_floats = 180000;  // values and gradients of a block: the second cache holds them
constexpr int64_t matrix_samples = 256;    // samples of a block of the matrix layout, at most
constexpr int64_t small_samples = 256;     // samples of a block with samples in the lanes
constexpr int64_t small_columns = 32;      // samples of a block with chains in the lanes
constexpr int64_t small_width = 32;        // widest value of a small layout
constexpr int64_t small_parameters = 4096;
constexpr int64_t stream_weight = 65536;  // of a large model only weights from this size on are read where they lie
constexpr int64_t part_work = 5000000;    // multiply-adds of a part, at least
constexpr int64_t part_rows = 256;        // half as many cost the products of a plain network 7 %

int64_t round16(int64_t n) { return (n + 15) / 16 * 16; }

template <class T>
T& at(std::vector<T>& v, int64_t i) {
  return v[static_cast<size_t>(i)];
}
template <class T>
const T& at(const std::vector<T>& v, int64_t i) {
  return v[static_cast<size_t>(i)];
}

int32_t root(const std::vector<ProgramValue>& values, int32_t v) {
  return at(values, v).base < 0 ? v : at(values, v).base;
}

// Least samples of a part: enough work that handing it to another thread and adding its gradient costs little beside
// it, and enough rows for the products to run well. A function of the model alone.
int64_t part_of(const std::vector<ProgramValue>& values, const std::vector<ProgramOp>& ops, int64_t total) {
  int64_t work = 1, rows = 1;  // of a sample
  for (const ProgramOp& op : ops) {
    const ProgramValue& v = at(values, op.out);
    rows = std::max<int64_t>(rows, v.rows);
    if (op.kind == op_linear) work += int64_t{3} * v.rows * v.cols * at(values, op.a).cols;
    if (op.kind == op_attention) work += int64_t{6} * v.rows * v.rows * v.cols;
  }
  const int64_t enough = std::max(part_work, 300 * total);  // 300 multiply-adds for each sum of gradients
  return std::max((enough + work - 1) / work, (part_rows + rows - 1) / rows);
}

// Plain networks of narrow layers, whose inputs meet linear maps only.
bool narrow(const std::vector<ProgramValue>& values, const std::vector<ProgramOp>& ops, int64_t dim) {
  if (dim > small_parameters) return false;
  for (const ProgramValue& v : values) {
    if (v.rows != 1 || v.base >= 0 || v.cols > small_width) return false;
  }
  std::vector<char> input(values.size(), 0);
  for (const ProgramOp& op : ops) {
    if (op.kind == op_input) at(input, op.out) = 1;
    const bool known = op.kind == op_input || op.kind == op_linear || op.kind == op_activation || op.kind == op_add ||
                       op.kind == op_scale || (op.kind == op_position && op.size == 1);
    if (!known) return false;
    for (const int32_t v : {op.a, op.b}) {
      if (v >= 0 && at(input, v) && op.kind != op_linear) return false;
    }
  }
  return true;
}

// x -> W x -> act(W^T (W x) + b) with a squared error and W trained: its hidden width, or 0.
int32_t tied_pair(const std::vector<ProgramValue>& values, const std::vector<ProgramOp>& ops, const Plan& plan) {
  if (ops.size() != 3 || ops[0].kind != op_input || ops[1].kind != op_linear || ops[2].kind != op_linear) return 0;
  const ProgramOp &in = ops[0], &down = ops[1], &up = ops[2];
  const bool chained = down.a == in.out && up.a == down.out && plan.loss.prediction == up.out && in.first == 0;
  const bool shared = down.weight == up.weight && down.transposed != up.transposed && down.weight < plan.dim;
  const bool simple = down.bias < 0 && down.activation == act_none && up.activation <= act_relu;
  const int32_t hidden = at(values, down.out).cols, features = at(values, up.out).cols;
  const bool fits = hidden <= tied_hidden && features <= tied_features && at(values, in.out).cols == features;
  return chained && shared && simple && fits && plan.loss.kind == loss_squared ? hidden : 0;
}

}  // namespace

int64_t LaidOut::take(int64_t floats) {
  const int64_t here = taken_;
  taken_ += round16(floats);
  return here;
}

// Who needs a gradient, and, in the order of the backward pass, who writes it first and who adds.
void LaidOut::share_gradients(Plan& plan) {
  const size_t count = values_.size();
  needs_.assign(count, 0);
  sliced_.assign(count, 0);
  written_.assign(count, 0);
  const auto trains = [&plan](int64_t offset) { return offset >= 0 && offset < plan.dim; };
  for (const ProgramOp& op : ops_) {
    bool need = trains(op.weight) || trains(op.bias);
    for (const int32_t v : {op.a, op.b, op.c}) need = need || (v >= 0 && at(needs_, root(values_, v)));
    at(needs_, op.out) = need;
  }
  for (size_t v = 0; v < count; ++v) {
    if (values_[v].base < 0) continue;
    needs_[v] = at(needs_, values_[v].base);
    at(sliced_, values_[v].base) = sliced_[v] = 1;
  }
  steps_.assign(ops_.size(), OpPlan{-1, -1, 0, false, false, false, false, false, false, -1});
  const auto ask = [this](int32_t v, bool& add) {
    if (v < 0 || !at(needs_, v)) return;
    add = at(written_, v) || at(sliced_, v);
    at(written_, v) = 1;
    at(written_, root(values_, v)) = 1;
  };
  bool first = false;
  ask(plan.loss.prediction, first);
  for (size_t i = ops_.size(); i-- > 0;) {
    if (!at(written_, ops_[i].out)) continue;
    ask(ops_[i].a, steps_[i].add_a);
    ask(ops_[i].b, steps_[i].add_b);
    ask(ops_[i].c, steps_[i].add_c);
  }
}

// Weights whose gradient one linear map alone writes, and the ranges between them, which sums onto g need at zero.
void LaidOut::find_fresh(Plan& plan) {
  struct Range {
    int64_t from, to;
    size_t op;
  };
  std::vector<Range> ranges;
  for (size_t i = 0; i < ops_.size(); ++i) {
    const ProgramOp& op = ops_[i];
    const int64_t cols = at(values_, op.out).cols;
    const int64_t rows = op.kind == op_linear      ? at(values_, op.a).cols
                         : op.kind == op_embedding ? op.size
                         : op.kind == op_position  ? at(values_, op.out).rows
                                                   : 1;
    if (op.weight >= 0) ranges.push_back({op.weight, op.weight + rows * cols, i});
    if (op.bias >= 0) ranges.push_back({op.bias, op.bias + cols, ops_.size()});
  }
  std::sort(ranges.begin(), ranges.end(), [](const Range& a, const Range& b) { return a.from < b.from; });
  int64_t end = 0;  // of what comes before
  zeros_.assign(1, 0);
  for (size_t k = 0; k < ranges.size(); ++k) {
    const Range& r = ranges[k];
    const bool alone = r.from >= end && (k + 1 == ranges.size() || ranges[k + 1].from >= r.to);
    end = std::max(end, r.to);
    if (!alone || r.op == ops_.size() || ops_[r.op].kind != op_linear || r.to > plan.dim) continue;
    if (block_ > 0 || at(places_, ops_[r.op].out).grad < 0) continue;  // second derivatives add to what is there
    steps_[r.op].fresh = true;
    zeros_.insert(zeros_.end(), {r.from, r.to});
  }
  zeros_.push_back(plan.total);
  plan.zeros = zeros_.data();
  plan.zero_count = static_cast<int32_t>(zeros_.size() / 2);
}

void LaidOut::place_matrix(Plan& plan, const std::vector<int32_t>& maps) {
  const size_t count = values_.size();
  int64_t sample = 0;  // floats of one sample's values and gradients
  for (size_t v = 0; v < count; ++v) {
    if (values_[v].base >= 0) continue;
    sample += (needs_[v] ? 2 : 1) * values_[v].rows * round16(values_[v].cols);
  }
  int64_t tallest = 1;
  for (const ProgramValue& v : values_) tallest = std::max<int64_t>(tallest, v.rows);
  const bool stream = block_ == 0 && plan.total > large_model && tallest <= few_rows;
  const int64_t block = plan.block = block_ > 0 ? block_
                                     : stream   ? few_rows / tallest
                                                : std::clamp<int64_t>(matrix_floats / sample, 1, matrix_samples);
  const auto size = [&](int64_t v) { return block * at(values_, v).rows * round16(at(values_, v).cols); };
  for (size_t v = 0; v < count; ++v) places_[v].ld = round16(values_[v].cols);
  // Gradients that begin at zero, because slices write them piece by piece, lie together at the front.
  for (const bool front : {true, false}) {
    for (size_t v = 0; v < count; ++v) {
      if (values_[v].base < 0 && needs_[v] && written_[v] && static_cast<bool>(sliced_[v]) == front) {
        places_[v].grad = take(size(static_cast<int64_t>(v)));
      }
    }
    if (front) plan.cleared = taken_;
  }
  for (size_t v = 0; v < count; ++v) {
    if (values_[v].base < 0) places_[v].at = take(size(static_cast<int64_t>(v)));
  }
  for (size_t v = 0; v < count; ++v) {
    const ProgramValue& value = values_[v];
    if (value.base < 0) continue;
    const ValuePlan& base = at(places_, value.base);
    places_[v] = {base.at + value.column, base.grad < 0 ? -1 : base.grad + value.column, base.ld};
  }
  for (size_t i = 0; i < ops_.size(); ++i) {
    const ProgramOp& op = ops_[i];
    OpPlan& step = steps_[i];
    if (op.kind == op_layer_norm || op.kind == op_rms_norm) {
      step.extra = take(2 * block * at(values_, op.out).rows);
    } else if (op.kind == op_attention) {
      const int64_t t = at(values_, op.a).rows, d = at(values_, op.a).cols / op.heads;
      step.extra = take(block * op.heads * t * round16(t) + (d + t) * round16(t));
    } else if (op.kind == op_gather) {
      step.extra = static_cast<int64_t>(maps_.size());
      const int64_t cols = at(values_, op.a).cols, ld = at(places_, op.a).ld;
      const int64_t elements = int64_t{at(values_, op.out).rows} * at(values_, op.out).cols;
      for (int64_t i = 0; i < elements; ++i) {
        const int64_t e = at(maps, op.first + i);
        maps_.push_back(e < 0 ? -1 : static_cast<int32_t>(e / cols * ld + e % cols));
      }
    } else if (op.kind == op_mean_rows || op.kind == op_max_rows) {
      step.extra = static_cast<int64_t>(maps_.size());
      const auto from = maps.begin() + op.first;
      maps_.insert(maps_.end(), from, from + int64_t{at(values_, op.out).rows} * op.size);
      if (op.kind == op_max_rows) step.turned = take(size(op.out));
    } else if (op.activation > act_sigmoid || (block_ > 0 && op.activation > act_relu)) {
      step.extra = take((block_ > 0 ? 2 : 1) * size(op.out));  // slopes; behind them what second derivatives add
    }
  }
  if (block_ > 0) plan.loss_grad = take(size(plan.loss.prediction));
  plan.kept = taken_;
  for (size_t i = 0; i < ops_.size(); ++i) {
    const ProgramOp& op = ops_[i];
    // W is used as it lies in one direction and transposed in the other; without a backward product, once.
    if (op.kind != op_linear) continue;
    const int64_t in = at(values_, op.a).cols, out = at(values_, op.out).cols;
    steps_[i].streamed = stream && in * out >= stream_weight;
    if (op.transposed && at(places_, op.a).grad < 0) continue;
    if (steps_[i].streamed) {
      steps_[i].turned_ld = round16(block * at(values_, op.out).rows);
      steps_[i].turned = take((in + out) * steps_[i].turned_ld);
      continue;
    }
    steps_[i].turned_ld = round16(op.transposed ? in : out);
    steps_[i].turned = take((op.transposed ? out : in) * steps_[i].turned_ld);
  }
}

void LaidOut::place_small(Plan& plan, Layout layout) {
  const bool chains = layout == layout_chains;
  plan.block = chains ? small_columns : small_samples;
  const int64_t columns = chains ? plan.block : plan.block / 16;
  const auto size = [&](int64_t v) { return at(values_, v).cols * columns * 16; };
  std::vector<int32_t> producer(values_.size(), -1), readers(values_.size(), 0);
  for (size_t v = 0; v < values_.size(); ++v) {
    places_[v].ld = 16;
    if (needs_[v] && written_[v]) places_[v].grad = take(size(static_cast<int64_t>(v)));
  }
  for (size_t i = 0; i < ops_.size(); ++i) {
    const ProgramOp& op = ops_[i];
    if (op.kind == op_input && chains) {
      at(places_, op.out) = {op.first, -1, 0};  // read where the data lie
    } else {
      at(places_, op.out).at = take(size(op.out));
    }
    if (op.activation > act_sigmoid) steps_[i].extra = take(size(op.out));
    if (op.kind == op_linear) at(producer, op.out) = static_cast<int32_t>(i);
    for (const int32_t v : {op.a, op.b}) {
      if (v >= 0) ++at(readers, v);
    }
    const bool whole =
        op.kind == op_input && op.first == 0 && at(values_, op.out).cols == at(values_, plan.loss.prediction).cols;
    if (whole && !chains) plan.loss_input = op.out;
  }
  ++at(readers, plan.loss.prediction);
  // A relu's slope joins its gradient where that has one writer.
  const auto slope = [&](int32_t v) {
    const int32_t i = v < 0 ? -1 : at(producer, v);
    if (i < 0 || at(readers, v) != 1 || at(ops_, i).activation != act_relu) return -1;
    at(steps_, i).sloped = true;
    return i;
  };
  plan.loss_slope = slope(plan.loss.prediction);
  for (size_t i = 0; i < ops_.size(); ++i) {
    if (ops_[i].kind == op_linear) {
      steps_[i].slope_a = slope(ops_[i].a);
      if (ops_[i].activation == act_none) steps_[i].sloped = true;
    }
  }
  plan.tied = tied_pair(values_, ops_, plan);
  plan.targets = take(std::max(size(plan.loss.prediction), plan.tied * tied_features * 16 + 2 * tied_features * 64));
  if (!chains) plan.sums = take(round16(plan.dim) * 16);
}

LaidOut::LaidOut(Layout layout, const std::vector<ProgramValue>& values, const std::vector<ProgramOp>& ops,
                 const std::vector<int32_t>& maps, ProgramLoss loss, int64_t dim, int64_t total, int64_t block)
    : values_(values), ops_(ops), block_(block), plan_{} {
  plan_.loss = loss;
  plan_.dim = dim;
  plan_.total = total;
  plan_.loss_slope = plan_.loss_input = -1;
  share_gradients(plan_);
  places_.assign(values_.size(), ValuePlan{0, -1, 0});
  if (layout == layout_matrix) {
    place_matrix(plan_, maps);
    find_fresh(plan_);
  } else {
    place_small(plan_, layout);
  }
  plan_.part = part_of(values_, ops_, total);
  plan_.values = values_.data();
  plan_.ops = ops_.data();
  plan_.places = places_.data();
  plan_.steps = steps_.data();
  plan_.maps = maps_.data();
  plan_.value_count = static_cast<int32_t>(values_.size());
  plan_.op_count = static_cast<int32_t>(ops_.size());
  plan_.scratch = taken_ + 64;  // loads of whole registers may pass the end
}

CompiledProgram::CompiledProgram(std::vector<ProgramValue> values, std::vector<ProgramOp> ops,
                                 std::vector<int32_t> maps, ProgramLoss loss, int64_t dim, int64_t total)
    : values_(std::move(values)), ops_(std::move(ops)), maps_(std::move(maps)) {
  layouts_.reserve(3);
  layouts_.emplace_back(layout_matrix, values_, ops_, maps_, loss, dim, total);
  if (!narrow(values_, ops_, dim)) return;
  layouts_.emplace_back(layout_samples, values_, ops_, maps_, loss, dim, total);
  layouts_.emplace_back(layout_chains, values_, ops_, maps_, loss, dim, total);
}

Layout CompiledProgram::layout(int32_t mode) const {
  if (layouts_.size() == 1) return layout_matrix;
  return mode == batch_shared ? layout_chains : layout_samples;
}

LaidOut CompiledProgram::second(int64_t samples) const {
  const Plan& plan = layouts_.front().plan();
  return LaidOut(layout_matrix, values_, ops_, maps_, plan.loss, plan.dim, plan.total, samples);
}

const Plan& CompiledProgram::plan(Layout layout) const { return layouts_[static_cast<size_t>(layout)].plan(); }

}  // namespace dif
