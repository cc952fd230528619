#include "lossympi/core/write_tracker.h"

#include <algorithm>

namespace lossympi {

WriteTracker::WriteTracker(Framing framing) : framing_(framing), lacking_(framing.NumDatagrams()) {
  Clear();
}

void WriteTracker::Clear() {
  whole_.clear();
  for (uint32_t seq = 0; seq < lacking_.size(); ++seq) lacking_[seq] = framing_.FloatsOf(seq);
}

void WriteTracker::Add(int64_t first, int64_t count) {
  const int64_t end = first + count;
  for (int64_t at = first; at < end;) {
    const int64_t seq = at / framing_.floats;
    const int64_t next = std::min((seq + 1) * framing_.floats, end);
    if ((lacking_[seq] -= next - at) == 0) whole_.push_back(static_cast<uint32_t>(seq));
    at = next;
  }
}

}  // namespace lossympi
