// The order in which a sorting network's values are loaded, compared and stored.
// For the files that are compiled once per instruction set.
#ifndef AGGREGATHOR_OPS_KERNELS_SCHEDULE_H_
#define AGGREGATHOR_OPS_KERNELS_SCHEDULE_H_

#include "aggregathor/ops/kernels/isa.h"
#include "aggregathor/ops/kernels/network.h"

namespace aggregathor::AGGREGATHOR_ISA {

// Registers for values; what is left is for the minimum while the maximum is taken.
#if defined(__AVX512F__) || defined(__aarch64__)
inline constexpr int kValueRegisters = 30;
#else
inline constexpr int kValueRegisters = 14;
#endif

// A compare-exchange, whose values are loaded first if they have not been, and stored if no other
// follows.
struct SortStep {
  int low, high;
  bool load_low, load_high, store_low, store_high;
};

// The pairs of Network<N>, each after those that it depends on, so that a value meets all it can
// while it is in a register: with 14 registers, N = 19 values go to memory and back 6 times instead
// of 25, and N = 32 go 44 times instead of 170. Of the pairs that are ready the next is the
// first of those with most values in the registers used last.
template <int N>
class Schedule {
  static constexpr int kSize = Network<N>::kSize;

  struct Steps {
    SortStep of[kSize + 1];
  };

 public:
  static constexpr Steps kSteps = [] {
    constexpr auto pairs = Network<N>::kPairs;
    Steps steps{};
    bool done[kSize + 1] = {};
    int uses_left[N] = {};
    for (int p = 0; p < kSize; ++p) ++uses_left[pairs.low[p]], ++uses_left[pairs.high[p]];
    bool loaded[N] = {}, held[N] = {};
    int used[N] = {};  // when last
    int num_held = 0;
    for (int s = 0; s < kSize; ++s) {
      int best = -1, best_held = -1;
      bool waiting[N] = {};  // for an earlier pair
      for (int p = 0; p < kSize && best_held < 2; ++p) {
        if (done[p]) continue;
        const int low = pairs.low[p], high = pairs.high[p];
        const int here = held[low] + held[high];
        if (!waiting[low] && !waiting[high] && here > best_held) best = p, best_held = here;
        waiting[low] = waiting[high] = true;
      }
      done[best] = true;
      const int low = pairs.low[best], high = pairs.high[best];
      for (const int i : {low, high}) {
        used[i] = s + 1;
        if (held[i]) continue;
        if (num_held == kValueRegisters) {
          int oldest = -1;
          for (int j = 0; j < N; ++j) {
            if (held[j] && j != low && j != high && (oldest < 0 || used[j] < used[oldest])) {
              oldest = j;
            }
          }
          held[oldest] = false;
          --num_held;
        }
        held[i] = true;
        ++num_held;
      }
      steps.of[s] = {
          low, high, !loaded[low], !loaded[high], --uses_left[low] == 0, --uses_left[high] == 0};
      loaded[low] = loaded[high] = true;
      for (const int i : {low, high}) {
        if (uses_left[i] == 0) held[i] = false, --num_held;
      }
    }
    return steps;
  }();
};

}  // namespace aggregathor::AGGREGATHOR_ISA

#endif  // AGGREGATHOR_OPS_KERNELS_SCHEDULE_H_
