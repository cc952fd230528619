// Squared distances between rows on a GPU: sums of squared differences, as in distances.cc.
//
// Pairs of rows. A block takes a part of the columns, for all pairs among up to kGroup rows or
// between two such groups. Tiles of columns go to shared memory, the next while one is worked on. A
// thread compares kTile with kTile rows on a lane of the columns, so that each value it loads
// serves kTile differences: up to n = 32 the card's memory stays the bottleneck, or nearly.
//
// float32 rows are compared in float, kRun columns at a time, and these sums are added in double:
// the relative error of a squared distance is at most (kRun + 2) * 2^-24 = 1.1e-6, as in
// distances.cc. Where such a sum is not plain, as something is missing or infinite or float is too
// narrow, or rows are equal, it is made again in double, which also counts what is missing.
//
// Sums of the parts are written to scratch memory and added by a second kernel in an order of its
// own; parts are cut by n and d alone, so that the same stack gives the same bits.
#include <cmath>
#include <type_traits>

#include "aggregathor/ops/cuda/device.cuh"

namespace aggregathor {
namespace {

constexpr int kTile = 4;
constexpr int kPairs = kTile * kTile;
constexpr int kGroup = 32;
constexpr int kStages = 2;  // tiles of columns in shared memory

// A lane loads 16 bytes at a time, kLoads times per tile of columns.
constexpr int kLoads = 4;
template <typename T>
constexpr int kVector = 16 / static_cast<int>(sizeof(T));
template <typename T>
constexpr int kRun = kLoads * kVector<T>;
template <typename T>
struct alignas(16) Vector {
  T at[kVector<T>];
};

constexpr int64_t kLeastColumns = 1024;  // of a part, lest sums take longer than distances
constexpr int64_t kMaxParts = kMaxBlocks / 8;
// Of a block that compares two groups, 8 lanes for each pair of tiles; or, so that the compiler
// makes do with 96 registers and two blocks fit for n = 32, some more.
template <typename T>
constexpr int kMaxThreads = sizeof(T) == 4 ? 576 : 512;
constexpr int kThreads = 128;  // where they may be chosen freely; a power of 2

struct Parts {
  int64_t count;
  int64_t columns;  // of a part, the last one may have fewer
};

// As many parts as make some ten blocks for each that runs at once, so that the last ones to end
// leave little of the card idle; `blocks` of them share a part.
Parts CutColumns(int64_t d, int64_t blocks) {
  const int64_t most = kMaxParts / blocks, least = CeilDiv(d, kLeastColumns);
  int64_t count = least < most ? least : most;
  if (count < 1) count = 1;
  const int64_t columns = CeilDiv(d, count);
  return {columns == 0 ? 0 : CeilDiv(d, columns), columns};
}

// What one distance is made of.
struct Terms {
  double sum;                      // over the coordinates that both have
  int64_t both;                    // their number
  int64_t missing, other_missing;  // of either row
  int64_t infinite;                // of both rows together
};

// The first two of them for a pair of rows, and what is counted for each row.
struct PairTerms {
  double sum;
  int64_t both;
};
struct RowTerms {
  int64_t missing, infinite;
};

__device__ double SqDistance(Terms t, int64_t d) {
  const bool comparable = t.infinite == 0 && 2 * t.missing <= d && 2 * t.other_missing <= d;
  const double scaled = t.sum * (static_cast<double>(d) / static_cast<double>(t.both));
  // Not finite: 0 / 0 where nothing is in both.
  return comparable && IsFinite(scaled) ? scaled : kInfinity<double>;
}

// The sum over the threads of a block, a power of 2; for thread 0.
__device__ Terms SumOverBlock(Terms mine) {
  AGGREGATHOR_SHARED(shared);
  Terms* terms = reinterpret_cast<Terms*>(shared);
  terms[threadIdx.x] = mine;
  for (unsigned half = blockDim.x / 2; half > 0; half /= 2) {
    __syncthreads();
    if (threadIdx.x >= half) continue;
    const Terms other = terms[threadIdx.x + half];
    Terms& sum = terms[threadIdx.x];
    sum.sum += other.sum;
    sum.both += other.both;
    sum.missing += other.missing;
    sum.other_missing += other.other_missing;
    sum.infinite += other.infinite;
  }
  return terms[0];
}

// Pairs of a triangle are (0, 0), (0, 1), ..., (1, 1), ...
struct Pair {
  int first, second;
};
__device__ Pair TrianglePair(int64_t index, int size) {
  int first = 0;
  for (; index >= size - first; ++first) index -= size - first;
  return {first, first + static_cast<int>(index)};
}
__host__ __device__ constexpr int64_t TriangleSize(int64_t size) { return size * (size + 1) / 2; }

// The place of the pair of rows a < b in a list of all pairs.
__device__ int64_t PairIndex(int64_t n, int64_t a, int64_t b) {
  return a * (2 * n - a - 1) / 2 + b - a - 1;
}

// False for what float has lost squares of to underflow or overflow, and for NaN.
__device__ bool IsPlain(float sum) { return sum > 1e-26f && sum < 1e30f; }
__device__ bool IsPlain(double sum) { return IsFinite(sum); }

__device__ float AddSquare(float sum, float x) { return fmaf(x, x, sum); }
__device__ double AddSquare(double sum, double x) { return fma(x, x, sum); }

// The rows of one block: group a with itself or with group b. They fill `slots` of shared memory,
// those of a first, each group's filled up to whole tiles.
struct Rows {
  int first_a, num_a, first_b, num_b;
  bool same;

