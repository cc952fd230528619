// A stack taken kLanes columns at a time. For the files that are compiled once per instruction set.
#ifndef AGGREGATHOR_OPS_KERNELS_TILES_H_
#define AGGREGATHOR_OPS_KERNELS_TILES_H_

#include "aggregathor/ops/kernels/isa.h"
#include "aggregathor/ops/kernels/mean_of_large.h"
#include "aggregathor/ops/kernels/simd.h"

namespace aggregathor::AGGREGATHOR_ISA {

// Columns of a stack: values[n][stride].
template <typename T>
struct Columns {
  const T* values;
  int64_t stride;
};

// Columns [j, j + kLanes) of the stack: in place where there are so many, else a copy that is
// filled up with zeros.
template <typename T>
Columns<T> ColumnsAt(Stack<T> stack, int64_t j, T* copy) {
  const int64_t width = stack.d - j;
  if (width >= kLanes) return {stack.data + j, stack.stride};
  std::memset(copy, 0, static_cast<size_t>(stack.n * kLanes) * sizeof(T));
  for (int64_t i = 0; i < stack.n; ++i) {
    std::memcpy(copy + i * kLanes, stack.data + i * stack.stride + j,
                static_cast<size_t>(width) * sizeof(T));
  }
  return {copy, kLanes};
}

// Registers of doubles that are worked on side by side, in rows of neighbouring columns: memory
// delivers whole cache lines, and best some of a row at once.
inline constexpr int64_t kSums = 8;
static_assert(kLanes % (kSums * kDoubles) == 0);

// The values of a row kLanes on, in the next tile: n streams are more than the processor follows by
// itself. Once a cache line, v counts registers of doubles.
template <typename T>
[[gnu::always_inline]] inline void FetchNextTile(const T* row, int64_t v) {
  constexpr int64_t kRegistersPerLine = 64 / (kDoubles * static_cast<int64_t>(sizeof(T)));
  if (v % kRegistersPerLine == 0) __builtin_prefetch(row + kLanes + v * kDoubles);
}

// Adds a value of each column to its sum. With kSkipMissing only where it is present, and 1 to its
// count.
template <bool kSkipMissing>
[[gnu::always_inline]] inline void Add(Doubles x, Doubles* sum, Doubles* count) {
  if constexpr (kSkipMissing) {
    const Doubles zero{};
    *sum += x == x ? x : zero;
    *count += x == x ? Broadcast(1) : zero;
  } else {
    *sum += x;
  }
}

}  // namespace aggregathor::AGGREGATHOR_ISA

#endif  // AGGREGATHOR_OPS_KERNELS_TILES_H_
