#include "aggregathor/ops/kernels/selection.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "aggregathor/ops/kernels/exact_sum.h"
#include "aggregathor/ops/kernels/float_mode.h"
#include "aggregathor/ops/kernels/wide.h"

namespace aggregathor {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

double OrInfinity(double sq_dist) { return std::isnan(sq_dist) ? kInfinity : sq_dist; }

// Sum of the `neighbours` smallest distances from row i to the other rows in `rows`.
double KrumScore(const double* sq_dist_nn, int64_t n, const std::vector<int64_t>& rows, int64_t i,
                 int64_t neighbours) {
  std::vector<double> to_others;
  for (int64_t j : rows) {
    if (j != i) to_others.push_back(OrInfinity(sq_dist_nn[i * n + j]));
  }
  const auto end = to_others.begin() + std::min<int64_t>(neighbours, to_others.size());
  // Sorted, not just selected: a sum in ascending order does not depend on the order of the rows.
  std::partial_sort(to_others.begin(), end, to_others.end());
  return std::accumulate(to_others.begin(), end, 0.0);
}

// The first `count` of `rows` (ascending) by score_n[row]; a row without a finite score is left
// out.
std::vector<int64_t> Best(const std::vector<double>& score_n, std::vector<int64_t> rows,
                          int64_t count) {
  std::stable_sort(rows.begin(), rows.end(),
                   [&](int64_t a, int64_t b) { return score_n[a] < score_n[b]; });
  rows.resize(std::min<int64_t>(count, rows.size()));
  while (!rows.empty() && !std::isfinite(score_n[rows.back()])) rows.pop_back();
  return rows;
}

std::vector<int64_t> AllRows(int64_t n) {
  std::vector<int64_t> rows(n);
  std::iota(rows.begin(), rows.end(), int64_t{0});
  return rows;
}

void Remove(std::vector<int64_t>& rows, int64_t row) {
  rows.erase(std::find(rows.begin(), rows.end(), row));
}

}  // namespace

std::vector<int64_t> KrumSelect(const double* sq_dist_nn, int64_t n, int64_t f, int64_t m) {
  const IeeeMode mode;
  const std::vector<int64_t> rows = AllRows(n);
  std::vector<double> score_n;
  for (int64_t i : rows) score_n.push_back(KrumScore(sq_dist_nn, n, rows, i, n - f - 2));
  return Best(score_n, rows, m);
}

namespace {

// The sum of some of a row's distances, from which rows leave. Kept without rounding, so that rows
// whose distances are equal tie, whatever has left them before.
class Score {
 public:
  void Add(double sq_dist) {
    if (std::isfinite(sq_dist)) {
      sum_.Add(sq_dist);
    } else {
      ++num_infinite_;
    }
  }
  void Subtract(double sq_dist) {
    if (std::isfinite(sq_dist)) {
      sum_.Subtract(sq_dist);
    } else {
      --num_infinite_;
    }
  }
  double Value() const { return num_infinite_ > 0 ? kInfinity : sum_.Value(); }

 private:
  ExactSum sum_;
  int64_t num_infinite_ = 0;
};

// The others of row i from the nearest to the farthest.
std::vector<int64_t> NearestOthers(const double* sq_dist_nn, int64_t n, int64_t i) {
  std::vector<int64_t> others = AllRows(n);
  Remove(others, i);
  const auto distance = [&](int64_t j) { return OrInfinity(sq_dist_nn[i * n + j]); };
  std::stable_sort(others.begin(), others.end(),
                   [&](int64_t a, int64_t b) { return distance(a) < distance(b); });
  return others;
}

}  // namespace

std::vector<std::vector<int64_t>> BulyanSelect(const double* sq_dist_nn, int64_t n, int64_t f) {
  const IeeeMode mode;
  const int64_t theta = n - 2 * f - 2;
  const int64_t m = n - f - 2;
  std::vector<Score> sum_n(n);
  // counts[j * n + i]: whether row i's distance to row j does. Each row's f + 1 farthest do not.
  std::vector<char> counts(n * n, 0);
  for (int64_t i = 0; i < n; ++i) {
    const std::vector<int64_t> others = NearestOthers(sq_dist_nn, n, i);
    for (int64_t p = 0; p < m; ++p) {
      counts[others[p] * n + i] = 1;
      sum_n[i].Add(sq_dist_nn[i * n + others[p]]);
    }
  }
  std::vector<int64_t> rows = AllRows(n);
  std::vector<double> score_n(n);
  std::vector<std::vector<int64_t>> groups;
  for (int64_t k = 0; k < theta; ++k) {
    for (int64_t i : rows) score_n[i] = sum_n[i].Value();
    std::vector<int64_t> group = Best(score_n, rows, m - k);
    if (static_cast<int64_t>(group.size()) < m - k) break;
    const int64_t leaves = group.front();
    Remove(rows, leaves);
    for (int64_t i : rows) {
      if (counts[leaves * n + i]) sum_n[i].Subtract(sq_dist_nn[i * n + leaves]);
    }
    groups.push_back(std::move(group));
  }
  return groups;
}

