// What a rank does with the datagrams that it receives, and what it wants sent (WIRE.md). No
// socket, no clock, no lock, and no call to anybody: the time is passed in, in seconds, and what is
// to be sent is returned. plane/protocol.py is its twin.
#ifndef LOSSYMPI_CORE_PROTOCOL_H_
#define LOSSYMPI_CORE_PROTOCOL_H_

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "lossympi/core/assembler.h"
#include "lossympi/core/close_rule.h"
#include "lossympi/core/credit.h"
#include "lossympi/core/packet.h"
#include "lossympi/core/peer_layout.h"
#include "lossympi/core/send_queue.h"

namespace lossympi {

// How often each verdict fell.
using Counts = std::array<uint64_t, kNumVerdicts>;

// A datagram to be sent, any but DATA, which the send queue names.
struct Outgoing {
  int row;
  Kind kind;
  uint64_t round;
  uint32_t seq = 0;
  uint32_t total = 0;
  std::vector<uint8_t> payload{};
};
using Datagrams = std::vector<Outgoing>;

// What became of a datagram.
struct Handled {
  Verdict verdict;
  bool changed = false;  // something that a verb may wait for
  Datagrams to_send{};
};

// What both roles have.
class Protocol {
 public:
  explicit Protocol(const PeerLayout& layout);
  virtual ~Protocol() = default;
  Protocol(const Protocol&) = delete;
  Protocol& operator=(const Protocol&) = delete;

  // Judges a datagram whose address and tag are those of the peer `row`, acts on it and counts it.
  Handled Handle(int row, const Header& header, const uint8_t* payload, size_t bytes, double now);
  // Counts datagrams that are not handled: of a peer, or of nobody, -1.
  void Reject(int row, Verdict verdict, uint64_t count = 1);
  const Counts& counts(int row) const { return peers_[row].counts; }
  int num_peers() const { return layout_.num_peers(); }
  const Counts& counts_of_nobody() const { return of_nobody_; }

  // What is being sent, nullptr for nothing: NACK, DONE and BYE change it.
  SendQueue* queue() { return queue_ ? &*queue_ : nullptr; }

  // PROBEs, a short and a long one, to each peer that has not echoed a long one since ForgetEchoes.
  Datagrams Probe() const;
  // From now on an ECHO counts if it has its peer's challenge, [num_peers], as `seq`: only who got
  // the PROBE knows it. They are random, and each of its own.
  void ForgetEchoes(const std::vector<uint32_t>& challenges);
  bool all_echoed() const;
  size_t longest_echo(int row) const { return peers_[row].longest_echo; }  // 0: none
  Datagrams Bye() const;                                                   // to each peer

  uint32_t missing(int row) const { return assembler_.missing(row); }

 protected:
  struct Peer {
    uint64_t last_control = 0;  // counter of the last control datagram that was accepted
    Counts counts{};
    bool heard = false;                  // DATA, END or READY, since the round before was closed
    double nack_at;                      // when it may be sent the next NACKs
    double reply_bytes, reply_bytes_at;  // that other replies to it may have, and since when
    std::optional<uint32_t> challenge;
    size_t longest_echo = 0;  // datagram
    bool left = false;        // it has said BYE
  };

  // DATA that is as its kind demands, or END, of a peer: acts on it, and may add to `to_send`.
  virtual Verdict HandleData(int row, const Header& header, const uint8_t* payload, size_t bytes,
                             double now, Handled* handled) = 0;
  virtual Verdict HandleEnd(int row, const Header& header, double now, Datagrams* to_send) = 0;
  // READY, GRANT or DONE.
  virtual void HandleOther(int row, const Header& header, double now, Datagrams* to_send) = 0;

  // Adds a reply, if its row may have one more now: who asks without end is not always answered.
  void Reply(Outgoing reply, double now, Datagrams* to_send);
  // The same for NACKs, the next ones not before these have passed at a rate.
  void ReplyNacks(int row, double bytes_per_s, double now, Datagrams* to_send);
  SendQueue& StartQueue(uint64_t round, const std::vector<int>& rows, size_t most_at_once,
                        bool until_done, double silence, double now);

  const PeerLayout layout_;
  std::vector<Peer> peers_;
  Assembler assembler_;
  std::optional<SendQueue> queue_;
  uint64_t queue_round_ = 0;

 private:
  Verdict HandleControl(int row, const Header& header, const uint8_t* payload, size_t bytes,
                        double now, Handled* handled);
  bool IsSoundControl(const Header& header, const uint8_t* payload, size_t bytes) const;
  void HandleNack(int row, const Header& header, const uint8_t* payload, size_t bytes);

  Counts of_nobody_{};
};

struct Closed {
  Reason reason;
  double elapsed;
  std::vector<uint8_t> arrived;  // [n, c]
  std::vector<uint8_t> heard;    // [n]
  std::vector<double> settled;   // [n], after the opening, NaN if it was not
};

class ServerProtocol : public Protocol {
 public:
  explicit ServerProtocol(const PeerLayout& layout)
      : Protocol(layout), credit_(layout.num_peers()), rates_kbps_(layout.num_peers()) {}
  // One worker of another's as the only one: what was known of it is taken over. So a server that
  // takes gradients one by one has a protocol for each, with rounds of its own.
  ServerProtocol(const ServerProtocol& all, int row);

