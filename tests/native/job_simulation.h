// A job on a virtual clock: core/protocol.h as the server and as honest workers, each driven as
// io/endpoint.cc and io/worker_rounds.cc drive it, over a network that loses, repeats and reorders.
// No socket, no thread, no time but the simulation's: one seed gives one job, to the last bit.
#ifndef TESTS_NATIVE_JOB_SIMULATION_H_
#define TESTS_NATIVE_JOB_SIMULATION_H_

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <functional>
#include <limits>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "lossympi/core/pacer.h"
#include "lossympi/core/packet.h"
#include "lossympi/core/peer_layout.h"
#include "lossympi/core/protocol.h"
#include "lossympi/core/send_queue.h"
#include "lossympi/core/write_tracker.h"
#include "tests/native/counted_memory.h"
#include "tests/native/fuzz_input.h"

namespace simulation {

using lossympi::Closed;
using lossympi::ClosePolicy;
using lossympi::Datagrams;
using lossympi::Envelope;
using lossympi::Framing;
using lossympi::Handled;
using lossympi::Header;
using lossympi::kHeaderBytes;
using lossympi::Kind;
using lossympi::Outgoing;
using lossympi::PeerLayout;
using lossympi::Protocol;
using lossympi::SendQueue;
using lossympi::ServerProtocol;
using lossympi::Verdict;
using lossympi::Wire;
using lossympi::WorkerProtocol;

constexpr double kNever = std::numeric_limits<double>::infinity();
constexpr uint32_t kSession = 0x12345678;
constexpr size_t kTag = 8;
constexpr int64_t kPayload = 64;   // bytes of a full DATA datagram
constexpr size_t kLongest = 120;   // bytes of a datagram that the protocol takes
constexpr size_t kRoom = 160;      // that the network carries
constexpr size_t kMostAtOnce = 8;  // datagrams of a burst
constexpr size_t kCaptured = 64;   // datagrams that an attacker remembers

// SplitMix64's finalizer: Steele, Lea, Flood, Fast splittable pseudorandom number generators, 2014.
inline uint64_t Mix(uint64_t z) {
  z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
  z = (z ^ z >> 27) * 0x94d049bb133111eb;
  return z ^ z >> 31;
}

class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}
  uint64_t Next() { return Mix(state_ += 0x9e3779b97f4a7c15); }
  double Share() { return static_cast<double>(Next() >> 11) * 0x1p-53; }
  bool Happens(double share) { return share > 0 && Share() < share; }

 private:
  uint64_t state_;
};

// Float i of the vector that a rank sends in a round: whole, and exact in every wire type.
inline float ValueOf(int rank, uint64_t round, int64_t i) {
  const uint64_t hash = Mix(round * 0x10001 + static_cast<uint64_t>(rank) * 0x100000001 +
                            static_cast<uint64_t>(i) * 0x9e3779b97f4a7c15);
  return static_cast<float>(static_cast<int>(hash % 255) - 127);
}

// Of datagrams between the server and a worker, in one direction. It stands for a cipher: who does
// not ask for the key here cannot make the tag.
inline uint64_t KeyOf(int worker, bool up) {
  return Mix(static_cast<uint64_t>(worker) * 2 + (up ? 1 : 0) + 77);
}
inline uint64_t TagOf(const uint8_t* data, size_t size, uint64_t key) {
  uint64_t tag = key;
  for (size_t i = 0; i < size; i += 8) {
    uint64_t word = 0;
    std::memcpy(&word, data + i, std::min<size_t>(8, size - i));
    tag = (tag ^ word) * 0x9e3779b97f4a7c15 + (tag >> 29);
  }
  return Mix(tag + size);
}

struct Packet {
  double at;       // when it comes
  uint64_t order;  // among those that come at the same time
  int from, to;    // ranks; `from` is the address, which may be a lie
  size_t size;
  std::array<uint8_t, kRoom> bytes;
};

