#include "lossympi/core/assembler.h"

#include <algorithm>

namespace lossympi {

Assembler::Assembler(int num_rows, Framing framing)
    : num_rows_(num_rows),
      framing_(framing),
      arrived_(size_t{framing.NumDatagrams()} * num_rows),
      missing_(num_rows, framing.NumDatagrams()),
      lacking_(framing.NumDatagrams(), num_rows) {
  whole_.reserve(framing.NumDatagrams());
}

void Assembler::Open(uint64_t round, float* rows) {
  rows_ = rows;
  round_ = round;
  closed_round_ = round - 1;
  std::fill(arrived_.begin(), arrived_.end(), 0);
  std::fill(missing_.begin(), missing_.end(), framing_.NumDatagrams());
  std::fill(lacking_.begin(), lacking_.end(), num_rows_);
  whole_.clear();
}

void Assembler::Close(uint64_t round) {
  rows_ = nullptr;
  closed_round_ = std::max(closed_round_, round);
}

Verdict Assembler::InTime(uint64_t round) const {
  if (round <= closed_round_) return Verdict::kLate;
  if (rows_ == nullptr || round > round_) return Verdict::kEarly;
  return round < round_ ? Verdict::kLate : Verdict::kAccepted;
}

bool Assembler::IsSound(const Header& header, size_t bytes) const {
  return header.round > 0 && header.total == framing_.NumDatagrams() && header.seq < header.total &&
         bytes == framing_.PayloadOf(header.seq);
}

Verdict Assembler::Accept(int row, const Header& header, const uint8_t* payload, size_t bytes) {
  // A Byzantine worker chooses every byte here, so nothing is written until all of it is checked.
  if (row < 0 || row >= num_rows_) return Verdict::kForeign;
  if (!IsSound(header, bytes)) return Verdict::kMalformed;
  if (const Verdict in_time = InTime(header.round); in_time != Verdict::kAccepted) return in_time;
  uint8_t& arrived = arrived_[row * size_t{framing_.NumDatagrams()} + header.seq];
  if (arrived) return Verdict::kDuplicate;

  float* place = rows_ + row * framing_.dim + header.seq * framing_.floats;
  Widen(payload, static_cast<size_t>(framing_.FloatsOf(header.seq)), framing_.wire, place);
  arrived = 1;
  --missing_[row];
  if (--lacking_[header.seq] == 0) whole_.push_back(header.seq);
  return Verdict::kAccepted;
}

}  // namespace lossympi
