// Feeds core/protocol.h, as a server and as a worker, with datagrams and times of the fuzzer's
// choice, and checks after each that nothing but what WIRE.md allows has changed or is sent. No
// socket, no clock, no threads. Built by scripts/fuzz-lossympi.
//
// An input is a layout (one byte), then steps. A step is a byte and what it needs: below 200 so
// many bytes of a datagram; from there on, by its remainder, a tick of the virtual clock or a call
// of the owner. Session, length and tag of a datagram are put right for the most part (see Feed),
// as a fuzzer would never find them.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "lossympi/core/packet.h"
#include "lossympi/core/peer_layout.h"
#include "lossympi/core/protocol.h"
#include "lossympi/core/send_queue.h"
#include "tests/native/fuzz_input.h"

namespace {

using lossympi::Closed;
using lossympi::ClosePolicy;
using lossympi::Counts;
using lossympi::Framing;
using lossympi::Handled;
using lossympi::kHeaderBytes;
using lossympi::Kind;
using lossympi::kNumVerdicts;
using lossympi::Outgoing;
using lossympi::PeerLayout;
using lossympi::Protocol;
using lossympi::Reason;
using lossympi::SendQueue;
using lossympi::ServerProtocol;
using lossympi::Verdict;
using lossympi::Wire;
using lossympi::WorkerProtocol;

constexpr uint32_t kSession = 0x12345678;
constexpr size_t kTag = 1;        // a byte: the sum of all before it
constexpr size_t kLongest = 190;  // bytes of a datagram: a step may have as many
constexpr uint8_t kGuard = 0xa5;
constexpr size_t kGuardFloats = 16;
constexpr uint32_t kRateKbps = 1000;

uint8_t SumOf(const uint8_t* data, size_t size) {
  uint8_t sum = 0;
  for (size_t i = 0; i < size; ++i) sum = static_cast<uint8_t>(sum + data[i]);
  return sum;
}

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

class Fuzzed {
 public:
  explicit Fuzzed(const PeerLayout& layout)
      : layout_(layout),
        c_(layout.framing.NumDatagrams()),
        rows_(static_cast<size_t>(layout.num_peers() * layout.framing.dim)),
        nacked_at_(layout.num_peers(), -1),
        nack_bytes_(layout.num_peers()),
        reply_bytes_(layout.num_peers()),
        challenges_(layout.num_peers(), 7) {
    if (layout.is_server() && layout.num_workers == 1) {  // as where workers are taken one by one
      PeerLayout all = layout;
      all.num_workers = 3;
      protocol_ = &server_.emplace(ServerProtocol(all), 2);
    } else if (layout.is_server()) {
      protocol_ = &server_.emplace(layout);
    } else {
      protocol_ = &worker_.emplace(layout);
    }
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
        server_ ? Open(argument) : Take();
        break;
      case 3:
        server_ ? Abandon() : Ask(argument);
        break;
      case 4:
        Transmit(argument);
        break;
      case 5:
        if (protocol_->queue() != nullptr) Act();
        break;
      case 6:
        if (protocol_->queue() != nullptr) StopTransmitting();
        break;
      default:
        argument < 224 ? ProbeAnew(argument) : Repeat(argument - 223);
    }
    Tick();
  }

  void CheckAtTheEnd() {
    uint64_t counted = 0;
    for (int row = -1; row < layout_.num_peers(); ++row) {
      const Counts& counts = row < 0 ? protocol_->counts_of_nobody() : protocol_->counts(row);
      for (const uint64_t count : counts) counted += count;
      // What is told to be a peer's is not counted for the link, and the reverse.
      for (int v = 0; v < kNumVerdicts; ++v) {
        const bool of_link = v >= 1 && v <= static_cast<int>(Verdict::kForeign);
        if ((row < 0) != of_link) CHECK(counts[v] == 0);
      }
    }
    CHECK(counted == num_fed_);
    if (protocol_->queue() != nullptr) StopTransmitting();
    CHECK(protocol_->Bye().size() == static_cast<size_t>(layout_.num_peers()));
  }

