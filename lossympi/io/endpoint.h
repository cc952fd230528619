// One rank's end of the data plane: a socket, the keys of the ranks it talks to, and a thread that
// receives. endpoint.py says what each verb does, core/protocol.h what a datagram does.
#ifndef LOSSYMPI_IO_ENDPOINT_H_
#define LOSSYMPI_IO_ENDPOINT_H_

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "lossympi/core/drop.h"
#include "lossympi/core/pacer.h"
#include "lossympi/core/packet.h"
#include "lossympi/core/peer_layout.h"
#include "lossympi/core/protocol.h"
#include "lossympi/core/send_queue.h"
#include "lossympi/io/cipher.h"
#include "lossympi/io/fair_mutex.h"
#include "lossympi/io/udp_socket.h"

namespace lossympi {

struct Setup {
  int rank;  // 0 is the server
  int num_workers;
  std::string address;
  uint32_t session;
  int64_t dim;
  Wire wire;
  int64_t mtu;
  Suite suite;
  double drop;
  uint64_t drop_seed;
  int receive_buffer;
};

class Endpoint {
 public:
  // Called about ten times a second while a verb waits; it may throw to end the wait, or close the
  // endpoint.
  using Interrupt = std::function<void()>;

  // Called with datagrams that all rows have.
  using OnWhole = std::function<void(const std::vector<uint32_t>& seqs)>;

  explicit Endpoint(const Setup& setup);
  ~Endpoint();
  Endpoint(const Endpoint&) = delete;
  Endpoint& operator=(const Endpoint&) = delete;

  int port() const { return socket_.port(); }
  const Setup& setup() const { return setup_; }
  const Framing& framing() const { return layout_.framing; }
  void AddPeer(int rank, const std::string& address, int port, const std::string& send_key,
               const std::string& receive_key);
  void Start();

  std::map<int, int64_t> Probe(double timeout, const Interrupt& interrupt);
  // on_whole: on this thread, while the round is open; may be empty.
  Closed Collect(uint64_t round, float* stack, const ClosePolicy& policy,
                 const std::vector<uint32_t>& rates_kbps, const OnWhole& on_whole,
                 const Interrupt& interrupt);
  // False if not all of it has left: the round is over, or else another call goes on. Another call
  // after true, or in another round, begins anew.
  bool Send(uint64_t round, const float* grad, double max_loss, double timeout,
            const Interrupt& interrupt);
  // The same for some datagrams of a gradient whose rest is not written yet, less those that
  // have left; `Send` then sends what is left.
  bool SendPart(uint64_t round, const float* grad, const std::vector<uint32_t>& seqs,
                double max_loss, double timeout, const Interrupt& interrupt);
  std::vector<uint8_t> Broadcast(uint64_t round, const float* params, const std::vector<bool>& to,
                                 uint32_t rate_kbps, double timeout, double silence,
                                 const Interrupt& interrupt);

  // Of a server that takes gradients worker by worker. From the first Await on it has no other
  // rounds. What arrives is written to `grad`, [d], until the round is closed or awaited anew.
  void Await(int row, uint64_t round, float* grad, const ClosePolicy& policy, uint32_t rate_kbps);
  struct ClosedRow {
    int row;
    Closed closed;
  };
  // The rounds that have closed, each once; waits for one.
  std::vector<ClosedRow> TakeClosed(double timeout, const Interrupt& interrupt);
  // Sends a copy, while other verbs are at work or none; in place of what has not arrived yet.
  void Reply(int row, uint64_t round, const float* params, uint32_t rate_kbps, double silence);

  struct Model {
    uint64_t round;  // 0: none
    const float* params;
  };
  Model Receive(uint64_t round, double timeout, const Interrupt& interrupt);

  struct Report {
    struct OfPeer {
      Counts counts;
      uint64_t unsent;
    };
    std::map<int, OfPeer> of_peer;
    Counts of_nobody;
    uint64_t dropped, overflow;
  };
  Report Counters();
  bool server_left();
  void Close();

