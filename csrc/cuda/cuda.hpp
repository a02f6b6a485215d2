// What the CUDA backend offers: launchers. Each takes device addresses, sizes and a stream (a cudaStream_t), starts its
// kernels on that stream of the current device, and returns null or the text of what went wrong. None allocates, waits
// or reads device memory on the host, so all can be captured in a CUDA graph; a step's number and the seed lie in
// device memory, so a replay draws fresh noise once the caller has advanced them there.
//
// A row stride (ld) is in elements; 0 shares one row among the chains. Rows that start at multiples of 16 bytes are
// read four numbers at a time, others one by one: the same bits.
#pragma once
#include <cstdint>
#include <vector>

#include "core/glr.hpp"
#include "core/program.hpp"

namespace dif::cuda {

// The number of devices; if 0, `reason` (a static text) says why.
int device_count(const char** reason);

// Makes a device the current one, and puts the former one back.
struct OnDevice {
  explicit OnDevice(int device);
  ~OnDevice();
  OnDevice(const OnDevice&) = delete;
  const char* error = nullptr;

 private:
  int before_ = -1;
};

// One tensor of a model, for all chains: g (chains, size; row stride ld), its first number being coordinate `first`.
struct Gradient {
  int64_t first, size;
  const float* g;
  int64_t ld;
};

struct Chains {
  float* w;  // (chains, dim), updated in place
  int64_t w_ld;
  const float* center;  // (chains, dim) or (dim)
  int64_t center_ld;
  const uint8_t* mask;  // (chains, dim), (dim) or null: zero keeps a coordinate
  int64_t mask_ld;
  float *first, *second;  // (chains, dim), what a sampler carries beside w, updated in place; or null
  int64_t state_ld;
  int64_t chains;
};

// Noise addresses: chain c draws as chain first_chain + c.
struct Clock {
  const int64_t *seed, *step;  // (1) each
  uint32_t first_chain;
};

// The samplers of core/update.hpp. `coefficients` (chains, n) are their structs' floats in order:
//   sgld            n = 4   nbeta, localization, -lr / 2, sqrt(lr)
//   langevin        n = 6   nbeta, localization, -h, h / 2, keep, noise;          first: momenta
//   preconditioned  n = 9   nbeta, localization, -lr / 2, lr, beta1, 1 - beta1, beta2, 1 - beta2, epsilon;
//                           first, second: running means of g and g^2
enum class Sampler : int32_t { sgld, langevin, preconditioned };
constexpr int coefficient_count[] = {4, 6, 9};

// Sums over a chain's moved coordinates: work (chains) <- sum weight d . (nbeta g); gauge (chains) <- sum weight d . d,
// of langevin sum p . p. Either may be null. partial: doubles, twice `partial_sums`, unless both are null.
struct Statistics {
  double *partial, *work, *gauge;
};
int64_t partial_sums(const Gradient* gradients, int64_t count, int64_t chains);

// One step of every chain. The tensors must not overlap. Same bits as the CPU's step.
const char* sampler_step(Sampler, const Chains&, const Gradient* gradients, int64_t count, const float* coefficients,
                         const Clock&, bool noise, const Statistics&, void* stream);

// A thermostat's turn between two steps of langevin, for each chain (core/update.hpp):
//   zeta <- zeta + (gauge / moving - 1) / inertia;  keep and noise of the chain's coefficients follow
// gauge, friction, zeta (chains); moving: coordinates that the mask moves. Same bits as the CPU's engine.
const char* thermostat(const double* gauge, int64_t moving, const double* friction, double inertia, double* zeta,
                       float* coefficients, int64_t chains, void* stream);

// out (chains, size; row stride ld) <- numbers whose address is (seed; coordinate, first_chain + row, step,
// stream_number). signs: 1 or -1, the sign being the word's highest bit. words: Philox words, their bits in the floats'
// place.
enum class Noise : int32_t { normals, signs, words };
const char* fill_noise(Noise, float* out, int64_t chains, int64_t size, int64_t ld, uint32_t stream_number,
                       const Clock&, void* stream);

// Many channels on one grid of candidate times (core/glr.hpp), weights and x shared by all. The host plans (GlrGrid,
// which no observation enters) and the device follows.
struct GlrChannels {
  int64_t channels;
  float* rows;              // (slots, kinds, channels): S and, but for the mean, Q of each block; kinds 1 for the mean
  double *totals, *base;    // (2, channels) each: S, T; level and slope that are taken off, NaN at first
  float *statistic, *peak;  // (channels): after the last step; the largest since the caller cleared it
  // Where channels may miss observations or have weights of their own, else null:
  double *own, *own_totals;  // (slots, 3, channels) and (3, channels): sums of a channel's weights
  int32_t* is_own;           // (channels): 0 at first; sixteen neighbors turn together
};

// A plan of many steps in one piece of memory that glr_follow reads on the device. `before`: the grid's blocks and
// total when the first step begins, if channels may have weights of their own; else null.
std::vector<unsigned char> glr_pack(const std::vector<GlrStep>& steps, const GlrStep* before);

// y (steps, channels; row stride ld), weights (steps, channels) or null for the plan's. An observation is missing where
// y is not finite or its weight not positive; without `own` sums such a channel's statistic is NaN from there on. side:
// 0 or the sign of the changes. mean, kink and jump+kink only. Same bits as the CPU's detector, if the plan's weight is
// 0 where all channels miss an observation.
const char* glr_follow(GlrModel, int side, const GlrChannels&, const void* plan, int64_t steps, const float* y,
                       int64_t ld, const double* weights, void* stream);

// squares (candidates of the plan's last step, channels) <- their statistics, youngest first; 0 where there is none.
const char* glr_squares(GlrModel, int side, const GlrChannels&, const void* plan, int64_t steps, int64_t candidates,
                        float* squares, void* stream);

// Sums over groups of channels, for each row of squares (rows, channels): members (channels) lists the channels group
// by group, group g from start[g] to start[g + 1]. largest, total, mixture (rows, groups): max z, sum z and sum log(1 -
// p + p sqrt(1 - g) exp(g z / 2)) over the m members, p = (m + 1)^(-1/2), g = 0.9.
struct GlrGroups {
  int64_t groups;
  const int64_t *members, *start;
};
const char* glr_reduce(const GlrGroups&, const float* squares, int64_t rows, int64_t channels, double* largest,
                       double* total, double* mixture, void* stream);

// Running moments: w (chains, dim; row stride w_ld), mean and scatter (chains, dim; row stride ld) updated in place.
struct Moments {
  const float* w;
  int64_t w_ld;
  double *mean, *scatter;
  int64_t ld, chains, dim;
};
// draws (1): how many there are with this one.
const char* add_draws(const Moments&, const int64_t* draws, void* stream);

// A layer out = W x + b at `positions` places of each sample: x (samples, positions, inputs), d (samples, positions,
// outputs) the gradient of each sample's loss by out, both dense. bias: whether b counts.
struct GramLayer {
  const float *x, *d;
  int64_t samples, positions, inputs, outputs;
  bool bias;
};
// gram (samples, samples; row stride ld) <- gram + the layer's products of per-sample gradients.
const char* add_gram(const GramLayer&, double* gram, int64_t ld, void* stream);

// An orthonormal basis for each chain: q (chains, vectors, dim), vector j of chain c at q + c chain_ld + j ld.
struct Basis {
  const float* q;
  int64_t chain_ld, ld, chains, vectors, dim;
};
// What the projections onto a basis leave behind, from one vector to the next.
struct Projection {
  double* partial;  // `orthogonalize_partial` doubles, whatever they are
  double* gram;     // (chains, ., .): products of the vectors; a call writes the row and column of the last
  int64_t gram_ld, gram_chain_ld;
  double* coefficients;  // (chains, vectors), of both passes together
};
int64_t orthogonalize_partial(int64_t chains, int64_t vectors, int64_t dim);
// v (chains, dim; row stride v_ld) <- v less its part in the basis, by two passes of Gram-Schmidt. The rows of gram of
// all vectors but the last must be there. With `normalize`, the bits of the CPU's Gram-Schmidt.
const char* orthogonalize(const Basis&, float* v, int64_t v_ld, const Projection&, void* stream);
// After `orthogonalize`: next (chains, dim; row stride next_ld; or null) <- v / |v|, 0 where |v| is; beta (chains) <-
// |v|; alpha (chains) <- the last coefficient, the diagonal of Lanczos if v came from the last vector.
const char* normalize(const Basis&, const float* v, int64_t v_ld, const Projection&, float* next, int64_t next_ld,
                      double* alpha, double* beta, void* stream);

// A Program of narrow layers, laid out in a block's shared memory. Rows are of values (row, stride samples); other
// places are in floats from the beginning of the pool.
struct ResidentOp {
  int32_t kind, activation, transposed, height, inner;  // height: columns of out; inner: of a
  int32_t a, b, out, a_d, b_d, out_d;                   // first rows of values and of their gradients, or -1
  int32_t add_a, add_b;                                 // the gradient joins one already there
  int32_t apart;                                        // of a tied pair: this use of the weight adds up by itself
  int64_t weight, bias, first;
  float factor;
};
constexpr size_t resident_ops = 24;
constexpr int64_t resident_shared = 227 * 1024 - 1024;  // bytes of the largest block, on 9.0 and 10.0; launchers ask
struct ResidentPlan {
  int32_t count, loss_kind, prediction, prediction_d, width, tied;
  int64_t importance, dim, total, stride;
  int64_t w_at, g_at, acc_at, index_at, loss_at, values_at, shared_bytes;
  double loss_factor;
  ResidentOp ops[resident_ops];
};
// Null, or why this Program with these batches does not run so.
const char* plan_resident(const std::vector<ProgramValue>&, const std::vector<ProgramOp>&, const ProgramLoss&,
                          int64_t dim, int64_t total, int64_t batch, ResidentPlan&);

struct ResidentData {
  const float *x, *y;      // (n, x_size), (n, y_size)
  const int32_t* classes;  // (n, class_size), or null
  int64_t x_size, y_size, class_size, n;
};
// SGLD of every chain on batches of its own (drawn with replacement), or on all samples. Recorded with a draw: energy
// sum d . (nbeta g), and gauge, the virial nbeta sum (w - center) . g before the step.
struct ResidentRun {
  float* w;  // (chains, dim; row stride w_ld), updated in place
  int64_t w_ld, chains, batch;
  bool full;
  const float* coefficients;  // (chains, 4) of sgld
  const double* nbeta;        // (chains)
  const float* center;        // (dim), or (chains, dim)
  int64_t center_ld;
  const uint8_t* mask;                        // (dim) or null
  const float* frozen;                        // (total - dim)
  const double* baseline;                     // (n) per-sample losses, or null
  int64_t burn_in, thin;                      // draw k is step burn_in + k thin
  double *loss, *baselines, *energy, *gauge;  // (chains, draws; row stride trace_ld)
  int64_t trace_ld;
  int64_t* diverged;  // (chains): -1, or the first step whose loss was not finite; such a chain stands still
};
// Advances every chain by `steps` steps from step clock.step. Same bits as the CPU's engine.
const char* run_resident(const ResidentPlan&, const ResidentData&, const ResidentRun&, const Clock&, int64_t steps,
                         void* stream);

// Products with the Hessian of such a Program's mean loss, by the R-operator: `tile` samples and `group` probes of one
// checkpoint at a time in a block's shared memory. `values` lays out values and gradients, whose rows (of tile + 1
// floats) the tangents of each probe repeat; bent: first row of act''(z) dy of each operation, or -1.
struct ResidentProducts {
  ResidentPlan values;
  int32_t rows, tile, group, loss_d;  // loss_d: first row of a kept gradient by the prediction, behind `rows`; or -1
  int32_t bent[resident_ops];
  int64_t v_at, out_at, tangents_at;
};
const char* plan_products(const std::vector<ProgramValue>&, const std::vector<ProgramOp>&, const ProgramLoss&,
                          int64_t dim, int64_t total, ResidentProducts&);
// Parts that the n samples are summed in: a function of the plan and n alone.
int64_t product_segments(const ResidentProducts&, int64_t n);

struct ProductArrays {
  const float* w;  // (checkpoints, dim; row stride w_ld)
  int64_t w_ld;
  const float* frozen;   // (total - dim)
  const float* v;        // (checkpoints, probes, dim)
  float *out, *partial;  // out alike, not overlapping v; partial (segments, ...) alike, null for one segment
  int64_t checkpoints, probes;
};
// out = H v. Same bits as the CPU's Curvature where one tile holds all samples; beyond, that differs by the place where
// its blocks end, so by rounding.
const char* resident_products(const ResidentProducts&, const ResidentData&, const ProductArrays&, void* stream);

}  // namespace dif::cuda
