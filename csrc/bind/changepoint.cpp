// The online detectors: stages of one curve, and one change of a mean.
#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "bind/bind.hpp"
#include "core/focus.hpp"
#include "core/stages.hpp"

namespace py = pybind11;

namespace {

using Array = py::array_t<double, py::array::c_style | py::array::forcecast>;

Array copy(const std::vector<double>& values) { return Array(static_cast<py::ssize_t>(values.size()), values.data()); }

std::vector<double> values_of(const Array& array) { return {array.data(), array.data() + array.size()}; }

py::tuple as_tuple(const dif::StageAlarm& a) { return py::make_tuple(a.step, a.onset, a.excess, a.block, a.direction); }

py::tuple as_tuple(const dif::StageRow& r) {
  return py::make_tuple(r.onset, r.midpoint, r.end, r.alarm, r.closed, r.before, r.after, r.gain, r.direction, r.open);
}

// se: NaN when none is given. A value that is not finite is a missing observation.
std::optional<dif::StageAlarm> observe(dif::StageDetector& detector, double step, double value, double se) {
  char text[128];
  if (!(step >= 0) || std::isinf(step)) {
    std::snprintf(text, sizeof text, "step: expected a finite number >= 0, got %.17g", step);
    throw std::invalid_argument(text);
  }
  if (step <= detector.last_step()) {
    std::snprintf(text, sizeof text, "step: expected a finite number above %.17g, got %.17g", detector.last_step(),
                  step);
    throw std::invalid_argument(text);
  }
  if (se < 0 || std::isinf(se)) {
    std::snprintf(text, sizeof text, "se: expected a finite number >= 0, got %.17g", se);
    throw std::invalid_argument(text);
  }
  if (!std::isfinite(value)) return std::nullopt;
  return detector.update(step, value, std::isnan(se) ? -1.0 : se);
}

void bind_stages(py::module_& m) {
  py::class_<dif::StageDetector>(m, "StageDetector")
      .def(py::init([](bool loss, double delta, double z, double z_own, double z_given, double kappa, double size,
                       double skip, double eps, double scale) {
             return dif::StageDetector({loss, delta, z, z_own, z_given, kappa, size, skip, eps, scale});
           }),
           py::arg("loss"), py::arg("delta"), py::arg("z"), py::arg("z_own"), py::arg("z_given"), py::arg("kappa"),
           py::arg("size"), py::arg("skip"), py::arg("eps"), py::arg("scale"))
      .def(
          "update",
          [](dif::StageDetector& self, double step, double value, double se) -> py::object {
            const auto alarm = observe(self, step, value, se);
            return alarm ? py::object(as_tuple(*alarm)) : py::none();
          },
          py::arg("step"), py::arg("value"), py::arg("se"), "(step, onset, excess, block, direction) or None.")
      .def(
          "extend",
          [](dif::StageDetector& self, const Array& step, const Array& value, const Array& se) {
            if (value.size() != step.size() || (se.size() != 0 && se.size() != step.size())) {
              throw std::invalid_argument("values: expected as many as steps, got another number");
            }
            py::list alarms;
            for (py::ssize_t i = 0; i < step.size(); ++i) {
              const double error = se.size() > 0 ? se.data()[i] : std::nan("");
              if (const auto alarm = observe(self, step.data()[i], value.data()[i], error)) {
                alarms.append(as_tuple(*alarm));
              }
            }
            return alarms;
          },
          py::arg("step"), py::arg("value"), py::arg("se"), "Alarms of whole arrays (n,); se may be empty.")
      .def_property_readonly("open_alarm", &dif::StageDetector::open_alarm)
      .def("rows",
           [](const dif::StageDetector& self) {
             py::list rows;
             for (const auto& row : self.rows()) rows.append(as_tuple(row));
             return rows;
           })
      .def("observations", [](const dif::StageDetector& self) {
        return py::make_tuple(copy(self.steps()), copy(self.values()), copy(self.errors()));
      });
}

py::tuple pack(const dif::FocusHull& hull) {
  return py::make_tuple(copy(hull.weight), copy(hull.sum), copy({hull.index.begin(), hull.index.end()}));
}

dif::FocusHull unpack(const py::tuple& parts) {
  dif::FocusHull hull;
  hull.weight = values_of(parts[0].cast<Array>());
  hull.sum = values_of(parts[1].cast<Array>());
  const std::vector<double> index = values_of(parts[2].cast<Array>());
  hull.index.assign(index.begin(), index.end());
  if (hull.weight.empty() || hull.sum.size() != hull.weight.size() || hull.index.size() != hull.weight.size()) {
    throw std::invalid_argument("state: expected hulls of equal, positive length, got others");
  }
  return hull;
}

void bind_focus(py::module_& m) {
  py::class_<dif::Focus>(m, "Focus")
      .def(py::init<>())
      .def("update", &dif::Focus::update, py::arg("y"), py::arg("weight"))
      .def("restart", &dif::Focus::restart)
      .def(
          "run",
          [](dif::Focus& self, const Array& y, const Array& weight, double threshold, bool alarm) {
            const py::ssize_t n = y.size();
            if (weight.size() != 0 && weight.size() != n) {
              throw std::invalid_argument("weight: expected as many as values, got another number");
            }
            Array statistic(n);
            py::array_t<int64_t> changepoint(n);
            py::array_t<int8_t> direction(n);
            std::vector<int64_t> alarms;
            const double *in = y.data(), *w = weight.size() > 0 ? weight.data() : nullptr;
            double* out = statistic.mutable_data();
            int64_t* change = changepoint.mutable_data();
            int8_t* sign = direction.mutable_data();
            {
              const py::gil_scoped_release unlocked;
              for (py::ssize_t i = 0; i < n; ++i) {
                if (alarm) self.restart();
                out[i] = self.update(in[i], w ? w[i] : 1.0);
                change[i] = self.state.changepoint;
                sign[i] = static_cast<int8_t>(self.state.direction);
                alarm = out[i] >= threshold;
                if (alarm) alarms.push_back(self.state.count - 1);
              }
            }
            return py::make_tuple(statistic, changepoint, direction, alarms);
          },
          py::arg("y"), py::arg("weight"), py::arg("threshold"), py::arg("alarm"),
          "(statistic, changepoint, direction) after each of y (n,), and the alarms; weight (n,) or empty; "
          "alarm: "
          "start anew with the first value.")
      .def_property_readonly("statistic", [](const dif::Focus& self) { return self.state.statistic; })
      .def_property_readonly("changepoint", [](const dif::Focus& self) { return self.state.changepoint; })
      .def_property_readonly("direction", [](const dif::Focus& self) { return self.state.direction; })
      .def_property_readonly("count", [](const dif::Focus& self) { return self.state.count; })
      .def("state",
           [](const dif::Focus& self) {
             const dif::FocusState& a = self.state;
             return py::make_tuple(
                 pack(a.lower), pack(a.upper),
                 copy({a.weight, a.sum, a.offset, static_cast<double>(a.started), static_cast<double>(a.count),
                       a.statistic, static_cast<double>(a.changepoint), static_cast<double>(a.direction)}));
           })
      .def("load", [](dif::Focus& self, const py::tuple& lower, const py::tuple& upper, const Array& scalars) {
        if (scalars.size() != 8) throw std::invalid_argument("state: expected 8 scalars, got others");
        const double* v = scalars.data();
        self.state = {unpack(lower),
                      unpack(upper),
                      v[0],
                      v[1],
                      v[2],
                      v[3] != 0,
                      static_cast<int64_t>(v[4]),
                      v[5],
                      static_cast<int64_t>(v[6]),
                      static_cast<int>(v[7])};
      });
}

}  // namespace

void bind_changepoint(py::module_& m) {
  bind_stages(m);
  bind_focus(m);
}
