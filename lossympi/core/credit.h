// For how long broadcasts may wait for a worker (WIRE.md). No clock: the time is passed in, in
// seconds. credit.py is its twin.
#ifndef LOSSYMPI_CORE_CREDIT_H_
#define LOSSYMPI_CORE_CREDIT_H_

#include <algorithm>
#include <limits>
#include <vector>

namespace lossympi {

// Each row's overtime, the time for which it alone was waited for, in all that time may cost: what
// it has at the start, `most`, and its share of the time that passes, 1 / 2n. A row that has used
// up more than it had is in debt, and is not waited for. So fewer than n/2 rows, whatever they do,
// make a job less than 4/3 as long, beside what they have at the start.
class Credit {
 public:
  explicit Credit(int num_rows)
      : share_(1.0 / (2.0 * num_rows)),
        credit_(num_rows, std::numeric_limits<double>::infinity()) {}

  // Time has passed; nobody has more than `most` now.
  void Refill(double most, double now) {
    const double more = (now - refilled_at_) * share_;
    for (double& credit : credit_) credit = std::min(most, credit + more);
    refilled_at_ = now;
  }
  bool in_debt(int row) const { return credit_[row] < 0; }
  void Charge(int row, double overtime) { credit_[row] -= overtime; }

 private:
  const double share_;
  std::vector<double> credit_;  // [n]
  double refilled_at_ = 0;
};

}  // namespace lossympi

#endif  // LOSSYMPI_CORE_CREDIT_H_
