#include "aggregathor/ops/kernels/selection.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

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
  const std::vector<int64_t> rows = AllRows(n);
  std::vector<double> score_n;
  for (int64_t i : rows) score_n.push_back(KrumScore(sq_dist_nn, n, rows, i, n - f - 2));
  return Best(score_n, rows, m);
}

std::vector<std::vector<int64_t>> BulyanSelect(const double* sq_dist_nn, int64_t n, int64_t f) {
  const int64_t theta = n - 2 * f - 2;
  const int64_t m = n - f - 2;
  std::vector<int64_t> rows = AllRows(n);
  // Each row's n - f - 2 nearest others, nearest first: the f + 1 farthest count as 0.
  std::vector<std::vector<int64_t>> counted(n);
  for (int64_t i = 0; i < n; ++i) {
    std::vector<int64_t> others = rows;
    Remove(others, i);
    const auto distance = [&](int64_t j) { return OrInfinity(sq_dist_nn[i * n + j]); };
    std::stable_sort(others.begin(), others.end(),
                     [&](int64_t a, int64_t b) { return distance(a) < distance(b); });
    others.resize(n - f - 2);
    counted[i] = others;
  }
  std::vector<std::vector<int64_t>> groups;
  std::vector<double> score_n(n);
  std::vector<char> left(n, 0);
  for (int64_t k = 0; k < theta; ++k) {
    // What is left of each score is added anew, in ascending order, instead of subtracting the
    // distance of the row that left: two rows that tie would differ by the rounding.
    for (int64_t i : rows) {
      score_n[i] = 0;
      for (int64_t j : counted[i]) {
        if (!left[j]) score_n[i] += OrInfinity(sq_dist_nn[i * n + j]);
      }
    }
    const std::vector<int64_t> group = Best(score_n, rows, m - k);
    if (static_cast<int64_t>(group.size()) < m - k) break;
    groups.push_back(group);
    left[group.front()] = 1;
    Remove(rows, group.front());
  }
  return groups;
}

std::vector<std::vector<int64_t>> BulyanPaperSelect(const double* sq_dist_nn, int64_t n,
                                                    int64_t f) {
  std::vector<int64_t> rows = AllRows(n);
  std::vector<double> score_n(n);
  std::vector<std::vector<int64_t>> groups;
  for (int64_t k = 0; k < n - 2 * f; ++k) {
    const int64_t neighbours = std::max<int64_t>(1, static_cast<int64_t>(rows.size()) - f - 2);
    for (int64_t i : rows) score_n[i] = KrumScore(sq_dist_nn, n, rows, i, neighbours);
    const std::vector<int64_t> choice = Best(score_n, rows, 1);
    if (choice.empty()) break;
    groups.push_back(choice);
    Remove(rows, choice.front());
  }
  return groups;
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
