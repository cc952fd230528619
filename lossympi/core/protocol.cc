#include "lossympi/core/protocol.h"

#include <algorithm>

namespace lossympi {
namespace {
constexpr double kNackEvery = 0.00025;  // at most, for each peer
}  // namespace

Protocol::Protocol(const Shape& shape, Surroundings* surroundings)
    : shape_(shape),
      surroundings_(surroundings),
      peers_(shape.num_peers()),
      assembler_(shape.num_peers(), shape.cut),
      repairs_(!shape.is_server()) {
  if (!shape.is_server()) {
    for (auto& model : models_) model.reset(new float[shape.cut.dim]());
  }
}

bool Protocol::Handle(const uint8_t* data, size_t size, double now) {
  changed_ = false;
  int row = -1;
  const Verdict verdict = Judge(data, size, now, &row);
  ++(row < 0 ? of_nobody_ : peers_[row].counts)[static_cast<int>(verdict)];
  if (verdict == Verdict::kAccepted) {
    if (outbox_ != nullptr) outbox_->Heard(row);
  }
  return changed_;
}

// A Byzantine worker chooses every byte here: the checks are those of WIRE.md, in its order, and
// nothing is written, answered or remembered before all of them. *row is set once the datagram
// claims to be a peer's.
Verdict Protocol::Judge(const uint8_t* data, size_t size, double now, int* row) {
  if (size < kHeaderBytes + shape_.tag_bytes) return Verdict::kTruncated;
  if (size > shape_.longest_datagram) return Verdict::kOversized;
  if (VersionOf(data) != kVersion) return Verdict::kVersion;
  const Header header = Unpack(data);
  const int claimed = shape_.RowOf(header.rank);
  if (header.session != shape_.session || claimed < 0 || claimed >= shape_.num_peers() ||
      !surroundings_->CameFrom(claimed)) {
    return Verdict::kForeign;
  }
  *row = claimed;
  const size_t signed_bytes = size - shape_.tag_bytes;
  if (!surroundings_->TagFits(claimed, data, signed_bytes, header.counter)) return Verdict::kForged;
  const uint8_t* payload = data + kHeaderBytes;
  const size_t bytes = signed_bytes - kHeaderBytes;
  return header.kind == Kind::kData ? HandleData(claimed, header, payload, bytes, now)
                                    : HandleControl(claimed, header, payload, bytes, now);
}

Verdict Protocol::HandleData(int row, const Header& header, const uint8_t* payload, size_t bytes,
                             double now) {
  if (!assembler_.IsSound(header, bytes)) return Verdict::kMalformed;
  if (!shape_.is_server()) FollowServer(header.round);
  const Verdict verdict = assembler_.Accept(row, header, payload, bytes);
  if (verdict != Verdict::kAccepted) return verdict;
  const uint32_t missing = assembler_.missing(row);
  if (shape_.is_server()) {
    peers_[row].heard = true;
    rule_->Heard(row, now, missing);
    changed_ |= assembler_.whole().size() >= tell_at_;
  } else if (missing == 0) {
    whole_round_ = header.round;
    assembler_.Close(header.round);
    Send(row, Kind::kDone, header.round);
    changed_ = true;
  }
  return verdict;
}

// Worker: a model later than all before makes an unfinished one useless.
void Protocol::FollowServer(uint64_t round) {
  if (round <= assembler_.closed_round()) return;
  if (assembler_.is_open() && round <= assembler_.round()) return;
  whole_round_ = 0;  // its buffer is written again
  assembler_.Open(round, models_[1 - held_].get());
}

bool Protocol::IsSoundControl(const Header& header, const uint8_t* payload, size_t bytes) const {
  const uint32_t c = shape_.cut.NumDatagrams();
  const bool server = shape_.is_server(), bare = bytes == 0;
  const bool of_round = header.round > 0, plain = bare && header.seq == 0 && header.total == 0;
  switch (header.kind) {
    case Kind::kProbe:
    case Kind::kEcho:
      return !of_round && header.total == 0 &&
             std::all_of(payload, payload + bytes, [](uint8_t byte) { return byte == 0; });
    case Kind::kGrant:
      return !server && of_round && header.seq > 0 && header.total == 0 && bare;
    case Kind::kReady:
      return server && of_round && header.seq <= kPause && header.total == 0 && bare;
    case Kind::kEnd:
      return of_round && header.total == c && bare;
    case Kind::kNack:
      return of_round && header.total == c && bytes <= shape_.cut.FullPayload() &&
             ReadNack(header.seq, payload, bytes, c, [](uint32_t) {});
    case Kind::kDone:
      return of_round && plain;
    case Kind::kBye:
      return !of_round && plain;
    default:
      return false;
  }
}

Verdict Protocol::HandleControl(int row, const Header& header, const uint8_t* payload, size_t bytes,
                                double now) {
  if (!IsSoundControl(header, payload, bytes)) return Verdict::kMalformed;
  Peer& peer = peers_[row];
  if (header.counter <= peer.last_control) return Verdict::kReplayed;
  peer.last_control = header.counter;
  changed_ = true;
  switch (header.kind) {
    case Kind::kProbe:
      surroundings_->Reply(row, Kind::kEcho, 0, header.seq, 0, payload, bytes);
      break;
    case Kind::kEcho:
      peer.longest_echo = std::max(peer.longest_echo, kHeaderBytes + bytes + shape_.tag_bytes);
      break;
    case Kind::kGrant:
      if (header.round < granted_round_) break;
      granted_round_ = header.round;
      granted_kbps_ = header.seq;
      break;
    case Kind::kReady:
      peer.heard = true;
      if (rule_ && header.round == assembler_.round()) {
        if (header.seq == kPause) rule_->Pauses(row);
        Send(row, Kind::kGrant, header.round, rate_kbps_);
      } else if (header.round <= assembler_.closed_round()) {
        Send(row, Kind::kDone, assembler_.closed_round());
      }
      break;
    case Kind::kEnd:
      return HandleEnd(row, header, now);
    case Kind::kNack:
      if (outbox_ == nullptr || header.round != outbox_round_) break;
      ReadNack(header.seq, payload, bytes, header.total,
               [this, row](uint32_t seq) { outbox_->Nacked(row, seq); });
      break;
    case Kind::kDone:
      if (!shape_.is_server()) done_round_ = std::max(done_round_, header.round);
      if (outbox_ != nullptr && header.round >= outbox_round_) outbox_->Done(row);
      break;
    case Kind::kBye:
      peer.left = true;
      if (outbox_ != nullptr) outbox_->Leave(row);
      break;
    default:
      break;
  }
  return Verdict::kAccepted;
}

Verdict Protocol::HandleEnd(int row, const Header& header, double now) {
  if (!shape_.is_server()) FollowServer(header.round);
  const Verdict in_time = assembler_.InTime(header.round);
  if (in_time == Verdict::kEarly) return in_time;
  peers_[row].heard = true;
  if (in_time == Verdict::kLate) {  // the DONE that ended it may have been lost
    if (repairs_) Send(row, Kind::kDone, assembler_.closed_round());
    return Verdict::kAccepted;
  }
  const bool all_sent = header.seq > 0;
  if (shape_.is_server() && all_sent) rule_->Ended(row, now);
  if (!repairs_) return Verdict::kAccepted;
  if (!shape_.is_server() || rule_->IsShort(row)) {
    SendNack(row, now);
  } else if (all_sent || assembler_.missing(row) == 0) {  // more may be on its way
    Send(row, Kind::kDone, header.round);
  }
  return Verdict::kAccepted;
}

void Protocol::SendNack(int row, double now) {
  Peer& peer = peers_[row];
  if (now < peer.nacked_at + kNackEvery) return;
  peer.nacked_at = now;
  const uint32_t c = shape_.cut.NumDatagrams();
  for (const Nack& nack : NacksOf(assembler_.arrived(row), c, shape_.cut.FullPayload())) {
    surroundings_->Reply(row, Kind::kNack, assembler_.round(), nack.first, c, nack.bitmap.data(),
                         nack.bitmap.size());
  }
}

// ---- The server's side

void Protocol::OpenRound(uint64_t round, float* stack, const ClosePolicy& policy,
                         uint32_t rate_kbps, double now) {
  closed_.reset();
  assembler_.Open(round, stack);
  rule_.emplace(policy, shape_.cut.NumDatagrams(), now);
  rate_kbps_ = rate_kbps;
  repairs_ = policy.max_loss < 1;
  tell_at_ = SIZE_MAX;
  for (int row = 0; row < shape_.num_peers(); ++row) Send(row, Kind::kGrant, round, rate_kbps);
}

void Protocol::AbandonRound() {
  rule_.reset();
  assembler_.Close(assembler_.round());
}

double Protocol::wake_at(double now) { return rule_ ? rule_->Check(now).wake_at : now + 1; }

bool Protocol::Tick(double now) {
  if (!rule_) return false;
  const CloseRule::Answer answer = rule_->Check(now);
  if (answer.reason == CloseRule::Reason::kOpen) return false;
  closed_.emplace();
  closed_->reason = answer.reason;
  closed_->elapsed = now - rule_->opened_at();
  const uint64_t round = assembler_.round();
  for (int row = 0; row < shape_.num_peers(); ++row) {
    const uint8_t* arrived = assembler_.arrived(row);
    closed_->arrived.insert(closed_->arrived.end(), arrived, arrived + shape_.cut.NumDatagrams());
    closed_->heard.push_back(peers_[row].heard);
    closed_->settled.push_back(rule_->settled_at(row) - rule_->opened_at());
    peers_[row].heard = false;
    if (assembler_.missing(row) > 0) Send(row, Kind::kDone, round);
  }
  assembler_.Close(round);
  rule_.reset();
  return true;
}

// ---- The worker's side

void Protocol::TakeModel() {
  held_ = 1 - held_;
  whole_round_ = 0;
}

void Protocol::SetOutbox(Outbox* outbox, uint64_t round) {
  outbox_ = outbox;
  outbox_round_ = round;
  for (size_t row = 0; outbox != nullptr && row < peers_.size(); ++row) {
    if (peers_[row].left) outbox->Leave(static_cast<int>(row));
  }
}

void Protocol::ForgetEchoes() {
  for (Peer& peer : peers_) peer.longest_echo = 0;
}

}  // namespace lossympi