 private:
  // What may answer a datagram.
  void CheckAnswer(const Outgoing& answer) {
    CHECK(answer.row == from_);
    const size_t bytes = answer.payload.size(), size = kHeaderBytes + bytes + kTag;
    CHECK(size <= kLongest);
    if (answer.kind != Kind::kNack &&
        fed_kind_ != Kind::kData) {  // a whole model's DONE is unasked
      // So many bytes at once, and 48 a quarter of a millisecond.
      reply_bytes_[answer.row] += static_cast<double>(size);
      CHECK(reply_bytes_[answer.row] <= 16384 + (now_ - 1) * 192000 + 1);
    }
    switch (answer.kind) {
      case Kind::kEcho:
        CHECK(answer.round == 0 && answer.total == 0 && size == fed_bytes_);
        break;
      case Kind::kGrant:
        CHECK(server_ && open_ && answer.round == open_round_ && bytes == 0);
        break;
      case Kind::kDone:
        CheckDone(answer);
        break;
      case Kind::kNack: {
        CHECK(answer.total == c_ && answer.seq < c_ && bytes <= layout_.framing.FullPayload());
        double& nacked_at = nacked_at_[answer.row];
        double& nack_bytes = nack_bytes_[answer.row];
        if (now_ != nacked_at) {
          CHECK(nacked_at < 0 || now_ >= nacked_at + 0.00025 - 1e-9);
          if (server_ && nacked_at >= 0) {
            CHECK(now_ >= nacked_at + nack_bytes / (kRateKbps * 125.0) - 1e-9);
          }
          nack_bytes = 0;
        }
        nacked_at = now_;
        nack_bytes += static_cast<double>(size);
        uint32_t wanted = 0;
        CHECK(lossympi::IsSoundNack(answer.seq, answer.payload.data(), bytes, answer.total));
        lossympi::ReadNack(answer.seq, answer.payload.data(), bytes, [&](uint32_t) { ++wanted; });
        CHECK(wanted > 0 && wanted <= protocol_->missing(answer.row));
        break;
      }
      default:
        CHECK(false);  // nothing else answers a datagram
    }
  }

  void CheckDone(const Outgoing& done) const {
    CHECK(done.kind == Kind::kDone && done.row >= 0 && done.row < layout_.num_peers());
    CHECK(done.round > 0 && done.seq == 0 && done.total == 0 && done.payload.empty());
  }

  void ProbeAnew(uint8_t challenge) {
    CheckProbes();
    for (int row = 0; row < layout_.num_peers(); ++row) challenges_[row] = challenge + row;
    protocol_->ForgetEchoes(challenges_);
    CHECK(!protocol_->all_echoed());
    CheckProbes();
  }

  void CheckProbes() const {
    const lossympi::Datagrams probes = protocol_->Probe();
    size_t num_echoed = 0;
    for (int row = 0; row < layout_.num_peers(); ++row) {
      CHECK(protocol_->longest_echo(row) <= kLongest);
      num_echoed += protocol_->longest_echo(row) == kLongest;
    }
    CHECK(probes.size() == 2 * (layout_.num_peers() - num_echoed));
    CHECK(protocol_->all_echoed() == probes.empty());
    for (const Outgoing& probe : probes) {
      CHECK(probe.kind == Kind::kProbe && probe.round == 0 && probe.total == 0);
      CHECK(kHeaderBytes + probe.payload.size() + kTag <= kLongest);
    }
  }

  void Open(uint8_t argument) {
    if (open_) return;
    ClosePolicy policy{0.1 * (1 + argument % 4),
                       0.01,
                       0.05,
                       0.25 * (argument % 5),
                       1 + argument / 5 % 3,
                       std::vector<bool>(layout_.num_peers(), true)};
    for (int row = 0; row < layout_.num_peers(); ++row) policy.live[row] = argument >> row & 1;
    open_round_ = server_->newest_round() + 1 + argument / 128;
    deadline_ = policy.deadline;
    const std::vector<uint32_t> rates(layout_.num_peers(), kRateKbps);
    awaits_ = layout_.num_workers == 1 && argument / 16 % 2 == 1;
    if (awaits_) {
      server_->AwaitRound(open_round_, rows_.begin(), policy, rates);
      CHECK(!server_->is_open());
      rows_.Keep();
      return;
    }
    opened_at_ = now_;
    open_ = true;
    const auto grants = server_->OpenRound(open_round_, rows_.begin(), policy, rates, now_);
    CHECK(grants.size() == static_cast<size_t>(layout_.num_peers()));
    for (const Outgoing& grant : grants) {
      CHECK(grant.kind == Kind::kGrant && grant.round == open_round_ && grant.seq == kRateKbps);
    }
    rows_.Keep();
  }

