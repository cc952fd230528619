// The weights of Weiszfeld's iteration, which the host computes for either device.
#ifndef AGGREGATHOR_OPS_KERNELS_WEISZFELD_WEIGHTS_H_
#define AGGREGATHOR_OPS_KERNELS_WEISZFELD_WEIGHTS_H_

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "aggregathor/ops/kernels/float_mode.h"
#include "aggregathor/ops/kernels/wide.h"

namespace aggregathor {

// weight_i = 1 / max(floor, ||v - x_i||), 0 for a row at infinite distance, all over the largest.
// With floor = 0 rows at v have all the weight, where there are any.
inline void SetWeights(const double* sq_dist_n, int64_t n, double floor, double* weight_n) {
  const IeeeMode mode;
  double least = std::numeric_limits<double>::infinity();
  for (int64_t i = 0; i < n; ++i) {
    weight_n[i] = std::max(floor, std::sqrt(sq_dist_n[i]));
    least = std::min(least, weight_n[i]);
  }
  for (int64_t i = 0; i < n; ++i) {
    const double distance = weight_n[i];
    weight_n[i] = std::isinf(distance) ? 0 : distance == least ? 1 : least / distance;
  }
}

// The lower median of the finite distances, +inf where there is none. With fewer than half of the
// rows bad it is no larger than the largest distance of the others, wherever the bad ones lie.
inline double TypicalDistance(const double* sq_dist_n, int64_t n) {
  std::vector<double> finite;
  for (int64_t i = 0; i < n; ++i) {
    if (std::isfinite(sq_dist_n[i])) finite.push_back(sq_dist_n[i]);
  }
  if (finite.empty()) return std::numeric_limits<double>::infinity();
  const auto middle = finite.begin() + (finite.size() - 1) / 2;
  std::nth_element(finite.begin(), middle, finite.end());
  return std::sqrt(*middle);
}

// Returns the typical distance from the start, and leaves sq_dist_n in the unit that fits it, the
// last that measure(unit), which sets sq_dist_n, was called with. Floats are measured once.
template <typename T, typename Measure>
double MeasureTypical(Measure measure, const double* sq_dist_n, int64_t n) {
  const IeeeMode mode;
  measure(0);
  double typical = TypicalDistance(sq_dist_n, n);
  if (sizeof(T) == sizeof(float)) return typical;
  if (std::any_of(sq_dist_n, sq_dist_n + n, [](double x) { return std::isinf(x); })) {
    measure(kLargeUnit);  // do they overflow, or are the rows lost?
    typical = TypicalDistance(sq_dist_n, n);
    if (std::isfinite(typical) && typical > std::ldexp(1, 450 - kLargeUnit)) return typical;
    measure(0);
    typical = TypicalDistance(sq_dist_n, n);
  }
  if (typical > std::ldexp(1, -450)) return typical;
  measure(kSmallUnit);
  return TypicalDistance(sq_dist_n, n);
}

}  // namespace aggregathor

#endif  // AGGREGATHOR_OPS_KERNELS_WEISZFELD_WEIGHTS_H_
