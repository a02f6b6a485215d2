// The change-point detector: every thread follows the host's plan for one channel.
#include <cstring>

#include "core/glr.hpp"
#include "core/math.hpp"
#include "cuda/cuda.hpp"
#include "cuda/glr_own.cuh"
#include "cuda/lanes.cuh"
#include "cuda/launch.cuh"

namespace dif::cuda {

using L = ThreadLane;
constexpr int threads = 128;
constexpr int neighbors = 16;  // channels that take up weights of their own together, as the CPU's tiles do

// One step of a plan; its lists lie so many bytes after the plan's beginning. `blocks` are there after the step,
// `before` when it begins: both for channels with weights of their own, else blocks only where the step rebases.
struct PlannedStep {
  int64_t merges, walk, blocks, before;
  int64_t merge_count, walk_count, block_count, before_count;
  GlrMoments total, total_before;
  double at, mean_x, first_x, x, shared_weight;
  float weight, ahead;
  int32_t slot;
  int32_t rebase;
};

std::vector<unsigned char> glr_pack(const std::vector<GlrStep>& steps, const GlrStep* before) {
  std::vector<unsigned char> plan(steps.size() * sizeof(PlannedStep));
  const auto append = [&](const auto& list) {
    const auto at = static_cast<int64_t>(plan.size());
    const size_t bytes = list.size() * sizeof(list[0]);
    plan.resize(plan.size() + (bytes + 15) / 16 * 16);
    if (bytes > 0) std::memcpy(plan.data() + at, list.data(), bytes);
    return at;
  };
  plan.resize((plan.size() + 15) / 16 * 16);
  int64_t blocks_before = before ? append(before->blocks) : 0;
  for (size_t i = 0; i < steps.size(); ++i) {
    const GlrStep& s = steps[i];
    PlannedStep p{};
    const bool lists = before || s.rebase;
    if (before) {
      const GlrStep& last = i > 0 ? steps[i - 1] : *before;
      p.before = blocks_before;
      p.before_count = static_cast<int64_t>(last.blocks.size());
      p.total_before = last.total;
    }
    p.merges = append(s.merges);
    p.walk = append(s.walk);
    if (lists) blocks_before = p.blocks = append(s.blocks);
    p.merge_count = static_cast<int64_t>(s.merges.size());
    p.walk_count = static_cast<int64_t>(s.walk.size());
    p.block_count = lists ? static_cast<int64_t>(s.blocks.size()) : 0;
    p.total = s.total;
    p.at = s.x - s.first_x;
    p.mean_x = s.total.w > 0 ? s.total.x / s.total.w : 0;
    p.first_x = s.first_x;
    p.x = s.x;
    p.shared_weight = s.weight;
    p.weight = static_cast<float>(s.weight);
    p.ahead = static_cast<float>(s.x - s.origin);
    p.slot = s.slot;
    p.rebase = s.rebase ? 1 : 0;
    std::memcpy(plan.data() + i * sizeof(PlannedStep), &p, sizeof p);
  }
  return plan;
}

// One channel's numbers: element i of an array at p[i * stride].
struct Channel {
  float* rows;
  int64_t stride;
  double S, T, level, slope;
};

template <GlrModel model>
DIF_INLINE void merge(const GlrMerge& m, const Channel& c) {
  constexpr int kinds = glr_kinds<model>;
  const float* from = c.rows + static_cast<int64_t>(m.from) * kinds * c.stride;
  float* to = c.rows + static_cast<int64_t>(m.to) * kinds * c.stride;
  const float s = from[0];
  if (kinds == 2) {
    to[c.stride] = L::add(to[c.stride], L::fma(static_cast<float>(m.delta), s, from[c.stride]));
  }
  to[0] = L::add(to[0], s);
}

// Takes the baseline that fits everything so far off all sums.
template <GlrModel model>
DIF_INLINE void rebase(const PlannedStep& step, const GlrBlock* blocks, Channel& c, bool is_own,
                       const OwnWeights& own) {
  constexpr int kinds = glr_kinds<model>;
  const GlrMoments t = is_own ? own.total() : step.total;
  if (!(t.w > 0)) return;
  const double mean_x = t.x / t.w, sxx = t.xx - product(t.x, mean_x);
  const double b = kinds == 2 && sxx > product(glr_least, t.xx) ? (c.T - product(mean_x, c.S)) / sxx : 0;
  const double a = c.S / t.w - product(b, mean_x);
  c.S -= product(a, t.w) + product(b, t.x);
  c.T -= product(a, t.x) + product(b, t.xx);
  c.level += a;
  c.slope += b;
  for (int64_t i = 0; i < step.block_count; ++i) {
    const GlrBlock& block = blocks[i];
    float* row = c.rows + static_cast<int64_t>(block.slot) * kinds * c.stride;
    const GlrMoments m = is_own ? own.moments(block.slot) : block.moments;
    const double d = a + product(b, block.origin - step.first_x);
    row[0] = static_cast<float>(static_cast<double>(row[0]) - product(d, m.w) - product(b, m.x));
    if (kinds == 2) {
      row[c.stride] = static_cast<float>(static_cast<double>(row[c.stride]) - product(d, m.x) - product(b, m.xx));
    }
  }
}

// One step of a channel whose weights all share.
template <GlrModel model>
DIF_INLINE float shared_step(const PlannedStep& step, const unsigned char* plan, float value, bool one_sided,
                             Channel& c) {
  constexpr int kinds = glr_kinds<model>;
  const float weighted = L::mul(step.weight, value);
  const double wy = static_cast<double>(weighted);
  c.S += wy;
  if (kinds == 2) c.T += product(step.at, wy);
  if (step.slot >= 0) {
    float* row = c.rows + static_cast<int64_t>(step.slot) * kinds * c.stride;
    row[0] = weighted;
    if (kinds == 2) row[c.stride] = L::mul(step.ahead, weighted);
  }
  const auto* merges = reinterpret_cast<const GlrMerge*>(plan + step.merges);
  for (int64_t i = 0; i < step.merge_count; ++i) merge<model>(merges[i], c);
  const float trend = kinds == 2 ? static_cast<float>(c.T - product(step.mean_x, c.S)) : 0.0f;
  return glr_walk<L, model>(reinterpret_cast<const GlrCandidate*>(plan + step.walk), step.walk_count, c.rows,
                            static_cast<float>(c.S), trend, one_sided, c.stride);
}

// The same with the channel's own weight w.
template <GlrModel model>
DIF_INLINE float own_step(const PlannedStep& step, const unsigned char* plan, float value, double w, int side,
                          Channel& c, const OwnWeights& own) {
  constexpr int kinds = glr_kinds<model>;
  const double wy = product(w, static_cast<double>(value));
  if (step.slot >= 0) {
    const double x = step.at - (step.at - static_cast<double>(step.ahead));
    own_block<model>(step.slot, w, x, wy, c.rows + static_cast<int64_t>(step.slot) * kinds * c.stride, own);
  }
  c.S += wy;
  c.T += product(step.at, wy);
  own_totals<model>(step.at, w, own);
  const auto* merges = reinterpret_cast<const GlrMerge*>(plan + step.merges);
  for (int64_t i = 0; i < step.merge_count; ++i) {
    merge<model>(merges[i], c);
    own_merge<model>(merges[i], own);
  }
  float best = 0.0f;
  own_walk<model>(reinterpret_cast<const GlrBlock*>(plan + step.blocks), step.walk_count, step.x, step.first_x, c.rows,
                  own, c.S, c.T, side, [&](int64_t, float square) { best = square > best ? square : best; });
  return best;
}

DIF_INLINE bool finite(double x) { return x - x == 0.0; }

// Blocks at once say how many registers there are: left alone, the compiler spills to save some.
// weights (steps, channels) or null. Without `own`, a channel that misses an observation is NaN from there on.
template <GlrModel model, bool own>
__global__ void __launch_bounds__(threads, own ? 4 : 9)
    glr_kernel(GlrChannels all, const unsigned char* plan, int64_t steps, const float* y, int64_t ld,
               const double* weights, int side) {
  const int64_t index = static_cast<int64_t>(blockIdx.x) * threads + threadIdx.x, n = all.channels;
  const bool here = index < n;
  if (!own && !here) return;
  const int64_t at = here ? index : 0;
  Channel c{all.rows + at, n, 0.0, 0.0, 0.0, 0.0};
  const OwnWeights mine{all.own + at, all.own_totals + at, n};
  float best = 0.0f, peak = 0.0f;
  bool is_own = false;
  if (here) {  // others vote, and touch nobody's channel
    c.S = all.totals[index], c.T = all.totals[n + index];
    c.level = all.base[index], c.slope = all.base[n + index];
    best = all.statistic[index], peak = all.peak[index];
    is_own = own && all.is_own[index] != 0;
  }
  for (int64_t t = 0; t < steps; ++t) {
    const PlannedStep& step = reinterpret_cast<const PlannedStep*>(plan)[t];
    const float observed = y[t * ld + at];
    double weight = weights ? weights[t * n + at] : step.shared_weight;
    const bool seen = !own || (finite(static_cast<double>(observed)) && weight > 0 && finite(weight));
    if (seen && c.level != c.level) c.level = static_cast<double>(observed);  // the first observation
    float value = static_cast<float>(static_cast<double>(observed) - (c.level + product(c.slope, step.at)));
    if (own) {
      if (!seen) weight = value = 0.0f;
      const unsigned others = __ballot_sync(all_lanes, here && weight != step.shared_weight);
      const unsigned together = 0xffffu << (threadIdx.x % warp / neighbors * neighbors);
      if (!here) continue;
      if (!is_own && (others & together) != 0) {
        is_own = true;
        mine.start(reinterpret_cast<const GlrBlock*>(plan + step.before), step.before_count, step.total_before);
      }
    } else if (!(value - value == 0.0f)) {
      c.S = __builtin_nan("");
    }
    best = is_own ? own_step<model>(step, plan, value, weight, side, c, mine)
                  : shared_step<model>(step, plan, value, side != 0, c);
    if (c.S != c.S) best = static_cast<float>(c.S);
    peak = L::max(peak, best);
    if (step.rebase) {
      rebase<model>(step, reinterpret_cast<const GlrBlock*>(plan + step.blocks), c, is_own, mine);
    }
  }
  if (!here) return;
  all.totals[index] = c.S;
  all.totals[n + index] = c.T;
  all.base[index] = c.level;
  all.base[n + index] = c.slope;
  all.statistic[index] = best;
  all.peak[index] = peak;
  if (own) all.is_own[index] = is_own ? 1 : 0;
}

template <GlrModel model>
__global__ void __launch_bounds__(threads)
    squares_kernel(GlrChannels all, const unsigned char* plan, int64_t steps, int side, float* squares) {
  constexpr int kinds = glr_kinds<model>;
  const int64_t index = static_cast<int64_t>(blockIdx.x) * threads + threadIdx.x, n = all.channels;
  if (index >= n) return;
  const PlannedStep& step = reinterpret_cast<const PlannedStep*>(plan)[steps - 1];
  const auto* walk = reinterpret_cast<const GlrCandidate*>(plan + step.walk);
  const double S = all.totals[index], T = all.totals[n + index];
  if (all.is_own && all.is_own[index]) {
    const OwnWeights mine{all.own + index, all.own_totals + index, n};
    own_walk<model>(reinterpret_cast<const GlrBlock*>(plan + step.blocks), step.walk_count, step.x, step.first_x,
                    all.rows + index, mine, S, T, side,
                    [&](int64_t i, float square) { squares[i * n + index] = square; });
    return;
  }
  const float trend = kinds == 2 ? static_cast<float>(T - product(step.mean_x, S)) : 0.0f;
  float s = 0.0f, hy = 0.0f;
  for (int64_t i = 0; i < step.walk_count; ++i) {
    const float* row = all.rows + index + static_cast<int64_t>(walk[i].slot) * kinds * n;
    const float square = glr_candidate<L, model>(walk[i], row, n, static_cast<float>(S), trend, side != 0, s, hy);
    squares[i * n + index] = S != S ? static_cast<float>(S) : square;
  }
}

// log(1 - p + p sqrt(1 - g) exp(g z / 2)) without overflow: the larger exponent is taken out.
DIF_INLINE float gain(float z, float log_rest, float log_share) {
  const float x = L::fma(0.45f, z, log_share), top = L::max(x, log_rest), low = L::min(x, log_rest);
  return L::add(top, log<L>(L::add(1.0f, exp<L>(L::sub(low, top)))));
}

// A warp for each row and group; lane i takes members i, i + 32, ..., the lanes' sums are added in their order.
__global__ void __launch_bounds__(warp) reduce_kernel(GlrGroups groups, const float* squares, int64_t channels,
                                                      double* largest, double* total, double* mixture) {
  const int64_t out = blockIdx.x, row = out / groups.groups, group = out % groups.groups;
  const int64_t first = groups.start[group], end = groups.start[group + 1];
  const double share = 1.0 / sqrt(static_cast<double>(end - first + 1));
  const float log_rest = log<L>(static_cast<float>(1.0 - share));
  const float log_share = log<L>(static_cast<float>(product(share, sqrt(0.1))));
  double sum = 0.0, gains = 0.0;
  float top = 0.0f;
  for (int64_t i = first + threadIdx.x; i < end; i += warp) {
    const float z = squares[row * channels + groups.members[i]];
    top = L::max(z, top);
    sum += static_cast<double>(z);
    gains += static_cast<double>(gain(z, log_rest, log_share));
  }
  double all = 0.0, all_gains = 0.0;
  for (int lane = 0; lane < warp; ++lane) {
    all += __shfl_sync(all_lanes, sum, lane);
    all_gains += __shfl_sync(all_lanes, gains, lane);
    top = L::max(top, __shfl_sync(all_lanes, top, lane));
  }
  if (threadIdx.x == 0) {
    largest[out] = static_cast<double>(top);
    total[out] = all;
    mixture[out] = all_gains;
  }
}

constexpr const char* unknown_model = "model: expected mean, kink or jump+kink";

template <bool own>
static auto follower(GlrModel model) {
  return model == GlrModel::mean   ? glr_kernel<GlrModel::mean, own>
         : model == GlrModel::kink ? glr_kernel<GlrModel::kink, own>
                                   : glr_kernel<GlrModel::jump_kink, own>;
}

const char* glr_follow(GlrModel model, int side, const GlrChannels& all, const void* plan, int64_t steps,
                       const float* y, int64_t ld, const double* weights, void* stream) {
  if (all.channels <= 0 || steps <= 0) return nullptr;
  const auto* bytes = static_cast<const unsigned char*>(plan);
  const auto blocks = static_cast<unsigned>((all.channels + threads - 1) / threads);
  if (model == GlrModel::mean_variance) return unknown_model;
  const auto kernel = all.own ? follower<true>(model) : follower<false>(model);
  DIF_LAUNCH(kernel, blocks, threads, 0, stream, all, bytes, steps, y, ld, weights, side);
  return launched();
}

const char* glr_squares(GlrModel model, int side, const GlrChannels& all, const void* plan, int64_t steps,
                        int64_t candidates, float* squares, void* stream) {
  if (all.channels <= 0 || steps <= 0 || candidates <= 0) return nullptr;
  const auto* bytes = static_cast<const unsigned char*>(plan);
  const auto blocks = static_cast<unsigned>((all.channels + threads - 1) / threads);
  const auto kernel = model == GlrModel::mean   ? squares_kernel<GlrModel::mean>
                      : model == GlrModel::kink ? squares_kernel<GlrModel::kink>
                                                : squares_kernel<GlrModel::jump_kink>;
  if (model == GlrModel::mean_variance) return unknown_model;
  DIF_LAUNCH(kernel, blocks, threads, 0, stream, all, bytes, steps, side, squares);
  return launched();
}

const char* glr_reduce(const GlrGroups& groups, const float* squares, int64_t rows, int64_t channels, double* largest,
                       double* total, double* mixture, void* stream) {
  if (rows * groups.groups <= 0) return nullptr;
  if (rows * groups.groups > most_blocks) return too_many_blocks;
  DIF_LAUNCH(reduce_kernel, static_cast<unsigned>(rows * groups.groups), warp, 0, stream, groups, squares, channels,
             largest, total, mixture);
  return launched();
}

}  // namespace dif::cuda
