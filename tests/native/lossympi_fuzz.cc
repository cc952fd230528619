// Feeds core/protocol.h, as a server and as a worker, with datagrams and times of the fuzzer's
// choice, and checks after each that nothing but what WIRE.md allows has changed. No socket, no
// clock, no threads. Built by scripts/fuzz-lossympi.
//
// An input is a shape (one byte), then steps. A step is a byte and what it needs: below 200 so many
// bytes of a datagram; from there on a tick of the virtual clock or a call of the owner, by kSteps.
// Session, length and tag of a datagram are put right for the most part (see Feed), as a fuzzer
// would never find them.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <optional>
#include <vector>

#include "lossympi/core/outbox.h"
#include "lossympi/core/packet.h"
#include "lossympi/core/protocol.h"

namespace {

using lossympi::Closed;
using lossympi::ClosePolicy;
using lossympi::CloseRule;
using lossympi::Counts;
using lossympi::Cut;
using lossympi::kHeaderBytes;
using lossympi::Kind;
using lossympi::kNumVerdicts;
using lossympi::Outbox;
using lossympi::Protocol;
using lossympi::Shape;
using lossympi::Wire;

constexpr uint32_t kSession = 0x12345678;
constexpr size_t kTag = 1;        // a byte: the sum of all before it
constexpr size_t kLongest = 260;  // bytes of a datagram
constexpr uint8_t kGuard = 0xa5;
constexpr size_t kGuardFloats = 16;

#define CHECK(is_so)                                                           \
  do {                                                                         \
    if (!(is_so)) {                                                            \
      std::fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #is_so); \
      std::abort();                                                            \
    }                                                                          \
  } while (false)

uint8_t SumOf(const uint8_t* data, size_t size) {
  uint8_t sum = 0;
  for (size_t i = 0; i < size; ++i) sum = static_cast<uint8_t>(sum + data[i]);
  return sum;
}

// What the fuzzer has left.
struct Input {
  const uint8_t* data;
  size_t size;
  uint8_t Byte() {
    if (size == 0) return 0;
    --size;
    return *data++;
  }
};

// Floats between guards, all of them known.
class Guarded {
 public:
  explicit Guarded(size_t size) : floats_(size + 2 * kGuardFloats) {
    std::memset(floats_.data(), kGuard, floats_.size() * sizeof(float));
  }
  float* begin() { return floats_.data() + kGuardFloats; }
  void Keep() { kept_ = floats_; }
  // Whether all but [first, last) is as it was at the last Keep.
  bool IsKeptBut(size_t first, size_t last) const {
    const auto same = [this](size_t from, size_t to) {
      return std::memcmp(&floats_[from], &kept_[from], (to - from) * sizeof(float)) == 0;
    };
    return same(0, kGuardFloats + first) && same(kGuardFloats + last, floats_.size());
  }

 private:
  std::vector<float> floats_, kept_;
};

class Fuzzed : private lossympi::Surroundings {
 public:
  Fuzzed(const Shape& shape)
      : shape_(shape),
        protocol_(shape, this),
        c_(shape.cut.NumDatagrams()),
        rows_(static_cast<size_t>(shape.num_peers() * shape.cut.dim)),
        nacked_at_(shape.num_peers(), -1) {
    rows_.Keep();
  }

  void Step(uint8_t step, Input* input) {
    if (step < 200) return Feed(step, input);
    const uint8_t argument = input->Byte();
    switch (step % 8) {
      case 0:
        now_ += argument * 0.0001;
        break;
      case 1:
        now_ += argument * 0.1;
        break;
      case 2:
        shape_.is_server() ? Open(argument) : Take();
        break;
      case 3:
        if (shape_.is_server() && open_) {
          protocol_.AbandonRound();
          open_ = false;
        }
        break;
      case 4:
        Transmit(argument);
        break;
      case 5:
        if (outbox_) Act();
        break;
      case 6:
        if (outbox_) StopTransmitting();
        break;
      default:
        protocol_.ForgetEchoes();
    }
    Tick();
  }

