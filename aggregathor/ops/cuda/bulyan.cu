// Bulyan's second half on a GPU: the means of the chosen rows, and the mean of those nearest to
// their median. One thread a coordinate.
#include <algorithm>
#include <vector>

#include "aggregathor/ops/cuda/sorted.cuh"

namespace aggregathor {
namespace {

// How the candidates are made, from the last to the first: a row is added to the sum, or the sum
// starts anew, or the candidate is finished. Groups shrink from one to the next and mostly by the
// row that leaves, so that most are the smaller one and a row or two: n and some additions make
// them all.
enum Step : int32_t { kFinish = -1, kStart = -2 };

// A candidate is the mean of its group's present values; NaN, for missing, where there are none.
template <typename T>
__device__ void MakeCandidates(Column<T> rows, const int32_t* __restrict__ steps, int num_steps,
                               int theta, Column<T> candidates) {
  double sum = 0;
  [[maybe_unused]] MeanOfLarge large;
  int count = 0, c = theta;
  for (int s = 0; s < num_steps; ++s) {
    const int step = steps[s];
    if (step >= 0) {
      const T x = rows[step];
      if (IsMissing(x)) continue;
      sum += x;
      if constexpr (sizeof(T) == sizeof(double)) large.Add(x);  // sums of doubles may overflow
      ++count;
    } else if (step == kFinish) {
      double mean = sum / count;
      if constexpr (sizeof(T) == sizeof(double)) mean = IsFinite(mean) ? mean : large.Mean();
      candidates[--c] = static_cast<T>(mean);
    } else {
      sum = 0;
      large = MeanOfLarge();
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
  const int64_t last_row = *std::max_element(groups, groups + theta * m);
  std::vector<int64_t> last_group(last_row + 1, -1);  // that a row was in, of those gone through
  int64_t next = 0, size_of_smaller = 0;
  for (int64_t c = theta - 1; c >= 0; --c) {
    const int64_t* group = groups + c * m;
    int64_t size = 0, in_both = 0;
    for (; size < m && group[size] >= 0; ++size) in_both += last_group[group[size]] == c + 1;
    const bool starts = c == theta - 1 || in_both < size_of_smaller;
    if (starts) steps[next++] = kStart;
    for (int64_t g = 0; g < size; ++g) {
      if (starts || last_group[group[g]] != c + 1) steps[next++] = static_cast<int32_t>(group[g]);
      last_group[group[g]] = c;
    }
    steps[next++] = kFinish;
    size_of_smaller = size;
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
