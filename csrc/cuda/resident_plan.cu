// Lays a Program out in a block's shared memory, or says why it does not fit.
#include <algorithm>

#include "cuda/cuda.hpp"

namespace dif::cuda {
namespace {

int64_t round16(int64_t n) { return (n + 15) / 16 * 16; }

constexpr int64_t widest = 32, most_parameters = 4096, most_samples = 256;  // of the CPU's small layout

bool is_tied(const std::vector<ProgramValue>& values, const std::vector<ProgramOp>& ops, const ProgramLoss& loss,
             int64_t dim) {
  if (ops.size() != 3 || ops[0].kind != op_input || ops[1].kind != op_linear || ops[2].kind != op_linear) return false;
  const ProgramOp &in = ops[0], &down = ops[1], &up = ops[2];
  const auto cols = [&](int32_t v) { return values[static_cast<size_t>(v)].cols; };
  return down.a == in.out && up.a == down.out && loss.prediction == up.out && in.first == 0 &&
         down.weight == up.weight && down.transposed != up.transposed && down.weight < dim && down.bias < 0 &&
         down.activation == act_none && up.activation <= act_relu && cols(down.out) <= 4 && cols(up.out) <= 32 &&
         cols(in.out) == cols(up.out) && loss.kind == loss_squared;
}

}  // namespace

const char* plan_resident(const std::vector<ProgramValue>& values, const std::vector<ProgramOp>& ops,
                          const ProgramLoss& loss, int64_t dim, int64_t total, int64_t batch, ResidentPlan& plan) {
  plan = ResidentPlan{};
  if (ops.size() > resident_ops) return "program: expected at most 24 operations";
  if (dim > most_parameters) return "program: expected at most 4096 trainable parameters";
  std::vector<int32_t> place(values.size()), grad(values.size(), -1);
  std::vector<char> needs(values.size(), 0), written(values.size(), 0);
  int32_t rows = 0;
  for (size_t v = 0; v < values.size(); ++v) {
    if (values[v].rows != 1 || values[v].base >= 0) return "program: expected one row a sample";
    if (values[v].cols > widest) return "program: expected values of at most 32 columns";
    place[v] = rows;
    rows += values[v].cols;
  }
  const auto trains = [&](int64_t offset) { return offset >= 0 && offset < dim; };
  for (const ProgramOp& op : ops) {
    const bool known = op.kind == op_input || op.kind == op_linear || op.kind == op_activation || op.kind == op_add ||
                       op.kind == op_scale || op.kind == op_position;
    if (!known || op.activation > act_sigmoid) return "program: expected linear maps, relu, tanh, sigmoid, add, scale";
    bool need = trains(op.weight) || trains(op.bias);
    for (const int32_t v : {op.a, op.b}) need = need || (v >= 0 && needs[static_cast<size_t>(v)] != 0);
    needs[static_cast<size_t>(op.out)] = need ? 1 : 0;
  }
  const auto ask = [&](int32_t v) {  // whether the gradient of v is there already; makes room for it
    if (v < 0 || !needs[static_cast<size_t>(v)]) return false;
    const auto i = static_cast<size_t>(v);
    const bool there = written[i] != 0;
    written[i] = 1;
    if (grad[i] < 0) {
      grad[i] = rows;
      rows += values[i].cols;
    }
    return there;
  };
  const auto prediction = static_cast<size_t>(loss.prediction);
  needs[prediction] = 1;
  ask(loss.prediction);
  plan.count = static_cast<int32_t>(ops.size());
  for (size_t i = ops.size(); i-- > 0;) {
    const ProgramOp& op = ops[i];
    ResidentOp& to = plan.ops[i];
    const auto where = [](const std::vector<int32_t>& list, int32_t v) {
      return v < 0 ? -1 : list[static_cast<size_t>(v)];
    };
    to.kind = op.kind;
    to.activation = op.activation;
    to.transposed = op.transposed;
    to.weight = op.weight;
    to.bias = op.bias;
    to.first = op.first;
    to.factor = static_cast<float>(op.factor);
    to.height = values[static_cast<size_t>(op.out)].cols;
    to.inner = op.a >= 0 ? values[static_cast<size_t>(op.a)].cols : 0;
    const bool passes = written[static_cast<size_t>(op.out)] != 0;
    to.add_a = passes && ask(op.a) ? 1 : 0;
    to.add_b = passes && ask(op.b) ? 1 : 0;
    to.a = where(place, op.a), to.b = where(place, op.b), to.out = where(place, op.out);
    to.a_d = where(grad, op.a), to.b_d = where(grad, op.b), to.out_d = where(grad, op.out);
  }
  plan.loss_kind = loss.kind;
  plan.prediction = place[prediction];
  plan.prediction_d = grad[prediction];
  plan.width = values[prediction].cols;
  plan.importance = loss.importance;
  plan.loss_factor = loss.factor;
  plan.tied = is_tied(values, ops, loss, dim) ? 1 : 0;
  plan.dim = dim;
  plan.total = total;
  plan.ops[1].apart = plan.tied;
  plan.stride = std::min(most_samples, round16(batch));
  int64_t at = 0;
  const auto take = [&at](int64_t floats) {
    const int64_t here = at;
    at += round16(floats);
    return here;
  };
  plan.w_at = take(total);
  plan.g_at = take(dim);
  plan.acc_at = take(16 * dim * (plan.tied ? 2 : 1));
  plan.index_at = take(batch);
  plan.loss_at = take(plan.stride);
  plan.values_at = take(rows * plan.stride);
  plan.shared_bytes = 4 * at;
  return plan.shared_bytes <= resident_shared ? nullptr : "program: expected one whose batch fits shared memory";
}

}  // namespace dif::cuda