  void Abandon() {
    if (!open_ && !awaits_) return;
    server_->AbandonRound();
    open_ = awaits_ = false;
  }

  // A round that was awaited is opened by its worker's READY, and by nothing else.
  void NoteOpening(const lossympi::Header& header) {
    has_opened_ = !open_ && server_->is_open();
    if (!has_opened_) return;
    CHECK(awaits_ && header.kind == Kind::kReady && header.round == open_round_);
    awaits_ = false;
    open_ = true;
    opened_at_ = now_;
  }

  // A worker's owner waits for a grant or a model, or has what it waited for.
  void Ask(uint8_t argument) {
    asked_round_ = 1 + argument / 4;
    if (argument % 4 == 0) return worker_->StopAsking();
    argument % 4 == 1 ? worker_->AskForModel(asked_round_, now_)
                      : worker_->AskForGrant(asked_round_, now_);
  }

  // A worker's owner takes a model and keeps it.
  void Take() {
    if (worker_->whole_round() == 0) return;
    CHECK(worker_->whole_round() > taken_round_);
    taken_round_ = worker_->whole_round();
    worker_->TakeModel();
    taken_.assign(worker_->model(), worker_->model() + layout_.framing.dim);
  }

  void Transmit(uint8_t argument) {
    const uint64_t round = 1 + argument / 16;
    const size_t most = 1 + argument % 5;
    if (worker_) {
      SendQueue& queue = worker_->Gradient(round, most, argument / 8 % 2 == 0, now_);
      if (argument % 3 == 0) {
        queue.Add({argument % c_, argument / 3 % c_});  // the rest may never be written
      } else {
        queue.AddRest();
      }
      served_.assign(1, true);
      CHECK(worker_->Pause(round).size() == 3);
      return;
    }
    if (layout_.num_workers == 1 && argument / 8 % 2 == 1) {  // in place of what is being sent
      if (server_->queue() != nullptr) StopTransmitting();
      server_->StartReply(round, most, 0.5, now_);
      replies_ = true;
      served_.assign(1, true);
      return;
    }
    if (server_->queue() != nullptr) return;
    std::vector<int> rows;
    for (int row = 0; row < layout_.num_peers(); ++row) {
      if (argument >> row & 1) rows.push_back(row);
    }
    server_->StartBroadcast(round, rows, most, 0.5, now_);
    broadcast_at_ = now_;
    served_.assign(layout_.num_peers(), false);
    for (const int row : rows) served_[row] = true;
  }

  void Act() {
    SendQueue& queue = *protocol_->queue();
    const SendQueue::Action& action = queue.Next(now_);
    if (action.what == SendQueue::What::kFinished) {
      if (server_) StopTransmitting();  // a worker may add more
      return;
    }
    if (action.what == SendQueue::What::kWait) {
      CHECK(action.wake_at > now_);
      return;
    }
    CHECK(served_[action.row] && !queue.is_finished(action.row));
    if (action.what == SendQueue::What::kEnd) {
      CHECK(action.num_ends > 0 && queue.all_sent(action.row));
      return;
    }
    CHECK(!action.seqs.empty());
    for (size_t i = 0; i < action.seqs.size(); ++i) {
      CHECK(action.seqs[i] < c_ && (i == 0 || action.seqs[i] > action.seqs[i - 1]));
      // Only the last of all may be short, so it is the last of a burst.
      CHECK(action.seqs[i] + 1 < c_ || i + 1 == action.seqs.size());
    }
    if (action.seqs.size() == 3) queue.TakeBack();
  }

  void StopTransmitting() {
    if (worker_) return worker_->EndGradient();
    if (std::exchange(replies_, false)) return server_->EndReply();
    for (int row = 0; row < layout_.num_peers(); ++row) {
      const double overtime = server_->queue()->Overtime(row, now_);
      CHECK(overtime >= 0 && overtime <= now_ - broadcast_at_ && (served_[row] || overtime == 0));
    }
    const std::vector<uint8_t> done = server_->EndBroadcast(now_);
    for (int row = 0; row < layout_.num_peers(); ++row) {
      if (!served_[row]) CHECK(!done[row]);
    }
  }

  // `size` bytes of the input, or as many as there are, made a datagram. The byte before them says
  // what is left as the fuzzer wants it and who sends.
  void Feed(size_t size, Input* input) {
    fed_how_ = input->Byte();
    fed_.assign(input->data, input->data + std::min(size, input->size));
    input->data += fed_.size();
    input->size -= fed_.size();
    FeedAgain();
  }