 private:
  struct Peer;
  struct OneWorker;
  using Lock = std::unique_lock<FairMutex>;
  // Holds the lock from beginning to end of a verb, but for where it says so. Throws if there is a
  // verb at work, or no thread.
  class Verb;

  void ReceiveLoop();
  bool ReceiveBatch();
  void CountDrops();
  void Handle(const uint8_t* data, size_t size, const sockaddr_in& from, double now);
  // Seals datagrams and sends them, with the lock held, as their counters must leave in order. So
  // nobody waits for room to send: what has none is lost. SendOne returns whether it has left.
  // Their rows are those of a protocol whose row 0 is the endpoint's `first`.
  void SendAll(const Datagrams& datagrams, int first = 0);
  bool SendOne(const Outgoing& outgoing, int first = 0);
  // Closes the rounds of single workers whose time it is, and sends what answers them, as far as
  // the rate allows; returns whether a round has closed.
  bool ServeWorkers();
  bool SendReply(double now);  // a burst of one whose turn it is; false if there is nothing to send
  void CheckRunning() const;   // with the lock held
  void CheckInRounds() const;
  void CloseSocketIfUnused();
  void CallInterrupt(Lock& lock, const Interrupt& interrupt);
  // Asks for what the worker waits for, until ready() or the time `until`.
  template <typename F>
  void AskUntil(Lock& lock, double until, const Interrupt& interrupt, F ready);
  // Waits for the grant; null if there is none in time, or the round is over.
  SendQueue* QueueOf(Lock& lock, uint64_t round, double max_loss, double deadline,
                     const Interrupt& interrupt);
  double granted_rate() const { return worker_->granted_kbps() * 1000.0 / 8; }  // bytes/s
  size_t LongestData() const {
    return kHeaderBytes + layout_.framing.PayloadOf(0) + layout_.tag_bytes;
  }
  size_t MostAtOnce(double bytes_per_s) const;  // datagrams
  // Sends what is in the queue at bytes_per_s in all, until it has finished or the deadline has
  // passed.
  void Transmit(Lock& lock, uint64_t round, const float* vector, SendQueue* queue,
                double bytes_per_s, double deadline, const Interrupt& interrupt);
  double DataBytes(const std::vector<uint32_t>& seqs) const;  // of these DATA datagrams together
  // Writes DATA datagrams for a row one after the other; returns the last one's size.
  size_t Stage(int row, uint64_t round, const float* vector, const std::vector<uint32_t>& seqs,
               uint8_t* to);
  // Waits until ready() or the time `until`; returns ready().
  template <typename F>
  bool WaitFor(Lock& lock, double until, const Interrupt& interrupt, F ready);

  const Setup setup_;
  const PeerLayout layout_;
  UdpSocket socket_;
  std::vector<std::unique_ptr<Peer>> peers_;  // by row
  std::thread thread_;

  FairMutex mutex_;  // guards all below
  std::condition_variable_any changed_;
  uint64_t changes_ = 0;
  enum class State { kNew, kRunning, kClosing, kClosed } state_ = State::kNew;
  bool is_busy_ = false;     // a verb is at work
  double interrupt_at_ = 0;  // when the verb at work calls its interrupt next
  // One of the two is there, and is `protocol_` too.
  std::optional<ServerProtocol> server_;
  std::optional<WorkerProtocol> worker_;
  Protocol* protocol_;
  // By row, where the server takes worker by worker: then the one above counts what is nobody's.
  std::vector<std::unique_ptr<OneWorker>> workers_;
  uint32_t reply_kbps_ = 0;
  std::optional<Pacer> reply_pacer_;
  size_t reply_turn_ = 0;  // of the rows
  double serve_at_ = 0;
  std::vector<uint8_t> reply_staged_;
  Drop drop_;
  uint64_t dropped_ = 0, overflow_ = 0;
};

}  // namespace lossympi

#endif  // LOSSYMPI_IO_ENDPOINT_H_