namespace {

// The sum of a row's q smallest distances to the others, of which one after the other leaves.
class NearestSum {
 public:
  NearestSum(const double* sq_dist_n, std::vector<int64_t> nearest_others, int64_t q)
      : sq_dist_n_(sq_dist_n), others_(std::move(nearest_others)), place_(others_.size() + 1, -1) {
    for (size_t p = 0; p < others_.size(); ++p) place_[others_[p]] = static_cast<int32_t>(p);
    while (count_ < q) AddNext();
  }

  // Takes a row out, and leaves q distances or as many as there are.
  void Leave(int64_t row, int64_t q) {
    const int32_t p = place_[row];
    place_[row] = -1;
    if (p < end_) {
      score_.Subtract(sq_dist_n_[row]);
      --count_;
    }
    while (count_ > q) TakeLast();
    while (count_ < q && end_ < static_cast<int32_t>(others_.size())) AddNext();
  }

  double Value() const { return score_.Value(); }

 private:
  bool Remains(int32_t p) const { return place_[others_[p]] >= 0; }
  void AddNext() {
    const int32_t p = end_++;
    if (!Remains(p)) return;
    score_.Add(sq_dist_n_[others_[p]]);
    ++count_;
  }
  void TakeLast() {
    const int32_t p = --end_;
    if (!Remains(p)) return;
    score_.Subtract(sq_dist_n_[others_[p]]);
    --count_;
  }

  const double* sq_dist_n_;
  std::vector<int64_t> others_;
  std::vector<int32_t> place_;  // of each row in others_, -1 for one that has left
  int32_t end_ = 0;             // what is before it counts
  int64_t count_ = 0;
  Score score_;
};

}  // namespace

std::vector<std::vector<int64_t>> BulyanPaperSelect(const double* sq_dist_nn, int64_t n,
                                                    int64_t f) {
  const IeeeMode mode;
  const auto neighbours = [f](size_t num_rows) {
    const auto others = static_cast<int64_t>(num_rows) - 1;
    return std::min(others, std::max<int64_t>(1, others - f - 1));
  };
  std::vector<int64_t> rows = AllRows(n);
  std::vector<NearestSum> sum_n;
  for (int64_t i : rows) {
    sum_n.emplace_back(sq_dist_nn + i * n, NearestOthers(sq_dist_nn, n, i),
                       neighbours(rows.size()));
  }
  std::vector<double> score_n(n);
  std::vector<std::vector<int64_t>> groups;
  for (int64_t k = 0; k < n - 2 * f; ++k) {
    for (int64_t i : rows) score_n[i] = sum_n[i].Value();
    const int64_t choice = *std::min_element(
        rows.begin(), rows.end(), [&](int64_t a, int64_t b) { return score_n[a] < score_n[b]; });
    if (!std::isfinite(score_n[choice])) break;
    groups.push_back({choice});
    Remove(rows, choice);
    for (int64_t i : rows) sum_n[i].Leave(choice, neighbours(rows.size()));
  }
  return groups;
}

namespace {

// k of 2^k <= x < 2^(k+1) for a wide number; less than any other for 0, more for an infinity.
int64_t ExponentOf(Wide x) {
  if (x.value == 0) return std::numeric_limits<int64_t>::min();
  if (!std::isfinite(x.value)) return std::numeric_limits<int64_t>::max();
  return std::ilogb(x.value) + x.exponent;
}

int64_t NthSmallest(std::vector<int64_t>& values, int64_t n) {
  std::nth_element(values.begin(), values.begin() + n, values.end());
  return values[n];
}

}  // namespace

void ToOneUnit(const Wide* wide_nn, int64_t n, double* sq_dist_nn) {
  const IeeeMode mode;
  std::vector<int64_t> of_rows, of_row;
  for (int64_t i = 0; i < n && n > 1; ++i) {
    of_row.clear();
    for (int64_t j = 0; j < n; ++j) {
      if (j != i) of_row.push_back(ExponentOf(wide_nn[i * n + j]));
    }
    of_rows.push_back(NthSmallest(of_row, n / 2 - 1));
    // A row that is equal to so many is as far from the others as from the nearest of them.
    if (of_rows.back() != ExponentOf({0, 0})) continue;
    for (int64_t& exponent : of_row) {
      if (exponent == ExponentOf({0, 0})) exponent = ExponentOf({kInfinity, 0});
    }
    of_rows.back() = *std::min_element(of_row.begin(), of_row.end());
  }
  int64_t unit = of_rows.empty() ? 0 : NthSmallest(of_rows, n / 2);
  // An ordinary number, or all rows are equal or infinitely far from each other.
  if (std::abs(unit) <= 500 || unit == ExponentOf({kInfinity, 0})) unit = 0;
  for (int64_t i = 0; i < n * n; ++i) {
    sq_dist_nn[i] = std::scalbn(wide_nn[i].value, static_cast<int>(wide_nn[i].exponent - unit));
  }
}

