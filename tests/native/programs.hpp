// Operations of a Program, spelled shortly: for tests.
#pragma once
#include "core/program.hpp"

inline dif::ProgramOp operation(int32_t kind, int32_t out, int32_t a = -1, int32_t b = -1, int32_t c = -1) {
  dif::ProgramOp op{};
  op.kind = kind;
  op.out = out;
  op.a = a;
  op.b = b;
  op.c = c;
  op.weight = op.bias = -1;
  return op;
}

inline dif::ProgramOp linear(int32_t out, int32_t a, int64_t weight, int64_t bias, int32_t activation,
                             bool transposed = false) {
  dif::ProgramOp op = operation(dif::op_linear, out, a);
  op.weight = weight;
  op.bias = bias;
  op.activation = activation;
  op.transposed = transposed;
  return op;
}