// Carries packets, all of whose memory is there from the start: what a rank allocates is its own.
class Network {
 public:
  struct Profile {
    double loss = 0, duplicates = 0;  // shares
    double jitter_s = 0;              // at most, beside the latency
  };
  static constexpr double kLatency = 0.00005;

  Network(Profile profile, uint64_t seed) : profile_(profile), random_(seed) {
    packets_.resize(1 << 14);
    heap_.reserve(packets_.size());
    for (size_t i = packets_.size(); i > 0; --i) free_.push_back(static_cast<uint32_t>(i - 1));
  }

  // As a rank does: the network does with it as it likes.
  void Send(int from, int to, const uint8_t* data, size_t size, double now) {
    Packet& captured = captured_[num_captured_++ % kCaptured];
    captured = {now, 0, from, to, size, {}};
    std::copy(data, data + size, captured.bytes.begin());
    if (random_.Happens(profile_.loss)) return;
    const int copies = 1 + random_.Happens(profile_.duplicates);
    for (int i = 0; i < copies; ++i) {
      Deliver(from, to, data, size, now + kLatency + profile_.jitter_s * random_.Share());
    }
  }
  // As an attacker does, at a time of its own.
  void Deliver(int from, int to, const uint8_t* data, size_t size, double at) {
    if (free_.empty()) return;  // an overfull queue, of which there are in every network
    const uint32_t slot = free_.back();
    free_.pop_back();
    Packet& packet = packets_[slot];
    packet.at = at;
    packet.order = order_++;
    packet.from = from;
    packet.to = to;
    packet.size = std::min(size, kRoom);
    std::copy(data, data + packet.size, packet.bytes.begin());
    heap_.push_back(slot);
    std::push_heap(heap_.begin(), heap_.end(), Later{&packets_});
  }
  double next_at() const { return heap_.empty() ? kNever : packets_[heap_.front()].at; }
  Packet Take() {
    std::pop_heap(heap_.begin(), heap_.end(), Later{&packets_});
    const uint32_t slot = heap_.back();
    heap_.pop_back();
    free_.push_back(slot);
    return packets_[slot];
  }
  const Profile& profile() const { return profile_; }
  // What a rank sent a while ago; null before anything was.
  const Packet* Captured(size_t ago) const {
    const size_t known = std::min<size_t>(num_captured_, kCaptured);
    return known == 0 ? nullptr : &captured_[(num_captured_ - 1 - ago % known) % kCaptured];
  }

 private:
  struct Later {
    const std::vector<Packet>* packets;
    bool operator()(uint32_t a, uint32_t b) const {
      const Packet &x = (*packets)[a], &y = (*packets)[b];
      return x.at != y.at ? x.at > y.at : x.order > y.order;
    }
  };

  const Profile profile_;
  Random random_;
  std::vector<Packet> packets_;
  std::vector<uint32_t> free_, heap_;
  uint64_t order_ = 0;
  std::array<Packet, kCaptured> captured_;
  size_t num_captured_ = 0;
};

// What io/endpoint.cc is to a protocol: it opens envelopes, checks tags, numbers and seals.
class Rank {
 public:
  Rank(const PeerLayout& layout, Network* network)
      : layout_(layout), network_(network), counters_(layout.num_peers()) {}
  virtual ~Rank() = default;
  Rank(const Rank&) = delete;
  Rank& operator=(const Rank&) = delete;

  virtual void Receive(const Packet& packet, double now) = 0;
  virtual void Run(double now) = 0;
  virtual double wake_at(double now) = 0;

