// When a round closes (WIRE.md). No clock: the time is passed in, in seconds.
#ifndef LOSSYMPI_CORE_CLOSE_RULE_H_
#define LOSSYMPI_CORE_CLOSE_RULE_H_

#include <algorithm>
#include <cstdint>
#include <vector>

#include "lossympi/core/closing.h"

namespace lossympi {

struct ClosePolicy {
  double deadline;  // after the opening, for all but f of the live rows
  double grace;     // nothing came for so long
  double quiet;     // a row that has begun and for which nothing came for so long has ended
  double max_loss;  // 0..1
  int quorum;
  std::vector<bool> live;  // [num_rows]
  // Once all but f > 0 of the live rows are settled, all are waited for until `free` after the
  // opening, then each other as long as it may be, and none longer than `longest`.
  int f = 0;
  double longest = 0, free = 0;
  std::vector<double> allowance = {};  // [num_rows], or none where f is 0
};

// A row that was quiet for long enough is settled until something comes for it again; any other
// that is settled stays so, and what still comes for it only puts off the early close, by at most a
// grace.
class CloseRule {
 public:
  CloseRule(ClosePolicy policy, uint32_t num_datagrams, double now);

  void Heard(int row, double now, uint32_t missing);  // a datagram of the row was accepted
  void Ended(int row, double now);  // the sender says that it has sent all; only the first counts
  void Pauses(int row);             // it says that more will come: until then quiet means nothing

  struct Answer {
    Reason reason;
    double wake_at;  // when to ask again if nothing happens before
  };
  Answer Check(double now);

  // Whether END of this row is answered with NACK.
  bool IsShort(int row) const { return rows_[row].missing > most_missing_; }
  double settled_at(int row) const { return rows_[row].settled_at; }  // NaN if it was not
  double opened_at() const { return opened_at_; }

 private:
  struct Row {
    uint32_t missing;
    bool begun = false, ended = false, pauses = false;
    double last_at, settled_at;
  };

  bool IsSettled(const Row& row) const;
  bool MaySettleByQuiet(const Row& row) const {
    return row.begun && !row.pauses && row.missing <= most_missing_;
  }
  void Settle(Row& row, double now) const;

  // When nothing has come for the grace; nobody can put that off for ever.
  double IdleAt(const Row& row) const {
    return std::min(row.last_at, row.settled_at + policy_.grace) + policy_.grace;
  }

  const ClosePolicy policy_;
  const uint32_t most_missing_;  // datagrams, of a settled row
  const double opened_at_;
  int num_live_ = 0;
  std::vector<Row> rows_;
  std::vector<double> live_settled_;  // when, in no order
};

}  // namespace lossympi

#endif  // LOSSYMPI_CORE_CLOSE_RULE_H_
