// The datagram of WIRE.md: its header, and floats as they cross the wire.
#ifndef LOSSYMPI_CORE_PACKET_H_
#define LOSSYMPI_CORE_PACKET_H_

#include <cstddef>
#include <cstdint>
#include <vector>

namespace lossympi {

inline constexpr int kVersion = 1;
inline constexpr size_t kHeaderBytes = 32;
inline constexpr size_t kTagBytes = 16;

enum class Kind : uint8_t {
  kProbe = 1,
  kEcho = 2,
  kGrant = 3,
  kReady = 4,
  kData = 5,
  kEnd = 6,
  kNack = 7,
  kDone = 8,
  kBye = 9,
};

inline constexpr uint32_t kPause = 1;  // `seq` of a READY from who sends on later

struct Header {
  Kind kind;
  uint16_t rank;
  uint32_t session;
  uint64_t round;
  uint32_t seq;
  uint32_t total;
  uint64_t counter;
};

// What became of a datagram: accepted, or the first reason that applied, in the order of WIRE.md.
enum class Verdict : int {
  kAccepted,
  kTruncated,
  kOversized,
  kVersion,
  kForeign,
  kForged,
  kMalformed,
  kReplayed,
  kEarly,
  kLate,
  kDuplicate,
};
inline constexpr int kNumVerdicts = 11;
const char* NameOf(Verdict verdict);

void Pack(const Header& header, uint8_t* to);  // kHeaderBytes
int VersionOf(const uint8_t* datagram);
Header Unpack(const uint8_t* from);  // kHeaderBytes; any bytes will do

// The type of a float on the wire.
enum class Wire : int { kFloat32, kFloat16, kBfloat16 };
inline size_t BytesOf(Wire wire) { return wire == Wire::kFloat32 ? 4 : 2; }

// Rounds to the nearest, ties to even; NaN stays NaN.
void Narrow(const float* from, size_t size, Wire wire, uint8_t* to);
void Widen(const uint8_t* from, size_t size, Wire wire, float* to);

// How a vector of `dim` floats is cut into datagrams.
struct Framing {
  int64_t dim;
  int64_t floats;  // of a datagram; the last may be short
  Wire wire;

  uint32_t NumDatagrams() const { return static_cast<uint32_t>((dim + floats - 1) / floats); }
  int64_t FloatsOf(uint32_t seq) const {
    const int64_t left = dim - seq * floats;
    return left < floats ? left : floats;
  }
  size_t FullPayload() const { return static_cast<size_t>(floats) * BytesOf(wire); }
  size_t PayloadOf(uint32_t seq) const {
    return static_cast<size_t>(FloatsOf(seq)) * BytesOf(wire);
  }
};

// Bytes of payload in a datagram, for an IPv4 packet of at most `mtu` bytes; a multiple of 64.
inline int64_t PayloadBytes(int64_t mtu) {
  return (mtu - 28 - static_cast<int64_t>(kHeaderBytes + kTagBytes)) / 64 * 64;
}

// One NACK of those that tell what is missing.
struct Nack {
  uint32_t first;  // a multiple of 8
  std::vector<uint8_t> bitmap;
};
// NACKs of at most `most_bytes` of bitmap, none where nothing is missing. arrived[total]: 0 or 1.
std::vector<Nack> NacksOf(const uint8_t* arrived, uint32_t total, size_t most_bytes);
// Whether a NACK's bitmap is of datagrams that there are.
inline bool IsSoundNack(uint32_t first, const uint8_t* bitmap, size_t bytes, uint32_t total) {
  if (first % 8 != 0 || first >= total || bytes == 0) return false;
  const uint64_t rest = total - first;
  if (bytes > (rest + 7) / 8) return false;
  const uint64_t beyond = bytes * 8 > rest ? bytes * 8 - rest : 0;  // bits of the last byte
  return beyond == 0 || bitmap[bytes - 1] >> (8 - beyond) == 0;
}
// Calls wanted(seq) for each bit of a sound NACK's bitmap.
template <typename F>
void ReadNack(uint32_t first, const uint8_t* bitmap, size_t bytes, F wanted) {
  for (size_t a = 0; a < bytes; ++a) {
    for (unsigned bits = bitmap[a]; bits != 0; bits &= bits - 1) {  // the lowest is read
      wanted(first + static_cast<uint32_t>(8 * a + static_cast<size_t>(__builtin_ctz(bits))));
    }
  }
}

}  // namespace lossympi

#endif  // LOSSYMPI_CORE_PACKET_H_