  const PeerLayout& layout() const { return layout_; }
  size_t BytesOfData(uint32_t seq) const {
    return kHeaderBytes + layout_.framing.PayloadOf(seq) + kTag;
  }
  void SendData(int row, uint64_t round, uint32_t seq, double now) {
    const Framing& framing = layout_.framing;
    std::array<float, kPayload> values;
    const auto floats = static_cast<size_t>(framing.FloatsOf(seq));
    for (size_t i = 0; i < floats; ++i) {
      values[i] = ValueOf(layout_.rank, round, seq * framing.floats + static_cast<int64_t>(i));
    }
    uint8_t payload[kPayload];
    lossympi::Narrow(values.data(), floats, framing.wire, payload);
    SendBytes(row, Kind::kData, round, seq, framing.NumDatagrams(), payload, framing.PayloadOf(seq),
              now);
  }
  void SendOne(const Outgoing& what, double now) {
    SendBytes(what.row, what.kind, what.round, what.seq, what.total, what.payload.data(),
              what.payload.size(), now);
  }
  void SendAll(const Datagrams& datagrams, double now) {
    for (const Outgoing& each : datagrams) SendOne(each, now);
  }
  // Of a protocol of one worker: its row.
  static Datagrams Of(int row, Datagrams datagrams) {
    for (Outgoing& each : datagrams) each.row = row;
    return datagrams;
  }

 protected:
  // As Endpoint::Handle; returns what the protocol made of it, nothing if it was rejected before.
  // With protocols of single workers it is theirs.
  std::optional<Handled> Judge(
      Protocol* protocol, const Packet& packet, double now,
      const std::vector<std::unique_ptr<ServerProtocol>>* of_each = nullptr) {
    const uint8_t* data = packet.bytes.data();
    const Envelope envelope = lossympi::OpenEnvelope(layout_, data, packet.size);
    if (envelope.verdict != Verdict::kAccepted) {
      protocol->Reject(-1, envelope.verdict);
      return std::nullopt;
    }
    if (packet.from != layout_.RankOf(envelope.row)) {
      protocol->Reject(-1, Verdict::kForeign);
      return std::nullopt;
    }
    int row = envelope.row;
    if (of_each != nullptr) protocol = (*of_each)[static_cast<size_t>(std::exchange(row, 0))].get();
    const size_t end = envelope.signed_bytes;
    uint64_t tag;
    std::memcpy(&tag, data + end, kTag);
    const bool up = layout_.is_server();
    if (tag != TagOf(data, end, KeyOf(up ? packet.from : layout_.rank, up))) {
      protocol->Reject(row, Verdict::kForged);
      return std::nullopt;
    }
    Handled handled =
        protocol->Handle(row, envelope.header, data + kHeaderBytes, end - kHeaderBytes, now);
    handled.to_send = Of(envelope.row, std::move(handled.to_send));
    return handled;
  }

  const PeerLayout layout_;
  Network* const network_;

 private:
  void SendBytes(int row, Kind kind, uint64_t round, uint32_t seq, uint32_t total,
                 const uint8_t* payload, size_t bytes, double now) {
    uint8_t datagram[kRoom];
    const size_t size = kHeaderBytes + bytes;
    CHECK(size + kTag <= kLongest);
    lossympi::Pack({kind, static_cast<uint16_t>(layout_.rank), kSession, round, seq, total,
                    ++counters_[static_cast<size_t>(row)]},
                   datagram);
    std::copy(payload, payload + bytes, datagram + kHeaderBytes);
    const int peer = layout_.RankOf(row);
    const bool up = !layout_.is_server();
    const uint64_t tag = TagOf(datagram, size, KeyOf(up ? layout_.rank : peer, up));
    std::memcpy(datagram + size, &tag, kTag);
    network_->Send(layout_.rank, peer, datagram, size + kTag, now);
  }

  std::vector<uint64_t> counters_;
};

// Endpoint::Transmit, step by step: sends what is in a queue at a rate, until a deadline.
class Transmission {
 public:
  // Row 0 of the queue is the rank's `first`.
  Transmission(Rank* rank, SendQueue* queue, uint64_t round, double bytes_per_s, double deadline,
               int first = 0)
      : rank_(rank),
        queue_(queue),
        round_(round),
        pacer_(bytes_per_s),
        deadline_(deadline),
        first_(first) {}