  void CheckAtTheEnd() {
    uint64_t counted = 0;
    for (int row = -1; row < shape_.num_peers(); ++row) {
      const Counts& counts = row < 0 ? protocol_.counts_of_nobody() : protocol_.counts(row);
      for (const uint64_t count : counts) counted += count;
      // What is told to be a peer's is not counted for the link, and the reverse.
      for (int v = 0; v < kNumVerdicts; ++v) {
        const bool of_link = v >= 1 && v <= static_cast<int>(lossympi::Verdict::kForeign);
        if ((row < 0) != of_link) CHECK(counts[v] == 0);
      }
    }
    CHECK(counted == num_fed_);
    if (outbox_) StopTransmitting();
  }

 private:
  bool CameFrom(int row) override {
    CHECK(row >= 0 && row < shape_.num_peers());
    return from_ == row;
  }
  bool TagFits(int row, const uint8_t* data, size_t size, uint64_t) override {
    CHECK(row == from_);
    return SumOf(data, size) == data[size];
  }
  void Reply(int row, Kind kind, uint64_t round, uint32_t seq, uint32_t total,
             const uint8_t* payload, size_t bytes) override {
    CHECK(row >= 0 && row < shape_.num_peers());
    // It can be read: the address sanitizer has seen to it.
    [[maybe_unused]] volatile const uint8_t sum = SumOf(payload, bytes);
    const size_t size = kHeaderBytes + bytes + kTag;
    CHECK(size <= kLongest);
    const bool server = shape_.is_server();
    switch (kind) {
      case Kind::kEcho:
        CHECK(round == 0 && total == 0 && size == fed_bytes_);
        break;
      case Kind::kGrant:
        CHECK(server && open_ && round == open_round_ && bytes == 0);
        break;
      case Kind::kDone:
        CHECK(round > 0 && seq == 0 && total == 0 && bytes == 0);
        break;
      case Kind::kNack: {
        CHECK(total == c_ && seq < c_ && bytes <= shape_.cut.FullPayload());
        if (seq == 0 || now_ != nacked_at_[row]) {
          CHECK(nacked_at_[row] < 0 || now_ >= nacked_at_[row] + 0.00025 - 1e-9);
        }
        nacked_at_[row] = now_;
        uint32_t wanted = 0;
        CHECK(lossympi::ReadNack(seq, payload, bytes, total, [&](uint32_t) { ++wanted; }));
        CHECK(wanted > 0 && wanted <= protocol_.missing(row));
        break;
      }
      default:
        CHECK(false);  // nothing else answers a datagram
    }
  }

  void Open(uint8_t argument) {
    if (open_) return;
    ClosePolicy policy{0.1 * (1 + argument % 4),
                       0.01,
                       0.05,
                       0.25 * (argument % 5),
                       1 + argument / 5 % 3,
                       std::vector<bool>(shape_.num_peers(), true)};
    for (int row = 0; row < shape_.num_peers(); ++row) policy.live[row] = argument >> row & 1;
    open_round_ = protocol_.newest_round() + 1 + argument / 128;
    opened_at_ = now_;
    deadline_ = policy.deadline;
    open_ = true;
    protocol_.OpenRound(open_round_, rows_.begin(), policy, 1000, now_);
    rows_.Keep();
  }

  // A worker's owner takes a model and keeps it.
  void Take() {
    if (protocol_.whole_round() == 0) return;
    CHECK(protocol_.whole_round() > taken_round_);
    taken_round_ = protocol_.whole_round();
    protocol_.TakeModel();
    taken_.assign(protocol_.model(), protocol_.model() + shape_.cut.dim);
  }

  void Transmit(uint8_t argument) {
    if (outbox_) return;
    std::vector<int> rows;
    for (int row = 0; row < shape_.num_peers(); ++row) {
      if (argument >> row & 1) rows.push_back(row);
    }
    outbox_round_ = 1 + argument / 16;
    outbox_.emplace(rows, c_, 1 + argument % 5, argument / 8 % 2 == 0, 0.5, now_);
    if (argument % 3 == 0) {
      outbox_->Add({argument % c_, argument / 3 % c_});  // the rest is never written
    } else {
      outbox_->AddRest();
    }
    protocol_.SetOutbox(&*outbox_, outbox_round_);
    served_.assign(shape_.num_peers(), false);
    for (const int row : rows) served_[row] = true;
  }

