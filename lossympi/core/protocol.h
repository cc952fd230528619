// What a rank does with the datagrams that it receives (WIRE.md). No socket, no clock, no lock: the
// time is passed in, in seconds, and the rest by Surroundings.
#ifndef LOSSYMPI_CORE_PROTOCOL_H_
#define LOSSYMPI_CORE_PROTOCOL_H_

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "lossympi/core/assembler.h"
#include "lossympi/core/close_rule.h"
#include "lossympi/core/outbox.h"
#include "lossympi/core/packet.h"

namespace lossympi {

// How often each verdict fell.
using Counts = std::array<uint64_t, kNumVerdicts>;

// A peer is known by its row: worker w is row w of the server's, the server is row 0 of a worker's.
class Surroundings {
 public:
  virtual ~Surroundings() = default;
  // Whether the datagram in hand came from the address of this peer.
  virtual bool CameFrom(int row) = 0;
  // Whether the tag behind data[0, size) fits, if tags are used.
  virtual bool TagFits(int row, const uint8_t* data, size_t size, uint64_t counter) = 0;
  virtual void Reply(int row, Kind kind, uint64_t round, uint32_t seq, uint32_t total,
                     const uint8_t* payload, size_t bytes) = 0;
};

struct Shape {
  int rank;  // 0 is the server
  int num_workers;
  uint32_t session;
  Cut cut;
  size_t longest_datagram;
  size_t tag_bytes;

  bool is_server() const { return rank == 0; }
  int num_peers() const { return is_server() ? num_workers : 1; }
  int RowOf(int peer_rank) const { return is_server() ? peer_rank - 1 : peer_rank; }
  int RankOf(int row) const { return is_server() ? row + 1 : row; }
};

struct Closed {
  CloseRule::Reason reason;
  double elapsed;
  std::vector<uint8_t> arrived;  // [n, c]
  std::vector<uint8_t> heard;    // [n]
  std::vector<double> settled;   // [n], after the opening, NaN if it was not
};

class Protocol {
 public:
  Protocol(const Shape& shape, Surroundings* surroundings);

  // Judges a datagram, acts on it and counts it. Returns whether something that a verb may wait for
  // has changed.
  bool Handle(const uint8_t* data, size_t size, double now);

  // ---- The server's side of a gradient round

  // Until it is closed, what arrives is written to stack, [n, d].
  void OpenRound(uint64_t round, float* stack, const ClosePolicy& policy, uint32_t rate_kbps,
                 double now);
  void AbandonRound();
  uint64_t newest_round() const { return assembler_.newest_round(); }  // the next is above it
  // Datagrams of the open round, or of the last, that all rows have.
  const std::vector<uint32_t>& whole() const { return assembler_.whole(); }
  // In the open round, so many of them are a change that a verb waits for.
  void TellAt(size_t num_whole) { tell_at_ = num_whole; }
  // When to call Tick if nothing arrives before.
  double wake_at(double now);
  // Closes the round if it is time; returns whether it did.
  bool Tick(double now);
  std::optional<Closed>& closed() { return closed_; }

  // ---- The worker's side

  bool IsGranted(uint64_t round) const { return granted_round_ == round; }
  // Whether the server wants nothing of this round any more, or has left.
  bool IsOver(uint64_t round) const {
    return granted_round_ > round || done_round_ >= round || server_left();
  }
  uint32_t granted_kbps() const { return granted_kbps_; }
  bool server_left() const { return !shape_.is_server() && peers_[0].left; }
  uint64_t whole_round() const { return whole_round_; }  // of a model that can be taken, or 0
  // Takes that model: it stays as it is until the next is taken.
  void TakeModel();
  const float* model() const { return models_[held_].get(); }

  // ---- Both

  // NACK and DONE of this round are for this outbox; nullptr for none.
  void SetOutbox(Outbox* outbox, uint64_t round);
  const Counts& counts(int row) const { return peers_[row].counts; }
  const Counts& counts_of_nobody() const { return of_nobody_; }
  void ForgetEchoes();
  size_t longest_echo(int row) const { return peers_[row].longest_echo; }  // 0: none
  uint32_t missing(int row) const { return assembler_.missing(row); }

 private:
  struct Peer {
    uint64_t last_control = 0;  // counter of the last control datagram that was accepted
    Counts counts{};
    bool heard = false;  // DATA, END or READY, since the round before was closed
    double nacked_at = -1;
    size_t longest_echo = 0;  // datagram
    bool left = false;        // it has said BYE
  };

  Verdict Judge(const uint8_t* data, size_t size, double now, int* row);
  Verdict HandleData(int row, const Header& header, const uint8_t* payload, size_t bytes,
                     double now);
  Verdict HandleEnd(int row, const Header& header, double now);
  bool IsSoundControl(const Header& header, const uint8_t* payload, size_t bytes) const;
  Verdict HandleControl(int row, const Header& header, const uint8_t* payload, size_t bytes,
                        double now);
  void FollowServer(uint64_t round);
  void SendNack(int row, double now);
  void Send(int row, Kind kind, uint64_t round, uint32_t seq = 0) {
    surroundings_->Reply(row, kind, round, seq, 0, nullptr, 0);
  }

  const Shape shape_;
  Surroundings* const surroundings_;
  std::vector<Peer> peers_;
  Counts of_nobody_{};
  Assembler assembler_;
  bool changed_ = false;

  std::optional<CloseRule> rule_;  // of the open round
  std::optional<Closed> closed_;
  uint32_t rate_kbps_ = 0;
  bool repairs_;  // END is answered
  size_t tell_at_ = SIZE_MAX;

  // One model may be held by the caller, the other takes the next one.
  std::unique_ptr<float[]> models_[2];
  int held_ = 0;
  uint64_t whole_round_ = 0;
  uint64_t done_round_ = 0;
  uint64_t granted_round_ = 0;
  uint32_t granted_kbps_ = 0;

  Outbox* outbox_ = nullptr;
  uint64_t outbox_round_ = 0;
};

}  // namespace lossympi

#endif  // LOSSYMPI_CORE_PROTOCOL_H_