  // Does what is due; false once it has ended.
  bool Run(double now) {
    for (;;) {
      if (now >= deadline_) return false;
      if (staged_ != nullptr) {
        if (queue_->is_finished(staged_->row)) {
          queue_->TakeBack();
          staged_ = nullptr;
          continue;
        }
        if (now < send_at_) {
          wake_at_ = send_at_;
          return true;
        }
        for (const uint32_t seq : staged_->seqs) {
          rank_->SendData(first_ + staged_->row, round_, seq, now);
        }
        staged_ = nullptr;
        continue;
      }
      const SendQueue::Action& action = queue_->Next(now);
      switch (action.what) {
        case SendQueue::What::kFinished:
          return false;
        case SendQueue::What::kEnd:
          rank_->SendOne({first_ + action.row, Kind::kEnd, round_, action.num_ends,
                          rank_->layout().framing.NumDatagrams()},
                         now);
          break;
        case SendQueue::What::kWait:
          CHECK(action.wake_at > now);
          wake_at_ = std::min(action.wake_at, deadline_);
          return true;
        case SendQueue::What::kSend: {
          size_t bytes = 0;
          for (const uint32_t seq : action.seqs) bytes += rank_->BytesOfData(seq);
          staged_ = &action;
          send_at_ = std::min(pacer_.When(now, static_cast<double>(bytes)), deadline_);
          break;
        }
      }
    }
  }
  double wake_at() const { return wake_at_; }

 private:
  Rank* const rank_;
  SendQueue* const queue_;
  const uint64_t round_;
  lossympi::Pacer pacer_;
  const double deadline_;
  const int first_;
  const SendQueue::Action* staged_ = nullptr;
  double send_at_ = 0, wake_at_ = 0;
};

// Collects and broadcasts, round after round, as udp_link.py does, with the same deadline in each.
class ServerRank : public Rank {
 public:
  struct Terms {
    double deadline, grace, quiet, max_loss, silence, timeout, bytes_per_s;
    int quorum, patience;
    int f;                   // how many are waited for at their own expense, 0 for none
    double free, allowance;  // of each of these
  };
  // What looks at each round. `elapsed`: seconds; `half_at`: when more than half of those who were
  // served were done, after the begin; infinity if they never were.
  struct Observer {
    virtual ~Observer() = default;
    virtual void Opens(uint64_t round) = 0;
    virtual void HasClosed(uint64_t round, const Closed& closed) = 0;
    virtual void HasBroadcast(uint64_t round, const std::vector<bool>& served,
                              const std::vector<uint8_t>& done, double elapsed, double half_at) = 0;
    virtual void Handles(const Packet& packet, const Handled& handled, double now) = 0;
  };

  ServerRank(const PeerLayout& layout, Network* network, const Terms& terms, float* stack,
             Observer* observer)
      : Rank(layout, network),
        terms_(terms),
        stack_(stack),
        observer_(observer),
        silent_rounds_(layout.num_workers, 0) {
    const CountedScope scope;
    protocol_.emplace(layout);
  }
  ~ServerRank() override {
    const CountedScope scope;
    transmission_.reset();
    protocol_.reset();
  }

  void Receive(const Packet& packet, double now) override {
    const CountedScope scope;
    const auto handled = Judge(&*protocol_, packet, now);
    ++num_received_;
    if (!handled) return;
    observer_->Handles(packet, *handled, now);
    SendAll(handled->to_send, now);
  }

  void Run(double now) override {
    const CountedScope scope;
    for (;;) {
      if (transmission_) {
        NoteHalf(now);
        if (transmission_->Run(now)) return;
        EndBroadcast(now);
        Open(now);
      } else if (round_ == 0) {
        Open(now);
      }
      SendAll(protocol_->Tick(now), now);
      if (protocol_->is_open()) return;
      Close(now);
    }
  }
  double wake_at(double now) override {
    const double round = protocol_->wake_at(now);
    return transmission_ ? std::min(round, transmission_->wake_at()) : round;
  }

