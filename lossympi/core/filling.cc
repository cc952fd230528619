#include "lossympi/core/filling.h"

#include <algorithm>

namespace lossympi {

Filling::Filling(Cut cut) : cut_(cut), lacking_(cut.NumDatagrams()) { Clear(); }

void Filling::Clear() {
  whole_.clear();
  for (uint32_t seq = 0; seq < lacking_.size(); ++seq) lacking_[seq] = cut_.FloatsOf(seq);
}

void Filling::Add(int64_t first, int64_t count) {
  const int64_t end = first + count;
  for (int64_t at = first; at < end;) {
    const int64_t seq = at / cut_.floats;
    const int64_t next = std::min((seq + 1) * cut_.floats, end);
    if ((lacking_[seq] -= next - at) == 0) whole_.push_back(static_cast<uint32_t>(seq));
    at = next;
  }
}

}  // namespace lossympi
