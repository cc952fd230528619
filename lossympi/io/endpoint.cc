#include "lossympi/io/endpoint.h"

#include <sys/prctl.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <stdexcept>

#include "lossympi/core/pacer.h"

namespace lossympi {
namespace {

constexpr double kReadyFirst = 0.002, kReadyLast = 0.050;  // between READYs for a grant
constexpr double kReadyModel = 0.050;                      // between READYs for a model
constexpr double kProbeEvery = 0.020;
constexpr size_t kIpBytes = 28;      // the headers of IPv4 and UDP
constexpr size_t kShortProbe = 100;  // bytes of an IP packet
constexpr int kByes = 3;
constexpr double kInterruptEvery = 0.1;
constexpr double kLongSleep = 0.002;
constexpr uint32_t kTellings = 16;  // of what is whole, in a round
constexpr double kNever = std::numeric_limits<double>::infinity();

void SleepUntil(double time) {
  if (time <= Now()) return;
  const double whole = std::floor(time);
  const timespec t = {static_cast<time_t>(whole), static_cast<long>((time - whole) * 1e9)};
  clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, nullptr);
}

}  // namespace

struct Endpoint::Peer {
  sockaddr_in address;
  Key send_key, receive_key;
  std::atomic<uint64_t> counter{0};  // of what was sent to it; two threads send
};

Endpoint::Endpoint(const Setup& setup)
    : setup_(setup),
      shape_{setup.rank,
             setup.num_workers,
             setup.session,
             Cut{setup.dim, PayloadBytes(setup.mtu) / static_cast<int64_t>(BytesOf(setup.wire)),
                 setup.wire},
             static_cast<size_t>(setup.mtu) - 28,
             setup.suite == Suite::kNone ? 0 : kTagBytes},
      socket_(setup.address, setup.mtu, setup.receive_buffer),
      peers_(shape_.num_peers()),
      protocol_(shape_, this),
      drop_(setup.drop, setup.drop_seed, static_cast<uint64_t>(setup.rank)) {}

Endpoint::~Endpoint() { Close(); }

class Endpoint::Verb {
 public:
  explicit Verb(Endpoint* endpoint) : lock(endpoint->mutex_), endpoint_(endpoint) {
    endpoint->CheckRunning();
    if (endpoint->is_busy_) {
      throw std::invalid_argument(
          "an endpoint does one thing at a time, and another thread waits in it. Wait for that.");
    }
    endpoint->is_busy_ = true;
    endpoint->interrupt_at_ = Now() + kInterruptEvery;
  }
  ~Verb() {
    if (!lock.owns_lock()) lock.lock();
    endpoint_->is_busy_ = false;
    endpoint_->CloseSocketIfUnused();
  }
  Verb(const Verb&) = delete;
  Verb& operator=(const Verb&) = delete;

  Lock lock;

 private:
  Endpoint* const endpoint_;
};

void Endpoint::AddPeer(int rank, const std::string& address, int port, const std::string& send_key,
                       const std::string& receive_key) {
  const int row = shape_.RowOf(rank);
  if (row < 0 || row >= shape_.num_peers()) {
    throw std::invalid_argument("rank " + std::to_string(setup_.rank) + " of " +
                                std::to_string(setup_.num_workers) + " workers has no peer " +
                                std::to_string(rank) +
                                ": the server's are the workers, a worker's is the server. Add one "
                                "of those.");
  }
  Lock lock(mutex_);
  if (state_ != State::kNew) {
    throw std::invalid_argument("the endpoint has been started. Add peers before.");
  }
  peers_[row].reset(new Peer{AddressOf(address, port), Key(setup_.suite, send_key),
                             Key(setup_.suite, receive_key)});
}

void Endpoint::Start() {
  Lock lock(mutex_);
  if (state_ == State::kRunning) {
    throw std::invalid_argument("the endpoint has been started. Start it once.");
  }
  if (state_ != State::kNew) CheckRunning();
  for (int row = 0; row < shape_.num_peers(); ++row) {
    if (peers_[row] != nullptr) continue;
    throw std::invalid_argument("an endpoint needs all its peers, and " +
                                std::to_string(shape_.RankOf(row)) +
                                " was not added. Add it before the start.");
  }
  thread_ = std::thread([this] { ReceiveLoop(); });  // it waits for the lock
  state_ = State::kRunning;
}

