#include "cpu/glr.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

#include "cpu/in_use.hpp"
#include "cpu/kernels.hpp"
#include "cpu/parallel.hpp"

namespace dif {
namespace {

constexpr int N = glr_lanes;
constexpr int64_t chunk = 128;  // steps that one tile takes while its sums lie in the nearest cache

const GlrKernels& glr_kernels() { return DIF_IN_USE(glr); }

bool usable(double w) { return w > 0 && std::isfinite(w); }

// The statistic of one candidate from sums in double, and the sign of the change.
GlrPoint judge(GlrModel model, int side, const GlrMoments& total, double S, double T, const GlrSuffix& e, double at) {
  GlrPoint point{0, 0, 0, 0};
  const double w = total.w, before = w - e.w;
  if (!(e.w > glr_least * w && before > glr_least * w)) return point;
  const double a = S / w, jump = e.s - a * e.w;
  point.direction = jump < 0 ? -1 : 1;
  if (model == GlrModel::mean) {
    point.statistic = jump * jump * w / (e.w * before);
  } else if (model == GlrModel::mean_variance) {
    const double n = total.x, n2 = e.h, n1 = n - n2;
    if (n1 < 5 || n2 < 5) return point;
    const auto log_v = [](double squares, double sum, double weight, double count) {
      return std::log(std::max((squares - sum * sum / weight) / count, 1e-30));
    };
    point.statistic =
        n * log_v(T, S, w, n) - n1 * log_v(T - e.hy, S - e.s, before, n1) - n2 * log_v(e.hy, e.s, e.w, n2);
  } else {
    const double mean_x = total.x / w, sxx = total.xx - total.x * mean_x;
    if (!(sxx > 0)) return point;
    const double b = (T - mean_x * S) / sxx, dx = at - mean_x, hx = e.hh + dx * e.h;
    const double square = e.hh - e.h * e.h / w - hx * hx / sxx, d = e.hy - a * e.h - b * hx;
    if (!(square > glr_least * e.hh)) return point;
    point.direction = d < 0 ? -1 : 1;
    point.statistic = d * d / square;
    if (model == GlrModel::jump_kink) {
      const double ux = e.h + dx * e.w, g = e.w - e.w * e.w / w - ux * ux / sxx;
      const double share = (e.h - e.w * e.h / w - ux * hx / sxx) / g, rest = square - share * share * g;
      const double d1 = jump - b * ux, d2 = d - share * d1;
      const bool told = g > glr_least * e.w && rest > glr_least * e.hh;
      point.statistic = told ? d1 * d1 / g + d2 * d2 / rest : 0;
      point.direction = d1 < 0 ? -1 : 1;
    }
  }
  if (side * point.direction < 0) point.statistic = 0;
  return point;
}

}  // namespace

GlrDetector::GlrDetector(const GlrSettings& s)
    : settings(s), grid(s.model, s.per_octave, s.side), tiles(static_cast<size_t>((s.channels + N - 1) / N)) {
  statistic.resize(tiles.size() * N);
  peak.resize(tiles.size() * N);
  for (Tile& tile : tiles) {
    tile.base.assign(2 * N, 0.0);
    std::fill_n(tile.base.data(), N, std::numeric_limits<double>::quiet_NaN());
    tile.totals.assign(2 * N, 0.0);
    if (s.model == GlrModel::mean_variance) make_own(tile, {}, {});
  }
}

int64_t GlrDetector::bytes() const {
  size_t total = 0;
  for (const Tile& t : tiles) {
    total += 4 * t.rows.capacity() + 8 * (t.totals.size() + t.base.size() + t.own.capacity() + t.own_totals.size());
  }
  return static_cast<int64_t>(total + 8 * statistic.size());
}

void GlrDetector::grow(Tile& tile) const {
  const size_t rows = static_cast<size_t>(grid.slots) * static_cast<size_t>(kinds() * N);
  if (tile.rows.size() < rows) {
    tile.rows.reserve(rows);  // exactly: a slot more is needed only when a level is added
    tile.rows.resize(rows);
  }
  const size_t own = static_cast<size_t>(grid.slots) * 3 * N;
  if (tile.is_own() && tile.own.size() < own) {
    tile.own.reserve(own);
    tile.own.resize(own);
  }
}

void GlrDetector::make_own(Tile& tile, const std::vector<GlrBlock>& blocks, const GlrMoments& total) const {
  if (tile.is_own()) return;
  tile.own_totals.resize(3 * N);
  std::fill_n(tile.own_totals.data(), N, total.w);
  std::fill_n(tile.own_totals.data() + N, N, total.x);
  std::fill_n(tile.own_totals.data() + 2 * N, N, total.xx);
  grow(tile);
  for (const GlrBlock& b : blocks) {
    double* own = tile.own.data() + static_cast<int64_t>(b.slot) * 3 * N;
    std::fill_n(own, N, b.moments.w);
    std::fill_n(own + N, N, b.moments.x);
    std::fill_n(own + 2 * N, N, b.moments.xx);
  }
}

// Takes the baseline that fits everything so far off all sums; no statistic changes but by rounding.
void GlrDetector::rebase(Tile& tile, const GlrStep& step) const {
  const bool slopes = settings.model == GlrModel::kink || settings.model == GlrModel::jump_kink;
  const bool variance = settings.model == GlrModel::mean_variance;
  for (int i = 0; i < N; ++i) {
    double &S = tile.totals[i], &T = tile.totals[N + i];
    GlrMoments total = step.total;
    if (tile.is_own()) total = {tile.own_totals[i], tile.own_totals[N + i], tile.own_totals[2 * N + i]};
    if (!(total.w > 0)) continue;
    const double mean_x = total.x / total.w, sxx = total.xx - total.x * mean_x;
    const double b = slopes && sxx > glr_least * total.xx ? (T - mean_x * S) / sxx : 0, a = S / total.w - b * mean_x;
    if (variance) {
      T += a * (a * total.w - 2 * S);
      S -= a * total.w;
    } else {
      S -= a * total.w + b * total.x;
      T -= a * total.x + b * total.xx;
    }
    tile.base[i] += a;
    tile.base[N + i] += b;
    for (const GlrBlock& block : step.blocks) {
      float* row = tile.rows.data() + static_cast<int64_t>(block.slot) * kinds() * N + i;
      GlrMoments m = block.moments;
      if (tile.is_own()) {
        const double* own = tile.own.data() + static_cast<int64_t>(block.slot) * 3 * N + i;
        m = {own[0], own[N], own[2 * N]};
      }
      const double c = a + b * (block.origin - step.first_x), s = static_cast<double>(row[0]);
      row[0] = static_cast<float>(s - c * m.w - b * m.x);
      if (variance) row[N] = static_cast<float>(static_cast<double>(row[N]) + a * (a * m.w - 2 * s));
      if (slopes) row[N] = static_cast<float>(static_cast<double>(row[N]) - c * m.x - b * m.xx);
    }
  }
}

std::vector<GlrPoint> GlrDetector::profile(const Tile& tile, int lane, const std::vector<GlrBlock>& blocks,
                                           GlrMoments total, double x) const {
  const bool slopes = settings.model == GlrModel::kink || settings.model == GlrModel::jump_kink;
  double S = tile.totals[lane], T = tile.totals[N + lane];
  if (tile.is_own()) total = {tile.own_totals[lane], tile.own_totals[N + lane], tile.own_totals[2 * N + lane]};
  std::vector<GlrPoint> points;
  points.reserve(blocks.size());
  GlrSuffix suffix;
  for (const GlrBlock& b : blocks) {
    const float* row = tile.rows.data() + static_cast<int64_t>(b.slot) * kinds() * N + lane;
    GlrMoments m = b.moments;
    if (tile.is_own()) {
      const double* own = tile.own.data() + static_cast<int64_t>(b.slot) * 3 * N + lane;
      m = {own[0], own[N], own[2 * N]};
    }
    suffix.append(m, row[0], kinds() == 2 ? row[N] : 0.0F, slopes ? x - b.origin : 0);
    x = b.origin;
    GlrPoint point = judge(settings.model, settings.side, total, S, T, suffix, b.origin - grid.first_x);
    point.tau = b.tau;
    point.x = b.origin;
    points.push_back(point);
  }
  return points;
}

void GlrDetector::forget(Tile& tile, int lane, int64_t tau, const std::vector<GlrBlock>& blocks) const {
  const bool slopes = settings.model == GlrModel::kink || settings.model == GlrModel::jump_kink;
  double totals[5] = {};
  for (const GlrBlock& b : blocks) {
    float* row = tile.rows.data() + static_cast<int64_t>(b.slot) * kinds() * N + lane;
    double* own = tile.own.data() + static_cast<int64_t>(b.slot) * 3 * N + lane;
    if (b.tau < tau) {
      for (int k = 0; k < kinds(); ++k) row[k * N] = 0;
      for (int k = 0; k < 3; ++k) own[k * N] = 0;
      continue;
    }
    const double at = slopes ? b.origin - grid.first_x : 0, s = row[0];
    totals[0] += s;
    totals[1] += settings.model == GlrModel::mean ? 0 : static_cast<double>(row[N]) + at * s;
    totals[2] += own[0];
    totals[3] += own[N] + at * own[0];
    totals[4] += own[2 * N] + 2 * at * own[N] + at * at * own[0];
  }
  for (int k = 0; k < 2; ++k) tile.totals[k * N + lane] = totals[k];
  for (int k = 0; k < 3; ++k) tile.own_totals[k * N + lane] = totals[2 + k];
}

std::vector<GlrPoint> GlrDetector::profile(int64_t channel) const {
  return profile(tiles[static_cast<size_t>(channel / N)], static_cast<int>(channel % N), grid.blocks, grid.total,
                 grid.x);
}

std::vector<float> GlrDetector::squares() const {
  const int64_t count = grid.looked_at();
  std::vector<float> out(static_cast<size_t>(count * settings.channels));
  const std::vector<GlrBlock> looked(grid.blocks.begin(), grid.blocks.begin() + count);
  for (int64_t c = 0; c < settings.channels; ++c) {
    const std::vector<GlrPoint> points =
        profile(tiles[static_cast<size_t>(c / N)], static_cast<int>(c % N), looked, grid.total, grid.x);
    for (int64_t k = 0; k < count; ++k) {
      out[static_cast<size_t>(k * settings.channels + c)] =
          static_cast<float>(points[static_cast<size_t>(k)].statistic);
    }
  }
  return out;
}

void GlrDetector::restart(int64_t channel, int64_t tau) {
  Tile& tile = tiles[static_cast<size_t>(channel / N)];
  make_own(tile, grid.blocks, grid.total);
  forget(tile, static_cast<int>(channel % N), tau, grid.blocks);
  statistic[static_cast<size_t>(channel)] = 0;
}

void GlrDetector::run(int64_t index, const std::vector<GlrStep>& steps, const float* y, int64_t ld, const double* w,
                      bool shared_w, const double* own_x, std::vector<GlrAlarm>& alarms) {
  Tile& tile = tiles[static_cast<size_t>(index)];
  grow(tile);
  const GlrKernels& kernel = glr_kernels();
  const int64_t first = index * N, count = std::min<int64_t>(N, settings.channels - first);
  float *best = statistic.data() + first, *top = peak.data() + first;
  const bool same_x = own_x == nullptr, same_w = w == nullptr || shared_w;
  for (size_t t = 1; t < steps.size(); ++t) {
    const GlrStep& step = steps[t];
    const int64_t at_row = static_cast<int64_t>(t - 1);
    const double shared_at = step.x - step.first_x;
    alignas(64) float value[N], padded[N] = {};
    const float* in = y + at_row * ld + first;
    if (count < N) {
      std::copy_n(in, count, padded);
      for (int64_t i = count; i < N; ++i) tile.base[static_cast<size_t>(i)] = 0;
      in = padded;
    }
    GlrPack pack{tile.rows.data(), tile.totals.data(), tile.base.data(), tile.own.data(), tile.own_totals.data()};
    const GlrLook look{settings.model,
                       settings.side != 0,
                       settings.side < 0 ? -1.0 : 1.0,
                       step.slot,
                       static_cast<float>(step.weight),
                       static_cast<float>(step.x - step.origin),
                       shared_at,
                       step.total.w,
                       step.total.w > 0 ? step.total.x / step.total.w : 0,
                       step.merges.data(),
                       static_cast<int64_t>(step.merges.size()),
                       step.walk.data(),
                       static_cast<int64_t>(step.walk.size()),
                       step.blocks.data(),
                       step.x,
                       step.first_x};
    float largest_now;
    if (same_x && same_w && !tile.is_own() && kernel.prepare(pack, shared_at, in, value)) {
      largest_now = kernel.shared(look, pack, value, best, top);
    } else {
      double weight[N] = {}, at[N];
      bool same = same_x && same_w;
      for (int i = 0; i < count; ++i) {
        const int64_t k = at_row * settings.channels + first + i;
        weight[i] = w && !shared_w ? w[k] : step.weight;
        const bool seen = std::isfinite(in[i]) && usable(weight[i]);
        at[i] = seen && own_x ? own_x[k] - step.first_x : shared_at;
        if (seen && std::isnan(tile.base[i])) tile.base[i] = in[i];
        if (!seen) weight[i] = 0;
        same = same && weight[i] == step.weight;
        value[i] = seen ? static_cast<float>(in[i] - (tile.base[i] + tile.base[N + i] * at[i])) : 0;
      }
      for (int64_t i = count; i < N; ++i) at[i] = shared_at, value[i] = 0, weight[i] = step.weight;
      if (!same && !tile.is_own()) make_own(tile, steps[t - 1].blocks, steps[t - 1].total);
      pack.own = tile.own.data();
      pack.own_totals = tile.own_totals.data();
      largest_now = tile.is_own() ? kernel.own(look, pack, value, weight, at, best, top)
                                  : kernel.shared(look, pack, value, best, top);
    }
    if (largest_now >= settings.threshold) alarm_and_restart(tile, index, step, alarms);
    if (step.rebase) rebase(tile, step);
  }
}

// Asks the memory for what the next channels' steps will read, while these are at work: they lie on as many pages as
// there are steps, where no hardware looks ahead.
void GlrDetector::fetch(const Tile& tile, const std::vector<GlrCandidate>& walk, const float* y, int64_t ld,
                        int64_t steps) const {
  for (int64_t t = 0; t < steps; ++t) __builtin_prefetch(y + t * ld);
  for (int k = 0; k < 2 * N; k += 8) {
    __builtin_prefetch(tile.totals.data() + k);
    __builtin_prefetch(tile.base.data() + k);
  }
  const int width = kinds() * N;
  for (const GlrCandidate& c : walk) {
    const float* row = tile.rows.data() + static_cast<int64_t>(c.slot) * width;
    for (int k = 0; k < width; k += 16) __builtin_prefetch(row + k);
  }
}

void GlrDetector::alarm_and_restart(Tile& tile, int64_t index, const GlrStep& step, std::vector<GlrAlarm>& alarms) {
  const int64_t first = index * N, count = std::min<int64_t>(N, settings.channels - first);
  for (int i = 0; i < count; ++i) {
    if (!(statistic[static_cast<size_t>(first + i)] >= settings.threshold)) continue;
    const std::vector<GlrPoint> points = profile(tile, i, step.blocks, step.total, step.x);
    const auto largest = std::max_element(
        points.begin(), points.end(), [](const GlrPoint& a, const GlrPoint& b) { return a.statistic < b.statistic; });
    GlrAlarm alarm{step.n,       first + i,  largest->statistic, largest->tau, largest->tau,
                   largest->tau, largest->x, largest->x,         largest->x,   largest->direction};
    // Between two candidates nothing was tested: the interval reaches to the next one that is refuted.
    for (size_t k = 0; k < points.size(); ++k) {
      if (!(points[k].statistic >= largest->statistic - settings.drop)) continue;
      const GlrPoint& younger = points[k > 0 ? k - 1 : 0];
      const GlrPoint& elder = points[std::min(k + 1, points.size() - 1)];
      if (elder.tau < alarm.low) alarm.low = elder.tau, alarm.x_low = elder.x;
      if (younger.tau > alarm.high) alarm.high = younger.tau, alarm.x_high = younger.x;
    }
    alarms.push_back(alarm);
    if (!settings.restart) continue;
    make_own(tile, step.blocks, step.total);
    forget(tile, i, largest->tau, step.blocks);
  }
}

std::vector<GlrAlarm> GlrDetector::update(const double* x, int64_t steps, const float* y, int64_t ld, const double* w,
                                          bool shared_w, const double* own_x, int threads) {
  std::vector<GlrAlarm> all;
  std::fill(peak.begin(), peak.end(), 0.0F);
  for (int64_t low = 0; low < steps; low += chunk) {
    const int64_t size = std::min(chunk, steps - low);
    std::vector<GlrStep> plan(static_cast<size_t>(size + 1));
    plan[0].blocks = grid.blocks;
    plan[0].total = grid.total;
    for (int64_t t = 0; t < size; ++t) {
      const float* row = y + (low + t) * ld;
      const bool any = std::any_of(row, row + settings.channels, [](float v) { return std::isfinite(v); });
      const double weight = !any ? 0 : w && shared_w ? (usable(w[low + t]) ? w[low + t] : 0) : 1;
      grid.advance(x[low + t], weight, plan[static_cast<size_t>(t + 1)]);
    }
    std::vector<std::vector<GlrAlarm>> found(tiles.size());
    const std::vector<GlrCandidate>& longest =
        std::max_element(plan.begin(), plan.end(), [](const GlrStep& a, const GlrStep& b) {
          return a.walk.size() < b.walk.size();
        })->walk;
    parallel(threads, static_cast<int64_t>(tiles.size()), [&](int64_t from, int64_t to) {
      for (int64_t i = from; i < to; ++i) {
        if (i + 1 < to) fetch(tiles[static_cast<size_t>(i + 1)], longest, y + low * ld + (i + 1) * N, ld, size);
        const double* weights = w ? w + low * (shared_w ? 1 : settings.channels) : nullptr;
        run(i, plan, y + low * ld, ld, weights, shared_w, own_x ? own_x + low * settings.channels : nullptr,
            found[static_cast<size_t>(i)]);
      }
    });
    const size_t before = all.size();
    for (const auto& some : found) all.insert(all.end(), some.begin(), some.end());
    std::stable_sort(all.begin() + static_cast<int64_t>(before), all.end(),
                     [](const GlrAlarm& a, const GlrAlarm& b) { return a.n < b.n; });
  }
  return all;
}

}  // namespace dif
