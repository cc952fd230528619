// Datagrams -> rows of the caller's buffer. No socket, no clock.
#ifndef LOSSYMPI_CORE_ASSEMBLER_H_
#define LOSSYMPI_CORE_ASSEMBLER_H_

#include <cstdint>
#include <vector>

#include "lossympi/core/packet.h"

namespace lossympi {

// Writes what arrives in the open round straight to its place, and remembers what has.
//
// Memory: one byte a datagram and row and eight a datagram, allocated once; nothing that a datagram
// says allocates.
class Assembler {
 public:
  Assembler(int num_rows, Framing framing);

  // Row i is rows + i * dim. They are written until Close, and never after. Rounds increase; those
  // before this one are closed from now on.
  void Open(uint64_t round, float* rows);
  // Rounds up to `round` are closed, whether they were open or not.
  void Close(uint64_t round);

  // Whether a DATA datagram is what its kind, seq and d demand.
  bool IsSound(const Header& header, size_t bytes) const;
  // Handles a DATA datagram whose sender is known to own `row`.
  Verdict Accept(int row, const Header& header, const uint8_t* payload, size_t bytes);
  // Whether a datagram of this round would be looked at: accepted, early or late.
  Verdict InTime(uint64_t round) const;

  bool is_open() const { return rows_ != nullptr; }
  uint64_t round() const { return round_; }  // the open one, or the last that was
  uint64_t closed_round() const { return closed_round_; }
  // Only a round above this one may be opened.
  uint64_t newest_round() const { return round_ > closed_round_ ? round_ : closed_round_; }
  uint32_t missing(int row) const { return missing_[row]; }
  const uint8_t* arrived(int row) const { return &arrived_[row * size_t{framing_.NumDatagrams()}]; }
  // The datagrams that have arrived in all rows, in the order in which they came to do so.
  const std::vector<uint32_t>& whole() const { return whole_; }
  const Framing& framing() const { return framing_; }

 private:
  const int num_rows_;
  const Framing framing_;
  float* rows_ = nullptr;
  uint64_t round_ = 0, closed_round_ = 0;
  std::vector<uint8_t> arrived_;   // [num_rows][c], 0 or 1
  std::vector<uint32_t> missing_;  // [num_rows]
  std::vector<uint32_t> lacking_;  // [c], rows in which a datagram has not arrived
  std::vector<uint32_t> whole_;
};

}  // namespace lossympi

#endif  // LOSSYMPI_CORE_ASSEMBLER_H_
