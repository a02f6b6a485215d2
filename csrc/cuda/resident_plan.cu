// Lays a Program out in a block's shared memory, or says why it does not fit.
#include <algorithm>

#include "cuda/cuda.hpp"

namespace dif::cuda {
namespace {

int64_t round16(int64_t n) { return (n + 15) / 16 * 16; }

constexpr int64_t products_shared = 98 * 1024;  // bytes; what every architecture from 8.0 on has
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

// Rows of values and gradients and the operations on them; `rows`: how many. Null, or why it does not fit.
const char* lay_rows(const std::vector<ProgramValue>& values, const std::vector<ProgramOp>& ops,
                     const ProgramLoss& loss, int64_t dim, int64_t total, ResidentPlan& plan, int32_t& rows) {
  plan = ResidentPlan{};
  rows = 0;
  if (ops.size() > resident_ops) return "program: expected at most 24 operations";
  if (loss.kind != loss_squared && loss.kind != loss_cross_entropy) {
    return "program: expected a squared error or a cross-entropy of classes";
  }
  if (dim > most_parameters) return "program: expected at most 4096 trainable parameters";
  std::vector<int32_t> place(values.size()), grad(values.size(), -1);
  std::vector<char> needs(values.size(), 0), written(values.size(), 0);
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
  plan.dim = dim;
  plan.total = total;
  return nullptr;
}

// Places in the pool, one behind the other; in floats.
struct Room {
  int64_t taken = 0;
  int64_t take(int64_t floats) {
    const int64_t here = taken;
    taken += round16(floats);
    return here;
  }
};

}  // namespace

const char* plan_resident(const std::vector<ProgramValue>& values, const std::vector<ProgramOp>& ops,
                          const ProgramLoss& loss, int64_t dim, int64_t total, int64_t batch, ResidentPlan& plan) {
  int32_t rows;
  if (const char* error = lay_rows(values, ops, loss, dim, total, plan, rows)) return error;
  plan.tied = is_tied(values, ops, loss, dim) ? 1 : 0;
  plan.ops[1].apart = plan.tied;
  plan.stride = std::min(most_samples, round16(batch));
  Room room;
  plan.w_at = room.take(total);
  plan.g_at = room.take(dim);
  plan.acc_at = room.take(16 * dim * (plan.tied ? 2 : 1));
  plan.index_at = room.take(batch);
  plan.loss_at = room.take(plan.stride);
  plan.values_at = room.take(rows * plan.stride);
  plan.shared_bytes = 4 * room.taken;
  return plan.shared_bytes <= resident_shared ? nullptr : "program: expected one whose batch fits shared memory";
}

// Shared memory of a tile, for so many probes.
static int64_t place_products(ResidentProducts& plan, int64_t tile, int64_t group) {
  const int64_t rows = plan.rows, losses = plan.loss_d < 0 ? 0 : plan.values.width;
  plan.tile = static_cast<int32_t>(tile);
  plan.group = static_cast<int32_t>(group);
  Room room;
  plan.values.w_at = room.take(plan.values.total);
  plan.v_at = room.take(group * plan.values.dim);
  plan.out_at = room.take(group * plan.values.dim);
  plan.values.index_at = room.take(tile);
  plan.values.loss_at = room.take(tile);
  plan.values.values_at = room.take((rows + losses) * (tile + 1));
  plan.tangents_at = room.take(group * rows * (tile + 1));
  return plan.values.shared_bytes = 4 * room.taken;
}

const char* plan_products(const std::vector<ProgramValue>& values, const std::vector<ProgramOp>& ops,
                          const ProgramLoss& loss, int64_t dim, int64_t total, ResidentProducts& plan) {
  if (const char* error = lay_rows(values, ops, loss, dim, total, plan.values, plan.rows)) return error;
  for (size_t i = 0; i < ops.size(); ++i) {
    const ResidentOp& op = plan.values.ops[i];
    plan.bent[i] = -1;
    if (op.activation <= act_relu || op.out_d < 0) continue;
    plan.bent[i] = plan.rows;
    plan.rows += op.height;
  }
  plan.loss_d = loss.kind == loss_cross_entropy ? plan.rows : -1;
  // Many probes share one forward and backward pass, but samples keep threads at work: 32 of them come first.
  for (int64_t group = 4; group > 0; group /= 2) {
    for (int64_t tile = most_samples; tile >= (group > 1 ? 32 : 16); tile -= 16) {
      if (place_products(plan, tile, group) <= products_shared) return nullptr;
    }
  }
  return "program: expected one whose products fit shared memory";
}

}  // namespace dif::cuda
