// Many channels on one grid of candidate times: memory, threads, alarms and restarts around the kernels.
#pragma once
#include <cstdint>
#include <new>
#include <vector>

#include "cpu/glr_isa.hpp"

namespace dif {

// Whole cache lines: a register of channels never straddles two.
template <class T>
struct LineAllocator {
  using value_type = T;
  LineAllocator() = default;
  template <class U>
  LineAllocator(const LineAllocator<U>&) {}
  T* allocate(std::size_t n) { return static_cast<T*>(::operator new(n * sizeof(T), std::align_val_t{64})); }
  void deallocate(T* p, std::size_t) { ::operator delete(p, std::align_val_t{64}); }
  bool operator==(const LineAllocator&) const { return true; }
  bool operator!=(const LineAllocator&) const { return false; }
};
template <class T>
using Lines = std::vector<T, LineAllocator<T>>;

struct GlrSettings {
  int64_t channels;
  GlrModel model;
  int per_octave;
  int side;          // 0 both, +1 rises, -1 falls (mean and kink)
  double threshold;  // of one channel's statistic; infinity: never
  double drop;       // the interval holds the candidates within this of the largest statistic
  bool restart;      // of the channel, at its estimated change
};

struct GlrAlarm {
  int64_t n, channel;  // alarm after observation n (1-based)
  double statistic;
  int64_t tau, low, high;  // the change follows observation tau; low, high: its interval
  double x, x_low, x_high;
  int direction;
};

// One candidate of one channel: what `profile` lists.
struct GlrPoint {
  int64_t tau;
  double x, statistic;
  int direction;
};

class GlrDetector {
 public:
  explicit GlrDetector(const GlrSettings&);

  // Steps x (steps) with y (steps, channels; row stride ld), of type float. w: null (all 1), shared (steps), or of each
  // channel (steps, channels) dense; own_x (steps, channels) dense or null: the coordinate of a whitened regressor.
  // A y that is not finite, or a w that is not positive and finite, is a missing observation. Results do not depend on
  // `threads`.
  std::vector<GlrAlarm> update(const double* x, int64_t steps, const float* y, int64_t ld, const double* w,
                               bool shared_w, const double* own_x, int threads);
  // All candidates of a channel, youngest first.
  std::vector<GlrPoint> profile(int64_t channel) const;
  // Statistics of the candidates that the last step looked at, youngest first: (candidates, channels).
  std::vector<float> squares() const;
  // Forgets what lies before the candidate tau, in one channel.
  void restart(int64_t channel, int64_t tau);

  GlrSettings settings;
  GlrGrid grid;
  Lines<float> statistic, peak;  // (tiles, 16): after the last step; largest of the last update
  int64_t bytes() const;

  // The channels' sums, as `state` and `load` copy them.
  struct Tile {
    Lines<float> rows;
    Lines<double> totals, base, own, own_totals;  // base: NaN before the first observation
    bool is_own() const { return !own_totals.empty(); }
  };
  std::vector<Tile> tiles;

 private:
  void run(int64_t tile, const std::vector<GlrStep>& steps, const float* y, int64_t ld, const double* w, bool shared_w,
           const double* own_x, std::vector<GlrAlarm>& alarms);
  void fetch(const Tile&, const std::vector<GlrCandidate>& walk, const float* y, int64_t ld, int64_t steps) const;
  void alarm_and_restart(Tile&, int64_t tile, const GlrStep&, std::vector<GlrAlarm>& alarms);
  void make_own(Tile&, const std::vector<GlrBlock>& blocks, const GlrMoments& total) const;
  void rebase(Tile&, const GlrStep&) const;
  std::vector<GlrPoint> profile(const Tile&, int lane, const std::vector<GlrBlock>& blocks, GlrMoments total,
                                double x) const;
  void forget(Tile&, int lane, int64_t tau, const std::vector<GlrBlock>& blocks) const;
  void grow(Tile&) const;
  int kinds() const { return settings.model == GlrModel::mean ? 1 : 2; }
};

}  // namespace dif
