// What closes a round (WIRE.md): the one rule that all links share. closing.py is its twin.
#ifndef LOSSYMPI_CORE_CLOSING_H_
#define LOSSYMPI_CORE_CLOSING_H_

#include <algorithm>

namespace lossympi {

enum class Reason { kOpen, kComplete, kEarly, kDeadline };

inline const char* NameOf(Reason reason) {
  constexpr const char* kNames[] = {"open", "complete", "early", "deadline"};
  return kNames[static_cast<int>(reason)];
}

// Of the live rows `num_complete` have come whole, and `num_settled`, these included, need not be
// waited for. `quorum` is at least 1.
inline Reason ClosedBy(int num_live, int num_complete, int num_settled, int quorum, bool is_late) {
  if (num_live > 0 && num_complete == num_live) return Reason::kComplete;
  // Who is dead cannot be needed for the quorum.
  if (num_live > 0 && num_settled >= std::min(quorum, num_live)) return Reason::kEarly;
  return is_late ? Reason::kDeadline : Reason::kOpen;
}

}  // namespace lossympi

#endif  // LOSSYMPI_CORE_CLOSING_H_