  // ---- A round of gradients

  // Until it is closed, what arrives is written to stack, [n, d]. The round is above newest_round.
  // Each row is granted its rate, [n]. If it throws no round is open.
  Datagrams OpenRound(uint64_t round, float* stack, const ClosePolicy& policy,
                      const std::vector<uint32_t>& rates_kbps, double now);
  // The same as soon as a worker asks for it, by READY: only then its time begins.
  void AwaitRound(uint64_t round, float* stack, const ClosePolicy& policy,
                  const std::vector<uint32_t>& rates_kbps);
  void AbandonRound();
  bool is_open() const { return rule_.has_value(); }
  uint64_t newest_round() const { return assembler_.newest_round(); }
  // Datagrams of the open round, or of the last, that all rows have.
  const std::vector<uint32_t>& whole() const { return assembler_.whole(); }
  // In the open round, this number of them is a change that a verb waits for.
  void TellAt(size_t num_whole) { tell_at_ = num_whole; }
  // When to call Tick if nothing arrives before; infinity if no round is open.
  double wake_at(double now);
  // Closes the round if it is time; then `closed` has a value until the next is opened.
  Datagrams Tick(double now);
  std::optional<Closed>& closed() { return closed_; }

  // ---- The model

  // The queue has all of it for these rows, less those that have left. Rows that have cost too much
  // overtime hurry.
  SendQueue& StartBroadcast(uint64_t round, const std::vector<int>& rows, size_t most_at_once,
                            double silence, double now);
  std::vector<uint8_t> EndBroadcast(double now);  // [n], who has said DONE

  // What answers the only worker: it is sent until that is DONE, as long as it is heard. A later
  // one takes its place.
  SendQueue& StartReply(uint64_t round, size_t most_at_once, double silence, double now);
  void EndReply() { queue_.reset(); }

 private:
  Verdict HandleData(int row, const Header& header, const uint8_t* payload, size_t bytes,
                     double now, Handled* handled) override;
  Verdict HandleEnd(int row, const Header& header, double now, Datagrams* to_send) override;
  void HandleOther(int row, const Header& header, double now, Datagrams* to_send) override;

  struct Awaited {
    uint64_t round;
    float* stack;
    ClosePolicy policy;
    std::vector<uint32_t> rates_kbps;
  };
  std::optional<Awaited> awaited_;
  std::optional<CloseRule> rule_;  // of the open round
  std::optional<Closed> closed_;
  Credit credit_;
  std::vector<uint32_t> rates_kbps_;  // granted, [n]
  bool repairs_ = false;              // END is answered
  size_t tell_at_ = SIZE_MAX;
};

class WorkerProtocol : public Protocol {
 public:
  explicit WorkerProtocol(const PeerLayout& layout);

  bool server_left() const { return peers_[0].left; }

  // ---- Asking, by READY: for a grant at once and after pauses that double, for a model every 50
  // ms

  void AskForGrant(uint64_t round, double now) { asking_ = {round, now, kReadyFirst}; }
  void AskForModel(uint64_t round, double now) { asking_ = {round, now + kReadyLast, kReadyLast}; }
  void StopAsking() { asking_.reset(); }
  double wake_at() const;  // when to call Tick; infinity if nothing is asked for
  Datagrams Tick(double now);

  // ---- Its gradient

  bool IsGranted(uint64_t round) const { return granted_round_ == round; }
  // Whether the server wants nothing of this round any more, or has left.
  bool IsOver(uint64_t round) const {
    return granted_round_ > round || done_round_ >= round || server_left();
  }
  uint32_t granted_kbps() const { return granted_kbps_; }
  // The queue of this round's gradient: a new one with nothing in it, unless it is of this round.
  SendQueue& Gradient(uint64_t round, size_t most_at_once, bool until_done, double now);
  void EndGradient() { queue_.reset(); }
  Datagrams Pause(uint64_t round) const;  // READYs that say that more of it will come

  // ---- The model

  uint64_t whole_round() const { return whole_round_; }  // of a model that can be taken, or 0
  // Takes that model: it stays as it is until the next is taken.
  void TakeModel();
  const float* model() const { return models_[held_].get(); }
  int64_t dim() const { return layout_.framing.dim; }

 private:
  static constexpr double kReadyFirst = 0.002, kReadyLast = 0.050;  // between READYs

  Verdict HandleData(int row, const Header& header, const uint8_t* payload, size_t bytes,
                     double now, Handled* handled) override;
  Verdict HandleEnd(int row, const Header& header, double now, Datagrams* to_send) override;
  void HandleOther(int row, const Header& header, double now, Datagrams* to_send) override;
  void FollowServer(uint64_t round);

  struct Asking {
    uint64_t round;
    double at, pause;
  };
  std::optional<Asking> asking_;
  uint64_t done_round_ = 0;
  uint64_t granted_round_ = 0;
  uint32_t granted_kbps_ = 0;
  // One model may be held by the caller, the other takes the next one.
  std::unique_ptr<float[]> models_[2];
  int held_ = 0;
  uint64_t whole_round_ = 0;
};

}  // namespace lossympi

#endif  // LOSSYMPI_CORE_PROTOCOL_H_
