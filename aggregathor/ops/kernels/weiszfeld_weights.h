// The weights of Weiszfeld's iteration, which the host computes for either device.
#ifndef AGGREGATHOR_OPS_KERNELS_WEISZFELD_WEIGHTS_H_
#define AGGREGATHOR_OPS_KERNELS_WEISZFELD_WEIGHTS_H_

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

namespace aggregathor {

// weight_i = 1 / max(nu, ||v - x_i||), 0 for a row at infinite distance, all over the largest.
inline void SetWeights(const double* sq_dist_n, int64_t n, double nu, double* weight_n) {
  double largest = std::numeric_limits<double>::min();
  for (int64_t i = 0; i < n; ++i) {
    weight_n[i] = 1.0 / std::max(nu, std::sqrt(sq_dist_n[i]));
    largest = std::max(largest, weight_n[i]);
  }
  for (int64_t i = 0; i < n; ++i) weight_n[i] /= largest;
}

}  // namespace aggregathor

#endif  // AGGREGATHOR_OPS_KERNELS_WEISZFELD_WEIGHTS_H_