  __device__ Rows(Pair groups, int n)
      : first_a(groups.first * kGroup),
        num_a(min(kGroup, n - first_a)),
        first_b(groups.second * kGroup),
        num_b(min(kGroup, n - first_b)),
        same(groups.first == groups.second) {}

  __device__ static int Tiles(int rows) { return (rows + kTile - 1) / kTile; }
  __device__ int SlotsA() const { return Tiles(num_a) * kTile; }
  __device__ int Slots() const { return SlotsA() + (same ? 0 : Tiles(num_b) * kTile); }
  __device__ int NumTilePairs() const {
    return same ? static_cast<int>(TriangleSize(Tiles(num_a))) : Tiles(num_a) * Tiles(num_b);
  }
  // The slots at which the tiles of a pair begin.
  __device__ Pair TilePair(int index) const {
    if (same) {
      const Pair tiles = TrianglePair(index, Tiles(num_a));
      return {tiles.first * kTile, tiles.second * kTile};
    }
    return {index / Tiles(num_b) * kTile, SlotsA() + index % Tiles(num_b) * kTile};
  }
  // Of the tile that begins at a slot, the rows that do not fill up.
  __device__ int NumRows(int slot) const {
    return min(kTile, slot < SlotsA() ? num_a - slot : num_b - (slot - SlotsA()));
  }
  // The row of a slot, -1 for one that fills up.
  __device__ int RowOf(int slot) const {
    if (slot < SlotsA()) return slot < num_a ? first_a + slot : -1;
    slot -= SlotsA();
    return slot < num_b ? first_b + slot : -1;
  }
};

// Starts copying columns [j, j + kWidth) of the block's rows to tile[slot][kWidth]; those from
// `end` on become 0. A warp copies a row.
template <int kWidth, typename T>
__device__ void FetchTile(const T* stack_nd, int64_t d, const Rows& rows, int64_t j, int64_t end,
                          T* tile) {
  constexpr int kWarp = 32;
  const int lane = threadIdx.x % kWarp;
  for (int slot = threadIdx.x / kWarp; slot < rows.Slots(); slot += blockDim.x / kWarp) {
    const int row = rows.RowOf(slot);
    const T* from = stack_nd + row * d + j;
    T* to = tile + slot * kWidth;
    if (row >= 0 && j + kWidth <= end) {
#pragma unroll 4
      for (int c = lane; c < kWidth; c += kWarp)
        __pipeline_memcpy_async(to + c, from + c, sizeof(T));
    } else {
      for (int c = lane; c < kWidth; c += kWarp) to[c] = row >= 0 && j + c < end ? from[c] : T{0};
    }
  }
  __pipeline_commit();
}

// sums[r * kTile + c] += sum over a lane's columns of (a[r] - b[c])^2.
template <int kWidth, typename T>
__device__ void CompareTiles(const T* a, const T* b, T (&sums)[kPairs]) {
  constexpr int kStep = kWidth / kLoads;
#pragma unroll
  for (int l = 0; l < kLoads; ++l) {
    Vector<T> x[kTile], y[kTile];
#pragma unroll
    for (int r = 0; r < kTile; ++r) {
      x[r] = *reinterpret_cast<const Vector<T>*>(a + r * kWidth + l * kStep);
      y[r] = *reinterpret_cast<const Vector<T>*>(b + r * kWidth + l * kStep);
    }
#pragma unroll
    for (int p = 0; p < kPairs; ++p) {
#pragma unroll
      for (int v = 0; v < kVector<T>; ++v) {
        sums[p] = AddSquare(sums[p], x[p / kTile].at[v] - y[p % kTile].at[v]);
      }
    }
  }
}

// The same for one pair, in double and over what both have; counts the rest in *missing.
template <int kWidth, typename T>
__device__ double CompareExactly(const T* a, const T* b, unsigned* missing) {
  double sum = 0;
  unsigned count = 0;
#pragma unroll 1
  for (int l = 0; l < kRun<T>; ++l) {
    const int c = l / kVector<T> * (kWidth / kLoads) + l % kVector<T>;
    const double difference = static_cast<double>(a[c]) - static_cast<double>(b[c]);
    const double square = difference * difference;
    if (IsMissing(square)) {
      ++count;  // or an infinity in both: such rows are infinitely far from all anyway
    } else {
      sum += square;
    }
  }
  if (count > 0) atomicAdd(missing, count);
  return sum;
}

// Counts what is missing or infinite in a lane's columns of one row.
template <int kWidth, typename T>
__device__ void CountRow(const T* a, unsigned* missing, unsigned* infinite) {
#pragma unroll 1
  for (int l = 0; l < kRun<T>; ++l) {
    const T x = a[l / kVector<T> * (kWidth / kLoads) + l % kVector<T>];
    if (!IsFinite(x)) atomicAdd(IsMissing(x) ? missing : infinite, 1u);
  }
}

// Shared memory, first tiles_bytes: T tiles[kStages][slots][kWidth], at last replaced by
// double lanes[tile pairs * kPairs][kNumLanes]; then unsigned missing[tile pairs * kPairs], and of
// group a unsigned missing[kGroup], infinite[kGroup]. These count in 32 bits: d is in one part only
// if n is in the thousands, and 2^32 columns of so many rows fit no card.
template <typename T, int kNumLanes>
__global__ __launch_bounds__(kMaxThreads<T>) void ComparePairs(const T* __restrict__ stack_nd,
                                                               int n, int64_t d, Parts parts,
                                                               int num_groups, int tiles_bytes,
                                                               PairTerms* pair_terms,
                                                               RowTerms* row_terms) {
  const int64_t blocks = TriangleSize(num_groups);  // of a part
  const int64_t part = blockIdx.x / blocks;
  const Rows rows(TrianglePair(blockIdx.x % blocks, num_groups), n);
  const int num_tile_pairs = rows.NumTilePairs();
  constexpr int kWidth = kRun<T> * kNumLanes;
  const int64_t begin = part * parts.columns;
  const int64_t end = min(d, begin + parts.columns);

  AGGREGATHOR_SHARED(shared);
  T* tiles = reinterpret_cast<T*>(shared);
  const int tile_size = rows.Slots() * kWidth;
  unsigned* pair_missing = reinterpret_cast<unsigned*>(shared + tiles_bytes);
  unsigned* row_missing = pair_missing + num_tile_pairs * kPairs;
  unsigned* row_infinite = row_missing + kGroup;
  for (int i = threadIdx.x; i < num_tile_pairs * kPairs + 2 * kGroup; i += blockDim.x) {
    pair_missing[i] = 0;
  }

  const int tile_pair = threadIdx.x / kNumLanes, lane = threadIdx.x % kNumLanes;
  const bool compares = tile_pair < num_tile_pairs;
  const Pair slots = rows.TilePair(compares ? tile_pair : 0);
  const bool diagonal = rows.same && slots.first == slots.second;
  const int num_second = rows.NumRows(slots.second);
  double total[kPairs] = {};

  FetchTile<kWidth>(stack_nd, d, rows, begin, end, tiles);
  int stage = 0;
  for (int64_t j = begin; j < end; j += kWidth, stage = 1 - stage) {
    if (j + kWidth < end) {
      FetchTile<kWidth>(stack_nd, d, rows, j + kWidth, end, tiles + (1 - stage) * tile_size);
      __pipeline_wait_prior(1);
    } else {
      __pipeline_wait_prior(0);
    }
    __syncthreads();  // the tile is there, of all threads
    if (compares) {
      const T* tile = tiles + stage * tile_size + lane * kVector<T>;
      const T* a = tile + slots.first * kWidth;
      const T* b = tile + slots.second * kWidth;
      T sums[kPairs] = {};
      CompareTiles<kWidth>(a, b, sums);
#pragma unroll
      for (int p = 0; p < kPairs; ++p) {
        const int r = p / kTile, c = p % kTile;
        if (IsPlain(sums[p])) {
          total[p] += sums[p];
        } else if (r == c && diagonal) {  // a row with itself: 0 unless something is not finite
          if (sums[p] != 0) {
            CountRow<kWidth>(a + r * kWidth, row_missing + slots.first + r,
                             row_infinite + slots.first + r);
          }
        } else if (c < num_second && (!diagonal || r < c)) {
          total[p] += CompareExactly<kWidth>(a + r * kWidth, b + c * kWidth,
                                             pair_missing + tile_pair * kPairs + p);
        }
      }
    }
    __syncthreads();  // nobody reads the tile any more
  }

  double* lanes = reinterpret_cast<double*>(shared);
  if (compares) {
#pragma unroll
    for (int p = 0; p < kPairs; ++p) {
      lanes[(tile_pair * kPairs + p) * kNumLanes + lane] = total[p];
    }
  }
  __syncthreads();
  for (int i = threadIdx.x; i < num_tile_pairs * kPairs; i += blockDim.x) {
    const Pair tile = rows.TilePair(i / kPairs);
    const int a = rows.RowOf(tile.first + i % kPairs / kTile);
    const int b = rows.RowOf(tile.second + i % kTile);
    if (a < 0 || b <= a) continue;  // the diagonal tile has each pair twice
    double sum = 0;
    for (int l = 0; l < kNumLanes; ++l) sum += lanes[i * kNumLanes + l];
    pair_terms[PairIndex(n, a, b) * parts.count + part] = {sum, end - begin - pair_missing[i]};
  }
  for (int i = threadIdx.x; rows.same && i < rows.num_a; i += blockDim.x) {
    row_terms[(rows.first_a + i) * parts.count + part] = {row_missing[i], row_infinite[i]};
  }
}

// Block a * n + b adds the parts of one pair of rows.
__global__ void AddPairs(const PairTerms* pair_terms, const RowTerms* row_terms, int64_t n,
                         int64_t d, int64_t num_parts, double* sq_dist_nn) {
  const int64_t a = blockIdx.x / n, b = blockIdx.x % n;
  if (b < a) return;
  Terms terms{};
  if (a < b) {
    for (int64_t part = threadIdx.x; part < num_parts; part += blockDim.x) {
      const PairTerms pair = pair_terms[PairIndex(n, a, b) * num_parts + part];
      const RowTerms row_a = row_terms[a * num_parts + part];
      const RowTerms row_b = row_terms[b * num_parts + part];
      terms.sum += pair.sum;
      terms.both += pair.both;
      terms.missing += row_a.missing;
      terms.other_missing += row_b.missing;
      terms.infinite += row_a.infinite + row_b.infinite;
    }
  }
  terms = SumOverBlock(terms);
  if (threadIdx.x > 0) return;
  const double sq_dist = a == b ? 0 : SqDistance(terms, d);
  sq_dist_nn[a * n + b] = sq_dist;
  sq_dist_nn[b * n + a] = sq_dist;
}

// Block part * n + i compares row i with v on one part: rows side by side, so that v comes from the
// card's cache. In double, which the memory leaves time for, and in a unit: of its two factors one
// is 1, the other a power of 2.
template <typename T>
__global__ void CompareTo(const T* __restrict__ stack_nd, int64_t n, int64_t d, Parts parts,
                          const T* __restrict__ v, double before, double after, Terms* terms) {
  const int64_t part = blockIdx.x / n, i = blockIdx.x % n;
  const int64_t begin = part * parts.columns;
  const int64_t end = min(d, begin + parts.columns);
  Terms mine{};
#pragma unroll 4
  for (int64_t j = begin + threadIdx.x; j < end; j += blockDim.x) {
    const T x = stack_nd[i * d + j];
    const T y = v == nullptr ? T{0} : v[j];
    const double difference = (x * before - y * before) * after;
    mine.missing += IsMissing(x);
    mine.infinite += !IsMissing(x) && !IsFinite(x);
    if (IsMissing(x) || IsMissing(y)) continue;
    mine.sum += difference * difference;
    ++mine.both;
  }
  mine = SumOverBlock(mine);
  if (threadIdx.x == 0) terms[i * parts.count + part] = mine;
}

// Block i adds the parts of row i.
__global__ void AddRows(const Terms* terms, int64_t d, int64_t num_parts, double* sq_dist_n) {
  const int64_t i = blockIdx.x;
  Terms sum{};
  for (int64_t part = threadIdx.x; part < num_parts; part += blockDim.x) {
    const Terms other = terms[i * num_parts + part];
    sum.sum += other.sum;
    sum.both += other.both;
    sum.missing += other.missing;
    sum.infinite += other.infinite;
  }
  sum = SumOverBlock(sum);
  if (threadIdx.x == 0) sq_dist_n[i] = SqDistance(sum, d);
}

// Block p compares a pair of rows in the unit that their unsure sum asks for (wide.h).
__global__ void ComparePairWide(const double* __restrict__ stack_nd, int64_t n, int64_t d,
                                const int64_t* __restrict__ pairs,
                                const double* __restrict__ sq_dist_nn, Wide* wide) {
  const double* a = stack_nd + pairs[blockIdx.x] / n * d;
  const double* b = stack_nd + pairs[blockIdx.x] % n * d;
  const int unit = UnitFor(sq_dist_nn[pairs[blockIdx.x]]);
  const double before = unit > 0 ? ldexp(1.0, -unit) : 1, after = unit < 0 ? ldexp(1.0, -unit) : 1;
  Terms mine{};
  for (int64_t j = threadIdx.x; j < d; j += blockDim.x) {
    const double x = a[j], y = b[j], difference = (x * before - y * before) * after;
    mine.missing += IsMissing(x);
    mine.other_missing += IsMissing(y);
    mine.infinite += (!IsMissing(x) && !IsFinite(x)) || (!IsMissing(y) && !IsFinite(y));
    if (IsMissing(difference)) continue;
    mine.sum += difference * difference;
    ++mine.both;
  }
  mine = SumOverBlock(mine);
  if (threadIdx.x == 0) wide[blockIdx.x] = {SqDistance(mine, d), 2 * unit};
}

constexpr int64_t kTermsBytes = static_cast<int64_t>(sizeof(Terms));  // of a thread

// A power of 2, no more than there are parts to add.
int ThreadsToAdd(Parts parts) {
  int threads = kThreads;
  while (threads / 2 >= parts.count && threads > 1) threads /= 2;
  return threads;
}

// What the shape of the stack makes of a comparison of all pairs.
struct PairsPlan {
  PairsPlan(int64_t n, int64_t d)
      : num_groups(CeilDiv(n, kGroup)), parts(CutColumns(d, TriangleSize(num_groups))) {}
  int64_t num_groups;
  Parts parts;
};

int64_t NumPairs(int64_t n) { return n * (n - 1) / 2; }

// Calls launch(std::integral_constant<int, lanes>) with as few lanes per pair of tiles as give a
// block 64 threads, but 8, which load 128 bytes of a row side by side.
template <int kNumLanes = 8, typename F>
int WithLanes(int64_t tile_pairs, F launch) {
  if constexpr (kNumLanes < 64) {
    if (tile_pairs * kNumLanes < 64) return WithLanes<2 * kNumLanes>(tile_pairs, launch);
  }
  return launch(std::integral_constant<int, kNumLanes>{});
}

template <typename T, int kNumLanes>
int LaunchComparePairs(const T* stack_nd, int64_t n, int64_t d, int64_t slots, int64_t tile_pairs,
                       PairsPlan plan, PairTerms* pair_terms, RowTerms* row_terms, void* stream) {
  const int64_t fetched_bytes = kStages * slots * kNumLanes * kLoads * 16;
  const int64_t lanes_bytes = tile_pairs * kPairs * kNumLanes * 8;
  const int64_t tiles_bytes = fetched_bytes > lanes_bytes ? fetched_bytes : lanes_bytes;
  const int64_t counted_bytes = (tile_pairs * kPairs + 2 * kGroup) * 4;
  return Launch(&ComparePairs<T, kNumLanes>, plan.parts.count * TriangleSize(plan.num_groups),
                static_cast<int>(CeilDiv(tile_pairs * kNumLanes, 32) * 32),
                tiles_bytes + counted_bytes, stream, stack_nd, static_cast<int>(n), d, plan.parts,
                static_cast<int>(plan.num_groups), static_cast<int>(tiles_bytes), pair_terms,
                row_terms);
}

template <typename T>
int LaunchSqDistances(const T* stack_nd, int64_t n, int64_t d, double* sq_dist_nn, void* scratch,
                      void* stream) {
  if (n > 46340) return kAggregathorCudaTooManyRows;  // n * n blocks fit a grid
  const PairsPlan plan(n, d);
  const int64_t tiles = CeilDiv(n < kGroup ? n : kGroup, kTile);
  const int64_t tile_pairs = n <= kGroup ? TriangleSize(tiles) : tiles * tiles;
  const int64_t slots = (n <= kGroup ? 1 : 2) * tiles * kTile;
  auto* pair_terms = static_cast<PairTerms*>(scratch);
  auto* row_terms = reinterpret_cast<RowTerms*>(pair_terms + NumPairs(n) * plan.parts.count);
  const int code = WithLanes(tile_pairs, [&](auto lanes) {
    return LaunchComparePairs<T, lanes.value>(stack_nd, n, d, slots, tile_pairs, plan, pair_terms,
                                              row_terms, stream);
  });
  if (code != cudaSuccess) return code;
  const int threads = ThreadsToAdd(plan.parts);
  return Launch(&AddPairs, n * n, threads, threads * kTermsBytes, stream, pair_terms, row_terms, n,
                d, plan.parts.count, sq_dist_nn);
}

template <typename T>
int LaunchSqDistancesTo(const T* stack_nd, int64_t n, int64_t d, const T* v, int unit,
                        double* sq_dist_n, void* scratch, void* stream) {
  if (n > INT32_MAX / kMaxParts) return kAggregathorCudaTooManyRows;
  const Parts parts = CutColumns(d, n);
  auto* terms = static_cast<Terms*>(scratch);
  const int code = Launch(&CompareTo<T>, parts.count * n, kThreads, kThreads * kTermsBytes, stream,
                          stack_nd, n, d, parts, v, unit > 0 ? std::ldexp(1, -unit) : 1.0,
                          unit < 0 ? std::ldexp(1, -unit) : 1.0, terms);
  if (code != cudaSuccess) return code;
  const int threads = ThreadsToAdd(parts);
  return Launch(&AddRows, n, threads, threads * kTermsBytes, stream, terms, d, parts.count,
                sq_dist_n);
}

}  // namespace
}  // namespace aggregathor

