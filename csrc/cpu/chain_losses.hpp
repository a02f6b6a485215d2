// The losses of many chains on one set of samples: what observers of draws look at.
#pragma once
#include <cstdint>

#include "cpu/engine.hpp"

namespace dif {

// losses (chains, count; row stride losses_ld): each chain's loss on each of the samples index (count).
// g (chains, plan.dim; row stride g_ld), or null: the gradient of each chain's mean loss over them.
// w (chains, dim; row stride w_ld), frozen (total - dim). Memory of a thread: plan.total floats, twice with g,
// and plan.scratch. Without g, threads share the samples of a chain too: blocks of fixed size, whose losses do
// not depend on each other. Results do not depend on threads or on the other chains.
struct ChainRows {
  const float* w;
  int64_t w_ld, chains;
  const float* frozen;
};
void chain_losses(const CompiledProgram&, const Data<float>&, const ChainRows&, const int32_t* index, int64_t count,
                  double* losses, int64_t losses_ld, float* g, int64_t g_ld, int threads);

}  // namespace dif
