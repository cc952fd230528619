// Seeded losses for tests (WIRE.md).
#ifndef LOSSYMPI_CORE_DROP_H_
#define LOSSYMPI_CORE_DROP_H_

#include <cmath>
#include <cstdint>

namespace lossympi {

class Drop {
 public:
  Drop(double share, uint64_t seed, uint64_t rank)
      : below_(static_cast<uint64_t>(std::ceil(share * (uint64_t{1} << 53)))),
        state_((seed << 32) + rank) {}

  // Whether the next datagram is lost.
  bool Next() {
    if (below_ == 0) return false;
    // SplitMix64: Steele, Lea, Flood, Fast splittable pseudorandom number generators, 2014.
    uint64_t z = state_ += 0x9e3779b97f4a7c15;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
    z = (z ^ z >> 27) * 0x94d049bb133111eb;
    return ((z ^ z >> 31) >> 11) < below_;
  }

 private:
  uint64_t below_, state_;
};

}  // namespace lossympi

#endif  // LOSSYMPI_CORE_DROP_H_
