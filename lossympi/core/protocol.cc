#include "lossympi/core/protocol.h"

#include <algorithm>
#include <limits>
#include <utility>

namespace lossympi {
namespace {

constexpr double kNever = std::numeric_limits<double>::infinity();
constexpr double kNackEvery = 0.00025;  // at most, for each peer
// Other replies, for each peer: so many bytes at once, or four of the longest datagrams, and then a
// bare datagram as often as NACKs.
constexpr double kReplyBytes = 16384;
constexpr double kReplyBytesPerS = (kHeaderBytes + kTagBytes) / kNackEvery;
constexpr size_t kShortProbe = 72;  // bytes of a datagram: 100 of an IP packet
constexpr int kPauses = 3;          // as with END: one may be lost

}  // namespace

Protocol::Protocol(const PeerLayout& layout)
    : layout_(layout), peers_(layout.num_peers()), assembler_(layout.num_peers(), layout.framing) {
  for (Peer& peer : peers_) {
    peer.nack_at = -kNever;
    peer.reply_bytes = kNever;  // as many as there may be
    peer.reply_bytes_at = 0;
  }
}

// A Byzantine worker chooses every byte here: the checks are those of WIRE.md, in its order, and
// nothing is written, answered or remembered before all of them.
Handled Protocol::Handle(int row, const Header& header, const uint8_t* payload, size_t bytes,
                         double now) {
  Handled handled{Verdict::kMalformed};
  if (header.kind != Kind::kData) {
    handled.verdict = HandleControl(row, header, payload, bytes, now, &handled);
  } else if (assembler_.IsSound(header, bytes)) {
    handled.verdict = HandleData(row, header, payload, bytes, now, &handled);
  }
  ++peers_[row].counts[static_cast<int>(handled.verdict)];
  if (handled.verdict == Verdict::kAccepted && queue_) queue_->Heard(row);
  return handled;
}

void Protocol::Reject(int row, Verdict verdict, uint64_t count) {
  (row < 0 ? of_nobody_ : peers_[row].counts)[static_cast<int>(verdict)] += count;
}

bool Protocol::IsSoundControl(const Header& header, const uint8_t* payload, size_t bytes) const {
  const uint32_t c = layout_.framing.NumDatagrams();
  const bool server = layout_.is_server(), bare = bytes == 0;
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
      return of_round && header.total == c && bytes <= layout_.framing.FullPayload() &&
             IsSoundNack(header.seq, payload, bytes, c);
    case Kind::kDone:
      return of_round && plain;
    case Kind::kBye:
      return !of_round && plain;
    default:
      return false;
  }
}

Verdict Protocol::HandleControl(int row, const Header& header, const uint8_t* payload, size_t bytes,
                                double now, Handled* handled) {
  if (!IsSoundControl(header, payload, bytes)) return Verdict::kMalformed;
  Peer& peer = peers_[row];
  if (header.counter <= peer.last_control) return Verdict::kReplayed;
  switch (header.kind) {
    case Kind::kProbe:
      Reply({row, Kind::kEcho, 0, header.seq, 0, {payload, payload + bytes}}, now,
            &handled->to_send);
      break;
    case Kind::kEcho:
      if (peer.challenge != header.seq) return Verdict::kMalformed;
      peer.longest_echo = std::max(peer.longest_echo, layout_.BytesOf(bytes));
      break;
    case Kind::kNack:
      HandleNack(row, header, payload, bytes);
      break;
    case Kind::kBye:
      peer.left = true;
      if (queue_) queue_->Leave(row);
      break;
    case Kind::kEnd: {
      const Verdict verdict = HandleEnd(row, header, now, &handled->to_send);
      if (verdict != Verdict::kAccepted) return verdict;
      break;
    }
    default:
      HandleOther(row, header, now, &handled->to_send);
  }
  peer.last_control = header.counter;
  handled->changed = true;
  return Verdict::kAccepted;
}