void Endpoint::CheckRunning() const {
  if (state_ == State::kRunning) return;
  throw std::invalid_argument(state_ == State::kNew ? "the endpoint was not started. Start it."
                                                    : "the endpoint is closed. Make a new one.");
}

// ---- Receiving

void Endpoint::ReceiveLoop() {
  prctl(PR_SET_NAME, "lossympi");
  prctl(PR_SET_TIMERSLACK, 1000);  // nanoseconds; the default of 50 us would delay a close
  // Whoever computes can wait for a moment; what the kernel has no room for is lost. Needs a
  // privilege, and goes without.
  setpriority(PRIO_PROCESS, static_cast<id_t>(gettid()), -10);
  Lock lock(mutex_);
  while (state_ == State::kRunning) {
    const double wake_at = protocol_.wake_at(Now());
    lock.unlock();
    socket_.Wait(wake_at - Now());
    lock.lock();
    // A few batches, then the close rule and whoever waits for the lock have their turn.
    bool changed = false;
    for (int batch = 0; batch < 4; ++batch) {
      const uint64_t before = changes_;
      const bool more = ReceiveBatch();
      changed |= changes_ != before;
      if (!more) break;
    }
    overflow_ = socket_.overflow();
    if (protocol_.Tick(Now())) ++changes_, changed = true;
    if (changed) changed_.notify_all();
  }
}

bool Endpoint::ReceiveBatch() {
  const double now = Now();
  return socket_.Receive([this, now](const uint8_t* data, size_t size, const sockaddr_in& from) {
    if (drop_.Next()) {
      ++dropped_;
      return;
    }
    from_ = from;
    if (protocol_.Handle(data, size, now)) ++changes_;
  });
}

bool Endpoint::CameFrom(int row) { return SameAddress(from_, peers_[row]->address); }

bool Endpoint::TagFits(int row, const uint8_t* data, size_t size, uint64_t counter) {
  return peers_[row]->receive_key.Fits(data, size, counter, data + size);
}

void Endpoint::Reply(int row, Kind kind, uint64_t round, uint32_t seq, uint32_t total,
                     const uint8_t* payload, size_t bytes) {
  Peer& peer = *peers_[row];
  uint8_t datagram[65536];
  const uint64_t counter = ++peer.counter;
  Pack({kind, static_cast<uint16_t>(setup_.rank), setup_.session, round, seq, total, counter},
       datagram);
  if (bytes > 0) std::memcpy(datagram + kHeaderBytes, payload, bytes);
  const size_t size = kHeaderBytes + bytes;
  peer.send_key.Tag(datagram, size, counter, datagram + size);
  const size_t whole = size + shape_.tag_bytes;
  socket_.Send(peer.address, datagram, whole, 1, whole);  // too long for the path: lost
}

// ---- Waiting and sending

template <typename F>
bool Endpoint::WaitFor(Lock& lock, double until, const Interrupt& interrupt, F ready) {
  while (!ready()) {
    const double now = Now();
    if (state_ != State::kRunning) {
      throw std::invalid_argument("the endpoint was closed while it was in use. Make a new one.");
    }
    if (now >= until) return false;
    if (now >= interrupt_at_) {
      CallInterrupt(lock, interrupt);
      continue;  // much may have happened
    }
    changed_.wait_for(lock, std::chrono::duration<double>(std::min(until, interrupt_at_) - now));
  }
  return true;
}

void Endpoint::CallInterrupt(Lock& lock, const Interrupt& interrupt) {
  lock.unlock();
  interrupt();
  lock.lock();
  interrupt_at_ = Now() + kInterruptEvery;
}