  uint64_t round() const { return round_; }  // that is open, or was last
  uint64_t num_received() const { return num_received_; }
  const Terms& terms() const { return terms_; }
  ServerProtocol& protocol() { return *protocol_; }
  const std::vector<bool>& live() const { return live_; }
  double bytes_per_s_of_each() const {  // as udp_link.py shares the rate
    const auto live = std::count(live_.begin(), live_.end(), true);
    return terms_.bytes_per_s / static_cast<double>(std::max<ptrdiff_t>(1, live));
  }

 private:
  void Open(double now) {
    live_.clear();
    for (const int silent : silent_rounds_) live_.push_back(silent < terms_.patience);
    observer_->Opens(++round_);
    const ClosePolicy policy{terms_.deadline, terms_.grace,
                             terms_.quiet,    terms_.max_loss,
                             terms_.quorum,   live_,
                             terms_.f,        terms_.deadline,
                             terms_.free,     std::vector<double>(live_.size(), terms_.allowance)};
    const auto kbps = static_cast<uint32_t>(bytes_per_s_of_each() * 8 / 1000);
    const std::vector<uint32_t> rates_kbps(live_.size(), std::max(1U, kbps));
    SendAll(protocol_->OpenRound(round_, stack_, policy, rates_kbps, now), now);
  }
  void Close(double now) {
    const Closed closed = *std::move(protocol_->closed());
    for (size_t row = 0; row < silent_rounds_.size(); ++row) {
      silent_rounds_[row] = closed.heard[row] ? 0 : silent_rounds_[row] + 1;
    }
    observer_->HasClosed(round_, closed);
    std::vector<int> rows;
    served_.clear();
    for (int row = 0; row < layout_.num_workers; ++row) {
      served_.push_back(silent_rounds_[static_cast<size_t>(row)] < terms_.patience);
      if (served_.back()) rows.push_back(row);
    }
    begun_at_ = now;
    half_at_ = kNever;
    SendQueue& queue = protocol_->StartBroadcast(round_, rows, kMostAtOnce, terms_.silence, now);
    transmission_.emplace(this, &queue, round_, terms_.bytes_per_s, now + terms_.timeout);
  }
  void NoteHalf(double now) {
    size_t num_served = 0, num_done = 0;
    for (int row = 0; row < layout_.num_workers; ++row) {
      num_served += served_[static_cast<size_t>(row)];
      num_done += protocol_->queue()->is_done(row);
    }
    if (half_at_ == kNever && 2 * num_done > num_served) half_at_ = now - begun_at_;
  }
  void EndBroadcast(double now) {
    transmission_.reset();
    const std::vector<uint8_t> done = protocol_->EndBroadcast(now);
    observer_->HasBroadcast(round_, served_, done, now - begun_at_, half_at_);
  }

  const Terms terms_;
  float* const stack_;
  Observer* const observer_;
  std::optional<ServerProtocol> protocol_;
  std::optional<Transmission> transmission_;
  std::vector<int> silent_rounds_;
  std::vector<bool> live_, served_;
  uint64_t round_ = 0, num_received_ = 0;
  double begun_at_ = 0, half_at_ = kNever;
};

// Takes gradients and replies worker by worker, as udp_link.py and io/endpoint.cc do, but for the
// rate, of which each row has its share here.
class TakingServer : public Rank {
 public:
  struct Observer {
    virtual ~Observer() = default;
    virtual void HasClosed(int row, uint64_t round, const Closed& closed) = 0;
    virtual void Handles(const Packet& packet, const Handled& handled, double now) = 0;
  };