  void Act() {
    const Outbox::Action& action = outbox_->Next(now_);
    if (action.what == Outbox::What::kFinished) return StopTransmitting();
    if (action.what == Outbox::What::kWait) {
      CHECK(action.wake_at > now_);
      return;
    }
    CHECK(served_[action.row] && !outbox_->is_finished(action.row));
    if (action.what == Outbox::What::kEnd) {
      CHECK(action.num_ends > 0 && outbox_->all_sent(action.row));
      return;
    }
    CHECK(!action.seqs.empty());
    for (size_t i = 0; i < action.seqs.size(); ++i) {
      CHECK(action.seqs[i] < c_ && (i == 0 || action.seqs[i] > action.seqs[i - 1]));
      // Only the last of all may be short, so it is the last of a burst.
      CHECK(action.seqs[i] + 1 < c_ || i + 1 == action.seqs.size());
    }
    if (action.seqs.size() == 3) outbox_->TakeBack();
  }

  void StopTransmitting() {
    for (int row = 0; row < shape_.num_peers(); ++row) {
      if (!served_[row]) CHECK(!outbox_->is_done(row));
    }
    protocol_.SetOutbox(nullptr, 0);
    outbox_.reset();
  }

  // `size` bytes of the input, or as many as there are, made a datagram. The byte before them says
  // what is left as the fuzzer wants it and who sends.
  void Feed(size_t size, Input* input) {
    const uint8_t how = input->Byte();
    static std::vector<uint8_t> datagram;  // kept: under a sanitizer allocations take most time
    datagram.assign(input->data, input->data + std::min(size, input->size));
    input->data += datagram.size();
    input->size -= datagram.size();
    from_ = how % 4;
    if (datagram.size() >= kHeaderBytes) {
      if ((how & 0x10) == 0) MakePlausible(how, &datagram);
      if ((how & 0x20) == 0) datagram.push_back(SumOf(datagram.data(), datagram.size()));
    }
    // Exactly as long as it is, for the address sanitizer.
    const std::unique_ptr<uint8_t[]> exact(new uint8_t[datagram.size()]);
    std::copy(datagram.begin(), datagram.end(), exact.get());
    Handle(exact.get(), datagram.size());
  }

  // Version, session and rank are right, the payload of DATA as long as it should be, and the
  // counter of anything else rises.
  void MakePlausible(uint8_t how, std::vector<uint8_t>* datagram) {
    lossympi::Header header = lossympi::Unpack(datagram->data());
    header.session = kSession;
    header.rank = static_cast<uint16_t>(shape_.RankOf(from_ % shape_.num_peers()));
    from_ %= shape_.num_peers();
    if (header.kind == Kind::kData && (how & 0x40) != 0) {
      header.total = c_;
    } else if (header.kind == Kind::kData) {
      header.seq %= c_;
      header.total = c_;
      datagram->resize(kHeaderBytes + shape_.cut.PayloadOf(header.seq), 0x3c);
    } else if (header.kind == Kind::kEnd || header.kind == Kind::kNack) {
      header.total = c_;
    }
    if (header.counter % 8 != 7) header.counter = ++counter_;
    lossympi::Pack(header, datagram->data());
  }

  void Handle(const uint8_t* data, size_t size) {
    struct Before {
      Counts counts;
      uint32_t missing;
    };
    std::array<Before, 3> before;
    for (int row = 0; row < shape_.num_peers(); ++row) {
      before[row] = {protocol_.counts(row), protocol_.missing(row)};
    }
    const uint64_t whole = protocol_.whole_round();
    fed_bytes_ = size;
    protocol_.Handle(data, size, now_);
    ++num_fed_;
    for (int row = 0; row < shape_.num_peers(); ++row) {
      if (shape_.is_server()) CheckRow(row, before[row].counts, before[row].missing, data);
    }
    if (!shape_.is_server()) CheckModel(whole);
  }