Outbox Endpoint::MakeOutbox(const std::vector<int>& rows, double bytes_per_s, bool until_done,
                            double silence) const {
  const double in_burst = Pacer::kBurst * bytes_per_s / static_cast<double>(LongestData());
  const size_t most = std::clamp<size_t>(static_cast<size_t>(std::min(in_burst, 1e6)), 1,
                                         socket_.most_at_once(LongestData()));
  return Outbox(rows, shape_.cut.NumDatagrams(), most, until_done, silence, Now());
}

void Endpoint::Transmit(Lock& lock, uint64_t round, const float* vector, Outbox* outbox,
                        double bytes_per_s, double deadline, const Interrupt& interrupt) {
  const size_t each = LongestData();
  std::vector<uint8_t> staged(outbox->most_at_once() * each);
  Pacer pacer(bytes_per_s);

  protocol_.SetOutbox(outbox, round);
  struct Unregister {  // whatever is thrown
    Endpoint* endpoint;
    Lock* lock;
    ~Unregister() {
      if (!lock->owns_lock()) lock->lock();
      endpoint->protocol_.SetOutbox(nullptr, 0);
    }
  } const unregister{this, &lock};

  for (;;) {
    const double now = Now();
    if (now >= deadline) return;
    if (now >= interrupt_at_) CallInterrupt(lock, interrupt);
    if (state_ != State::kRunning) {
      throw std::invalid_argument("the endpoint was closed while it was in use. Make a new one.");
    }
    const Outbox::Action& action = outbox->Next(now);
    switch (action.what) {
      case Outbox::What::kFinished:
        return;
      case Outbox::What::kEnd:
        Reply(action.row, Kind::kEnd, round, action.num_ends, shape_.cut.NumDatagrams(), nullptr,
              0);
        break;
      case Outbox::What::kWait: {
        const uint64_t seen = changes_;
        WaitFor(lock, std::min(action.wake_at, deadline), interrupt,
                [this, seen] { return changes_ != seen; });
        break;
      }
      case Outbox::What::kSend: {
        const int row = action.row;
        double bytes_due = 0;
        for (const uint32_t seq : action.seqs) {
          bytes_due +=
              static_cast<double>(each - shape_.cut.PayloadOf(0) + shape_.cut.PayloadOf(seq));
        }
        const double send_at = std::min(pacer.When(now, bytes_due), deadline);
        // A sleep cannot be ended, so a long one waits first.
        if (send_at - now > kLongSleep &&
            WaitFor(lock, send_at - kLongSleep, interrupt,
                    [outbox, row] { return outbox->is_finished(row); })) {
          outbox->TakeBack();
          break;
        }
        lock.unlock();
        Peer& peer = *peers_[row];
        size_t bytes = 0, last = 0;
        for (const uint32_t seq : action.seqs) {
          last = Stage(peer, round, vector, seq, &staged[bytes]);
          bytes += last;
        }
        SleepUntil(send_at);
        if (!socket_.Send(peer.address, staged.data(), each, action.seqs.size(), last)) {
          throw std::runtime_error("a datagram of " + std::to_string(each) +
                                   " bytes is too long for the path, and none is ever fragmented: "
                                   "connect with a lower mtu");
        }
        lock.lock();
        break;
      }
    }
  }
}

// Writes a DATA datagram; returns its size.
size_t Endpoint::Stage(Peer& peer, uint64_t round, const float* vector, uint32_t seq, uint8_t* to) {
  const Cut& cut = shape_.cut;
  const uint64_t counter = ++peer.counter;
  Pack({Kind::kData, static_cast<uint16_t>(setup_.rank), setup_.session, round, seq,
        cut.NumDatagrams(), counter},
       to);
  Narrow(vector + seq * cut.floats, static_cast<size_t>(cut.FloatsOf(seq)), cut.wire,
         to + kHeaderBytes);
  const size_t size = kHeaderBytes + cut.PayloadOf(seq);
  peer.send_key.Tag(to, size, counter, to + size);
  return size + shape_.tag_bytes;
}

// ---- Verbs

