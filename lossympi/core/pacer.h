// When bytes may leave. No clock: the time is passed in, in seconds.
#ifndef LOSSYMPI_CORE_PACER_H_
#define LOSSYMPI_CORE_PACER_H_

#include <algorithm>
#include <limits>

namespace lossympi {

// Spaces bytes at a rate. Who was held up may catch up with what half a millisecond would have
// carried, and no more: a longer burst would overflow the receiver's buffer.
class Pacer {
 public:
  static constexpr double kBurst = 0.0005;

  explicit Pacer(double bytes_per_s) : bytes_per_s_(bytes_per_s) {}

  // The earliest time for the next `bytes`; the past means at once.
  double When(double now, double bytes) {
    next_ = std::max(next_, now - kBurst);
    const double when = next_;
    next_ += bytes / bytes_per_s_;
    return when;
  }

 private:
  double bytes_per_s_;
  double next_ = -std::numeric_limits<double>::infinity();
};

}  // namespace lossympi

#endif  // LOSSYMPI_CORE_PACER_H_
