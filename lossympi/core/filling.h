// A vector that is written part by part: which datagrams of it can leave. No socket, no clock.
#ifndef LOSSYMPI_CORE_FILLING_H_
#define LOSSYMPI_CORE_FILLING_H_

#include <cstdint>
#include <vector>

#include "lossympi/core/packet.h"

namespace lossympi {

class Filling {
 public:
  explicit Filling(Cut cut);

  // Floats [first, first + count), of 0..d-1, have been written, each once.
  void Add(int64_t first, int64_t count);
  void Clear();
  const std::vector<uint32_t>& whole() const { return whole_; }  // datagrams, as they became so

 private:
  const Cut cut_;
  std::vector<int64_t> lacking_;  // [c], floats that have not been written
  std::vector<uint32_t> whole_;
};

}  // namespace lossympi

#endif  // LOSSYMPI_CORE_FILLING_H_
