// What a pass over a Program needs to know beside it: where each value of a block of samples lies in scratch
// memory. Plain data, made once by engine.cpp.
#pragma once
#include <cstdint>

#include "core/program.hpp"

namespace dif {

struct ValuePlan {
  int64_t at, grad;  // offsets in scratch of row 0 and of its gradient; grad = -1: nobody asks for it
  int64_t ld;        // row stride
};

// Beyond so many parameters, and with so few rows, weights are read where they lie (engine_stream.hpp); with more rows
// torch's own products are the better engine.
constexpr int64_t large_model = 4000000, few_rows = 32;

// The pairs of linear maps that engine_tied.hpp runs, at most.
constexpr int64_t tied_hidden = 4, tied_features = 32;

struct OpPlan {
  int64_t extra;              // offset in scratch of what the forward pass leaves for the backward pass, or -1
  int64_t turned, turned_ld;  // the transposed copy of the weight (streamed: of the rows), or the largest rows, or -1
  bool add_a, add_b, add_c;   // this gradient joins others already there
  bool sloped;                // the gradient of `out` arrives multiplied by the slope of this activation
  bool streamed;              // the weight is read where it lies (engine_stream.hpp)
  bool fresh;                 // no other operation adds to this weight's gradient: the first block writes it
  int32_t slope_a;            // the operation whose slope this one's gradient of `a` is multiplied by, or -1
};

// Which of the two kinds of passes a plan is for (engine_matrix.hpp, engine_small.hpp), and what its lanes
// hold.
enum Layout : int32_t { layout_matrix = 0, layout_samples = 1, layout_chains = 2 };

struct Plan {
  const ProgramValue* values;
  const ProgramOp* ops;
  const ValuePlan* places;
  const OpPlan* steps;
  const int32_t* maps;  // of gathers, in offsets from a sample's first row; OpPlan::extra says where
  int32_t value_count, op_count;
  const int64_t* zeros;  // (zero_count, 2) ranges of the gradient that begin at zero: all but what is fresh
  int32_t zero_count;
  ProgramLoss loss;
  int64_t dim, total;  // trainable and all parameters
  int64_t block;       // samples in one block
  int64_t part;        // samples of a part of a batch (parts.hpp), at least
  int64_t cleared;     // floats at the beginning of scratch that a backward pass starts from zero
  int64_t scratch;     // floats in all
  int64_t kept;        // floats before the transposed weights: what belongs to one block of samples (matrix layout)
  int64_t loss_grad;   // of second derivatives: the loss's gradient by the prediction, before others join it
  // of the small layouts only
  int64_t targets,
      sums;  // offsets of the gathered targets (or a gradient nobody reads), of the weight gradients lane by lane
  int32_t loss_slope;  // the operation whose slope the loss's gradient is multiplied by, or -1
  int32_t loss_input;  // the input value that can serve as target, or -1
  int32_t tied;        // hidden units of a pair that engine_tied.hpp runs, or 0
};

// The data set, row by row, and the samples of one batch.
template <class T>
struct Batch {
  const T* x;              // (n, x_size), or null
  const T* y;              // (n, y_size), or null
  const int32_t* tokens;   // (n, token_size), or null
  const int32_t* classes;  // (n, class_size), or null
  int64_t x_size, y_size, token_size, class_size;
  const int32_t* index;  // (count)
  int64_t count;
  // With samples in the lanes: the same rows as (columns, size, 16), sixteen samples by sixteen, where the batch is all
  // of them in order; or null.
  const T* x_turned = nullptr;
  const T* y_turned = nullptr;
  int64_t whole = 0;  // samples that the gradient is averaged over, where these are a part of them
  double samples() const { return static_cast<double>(whole > 0 ? whole : count); }
};

}  // namespace dif
