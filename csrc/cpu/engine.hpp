// Whole chains: batch choice, gradient, update and trace, with nothing but arithmetic between two steps.
#pragma once
#include <cstdint>
#include <vector>

#include "cpu/engine_isa.hpp"
#include "cpu/samplers.hpp"

namespace dif {

enum BatchMode : int32_t { batch_independent = 0, batch_shared = 1, batch_epoch = 2, batch_full = 3 };

// A Program laid out in memory for one kind of passes; `block` > 0: for second derivatives (engine_second.hpp), in
// blocks of that many samples.
class LaidOut {
 public:
  LaidOut(Layout layout, const std::vector<ProgramValue>& values, const std::vector<ProgramOp>& ops,
          const std::vector<int32_t>& maps, ProgramLoss loss, int64_t dim, int64_t total, int64_t block = 0);
  const Plan& plan() const { return plan_; }

 private:
  void share_gradients(Plan&);
  void find_fresh(Plan&);
  void place_matrix(Plan&, const std::vector<int32_t>& maps);
  void place_small(Plan&, Layout);
  int64_t take(int64_t floats);

  const std::vector<ProgramValue>& values_;
  const std::vector<ProgramOp>& ops_;
  std::vector<char> needs_, sliced_, written_;
  std::vector<ValuePlan> places_;
  std::vector<OpPlan> steps_;
  std::vector<int32_t> maps_;
  std::vector<int64_t> zeros_;
  int64_t block_, taken_ = 0;
  Plan plan_;
};

// A Program in every layout it has. Which one runs depends on the Program and the batch mode alone.
class CompiledProgram {
 public:
  CompiledProgram(std::vector<ProgramValue> values, std::vector<ProgramOp> ops, std::vector<int32_t> maps,
                  ProgramLoss loss, int64_t dim, int64_t total);
  CompiledProgram(const CompiledProgram&) = delete;
  Layout layout(int32_t mode) const;  // of a run in this BatchMode
  const Plan& plan(Layout) const;
  // The matrix layout of second derivatives; valid as long as this Program lives.
  LaidOut second(int64_t samples) const;

 private:
  std::vector<ProgramValue> values_;
  std::vector<ProgramOp> ops_;
  std::vector<int32_t> maps_;
  std::vector<LaidOut> layouts_;  // matrix, then the small ones if the Program is narrow
};

// The data set: `n` rows. Batch::index and count are filled per step.
template <class T>
struct Data {
  Batch<T> rows;
  int64_t n;
};

struct RunSettings {
  int64_t chains;
  uint32_t first_chain;
  uint64_t seed;
  int32_t mode;        // BatchMode
  int64_t batch_size;  // n for full batches
  int64_t burn_in, thin;
  const double *lr, *localization, *nbeta;  // (chains)
  const float* center;                      // (dim), or (chains, dim) with row stride center_ld
  int64_t center_ld;                        // 0: shared
  const uint8_t* mask;                      // (dim) or null
  const float* frozen;                      // (total - dim)
  const double* baseline;                   // (n) per-sample losses, or null
  SamplerSettings sampler;
};

// Each (chains, draws) with row stride ld; draw k is step burn_in + k thin. Rows of a diverged chain are left
// as they are from the step it diverged at.
struct Trace {
  double *loss, *baseline, *energy, *gauge;  // the last two: StepReport
  int64_t ld;
  // (chains, dim), of w over the draws (core/moments.hpp); or null
  double* mean = nullptr;
  double* scatter = nullptr;
};

// Advances w (chains, dim; row stride w_ld) by `steps` steps from step `first_step`. diverged (chains) holds
// the first step whose loss was not finite, or -1; such a chain stands still. With HMC a step is a trajectory, on
// full batches. With fewer chains than threads, threads share a batch (parts.hpp). Results do not depend on threads, on
// how steps are grouped into calls, or on the other chains.
void run_chains(const CompiledProgram&, const Data<float>&, const RunSettings&, float* w, int64_t w_ld,
                int64_t first_step, int64_t steps, const Trace&, int64_t* diverged, int threads);

}  // namespace dif
