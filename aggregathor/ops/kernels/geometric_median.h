// The geometric median: Weiszfeld's iteration over the median, distance and mean kernels.
#ifndef AGGREGATHOR_OPS_KERNELS_GEOMETRIC_MEDIAN_H_
#define AGGREGATHOR_OPS_KERNELS_GEOMETRIC_MEDIAN_H_

#include <cstdint>
#include <vector>

#include "aggregathor/ops/kernels/kernels.h"
#include "aggregathor/ops/kernels/weiszfeld_weights.h"

namespace aggregathor {

// weight_n: of the last mean, 1 for the row nearest to the result.
template <typename T>
void GeometricMedian(Stack<T> stack, int64_t f, float nu, float tol, int64_t max_iter, T* v_d,
                     double* weight_n, Parallel parallel) {
  const Kernels<T>& kernels = KernelsFor<T>();
  std::vector<double> sq_dist_n(stack.n);
  Step step;
  kernels.window_mean(stack, Window::kMedian, f, v_d, nullptr, parallel);
  kernels.weiszfeld_step(stack, nullptr, v_d, sq_dist_n.data(), &step, parallel);
  SetWeights(sq_dist_n.data(), stack.n, nu, weight_n);
  for (int64_t iteration = 0; iteration < max_iter; ++iteration) {
    kernels.weiszfeld_step(stack, weight_n, v_d, sq_dist_n.data(), &step, parallel);
    SetWeights(sq_dist_n.data(), stack.n, nu, weight_n);
    if (!(step.sq_length > static_cast<double>(tol) * tol * step.sq_norm)) break;
  }
}

}  // namespace aggregathor

#endif  // AGGREGATHOR_OPS_KERNELS_GEOMETRIC_MEDIAN_H_