  // The last one again and again, with higher counters: who asks without end.
  void Repeat(int times) {
    for (int i = 0; i < 8 * times; ++i) FeedAgain();
  }

  void FeedAgain() {
    const uint8_t how = fed_how_;
    static std::vector<uint8_t> datagram;  // kept: under a sanitizer allocations take most time
    datagram = fed_;
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
    header.rank = static_cast<uint16_t>(layout_.RankOf(from_ % layout_.num_peers()));
    from_ %= layout_.num_peers();
    if (header.kind == Kind::kData && (how & 0x40) != 0) {
      header.total = c_;
    } else if (header.kind == Kind::kData) {
      header.seq %= c_;
      header.total = c_;
      datagram->resize(kHeaderBytes + layout_.framing.PayloadOf(header.seq), 0x3c);
    } else if (header.kind == Kind::kEnd || header.kind == Kind::kNack) {
      header.total = c_;
    }
    if (header.kind == Kind::kEcho && (how & 0x40) == 0) header.seq = challenges_[from_];
    if (header.counter % 8 != 7) header.counter = ++counter_;
    lossympi::Pack(header, datagram->data());
  }

  void Handle(const uint8_t* data, size_t size) {
    struct Before {
      Counts counts;
      uint32_t missing;
    };
    std::array<Before, 3> before;
    for (int row = 0; row < layout_.num_peers(); ++row) {
      before[row] = {protocol_->counts(row), protocol_->missing(row)};
    }
    const uint64_t whole = worker_ ? worker_->whole_round() : 0;
    fed_bytes_ = size;
    has_opened_ = false;
    Judge(data, size);
    ++num_fed_;
    for (int row = 0; row < layout_.num_peers(); ++row) {
      if (server_) CheckRow(row, before[row].counts, before[row].missing, data);
    }
    if (worker_) CheckModel(whole);
  }

  // As an endpoint does.
  void Judge(const uint8_t* data, size_t size) {
    const lossympi::Envelope envelope = lossympi::OpenEnvelope(layout_, data, size);
    if (envelope.verdict != Verdict::kAccepted) return protocol_->Reject(-1, envelope.verdict);
    CHECK(envelope.row >= 0 && envelope.row < layout_.num_peers());
    if (envelope.row != from_) return protocol_->Reject(-1, Verdict::kForeign);
    fed_kind_ = envelope.header.kind;
    const size_t end = envelope.signed_bytes;
    CHECK(end >= kHeaderBytes && end + kTag == size);
    if (SumOf(data, end) != data[end]) return protocol_->Reject(envelope.row, Verdict::kForged);
    const Handled handled = protocol_->Handle(envelope.row, envelope.header, data + kHeaderBytes,
                                              end - kHeaderBytes, now_);
    if (server_) NoteOpening(envelope.header);
    for (const Outgoing& answer : handled.to_send) CheckAnswer(answer);
    // But for NACKs, which d bounds, one datagram has at most one answer.
    CHECK(handled.to_send.size() <= 1 || handled.to_send[0].kind == Kind::kNack);
    CHECK(handled.verdict == Verdict::kAccepted || handled.to_send.empty());
  }

  // Nothing has changed in the row but the place of what was accepted.
  void CheckRow(int row, const Counts& counts, uint32_t missing, const uint8_t* data) {
    const bool accepted = protocol_->counts(row)[0] == counts[0] + 1;
    const bool is_data = accepted && lossympi::Unpack(data).kind == Kind::kData;
    CHECK(protocol_->missing(row) == (has_opened_ ? c_ : missing - is_data));
    const auto rose = [&](Verdict verdict) {
      return protocol_->counts(row)[static_cast<int>(verdict)] != counts[static_cast<int>(verdict)];
    };
    if (rose(Verdict::kEarly)) CHECK(lossympi::Unpack(data).round > server_->newest_round());
    if (rose(Verdict::kLate)) CHECK(lossympi::Unpack(data).round <= server_->newest_round());
    if (!is_data) {
      CHECK(from_ != row || rows_.IsKeptBut(0, 0));
      return;
    }
    CHECK(open_ && row == from_);
    const lossympi::Header header = lossympi::Unpack(data);
    CHECK(header.round == open_round_ && header.seq < c_);
    const size_t first =
        static_cast<size_t>(row * layout_.framing.dim + header.seq * layout_.framing.floats);
    const auto floats = static_cast<size_t>(layout_.framing.FloatsOf(header.seq));
    CHECK(rows_.IsKeptBut(first, first + floats));
    std::array<float, 16> sent;
    lossympi::Widen(data + kHeaderBytes, floats, layout_.framing.wire, sent.data());
    CHECK(std::memcmp(rows_.begin() + first, sent.data(), floats * sizeof(float)) == 0);
    rows_.Keep();
  }