void Protocol::HandleNack(int row, const Header& header, const uint8_t* payload, size_t bytes) {
  if (!queue_ || header.round != queue_round_ || !queue_->TakeNack(row, bytes)) return;
  ReadNack(header.seq, payload, bytes, [this, row](uint32_t seq) { queue_->Nacked(row, seq); });
}

void Protocol::Reply(Outgoing reply, double now, Datagrams* to_send) {
  Peer& peer = peers_[reply.row];
  const double most = std::max(kReplyBytes, 4 * static_cast<double>(layout_.longest_datagram));
  peer.reply_bytes =
      std::min(most, peer.reply_bytes + (now - peer.reply_bytes_at) * kReplyBytesPerS);
  peer.reply_bytes_at = now;
  const auto bytes = static_cast<double>(layout_.BytesOf(reply.payload.size()));
  if (peer.reply_bytes < bytes) return;
  peer.reply_bytes -= bytes;
  to_send->push_back(std::move(reply));
}

void Protocol::ReplyNacks(int row, double bytes_per_s, double now, Datagrams* to_send) {
  Peer& peer = peers_[row];
  if (now < peer.nack_at) return;
  const uint32_t c = layout_.framing.NumDatagrams();
  size_t bytes = 0;
  for (Nack& nack : NacksOf(assembler_.arrived(row), c, layout_.framing.FullPayload())) {
    bytes += layout_.BytesOf(nack.bitmap.size());
    to_send->push_back(
        {row, Kind::kNack, assembler_.round(), nack.first, c, std::move(nack.bitmap)});
  }
  peer.nack_at = now + std::max(kNackEvery, static_cast<double>(bytes) / bytes_per_s);
}

SendQueue& Protocol::StartQueue(uint64_t round, const std::vector<int>& rows, size_t most_at_once,
                                bool until_done, double silence, double now) {
  queue_.emplace(rows, layout_.framing.NumDatagrams(), most_at_once, until_done, silence, now);
  queue_round_ = round;
  for (const int row : rows) {
    if (peers_[row].left) queue_->Leave(row);
  }
  return *queue_;
}

Datagrams Protocol::Probe() const {
  Datagrams probes;
  for (int row = 0; row < layout_.num_peers(); ++row) {
    const Peer& peer = peers_[row];
    if (peer.longest_echo == layout_.longest_datagram) continue;
    for (const size_t size : {kShortProbe, layout_.longest_datagram}) {
      probes.push_back({row, Kind::kProbe, 0, peer.challenge.value_or(0), 0,
                        std::vector<uint8_t>(size - layout_.BytesOf(0))});
    }
  }
  return probes;
}

void Protocol::ForgetEchoes(const std::vector<uint32_t>& challenges) {
  for (size_t row = 0; row < peers_.size(); ++row) {
    peers_[row].longest_echo = 0;
    peers_[row].challenge = challenges[row];
  }
}

bool Protocol::all_echoed() const {
  return std::all_of(peers_.begin(), peers_.end(), [this](const Peer& peer) {
    return peer.longest_echo == layout_.longest_datagram;
  });
}

Datagrams Protocol::Bye() const {
  Datagrams byes;
  for (int row = 0; row < layout_.num_peers(); ++row) byes.push_back({row, Kind::kBye, 0});
  return byes;
}

// ---- The server

namespace {
PeerLayout WithOneWorker(PeerLayout layout) {
  layout.num_workers = 1;
  return layout;
}
}  // namespace

ServerProtocol::ServerProtocol(const ServerProtocol& all, int row)
    : ServerProtocol(WithOneWorker(all.layout_)) {
  peers_[0] = all.peers_[row];
}

Datagrams ServerProtocol::OpenRound(uint64_t round, float* stack, const ClosePolicy& policy,
                                    const std::vector<uint32_t>& rates_kbps, double now) {
  Datagrams grants;
  for (int row = 0; row < layout_.num_peers(); ++row) {
    grants.push_back({row, Kind::kGrant, round, rates_kbps[row]});
  }
  rates_kbps_ = rates_kbps;
  rule_.emplace(policy, layout_.framing.NumDatagrams(), now);
  // Nothing throws from here on: who opened a round that is not knows nothing of it.
  assembler_.Open(round, stack);
  awaited_.reset();
  closed_.reset();
  repairs_ = policy.max_loss < 1;
  tell_at_ = SIZE_MAX;
  return grants;
}