// Least diameter as vertex cover. Two rows farther apart than a threshold conflict; a subset of
// diameter <= threshold is what is left when, of each conflicting pair, at least one row goes. So
// the least diameter is the least distance whose conflict graph can be covered by f rows, found by
// bisection over the distances that occur, and each question is answered by branch and bound on
// the row with most conflicts: it goes, or all that conflict with it go. At most O(1.47^f n^2)
// time and O(n^2 + n f) memory, where listing the subsets takes C(n, f) of both.
namespace {

class ConflictGraph {
 public:
  ConflictGraph(const double* sq_dist_nn, int64_t n, double threshold)
      : n_(n), conflict_(static_cast<size_t>(n * n), 0) {
    for (int64_t a = 0; a < n; ++a) {
      for (int64_t b = 0; b < n; ++b) {
        conflict_[a * n + b] = a != b && !(sq_dist_nn[a * n + b] <= threshold);
      }
    }
  }

  bool Conflict(int64_t a, int64_t b) const { return conflict_[a * n_ + b] != 0; }

  // Whether dropping at most `budget` of `rows` leaves no conflict among them.
  bool CanBeCovered(std::vector<int64_t> rows, int64_t budget) const {
    while (true) {
      int64_t most = 0, edges_twice = 0, worst = -1, beside_leaf = -1;
      for (int64_t a : rows) {
        int64_t degree = 0, last = -1;
        for (int64_t b : rows) {
          if (Conflict(a, b)) {
            ++degree;
            last = b;
          }
        }
        edges_twice += degree;
        if (degree == 1 && beside_leaf < 0) beside_leaf = last;
        if (degree > most) {
          most = degree;
          worst = a;
        }
      }
      if (most == 0) return true;
      if (edges_twice > 2 * most * budget || DisjointConflicts(rows) > budget) return false;
      if (beside_leaf >= 0) {  // to drop a leaf's only neighbour is never worse than the leaf
        Remove(rows, beside_leaf);
        --budget;
      } else if (most > budget) {  // its neighbours are too many: it must go itself
        Remove(rows, worst);
        --budget;
      } else if (most == 2) {  // cycles only: dropping any one row of a cycle is as good as another
        Remove(rows, worst);
        --budget;
      } else {
        std::vector<int64_t> without_neighbours;
        for (int64_t b : rows) {
          if (b != worst && !Conflict(worst, b)) without_neighbours.push_back(b);
        }
        Remove(rows, worst);
        if (CanBeCovered(rows, budget - 1)) return true;
        rows = std::move(without_neighbours);
        budget -= most;
      }
    }
  }

 private:
  // The size of a maximal set of conflicts without a common row: each costs a row of its own.
  int64_t DisjointConflicts(const std::vector<int64_t>& rows) const {
    std::vector<char> used(n_, 0);
    int64_t count = 0;
    for (int64_t a : rows) {
      if (used[a]) continue;
      for (int64_t b : rows) {
        if (used[b] || !Conflict(a, b)) continue;
        used[a] = used[b] = 1;
        ++count;
        break;
      }
    }
    return count;
  }

  int64_t n_;
  std::vector<char> conflict_;
};

// The lexicographically first n - f rows whose conflicts f dropped rows can cover: takes row after
// row where the rest can still be covered. Requires that all rows can be covered by f.
std::vector<int64_t> FirstCovered(const ConflictGraph& graph, int64_t n, int64_t f) {
  std::vector<int64_t> kept;
  std::vector<char> dropped(n, 0);
  int64_t num_dropped = 0;
  for (int64_t i = 0; i < n && static_cast<int64_t>(kept.size()) < n - f; ++i) {
    if (dropped[i]) continue;
    std::vector<char> trial = dropped;
    int64_t num_trial = num_dropped;
    std::vector<int64_t> undecided;
    for (int64_t j = i + 1; j < n; ++j) {
      if (trial[j]) continue;
      if (graph.Conflict(i, j)) {
        trial[j] = 1;
        ++num_trial;
      } else {
        undecided.push_back(j);
      }
    }
    if (num_trial <= f && graph.CanBeCovered(undecided, f - num_trial)) {
      kept.push_back(i);
      dropped = std::move(trial);
      num_dropped = num_trial;
    } else {
      dropped[i] = 1;
      ++num_dropped;
    }
  }
  return kept;
}

}  // namespace

std::vector<int64_t> MinDiameterSubset(const double* sq_dist_nn, int64_t n, int64_t f) {
  const IeeeMode mode;
  std::vector<double> diameters{0.0};  // of one row, or of equal rows
  for (int64_t a = 0; a < n; ++a) {
    for (int64_t b = a + 1; b < n; ++b) {
      const double sq_dist = sq_dist_nn[a * n + b];
      if (std::isfinite(sq_dist)) diameters.push_back(sq_dist);
    }
  }
  std::sort(diameters.begin(), diameters.end());
  const std::vector<int64_t> rows = AllRows(n);
  const auto least = std::partition_point(diameters.begin(), diameters.end(), [&](double diameter) {
    return !ConflictGraph(sq_dist_nn, n, diameter).CanBeCovered(rows, f);
  });
  if (least == diameters.end()) return {};
  return FirstCovered(ConflictGraph(sq_dist_nn, n, *least), n, f);
}

}  // namespace aggregathor