  // Nothing has changed in the row but the place of what was accepted.
  void CheckRow(int row, const Counts& counts, uint32_t missing, const uint8_t* data) {
    const bool accepted = protocol_.counts(row)[0] == counts[0] + 1;
    const bool is_data = accepted && lossympi::Unpack(data).kind == Kind::kData;
    CHECK(protocol_.missing(row) == missing - is_data);
    using lossympi::Verdict;
    const auto rose = [&](Verdict verdict) {
      return protocol_.counts(row)[static_cast<int>(verdict)] != counts[static_cast<int>(verdict)];
    };
    if (rose(Verdict::kEarly)) CHECK(lossympi::Unpack(data).round > protocol_.newest_round());
    if (rose(Verdict::kLate)) CHECK(lossympi::Unpack(data).round <= protocol_.newest_round());
    if (!is_data) {
      CHECK(from_ != row || rows_.IsKeptBut(0, 0));
      return;
    }
    CHECK(open_ && row == from_);
    const lossympi::Header header = lossympi::Unpack(data);
    CHECK(header.round == open_round_ && header.seq < c_);
    const size_t first = static_cast<size_t>(row * shape_.cut.dim + header.seq * shape_.cut.floats);
    const auto floats = static_cast<size_t>(shape_.cut.FloatsOf(header.seq));
    CHECK(rows_.IsKeptBut(first, first + floats));
    std::array<float, 16> sent;
    lossympi::Widen(data + kHeaderBytes, floats, shape_.cut.wire, sent.data());
    CHECK(std::memcmp(rows_.begin() + first, sent.data(), floats * sizeof(float)) == 0);
    rows_.Keep();
  }

  void CheckModel(uint64_t whole_before) {
    // What the owner holds stays as it is.
    if (!taken_.empty()) {
      CHECK(std::memcmp(taken_.data(), protocol_.model(), taken_.size() * sizeof(float)) == 0);
    }
    const uint64_t whole = protocol_.whole_round();
    if (whole != 0) CHECK(whole >= whole_before && whole > taken_round_);
    if (whole != 0) CHECK(protocol_.missing(0) == 0);
    CHECK(!protocol_.server_left() || protocol_.IsOver(1));
  }

  void Tick() {
    if (!shape_.is_server()) return;
    if (open_) CHECK(protocol_.wake_at(now_) <= std::max(now_, opened_at_ + deadline_));
    const bool closes = protocol_.Tick(now_);
    CHECK(!closes || open_);
    if (open_ && !closes) CHECK(now_ < opened_at_ + deadline_);
    if (!closes) return;
    open_ = false;
    const Closed closed = *std::move(protocol_.closed());
    CHECK(closed.reason != CloseRule::Reason::kOpen && closed.elapsed == now_ - opened_at_);
    CHECK(closed.arrived.size() == static_cast<size_t>(shape_.num_peers()) * c_);
    for (int row = 0; row < shape_.num_peers(); ++row) {
      uint32_t arrived = 0;
      for (uint32_t seq = 0; seq < c_; ++seq) arrived += closed.arrived[row * size_t{c_} + seq];
      CHECK(arrived + protocol_.missing(row) == c_);
      CHECK(arrived == 0 || closed.heard[row]);
      const double settled = closed.settled[row];
      CHECK(std::isnan(settled) || (settled >= 0 && settled <= closed.elapsed + 1e-9));
      CHECK(arrived < c_ || !std::isnan(settled));
    }
  }

  const Shape shape_;
  Protocol protocol_;
  const uint32_t c_;
  Guarded rows_;
  double now_ = 1, opened_at_ = 0, deadline_ = 0;
  std::vector<double> nacked_at_;
  int from_ = 0;  // the row that the datagram in hand comes from
  size_t fed_bytes_ = 0;
  uint64_t num_fed_ = 0, counter_ = 0;
  bool open_ = false;
  uint64_t open_round_ = 0, taken_round_ = 0, outbox_round_ = 0;
  std::vector<float> taken_;
  std::optional<Outbox> outbox_;
  std::vector<bool> served_;
};

Shape ShapeOf(uint8_t byte) {
  constexpr int64_t kDims[] = {1, 15, 16, 17, 40, 130, 300, 33};
  const auto wire = static_cast<Wire>(byte / 8 % 3);
  const bool server = byte & 0x80;
  const int num_workers = 1 + byte / 32 % 3;
  const Cut cut{kDims[byte % 8], wire == Wire::kFloat32 ? 8 : 16, wire};
  return {server ? 0 : num_workers, num_workers, kSession, cut, kLongest, kTag};
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  Input input{data, size};
  Fuzzed fuzzed(ShapeOf(input.Byte()));
  while (input.size > 0) fuzzed.Step(input.Byte(), &input);
  fuzzed.CheckAtTheEnd();
  return 0;
}