std::map<int, int64_t> Endpoint::Probe(double timeout, const Interrupt& interrupt) {
  const double deadline = Now() + timeout;
  const std::vector<uint8_t> zeros(shape_.longest_datagram, 0);
  const size_t overhead = kHeaderBytes + shape_.tag_bytes;
  const auto all_long = [this] {
    for (int row = 0; row < shape_.num_peers(); ++row) {
      if (protocol_.longest_echo(row) < shape_.longest_datagram) return false;
    }
    return true;
  };
  Verb verb(this);
  Lock& lock = verb.lock;
  protocol_.ForgetEchoes();
  while (!all_long() && Now() < deadline) {
    for (int row = 0; row < shape_.num_peers(); ++row) {
      if (protocol_.longest_echo(row) == shape_.longest_datagram) continue;
      for (const size_t size : {kShortProbe - kIpBytes, shape_.longest_datagram}) {
        Reply(row, Kind::kProbe, 0, 0, 0, zeros.data(), size - overhead);
      }
    }
    WaitFor(lock, std::min(deadline, Now() + kProbeEvery), interrupt, all_long);
  }
  std::map<int, int64_t> echoed;
  for (int row = 0; row < shape_.num_peers(); ++row) {
    const size_t longest = protocol_.longest_echo(row);
    echoed[shape_.RankOf(row)] = longest == 0 ? 0 : static_cast<int64_t>(longest + kIpBytes);
  }
  return echoed;
}

Closed Endpoint::Collect(uint64_t round, float* stack, const ClosePolicy& policy,
                         uint32_t rate_kbps, const OnWhole& on_whole, const Interrupt& interrupt) {
  Verb verb(this);
  Lock& lock = verb.lock;
  if (round <= protocol_.newest_round()) {
    throw std::invalid_argument(
        "rounds must increase; " + std::to_string(protocol_.newest_round()) +
        " has been opened, got " + std::to_string(round) + ". Name a later one.");
  }
  protocol_.OpenRound(round, stack, policy, rate_kbps, Now());
  socket_.Wake();  // the thread does not know the deadline yet
  try {
    const std::vector<uint32_t>& whole = protocol_.whole();
    size_t told = 0, tell_at = SIZE_MAX;
    const auto is_closed = [this] { return protocol_.closed().has_value(); };
    for (;;) {
      if (on_whole) tell_at = told + (shape_.cut.NumDatagrams() + kTellings - 1) / kTellings;
      protocol_.TellAt(tell_at);
      WaitFor(lock, kNever, interrupt, [&] { return is_closed() || whole.size() >= tell_at; });
      if (is_closed()) break;
      const std::vector<uint32_t> news(whole.begin() + told, whole.end());
      told = whole.size();
      lock.unlock();
      on_whole(news);
      lock.lock();
    }
  } catch (...) {
    if (!lock.owns_lock()) lock.lock();
    protocol_.AbandonRound();  // the caller may free the stack
    throw;
  }
  return *std::move(protocol_.closed());
}

Outbox* Endpoint::OutboxOf(Lock& lock, uint64_t round, double max_loss, double deadline,
                           const Interrupt& interrupt) {
  const auto decided = [&] { return protocol_.IsGranted(round) || protocol_.IsOver(round); };
  for (double pause = kReadyFirst; !decided() && Now() < deadline;
       pause = std::min(2 * pause, kReadyLast)) {
    Reply(0, Kind::kReady, round, 0, 0, nullptr, 0);
    WaitFor(lock, std::min(deadline, Now() + pause), interrupt, decided);
  }
  if (!protocol_.IsGranted(round) || protocol_.IsOver(round)) return nullptr;
  if (!gradient_ || gradient_round_ != round) {
    gradient_.emplace(MakeOutbox({0}, granted_rate(), max_loss < 1, kNever));
    gradient_round_ = round;
  }
  return &*gradient_;
}

