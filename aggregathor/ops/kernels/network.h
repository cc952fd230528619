// Batcher's odd-even merge sort for any n, as a list of compare-exchanges.
#ifndef AGGREGATHOR_OPS_KERNELS_NETWORK_H_
#define AGGREGATHOR_OPS_KERNELS_NETWORK_H_

namespace aggregathor {

// Calls visit(low, high) for each compare-exchange (Knuth, The Art of Computer Programming 3, 5.2.2
// algorithm M) of the phases from `first_p` on: the one of p, a power of two, merges sorted runs of
// p into sorted runs of 2p. Its step of k compares values k apart, and merges what of either run is
// the same modulo k: nothing, where n cuts the second run off before. 95 for n = 19.
template <typename F>
constexpr void VisitNetwork(int n, int first_p, F visit) {
  for (int p = first_p; p < n; p *= 2) {
    for (int k = p; k >= 1; k /= 2) {
      for (int j = k % p; j + k < n; j += 2 * k) {
        for (int low = j; low < j + k && low + k < n; ++low) {
          const int runs = low / (2 * p) * (2 * p);  // where the two runs begin
          const bool of_these = low + k < runs + 2 * p;
          if (of_these && runs + p + low % k < n) visit(low, low + k);
        }
      }
    }
  }
}

// The whole network of N values as constants, so that the compiler can unroll it over registers.
template <int N>
struct Network {
  static constexpr int kSize = [] {
    int size = 0;
    VisitNetwork(N, 1, [&](int, int) { ++size; });
    return size;
  }();
  struct Pairs {
    int low[kSize + 1], high[kSize + 1];
  };
  static constexpr Pairs kPairs = [] {
    Pairs pairs{};
    int next = 0;
    VisitNetwork(N, 1, [&](int low, int high) {
      pairs.low[next] = low;
      pairs.high[next++] = high;
    });
    return pairs;
  }();
};

}  // namespace aggregathor

#endif  // AGGREGATHOR_OPS_KERNELS_NETWORK_H_
