// What an instruction set offers the detector: one step of sixteen channels, the same bits from each set.
#pragma once
#include <cstdint>

#include "core/glr.hpp"

namespace dif {

constexpr int glr_lanes = 16;

// A GlrStep as the kernels read it: no containers.
struct GlrLook {
  GlrModel model;
  bool one_sided;
  double sign;
  int32_t slot;    // of the new block, -1: none
  float weight;    // shared
  float ahead;     // x less the new block's origin
  double at;       // x less the first x
  double weights;  // total
  double mean_x;   // total X / total W, about the first x
  const GlrMerge* merges;
  int64_t merge_count;
  const GlrCandidate* walk;
  int64_t count;           // of the walk
  const GlrBlock* blocks;  // as many, at least
  double x, first_x;       // of the observation, and of the first
};

// Sixteen channels. rows (slots, kinds, 16): S and, but for the mean, Q of each block (mean+variance: sum w y^2).
// totals (2, 16): S, T about the first x. base (2, 16): level at the first x and slope that are taken off each y.
// Channels whose weights or x are their own have besides own (slots, 3, 16): W, X, XX of each block, and
// own_totals (3, 16); X counts observations for mean+variance.
struct GlrPack {
  float* rows;
  double *totals, *base;
  double *own, *own_totals;
};

struct GlrKernels {
  const char* name;
  // value (16) = y less the base at `at`; false if one of them is not finite.
  bool (*prepare)(const GlrPack&, double at, const float* y, float* value);
  // y (16) finite, as prepared. best (16) receives the statistics, peak (16) keeps the largest; returns the largest.
  float (*shared)(const GlrLook&, const GlrPack&, const float* y, float* best, float* peak);
  // w (16) >= 0; at (16): x less the first x. Where w is 0, y is finite and does not matter.
  float (*own)(const GlrLook&, const GlrPack&, const float* y, const double* w, const double* at, float* best,
               float* peak);
};

extern const GlrKernels glr_baseline;
extern const GlrKernels glr_avx2;
extern const GlrKernels glr_avx512;

}  // namespace dif
