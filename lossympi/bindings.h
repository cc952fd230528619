// What both halves of the bindings use: Python's arguments checked, and results as Python has them.
#ifndef LOSSYMPI_BINDINGS_H_
#define LOSSYMPI_BINDINGS_H_

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <climits>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "lossympi/core/close_rule.h"
#include "lossympi/core/packet.h"
#include "lossympi/core/protocol.h"

namespace lossympi {

namespace py = pybind11;

// The core, for the tests that compare it with its twin in plane/.
void BindCore(py::module_& m);

using Floats = py::array_t<float, py::array::c_style>;
using Bools = py::array_t<bool>;

inline Wire WireOf(const std::string& name) {
  if (name == "float32") return Wire::kFloat32;
  if (name == "float16") return Wire::kFloat16;
  if (name == "bfloat16") return Wire::kBfloat16;
  throw std::invalid_argument("wire must be one of float32, float16, bfloat16, got '" + name +
                              "'. Pass one.");
}

// Of exactly this shape and dtype, in C order: a copy would not be what the caller holds.
inline const float* DataOf(const char* name, const py::array& array, const py::tuple& shape) {
  py::module_::import("lossympi.link")
      .attr("check_array")(name, array, py::dtype::of<float>(), shape);
  if ((array.flags() & py::array::c_style) == 0) {
    throw std::invalid_argument(std::string(name) +
                                " must be in C order. Pass it through np.ascontiguousarray.");
  }
  return static_cast<const float*>(array.data());
}

inline float* WriteableDataOf(const char* name, const py::array& array, const py::tuple& shape) {
  const float* data = DataOf(name, array, shape);
  if (!array.writeable()) {
    throw std::invalid_argument(std::string(name) +
                                " must be writeable. Allocate it with np.empty.");
  }
  return const_cast<float*>(data);
}

inline Bools BoolsOf(const std::vector<uint8_t>& bytes, std::vector<py::ssize_t> shape) {
  Bools array(std::move(shape));
  static_assert(sizeof(bool) == 1);
  std::copy(bytes.begin(), bytes.end(), reinterpret_cast<uint8_t*>(array.mutable_data()));
  return array;
}

inline void CheckSeconds(const char* name, double seconds) {
  if (seconds >= 0) return;
  throw std::invalid_argument(std::string(name) + " must be at least 0 seconds, got " +
                              std::to_string(seconds) + ". Pass a longer time.");
}

inline void CheckMaxLoss(double max_loss) {
  if (max_loss >= 0 && max_loss <= 1) return;
  throw std::invalid_argument("max_loss must be in 0..1, got " + std::to_string(max_loss) +
                              ". Pass a share.");
}

// An int in low..high, whatever its size is.
inline uint64_t NumberIn(const char* name, const py::object& value, uint64_t low, uint64_t high) {
  if (py::int_(low) <= value && value <= py::int_(high)) return py::int_(value).cast<uint64_t>();
  throw std::invalid_argument(std::string(name) + " must be in " + std::to_string(low) + ".." +
                              std::to_string(high) + ", got " + py::str(value).cast<std::string>() +
                              ". Change it.");
}
inline uint32_t RateOf(const py::object& kbps) {
  return static_cast<uint32_t>(NumberIn("rate_kbps", kbps, 1, 0xffffffff));
}
// One number for all rows, or one for each.
inline std::vector<uint32_t> RatesOf(const py::object& kbps, size_t num_rows) {
  if (!py::isinstance<py::tuple>(kbps)) return std::vector<uint32_t>(num_rows, RateOf(kbps));
  std::vector<uint32_t> rates;
  for (const py::handle each : kbps) rates.push_back(RateOf(py::cast<py::object>(each)));
  if (rates.size() == num_rows) return rates;
  throw std::invalid_argument("rate_kbps must be one number or " + std::to_string(num_rows) +
                              ", got " + std::to_string(rates.size()) + ". Pass one for each row.");
}
inline uint64_t RoundOf(const py::object& round) { return NumberIn("round", round, 1, UINT64_MAX); }

inline ClosePolicy PolicyOf(const py::object& policy, size_t num_rows) {
  ClosePolicy p{policy.attr("deadline_s").cast<double>(),
                policy.attr("grace_s").cast<double>(),
                policy.attr("quiet_s").cast<double>(),
                policy.attr("max_loss").cast<double>(),
                static_cast<int>(NumberIn("quorum", policy.attr("quorum"), 1, INT_MAX)),
                policy.attr("live_n").cast<std::vector<bool>>(),
                static_cast<int>(NumberIn("f", policy.attr("f"), 0, INT_MAX)),
                policy.attr("longest_s").cast<double>(),
                policy.attr("free_s").cast<double>(),
                policy.attr("allowance_s_n").cast<std::vector<double>>()};
  CheckSeconds("deadline_s", p.deadline);
  CheckSeconds("grace_s", p.grace);
  CheckSeconds("quiet_s", p.quiet);
  CheckSeconds("longest_s", p.longest);
  CheckSeconds("free_s", p.free);
  for (const double each : p.allowance) CheckSeconds("allowance_s_n", each);
  if (p.f > 0 && p.allowance.size() != num_rows) {
    throw std::invalid_argument("with f=" + std::to_string(p.f) + " allowance_s_n must have " +
                                std::to_string(num_rows) + " values, got " +
                                std::to_string(p.allowance.size()) + ". Pass one for each row.");
  }
  CheckMaxLoss(p.max_loss);
  if (p.live.size() != num_rows) {
    throw std::invalid_argument("live_n must have " + std::to_string(num_rows) + " values, got " +
                                std::to_string(p.live.size()) + ". Pass one for each row.");
  }
  return p;
}

inline py::object ClosedOf(const Closed& closed) {
  const auto n = static_cast<py::ssize_t>(closed.heard.size());
  const auto c = static_cast<py::ssize_t>(closed.arrived.size()) / n;
  const py::array_t<double> settled(n, closed.settled.data());
  return py::module_::import("lossympi.endpoint")
      .attr("Closed")(NameOf(closed.reason), closed.elapsed, BoolsOf(closed.arrived, {n, c}),
                      BoolsOf(closed.heard, {n}), settled);
}

inline py::dict CountsOf(const Counts& counts) {
  py::dict dict;
  for (int v = 0; v < kNumVerdicts; ++v) dict[NameOf(static_cast<Verdict>(v))] = counts[v];
  return dict;
}

}  // namespace lossympi

#endif  // LOSSYMPI_BINDINGS_H_
