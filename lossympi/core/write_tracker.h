// A vector that is written part by part: which datagrams of it can leave. No socket, no clock.
#ifndef LOSSYMPI_CORE_WRITE_TRACKER_H_
#define LOSSYMPI_CORE_WRITE_TRACKER_H_

#include <cstdint>
#include <vector>

#include "lossympi/core/packet.h"

namespace lossympi {

class WriteTracker {
 public:
  explicit WriteTracker(Framing framing);

  // Floats [first, first + count), of 0..d-1, have been written, each once.
  void Add(int64_t first, int64_t count);
  void Clear();
  const std::vector<uint32_t>& whole() const { return whole_; }  // datagrams, as they became so

 private:
  const Framing framing_;
  std::vector<int64_t> lacking_;  // [c], floats that have not been written
  std::vector<uint32_t> whole_;
};

}  // namespace lossympi

#endif  // LOSSYMPI_CORE_WRITE_TRACKER_H_