  TakingServer(const PeerLayout& layout, Network* network, const ServerRank::Terms& terms,
               float* stack, Observer* observer)
      : Rank(layout, network),
        terms_(terms),
        stack_(stack),
        observer_(observer),
        all_(layout),
        rounds_(layout.num_workers, 1),
        transmissions_(layout.num_workers) {
    for (int row = 0; row < layout.num_workers; ++row) {
      protocols_.push_back(std::make_unique<ServerProtocol>(all_, row));
      Await(row);
    }
  }

  void Receive(const Packet& packet, double now) override {
    const auto handled = Judge(&all_, packet, now, &protocols_);
    if (!handled) return;
    observer_->Handles(packet, *handled, now);
    SendAll(handled->to_send, now);
  }
  void Run(double now) override {
    for (int row = 0; row < layout_.num_workers; ++row) {
      const auto i = static_cast<size_t>(row);
      ServerProtocol& protocol = *protocols_[i];
      SendAll(Of(row, protocol.Tick(now)), now);
      if (protocol.closed()) {
        const Closed closed = *std::exchange(protocol.closed(), std::nullopt);
        observer_->HasClosed(row, rounds_[i], closed);
        Reply(row, now);
        Await(row);
      }
      if (transmissions_[i] && !transmissions_[i]->Run(now)) {
        transmissions_[i].reset();
        protocol.EndReply();
      }
    }
  }
  double wake_at(double now) override {
    double at = kNever;
    for (size_t i = 0; i < protocols_.size(); ++i) {
      at = std::min(at, protocols_[i]->wake_at(now));
      if (transmissions_[i]) at = std::min(at, transmissions_[i]->wake_at());
    }
    return at;
  }

  uint64_t round(int row) const { return rounds_[static_cast<size_t>(row)]; }
  double bytes_per_s_of_each() const { return terms_.bytes_per_s / layout_.num_workers; }

 private:
  void Await(int row) {
    const ClosePolicy policy{terms_.deadline, terms_.grace, terms_.quiet, terms_.max_loss, 1,
                             {true}};
    const auto kbps = static_cast<uint32_t>(bytes_per_s_of_each() * 8 / 1000);
    const auto i = static_cast<size_t>(row);
    protocols_[i]->AwaitRound(rounds_[i], stack_ + row * layout_.framing.dim, policy, {kbps});
  }
  void Reply(int row, double now) {
    const auto i = static_cast<size_t>(row);
    transmissions_[i].reset();  // it looks into the queue that goes
    SendQueue& queue = protocols_[i]->StartReply(rounds_[i], kMostAtOnce, terms_.silence, now);
    transmissions_[i].emplace(this, &queue, rounds_[i]++, bytes_per_s_of_each(), kNever, row);
  }

  const ServerRank::Terms terms_;
  float* const stack_;
  Observer* const observer_;
  ServerProtocol all_;
  std::vector<std::unique_ptr<ServerProtocol>> protocols_;
  std::vector<uint64_t> rounds_;  // awaited, by row
  std::vector<std::optional<Transmission>> transmissions_;
};

// Sends gradients and receives models as worker_rounds.cc has it. It computes for a while before
// each gradient, and may send it in two parts.
class WorkerRank : public Rank {
 public:
  struct Habits {
    double compute_s = 0;   // before each gradient, at most
    bool in_parts = false;  // half of the gradient leaves first
    double max_loss = 1;    // of the link
    uint64_t seed = 0;      // of how long it computes
    bool is_honest = true;  // else what it receives is not checked
  };

  WorkerRank(const PeerLayout& layout, Network* network, const Habits& habits)
      : Rank(layout, network), habits_(habits), random_(habits.seed), protocol_(layout) {}

  void Receive(const Packet& packet, double now) override {
    if (const auto handled = Judge(&protocol_, packet, now)) SendAll(handled->to_send, now);
  }