  void CheckModel(uint64_t whole_before) {
    // What the owner holds stays as it is.
    if (!taken_.empty()) {
      CHECK(std::memcmp(taken_.data(), worker_->model(), taken_.size() * sizeof(float)) == 0);
    }
    const uint64_t whole = worker_->whole_round();
    if (whole != 0) CHECK(whole >= whole_before && whole > taken_round_);
    if (whole != 0) CHECK(worker_->missing(0) == 0);
    CHECK(!worker_->server_left() || worker_->IsOver(1));
  }

  void Tick() {
    if (worker_) {
      const auto asks = worker_->Tick(now_);
      CHECK(asks.size() <= 1 && worker_->wake_at() > now_);
      if (!asks.empty()) CHECK(asks[0].kind == Kind::kReady && asks[0].round == asked_round_);
      return;
    }
    const double wake_at = server_->wake_at(now_);
    CHECK(open_ ? wake_at <= std::max(now_, opened_at_ + deadline_) : std::isinf(wake_at));
    const auto dones = server_->Tick(now_);
    CHECK(dones.empty() || open_);
    for (const Outgoing& done : dones) CheckDone(done);
    if (open_ && server_->is_open()) CHECK(now_ < opened_at_ + deadline_);
    if (!open_ || server_->is_open()) return;
    open_ = false;
    const Closed closed = *server_->closed();
    CHECK(closed.reason != Reason::kOpen && closed.elapsed == now_ - opened_at_);
    CHECK(closed.arrived.size() == static_cast<size_t>(layout_.num_peers()) * c_);
    for (int row = 0; row < layout_.num_peers(); ++row) {
      uint32_t arrived = 0;
      for (uint32_t seq = 0; seq < c_; ++seq) arrived += closed.arrived[row * size_t{c_} + seq];
      CHECK(arrived + protocol_->missing(row) == c_);
      CHECK(arrived == 0 || closed.heard[row]);
      const double settled = closed.settled[row];
      CHECK(std::isnan(settled) || (settled >= 0 && settled <= closed.elapsed + 1e-9));
      CHECK(arrived < c_ || !std::isnan(settled));
    }
  }

  const PeerLayout layout_;
  std::optional<ServerProtocol> server_;
  std::optional<WorkerProtocol> worker_;
  Protocol* protocol_;  // the one that is there
  const uint32_t c_;
  Guarded rows_;
  double now_ = 1, opened_at_ = 0, deadline_ = 0;
  double broadcast_at_ = 0;
  std::vector<double> nacked_at_, nack_bytes_, reply_bytes_;
  std::vector<uint32_t> challenges_;
  uint8_t fed_how_ = 0;
  Kind fed_kind_{};
  std::vector<uint8_t> fed_;  // of the input, by the last Feed
  int from_ = 0;              // the row that the datagram in hand comes from
  size_t fed_bytes_ = 0;
  uint64_t num_fed_ = 0, counter_ = 0;
  bool open_ = false, awaits_ = false, replies_ = false;
  bool has_opened_ = false;  // by the datagram in hand
  uint64_t open_round_ = 0, taken_round_ = 0, asked_round_ = 0;
  std::vector<float> taken_;
  std::vector<bool> served_;
};

PeerLayout LayoutOf(uint8_t byte) {
  constexpr int64_t kDims[] = {1, 15, 16, 17, 40, 130, 300, 33};
  const auto wire = static_cast<Wire>(byte / 8 % 3);
  const bool server = byte & 0x80;
  const int num_workers = 1 + byte / 32 % 3;
  const Framing framing{kDims[byte % 8], wire == Wire::kFloat32 ? 8 : 16, wire};
  return {server ? 0 : num_workers, num_workers, kSession, framing, kLongest, kTag};
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  Input input{data, size};
  Fuzzed fuzzed(LayoutOf(input.Byte()));
  while (input.size > 0) fuzzed.Step(input.Byte(), &input);
  fuzzed.CheckAtTheEnd();
  return 0;
}
