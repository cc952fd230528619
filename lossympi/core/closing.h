// What closes a round (WIRE.md): the one rule that all links share. closing.py is its twin.
#ifndef LOSSYMPI_CORE_CLOSING_H_
#define LOSSYMPI_CORE_CLOSING_H_

#include <algorithm>
#include <vector>

namespace lossympi {

enum class Reason { kOpen, kComplete, kEarly, kDeadline };

inline const char* NameOf(Reason reason) {
  constexpr const char* kNames[] = {"open", "complete", "early", "deadline"};
  return kNames[static_cast<int>(reason)];
}

// How many live rows a round waits for at no worker's expense.
inline int MostOf(int num_live, int f) { return std::max(1, num_live - f); }

// When the `most`-th of these rows was settled; reorders them. There are as many at least.
inline double TimeOfMost(std::vector<double>* settled, int most) {
  const auto nth = settled->begin() + (most - 1);
  std::nth_element(settled->begin(), nth, settled->end());
  return *nth;
}

// Of the live rows `num_complete` have come whole, `num_settled`, these included, need not be
// waited for, and `num_given_up` others have used up what they may be waited for. `quorum` is at
// least 1.
inline Reason ClosedBy(int num_live, int num_complete, int num_settled, int quorum, bool is_late,
                       int num_given_up) {
  if (num_live > 0 && num_complete == num_live) return Reason::kComplete;
  // Who is dead or given up cannot be needed for the quorum.
  if (num_live > 0 && num_settled >= std::min(quorum, num_live - num_given_up)) {
    return Reason::kEarly;
  }
  return is_late ? Reason::kDeadline : Reason::kOpen;
}

}  // namespace lossympi

#endif  // LOSSYMPI_CORE_CLOSING_H_