bool Endpoint::Send(uint64_t round, const float* grad, double max_loss, double timeout,
                    const Interrupt& interrupt) {
  const double deadline = Now() + timeout;
  Verb verb(this);
  Outbox* const outbox = OutboxOf(verb.lock, round, max_loss, deadline, interrupt);
  if (outbox == nullptr) return false;
  outbox->AddRest();
  Transmit(verb.lock, round, grad, outbox, granted_rate(), deadline, interrupt);
  // BYE tells what a lost DONE would have.
  const bool enough =
      max_loss == 1 ? outbox->is_finished(0) : outbox->is_done(0) || protocol_.IsOver(round);
  const bool sent = enough && outbox->all_sent(0);
  if (sent) gradient_.reset();
  return sent;
}

bool Endpoint::SendPart(uint64_t round, const float* grad, const std::vector<uint32_t>& seqs,
                        double max_loss, double timeout, const Interrupt& interrupt) {
  const double deadline = Now() + timeout;
  Verb verb(this);
  Outbox* const outbox = OutboxOf(verb.lock, round, max_loss, deadline, interrupt);
  if (outbox == nullptr) return false;
  outbox->Add(seqs);
  Transmit(verb.lock, round, grad, outbox, granted_rate(), deadline, interrupt);
  if (outbox->has_wanted()) return false;
  // As with END: one may be lost.
  for (int i = 0; i < Outbox::kEnds; ++i) Reply(0, Kind::kReady, round, kPause, 0, nullptr, 0);
  return true;
}

std::vector<uint8_t> Endpoint::Broadcast(uint64_t round, const float* params,
                                         const std::vector<bool>& to, uint32_t rate_kbps,
                                         double timeout, double silence,
                                         const Interrupt& interrupt) {
  Verb verb(this);
  std::vector<int> rows;
  for (int row = 0; row < shape_.num_peers(); ++row) {
    if (to[row]) rows.push_back(row);
  }
  const double rate = rate_kbps * 1000.0 / 8;
  Outbox outbox = MakeOutbox(rows, rate, true, silence);
  outbox.AddRest();
  Transmit(verb.lock, round, params, &outbox, rate, Now() + timeout, interrupt);
  std::vector<uint8_t> done(shape_.num_peers());
  for (const int row : rows) done[row] = outbox.is_done(row);
  return done;
}

Endpoint::Model Endpoint::Receive(uint64_t round, double timeout, const Interrupt& interrupt) {
  const double deadline = Now() + timeout;
  Verb verb(this);
  Lock& lock = verb.lock;
  const auto ready = [&] { return protocol_.whole_round() >= round || protocol_.server_left(); };
  while (!ready() && Now() < deadline) {
    if (WaitFor(lock, std::min(deadline, Now() + kReadyModel), interrupt, ready)) break;
    Reply(0, Kind::kReady, round, 0, 0, nullptr, 0);
  }
  const uint64_t whole = protocol_.whole_round();
  if (whole < round) return {0, nullptr};
  protocol_.TakeModel();
  return {whole, protocol_.model()};
}

Endpoint::Report Endpoint::Counters() {
  Lock lock(mutex_);
  Report report{{}, protocol_.counts_of_nobody(), dropped_, overflow_};
  for (int row = 0; row < shape_.num_peers(); ++row) {
    report.of_peer[shape_.RankOf(row)] = protocol_.counts(row);
  }
  return report;
}

bool Endpoint::server_left() {
  Lock lock(mutex_);
  return protocol_.server_left();
}

void Endpoint::Close() {
  Lock lock(mutex_);
  if (state_ == State::kClosing || state_ == State::kClosed) return;
  const bool was_running = state_ == State::kRunning;
  state_ = State::kClosing;  // nobody else gets here
  changed_.notify_all();
  socket_.Wake();
  if (was_running) {
    lock.unlock();
    thread_.join();
    lock.lock();
    for (int i = 0; i < kByes; ++i) {
      for (int row = 0; row < shape_.num_peers(); ++row) {
        Reply(row, Kind::kBye, 0, 0, 0, nullptr, 0);
      }
    }
  }
  state_ = State::kClosed;
  CloseSocketIfUnused();
}

// A verb that was at work when the endpoint was closed may be about to send: the last one closes.
void Endpoint::CloseSocketIfUnused() {
  if (state_ == State::kClosed && !is_busy_) socket_.Close();
}

}  // namespace lossympi
