// Bulyan's second half on a GPU: the means of the chosen rows, and the mean of those nearest to
// their median. One thread a coordinate.
#include "aggregathor/ops/cuda/sorted.cuh"

namespace aggregathor {
namespace {

// How the candidates are made, from the last to the first: a row is added to the sum, or the sum
// starts anew, or the candidate is finished. Groups shrink from one to the next and mostly by the
// row that leaves, so that most are the smaller one and a row or two: n and some additions make
// them all.
enum Step : int32_t { kFinish = -1, kStart = -2 };

bool Contains(const int64_t* group, int64_t m, int64_t row) {
  for (int64_t g = 0; g < m && group[g] >= 0; ++g) {
    if (group[g] == row) return true;
  }
  return false;
}

bool ContainsAll(const int64_t* group, const int64_t* smaller, int64_t m) {
  for (int64_t g = 0; g < m && smaller[g] >= 0; ++g) {
    if (!Contains(group, m, smaller[g])) return false;
  }
  return true;
}

// A candidate is the mean of its group's present values; NaN, for missing, where there are none.
template <typename T>
__device__ void MakeCandidates(Column<T> rows, const int32_t* __restrict__ steps, int num_steps,
                               int theta, Column<T> candidates) {
  double sum = 0;
  int count = 0, c = theta;
  for (int s = 0; s < num_steps; ++s) {
    const int step = steps[s];
    if (step >= 0) {
      const T x = rows[step];
      if (IsMissing(x)) continue;
      sum += x;
      ++count;
    } else if (step == kFinish) {
      candidates[--c] = static_cast<T>(sum / count);
    } else {
      sum = 0;
      count = 0;
    }
  }
}

// Shared memory: T rows[max(n, theta)][blockDim.x], which the sorted candidates replace, then
// T candidates[theta][blockDim.x]. 6 blocks at once: what floats do without spilling registers.
template <typename T, int N>
__global__ __launch_bounds__(kMaxColumns, sizeof(T) == 4 ? 6 : 1) void BulyanTail(
    const T* __restrict__ stack_nd, int n, int64_t d, const int32_t* __restrict__ steps,
    int num_steps, int theta, int f, T* __restrict__ grad_d) {
  AGGREGATHOR_SHARED(shared);
  const Column<T> rows{reinterpret_cast<T*>(shared) + threadIdx.x, blockDim.x};
  const Column<T> candidates{rows.data + (n > theta ? n : theta) * blockDim.x, blockDim.x};
  EachCoordinate(d, [&](int64_t j) {
    Stream(n, [&](int i) { return stack_nd[i * d + j]; }, [&](int i, T x) { rows[i] = x; });
    MakeCandidates(rows, steps, num_steps, theta, candidates);
    const Column<T> sorted = rows;
    const int k = SortColumn<N>(candidates, theta, sorted);
    Range r = k == 0 ? Range{0, 0} : UpperMedianRange(k);
    if (k > 2 * f) {
      r = NearestRange(sorted, k, candidates, theta, MeanOf(sorted, r), k - 2 * f);
    }
    grad_d[j] = MeanUnlessHopeless(sorted, r, k, f);
  });
}

template <typename T>
int LaunchBulyanTail(const T* stack_nd, int64_t n, int64_t d, const int32_t* steps,
                     int64_t num_steps, int64_t theta, int64_t f, T* grad_d, void* stream) {
  const int64_t column_bytes = ((n > theta ? n : theta) + theta) * static_cast<int64_t>(sizeof(T));
  const int threads = ThreadsFor(column_bytes, 0);
  if (threads == 0 || num_steps > INT32_MAX) return kAggregathorCudaTooManyRows;
  return WithSorter(theta, [&](auto sorter) {
    return Launch(&BulyanTail<T, sorter.value>, BlocksFor(d, threads), threads,
                  threads * column_bytes, stream, stack_nd, static_cast<int>(n), d, steps,
                  static_cast<int>(num_steps), static_cast<int>(theta),
                  static_cast<int>(f < theta ? f : theta), grad_d);
  });
}

}  // namespace
}  // namespace aggregathor

extern "C" {

int64_t aggregathor_cuda_bulyan_steps(const int64_t* groups, int64_t theta, int64_t m,
                                      int32_t* steps) {
  using namespace aggregathor;
  int64_t next = 0;
  for (int64_t c = theta - 1; c >= 0; --c) {
    const int64_t* group = groups + c * m;
    const int64_t* smaller = group + m;
    const bool starts = c == theta - 1 || !ContainsAll(group, smaller, m);
    if (starts) steps[next++] = kStart;
    for (int64_t g = 0; g < m && group[g] >= 0; ++g) {
      if (starts || !Contains(smaller, m, group[g])) {
        steps[next++] = static_cast<int32_t>(group[g]);
      }
    }
    steps[next++] = kFinish;
  }
  return next;
}

#define AGGREGATHOR_DEFINE(T)                                                                  \
  int aggregathor_cuda_bulyan_tail_##T(const T* stack_nd, int64_t n, int64_t d,                \
                                       const int32_t* steps, int64_t num_steps, int64_t theta, \
                                       int64_t f, T* grad_d, void* stream) {                   \
    return aggregathor::LaunchBulyanTail(stack_nd, n, d, steps, num_steps, theta, f, grad_d,   \
                                         stream);                                              \
  }
AGGREGATHOR_DEFINE(float)
AGGREGATHOR_DEFINE(double)
#undef AGGREGATHOR_DEFINE
}