  void Run(double now) override {
    while (Step(now)) continue;
  }
  double wake_at(double) override {
    switch (state_) {
      case State::kComputing:
        return until_;
      case State::kSending:
        return transmission_->wake_at();
      case State::kLeft:
        return kNever;
      default:
        return protocol_.wake_at();
    }
  }

  uint64_t round() const { return round_; }            // of its next gradient
  uint64_t held_round() const { return held_round_; }  // of the model that it has
  WorkerProtocol& protocol() { return protocol_; }

 private:
  enum class State { kComputing, kAsking, kSending, kReceiving, kLeft };

  bool Step(double now) {  // false when there is nothing to do now
    switch (state_) {
      case State::kComputing:
        if (now < until_) return false;
        protocol_.AskForGrant(round_, now);
        state_ = State::kAsking;
        return true;
      case State::kAsking:
        if (!protocol_.IsGranted(round_) && !protocol_.IsOver(round_)) {
          SendAll(protocol_.Tick(now), now);
          return false;
        }
        protocol_.StopAsking();
        return protocol_.IsOver(round_) ? WaitForModel(now) : BeginToSend(now);
      case State::kSending:
        if (transmission_->Run(now)) return false;
        transmission_.reset();
        if (rest_is_missing_) {  // the first half has left
          CHECK(!protocol_.queue()->has_wanted());
          rest_is_missing_ = false;
          SendAll(protocol_.Pause(round_), now);
          until_ = now + habits_.compute_s * random_.Share();
          state_ = State::kComputing;
          return true;
        }
        if (protocol_.queue()->all_sent(0)) protocol_.EndGradient();
        return WaitForModel(now);
      case State::kReceiving:
        if (protocol_.whole_round() < round_ && !protocol_.server_left()) {
          SendAll(protocol_.Tick(now), now);
          return false;
        }
        protocol_.StopAsking();
        if (protocol_.whole_round() < round_) {
          state_ = State::kLeft;
          return false;
        }
        TakeModel(now);
        return true;
      case State::kLeft:
        return false;
    }
    return false;
  }

  bool BeginToSend(double now) {
    SendQueue& queue = protocol_.Gradient(round_, kMostAtOnce, habits_.max_loss < 1, now);
    const uint32_t c = layout_.framing.NumDatagrams();
    rest_is_missing_ = habits_.in_parts && half_sent_round_ != round_ && c > 1;
    if (rest_is_missing_) {
      half_sent_round_ = round_;
      lossympi::WriteTracker written(layout_.framing);
      const int64_t end = layout_.framing.dim, half = end / 2;  // as training has it, from the end
      written.Add(end - half / 2, half / 2);
      written.Add(end - half, half - half / 2);
      queue.Add(written.whole());
    } else {
      queue.AddRest();
    }
    transmission_.emplace(this, &queue, round_, protocol_.granted_kbps() * 1000.0 / 8, kNever);
    state_ = State::kSending;
    return true;
  }

  bool WaitForModel(double now) {
    protocol_.AskForModel(round_, now);
    state_ = State::kReceiving;
    return true;
  }

  void TakeModel(double now) {
    held_round_ = protocol_.whole_round();
    protocol_.TakeModel();
    for (int64_t i = 0; habits_.is_honest && i < protocol_.dim(); ++i) {
      CHECK(protocol_.model()[i] == ValueOf(0, held_round_, i));
    }
    round_ = held_round_ + 1;
    until_ = now + habits_.compute_s * random_.Share();
    state_ = State::kComputing;
  }

  const Habits habits_;
  Random random_;
  WorkerProtocol protocol_;
  std::optional<Transmission> transmission_;
  State state_ = State::kComputing;
  double until_ = 0;
  uint64_t round_ = 1, held_round_ = 0, half_sent_round_ = 0;
  bool rest_is_missing_ = false;
};

}  // namespace simulation

#endif  // TESTS_NATIVE_JOB_SIMULATION_H_