extern "C" {

int64_t aggregathor_cuda_sq_distances_scratch(int64_t n, int64_t d) {
  using namespace aggregathor;
  const int64_t row = n * static_cast<int64_t>(sizeof(RowTerms));
  const int64_t pair = NumPairs(n) * static_cast<int64_t>(sizeof(PairTerms));
  return (row + pair) * PairsPlan(n, d).parts.count;
}

int64_t aggregathor_cuda_sq_distances_to_scratch(int64_t n, int64_t d) {
  using namespace aggregathor;
  return n * CutColumns(d, n).count * static_cast<int64_t>(sizeof(Terms));
}

int aggregathor_cuda_wide_sq_distances(const double* stack_nd, int64_t n, int64_t d,
                                       const int64_t* pairs, int64_t num_pairs,
                                       const double* sq_dist_nn, aggregathor::Wide* wide,
                                       void* stream) {
  using namespace aggregathor;
  if (num_pairs > INT32_MAX) return kAggregathorCudaTooManyRows;
  return Launch(&ComparePairWide, num_pairs, kThreads, kThreads * kTermsBytes, stream, stack_nd, n,
                d, pairs, sq_dist_nn, wide);
}

#define AGGREGATHOR_DEFINE(T)                                                                     \
  int aggregathor_cuda_sq_distances_##T(const T* stack_nd, int64_t n, int64_t d,                  \
                                        double* sq_dist_nn, void* scratch, void* stream) {        \
    return aggregathor::LaunchSqDistances(stack_nd, n, d, sq_dist_nn, scratch, stream);           \
  }                                                                                               \
  int aggregathor_cuda_sq_distances_to_##T(const T* stack_nd, int64_t n, int64_t d, const T* v,   \
                                           int unit, double* sq_dist_n, void* scratch,            \
                                           void* stream) {                                        \
    return aggregathor::LaunchSqDistancesTo(stack_nd, n, d, v, unit, sq_dist_n, scratch, stream); \
  }
AGGREGATHOR_DEFINE(float)
AGGREGATHOR_DEFINE(double)
#undef AGGREGATHOR_DEFINE
}