void ServerProtocol::AwaitRound(uint64_t round, float* stack, const ClosePolicy& policy,
                                const std::vector<uint32_t>& rates_kbps) {
  AbandonRound();
  closed_.reset();
  awaited_ = {round, stack, policy, rates_kbps};
}

void ServerProtocol::AbandonRound() {
  awaited_.reset();
  rule_.reset();
  assembler_.Close(assembler_.round());
}

double ServerProtocol::wake_at(double now) { return rule_ ? rule_->Check(now).wake_at : kNever; }

Datagrams ServerProtocol::Tick(double now) {
  if (!rule_) return {};
  const CloseRule::Answer answer = rule_->Check(now);
  if (answer.reason == Reason::kOpen) return {};
  closed_.emplace();
  closed_->reason = answer.reason;
  closed_->elapsed = now - rule_->opened_at();
  Datagrams dones;
  for (int row = 0; row < layout_.num_peers(); ++row) {
    const uint8_t* arrived = assembler_.arrived(row);
    closed_->arrived.insert(closed_->arrived.end(), arrived,
                            arrived + layout_.framing.NumDatagrams());
    closed_->heard.push_back(peers_[row].heard);
    closed_->settled.push_back(rule_->settled_at(row) - rule_->opened_at());
    peers_[row].heard = false;
    if (assembler_.missing(row) > 0) dones.push_back({row, Kind::kDone, assembler_.round()});
  }
  assembler_.Close(assembler_.round());
  rule_.reset();
  return dones;
}

Verdict ServerProtocol::HandleData(int row, const Header& header, const uint8_t* payload,
                                   size_t bytes, double now, Handled* handled) {
  const Verdict verdict = assembler_.Accept(row, header, payload, bytes);
  if (verdict != Verdict::kAccepted) return verdict;
  peers_[row].heard = true;
  rule_->Heard(row, now, assembler_.missing(row));
  handled->changed = assembler_.whole().size() >= tell_at_;
  return verdict;
}

Verdict ServerProtocol::HandleEnd(int row, const Header& header, double now, Datagrams* to_send) {
  const Verdict in_time = assembler_.InTime(header.round);
  if (in_time == Verdict::kEarly) return in_time;
  peers_[row].heard = true;
  if (in_time == Verdict::kLate) {  // the DONE that ended it may have been lost
    if (repairs_) Reply({row, Kind::kDone, assembler_.closed_round()}, now, to_send);
    return Verdict::kAccepted;
  }
  const bool all_sent = header.seq > 0;
  if (all_sent) rule_->Ended(row, now);
  if (!repairs_) return Verdict::kAccepted;
  if (rule_->IsShort(row)) {
    ReplyNacks(row, rates_kbps_[row] * 1000.0 / 8, now, to_send);
  } else if (all_sent || assembler_.missing(row) == 0) {  // else more may be on its way
    Reply({row, Kind::kDone, header.round}, now, to_send);
  }
  return Verdict::kAccepted;
}

void ServerProtocol::HandleOther(int row, const Header& header, double now, Datagrams* to_send) {
  if (header.kind == Kind::kDone) {
    if (queue_ && header.round >= queue_round_) queue_->Done(row, now);
    return;
  }
  peers_[row].heard = true;  // READY
  if (awaited_ && header.round == awaited_->round) {
    const Awaited awaited = *std::exchange(awaited_, std::nullopt);
    // Its GRANT answers the READY, below.
    OpenRound(awaited.round, awaited.stack, awaited.policy, awaited.rates_kbps, now);
  }
  if (rule_ && header.round == assembler_.round()) {
    if (header.seq == kPause) rule_->Pauses(row);
    Reply({row, Kind::kGrant, header.round, rates_kbps_[row]}, now, to_send);
  } else if (header.round <= assembler_.closed_round()) {
    Reply({row, Kind::kDone, assembler_.closed_round()}, now, to_send);
  }
}

