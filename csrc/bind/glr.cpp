// The many-channel detector. Python checks values; here shapes.
#include "cpu/glr.hpp"

#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <optional>
#include <stdexcept>
#include <vector>

#include "bind/bind.hpp"

namespace py = pybind11;

namespace {

using Doubles = py::array_t<double, py::array::c_style>;
using Floats = py::array_t<float>;
using dif::glr_lanes;

void require(bool fits, const char* message) {
  if (!fits) throw std::invalid_argument(message);
}

Doubles table(const std::vector<dif::GlrAlarm>& alarms) {
  Doubles out({static_cast<py::ssize_t>(alarms.size()), py::ssize_t{10}});
  double* row = out.mutable_data();
  for (const dif::GlrAlarm& a : alarms) {
    const double fields[] = {static_cast<double>(a.n),
                             static_cast<double>(a.channel),
                             a.statistic,
                             static_cast<double>(a.tau),
                             static_cast<double>(a.low),
                             static_cast<double>(a.high),
                             a.x,
                             a.x_low,
                             a.x_high,
                             static_cast<double>(a.direction)};
    row = std::copy(std::begin(fields), std::end(fields), row);
  }
  return out;
}

Doubles update(dif::GlrDetector& self, const Doubles& x, const Floats& y, const std::optional<Doubles>& w,
               const std::optional<Doubles>& own_x, int threads) {
  const py::ssize_t steps = x.size(), channels = self.settings.channels;
  require(y.ndim() == 2 && y.shape(0) == steps && y.shape(1) == channels, "y: expected (steps, channels), got others");
  require(channels == 1 || y.strides(1) == 4, "y: expected stride 1 in its last dimension, got another");
  const bool shared = w && w->ndim() == 1;
  require(!w || w->size() == (shared ? steps : steps * channels),
          "w: expected (steps) or (steps, channels), got others");
  require(!own_x || own_x->size() == steps * channels, "own_x: expected (steps, channels), got others");
  std::vector<dif::GlrAlarm> alarms;
  {
    const double* at = x.data();
    const float* in = y.data();
    const double* weights = w ? w->data() : nullptr;
    const double* own = own_x ? own_x->data() : nullptr;
    const int64_t ld = steps > 1 ? y.strides(0) / 4 : channels;
    const py::gil_scoped_release unlocked;
    alarms = self.update(at, steps, in, ld, weights, shared, own, threads);
  }
  return table(alarms);
}

template <class T>
py::array_t<T> copy(const T* from, std::vector<py::ssize_t> shape) {
  return py::array_t<T>(std::move(shape), from);
}

// Everything but the settings: the grid, then the channels' sums, those of own moments in an array of their own.
py::dict state(const dif::GlrDetector& self) {
  const dif::GlrGrid& g = self.grid;
  const auto tiles = static_cast<py::ssize_t>(self.tiles.size()), slots = static_cast<py::ssize_t>(g.slots);
  const py::ssize_t width = (self.settings.model == dif::GlrModel::mean ? 1 : 2) * glr_lanes;
  Doubles blocks({static_cast<py::ssize_t>(g.blocks.size()), py::ssize_t{6}});
  double* b = blocks.mutable_data();
  for (const dif::GlrBlock& block : g.blocks) {
    const double fields[] = {static_cast<double>(block.tau),
                             static_cast<double>(block.slot),
                             block.origin,
                             block.moments.w,
                             block.moments.x,
                             block.moments.xx};
    b = std::copy(std::begin(fields), std::end(fields), b);
  }
  const double scalars[] = {
      static_cast<double>(g.n), static_cast<double>(g.slots), g.x, g.first_x, g.total.w, g.total.x, g.total.xx};
  py::array_t<float> rows({tiles, slots, width});
  Doubles totals({tiles, py::ssize_t{2 * glr_lanes}}), base({tiles, py::ssize_t{2 * glr_lanes}});
  std::fill_n(rows.mutable_data(), rows.size(), 0.0F);
  std::vector<int64_t> own_tiles;
  std::vector<double> own, own_totals;
  for (py::ssize_t i = 0; i < tiles; ++i) {
    const auto& tile = self.tiles[static_cast<size_t>(i)];
    std::copy(tile.rows.begin(), tile.rows.end(), rows.mutable_data() + i * slots * width);
    std::copy(tile.base.begin(), tile.base.end(), base.mutable_data() + i * 2 * glr_lanes);
    std::copy(tile.totals.begin(), tile.totals.end(), totals.mutable_data() + i * 2 * glr_lanes);
    if (!tile.is_own()) continue;
    own_tiles.push_back(i);
    const size_t low = own.size();
    own.resize(low + static_cast<size_t>(slots) * 3 * glr_lanes);
    std::copy(tile.own.begin(), tile.own.end(), own.begin() + static_cast<int64_t>(low));
    own_totals.insert(own_totals.end(), tile.own_totals.begin(), tile.own_totals.end());
  }
  const auto owned = static_cast<py::ssize_t>(own_tiles.size()),
             channels = static_cast<py::ssize_t>(self.settings.channels);
  py::dict out;
  out["scalars"] = copy(scalars, {7});
  out["blocks"] = blocks;
  out["free"] = copy(g.free.data(), {static_cast<py::ssize_t>(g.free.size())});
  out["rows"] = rows;
  out["base"] = base;
  out["totals"] = totals;
  out["own_tiles"] = copy(own_tiles.data(), {owned});
  out["own"] = copy(own.data(), {owned, slots, 3 * glr_lanes});
  out["own_totals"] = copy(own_totals.data(), {owned, 3 * glr_lanes});
  out["statistic"] = copy(self.statistic.data(), {channels});
  return out;
}

template <class T>
py::array_t<T, py::array::c_style | py::array::forcecast> part(const py::dict& state, const char* name) {
  return state[name].cast<py::array_t<T, py::array::c_style | py::array::forcecast>>();
}

void load(dif::GlrDetector& self, const py::dict& from) {
  const auto scalars = part<double>(from, "scalars"), blocks = part<double>(from, "blocks"),
             totals = part<double>(from, "totals"), own = part<double>(from, "own"),
             own_totals = part<double>(from, "own_totals"), base = part<double>(from, "base");
  const auto rows = part<float>(from, "rows"), statistic = part<float>(from, "statistic");
  const auto own_tiles = part<int64_t>(from, "own_tiles");
  const auto free = part<int32_t>(from, "free");
  const auto tiles = static_cast<py::ssize_t>(self.tiles.size());
  const py::ssize_t width = (self.settings.model == dif::GlrModel::mean ? 1 : 2) * glr_lanes;
  require(scalars.size() == 7, "state: expected 7 scalars, got others");
  const double* s = scalars.data();
  const auto slots = static_cast<py::ssize_t>(s[1]);
  const py::ssize_t owned = own_tiles.size();
  require(rows.size() == tiles * slots * width && base.size() == tiles * 2 * glr_lanes &&
              totals.size() == tiles * 2 * glr_lanes && own.size() == owned * slots * 3 * glr_lanes &&
              own_totals.size() == owned * 3 * glr_lanes && statistic.size() == self.settings.channels &&
              blocks.size() % 6 == 0 && blocks.size() / 6 + free.size() == slots,
          "state: expected one of as many channels and the same model, got another");
  for (py::ssize_t i = 0; i < owned; ++i) {
    require(own_tiles.at(i) >= 0 && own_tiles.at(i) < tiles, "state: expected own_tiles inside the tiles, got others");
  }
  dif::GlrGrid& g = self.grid;
  std::vector<dif::GlrBlock> taken;
  for (py::ssize_t i = 0; i < blocks.size() / 6; ++i) {
    const double* b = blocks.data() + 6 * i;
    require(b[1] >= 0 && b[1] < s[1], "state: expected slots inside the rows, got others");
    taken.push_back({static_cast<int64_t>(b[0]), static_cast<int32_t>(b[1]), b[2], {b[3], b[4], b[5]}});
  }
  for (py::ssize_t i = 0; i < free.size(); ++i) {
    require(free.at(i) >= 0 && free.at(i) < slots, "state: expected slots inside the rows, got others");
  }
  g.blocks = taken;
  g.n = static_cast<int64_t>(s[0]);
  g.slots = static_cast<int32_t>(s[1]);
  g.x = s[2];
  g.first_x = s[3];
  g.total = {s[4], s[5], s[6]};
  g.free.assign(free.data(), free.data() + free.size());
  std::copy_n(statistic.data(), statistic.size(), self.statistic.begin());
  for (py::ssize_t i = 0; i < tiles; ++i) {
    auto& tile = self.tiles[static_cast<size_t>(i)];
    tile.rows.assign(rows.data() + i * slots * width, rows.data() + (i + 1) * slots * width);
    tile.base.assign(base.data() + i * 2 * glr_lanes, base.data() + (i + 1) * 2 * glr_lanes);
    tile.totals.assign(totals.data() + i * 2 * glr_lanes, totals.data() + (i + 1) * 2 * glr_lanes);
    tile.own.clear();
    tile.own_totals.clear();
  }
  for (py::ssize_t i = 0; i < owned; ++i) {
    auto& tile = self.tiles[static_cast<size_t>(own_tiles.at(i))];
    const py::ssize_t size = slots * 3 * glr_lanes;
    tile.own.assign(own.data() + i * size, own.data() + (i + 1) * size);
    tile.own_totals.assign(own_totals.data() + i * 3 * glr_lanes, own_totals.data() + (i + 1) * 3 * glr_lanes);
  }
}

}  // namespace

