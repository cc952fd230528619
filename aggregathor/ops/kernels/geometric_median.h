// The geometric median: Weiszfeld's iteration over the median, distance and mean kernels.
#ifndef AGGREGATHOR_OPS_KERNELS_GEOMETRIC_MEDIAN_H_
#define AGGREGATHOR_OPS_KERNELS_GEOMETRIC_MEDIAN_H_

#include <cstdint>
#include <vector>

#include "aggregathor/ops/kernels/kernels.h"
#include "aggregathor/ops/kernels/weiszfeld_weights.h"

namespace aggregathor {

// nu: in units of the typical distance of the rows from the start, so that rows c times as long
// give c times the result. weight_n: of the last mean, 1 for the row nearest to the result.
template <typename T>
void GeometricMedian(Stack<T> stack, int64_t f, float nu, float tol, int64_t max_iter, T* v_d,
                     double* weight_n, Parallel parallel) {
  const Kernels<T>& kernels = KernelsFor<T>();
  std::vector<double> sq_dist_n(stack.n);
  Step step;
  int unit = 0;
  kernels.window_mean(stack, Window::kMedian, f, v_d, nullptr, parallel);
  const auto measure = [&](int in) {
    unit = in;
    kernels.weiszfeld_step(stack, nullptr, unit, v_d, sq_dist_n.data(), &step, parallel);
  };
  const double floor = nu * MeasureTypical<T>(measure, sq_dist_n.data(), stack.n);
  SetWeights(sq_dist_n.data(), stack.n, floor, weight_n);
  for (int64_t iteration = 0; iteration < max_iter; ++iteration) {
    kernels.weiszfeld_step(stack, weight_n, unit, v_d, sq_dist_n.data(), &step, parallel);
    SetWeights(sq_dist_n.data(), stack.n, floor, weight_n);
    if (!(step.sq_length > static_cast<double>(tol) * tol * step.sq_norm)) break;
  }
}

}  // namespace aggregathor

#endif  // AGGREGATHOR_OPS_KERNELS_GEOMETRIC_MEDIAN_H_
