// Who is who: a rank's peers and their rows, and whose a datagram says that it is.
#ifndef LOSSYMPI_CORE_PEER_LAYOUT_H_
#define LOSSYMPI_CORE_PEER_LAYOUT_H_

#include <cstddef>
#include <cstdint>

#include "lossympi/core/packet.h"

namespace lossympi {

// A peer is known by its row: worker w is row w of the server's, the server is row 0 of a worker's.
struct PeerLayout {
  int rank;  // 0 is the server
  int num_workers;
  uint32_t session;
  Framing framing;
  size_t longest_datagram;
  size_t tag_bytes;

  bool is_server() const { return rank == 0; }
  int num_peers() const { return is_server() ? num_workers : 1; }
  int RowOf(int peer_rank) const { return is_server() ? peer_rank - 1 : peer_rank; }
  int RankOf(int row) const { return is_server() ? row + 1 : row; }
  size_t BytesOf(size_t payload) const { return kHeaderBytes + payload + tag_bytes; }  // a datagram
};

// What can be said of a datagram before its address and its tag are checked.
struct Envelope {
  Verdict verdict;  // kAccepted, or why it is nobody's
  int row = -1;     // of the peer whose it claims to be, -1 for nobody
  Header header{};
  size_t signed_bytes = 0;  // header and payload; the tag follows
};
inline Envelope OpenEnvelope(const PeerLayout& layout, const uint8_t* data, size_t size) {
  if (size < kHeaderBytes + layout.tag_bytes) return {Verdict::kTruncated};
  if (size > layout.longest_datagram) return {Verdict::kOversized};
  if (VersionOf(data) != kVersion) return {Verdict::kVersion};
  const Header header = Unpack(data);
  const int row = layout.RowOf(header.rank);
  if (header.session != layout.session || row < 0 || row >= layout.num_peers()) {
    return {Verdict::kForeign};
  }
  return {Verdict::kAccepted, row, header, size - layout.tag_bytes};
}

}  // namespace lossympi

#endif  // LOSSYMPI_CORE_PEER_LAYOUT_H_
