// A model as a straight-line list of operations.
//
// A value is what one sample holds at one place of the model: a matrix (rows, cols); rows are tokens or
// positions, 1 for a plain network. A batch of B samples stacks them: (B rows, cols), row-major. An operation
// reads values and parameters and writes one value; a pass walks the list once forward and once back.
// Parameters are addressed by their offset in a chain's vector: `dim` trainable coordinates, then the frozen
// ones, `total` in all.
//
// Plain data only: the same list serves every pass (losses, gradient, and whatever derivative comes later),
// every instruction set and every device.
#pragma once
#include <cstdint>

namespace dif {

enum OpKind : int32_t {
  op_input = 0,       // out = the sample's inputs first ... first + rows cols - 1
  op_linear = 1,      // out = act(a W^T + b); W (out, in), or (in, out) if transposed
  op_activation = 2,  // out = act(a)
  op_add = 3,         // out = a + b
  op_scale = 4,       // out = factor a
  op_embedding = 5,   // out[r] = W[token[first + r]]; W (size, cols)
  op_position = 6,    // out = a + W; W (rows, cols)
  op_layer_norm = 7,  // out = (a - mean) / sqrt(var + epsilon) * W + b over each row; W, b optional
  op_rms_norm = 8,    // out = a / sqrt(mean a^2 + epsilon) * W
  op_attention = 9,   // out = softmax(factor q k^T) v for each head; a, b, c = q, k, v of heads side by side
  op_gather = 10,     // out[e] = a[map[e]], or 0 where map[e] is -1; elements counted row by row within a sample
  op_mean_rows = 11,  // out[r] = factor sum over q of a[map[r size + q]]; rows of -1 are left out
  op_max_rows = 12,   // out[r] = the largest of them, column by column; the first of equals
  op_join = 13,       // out = (a, b) side by side
};

enum Activation : int32_t {
  act_none = 0,
  act_relu = 1,
  act_tanh = 2,
  act_sigmoid = 3,
  act_gelu = 4,       // x Phi(x)
  act_gelu_tanh = 5,  // the tanh form
  act_silu = 6,
};

enum LossKind : int32_t {
  loss_squared = 0,        // factor sum_j importance_j (p_j - y_j)^2
  loss_cross_entropy = 1,  // factor sum_rows (log sum_j exp p_j - p_y); rows of class -1 are left out
  loss_binary = 2,         // factor sum_j importance_j (log(1 + exp p_j) - y_j p_j): cross-entropy of logits p
};

// A value with base >= 0 is the columns column ... column + cols - 1 of value `base`.
struct ProgramValue {
  int32_t rows, cols, base, column;
};

struct ProgramOp {
  int32_t kind, activation;
  int32_t out, a, b, c;  // values; -1 = none
  int64_t weight, bias;  // offsets in the parameter vector; -1 = none
  int64_t first;         // of inputs, tokens, or the map
  int32_t transposed, heads, causal, size;
  double factor;  // of scale and attention; epsilon of the norms
};

struct ProgramLoss {
  int32_t kind, prediction;
  double factor;
  int64_t importance;  // offset of (rows, cols) weights among the frozen parameters, or -1
};

}  // namespace dif