void bind_glr(py::module_& m) {
  py::class_<dif::GlrDetector>(m, "GlrDetector")
      .def(py::init(
               [](int64_t channels, int model, int per_octave, int side, double threshold, double drop, bool restart) {
                 require(model >= 0 && model <= 3, "model: expected 0 to 3, got another");
                 return dif::GlrDetector(
                     {channels, static_cast<dif::GlrModel>(model), per_octave, side, threshold, drop, restart});
               }),
           py::arg("channels"), py::arg("model"), py::arg("per_octave"), py::arg("side"), py::arg("threshold"),
           py::arg("drop"), py::arg("restart"))
      .def("update", &update, py::arg("x"), py::arg("y").noconvert(), py::arg("w"), py::arg("own_x"),
           py::arg("threads"), "Alarms (k, 10): n, channel, statistic, tau, low, high, x, x_low, x_high, direction.")
      .def(
          "profile",
          [](const dif::GlrDetector& self, int64_t channel) {
            require(channel >= 0 && channel < self.settings.channels,
                    "channel: expected one of the channels, got another");
            const auto points = self.profile(channel);
            Doubles out({static_cast<py::ssize_t>(points.size()), py::ssize_t{4}});
            double* row = out.mutable_data();
            for (const auto& p : points) {
              const double fields[] = {static_cast<double>(p.tau), p.x, p.statistic, static_cast<double>(p.direction)};
              row = std::copy(std::begin(fields), std::end(fields), row);
            }
            return out;
          },
          py::arg("channel"), "Candidates (k, 4), youngest first: tau, x, statistic, direction.")
      .def(
          "squares",
          [](const dif::GlrDetector& self) {
            const std::vector<float> all = self.squares();
            return copy(all.data(), {static_cast<py::ssize_t>(self.grid.looked_at()),
                                     static_cast<py::ssize_t>(self.settings.channels)});
          },
          "Statistics (candidates, channels) of what the last step looked at, youngest first.")
      .def(
          "restart",
          [](dif::GlrDetector& self, int64_t channel, int64_t tau) {
            require(channel >= 0 && channel < self.settings.channels,
                    "channel: expected one of the channels, got another");
            self.restart(channel, tau);
          },
          py::arg("channel"), py::arg("tau"))
      .def_property_readonly("statistic",
                             [](const dif::GlrDetector& self) {
                               return copy(self.statistic.data(), {static_cast<py::ssize_t>(self.settings.channels)});
                             })
      .def_property_readonly("peak",
                             [](const dif::GlrDetector& self) {
                               return copy(self.peak.data(), {static_cast<py::ssize_t>(self.settings.channels)});
                             })
      .def_property_readonly("count", [](const dif::GlrDetector& self) { return self.grid.n; })
      .def_property_readonly("bytes", &dif::GlrDetector::bytes)
      .def("state", &state)
      .def("load", &load, py::arg("state"));
}