SendQueue& ServerProtocol::StartBroadcast(uint64_t round, const std::vector<int>& rows,
                                          size_t most_at_once, double silence, double now) {
  SendQueue& queue = StartQueue(round, rows, most_at_once, true, silence, now);
  queue.AddRest();
  credit_.Refill(silence, now);
  for (const int row : rows) {
    if (credit_.in_debt(row)) queue.Hurry(row);
  }
  return queue;
}

SendQueue& ServerProtocol::StartReply(uint64_t round, size_t most_at_once, double silence,
                                      double now) {
  SendQueue& queue = StartQueue(round, {0}, most_at_once, true, silence, now);
  queue.AddRest();
  queue.Stay();
  return queue;
}

std::vector<uint8_t> ServerProtocol::EndBroadcast(double now) {
  std::vector<uint8_t> done;
  for (int row = 0; row < layout_.num_peers(); ++row) {
    done.push_back(queue_->is_done(row));
    credit_.Charge(row, queue_->Overtime(row, now));
  }
  queue_.reset();
  return done;
}

// ---- A worker

WorkerProtocol::WorkerProtocol(const PeerLayout& layout) : Protocol(layout) {
  const auto dim = static_cast<size_t>(layout.framing.dim);
  for (auto& model : models_) model = std::make_unique<float[]>(dim);
}

double WorkerProtocol::wake_at() const { return asking_ ? asking_->at : kNever; }

Datagrams WorkerProtocol::Tick(double now) {
  if (now < wake_at()) return {};
  asking_->at = now + asking_->pause;
  asking_->pause = std::min(2 * asking_->pause, kReadyLast);
  return {{0, Kind::kReady, asking_->round}};
}

SendQueue& WorkerProtocol::Gradient(uint64_t round, size_t most_at_once, bool until_done,
                                    double now) {
  if (queue_ && queue_round_ == round) return *queue_;
  return StartQueue(round, {0}, most_at_once, until_done, kNever, now);
}

Datagrams WorkerProtocol::Pause(uint64_t round) const {
  return Datagrams(kPauses, {0, Kind::kReady, round, kPause});
}

void WorkerProtocol::TakeModel() {
  held_ = 1 - held_;
  whole_round_ = 0;
}

// A model later than all before makes an unfinished one useless.
void WorkerProtocol::FollowServer(uint64_t round) {
  if (round <= assembler_.newest_round()) return;
  whole_round_ = 0;  // its buffer is written again
  assembler_.Open(round, models_[1 - held_].get());
}

Verdict WorkerProtocol::HandleData(int row, const Header& header, const uint8_t* payload,
                                   size_t bytes, double, Handled* handled) {
  FollowServer(header.round);
  const Verdict verdict = assembler_.Accept(row, header, payload, bytes);
  if (verdict != Verdict::kAccepted || assembler_.missing(row) > 0) return verdict;
  whole_round_ = header.round;
  assembler_.Close(header.round);
  handled->to_send.push_back({row, Kind::kDone, header.round});
  handled->changed = true;
  return verdict;
}

Verdict WorkerProtocol::HandleEnd(int row, const Header& header, double now, Datagrams* to_send) {
  FollowServer(header.round);                               // so that it is not early
  if (assembler_.InTime(header.round) == Verdict::kLate) {  // its DONE may have been lost
    Reply({row, Kind::kDone, assembler_.closed_round()}, now, to_send);
  } else {  // it is not whole, or it would be closed
    ReplyNacks(row, kNever, now, to_send);
  }
  return Verdict::kAccepted;
}

void WorkerProtocol::HandleOther(int, const Header& header, double now, Datagrams*) {
  if (header.kind == Kind::kDone) {
    done_round_ = std::max(done_round_, header.round);
    if (queue_ && header.round >= queue_round_) queue_->Done(0, now);
  } else if (header.round >= granted_round_) {  // GRANT
    granted_round_ = header.round;
    granted_kbps_ = header.seq;
  }
}

}  // namespace lossympi
