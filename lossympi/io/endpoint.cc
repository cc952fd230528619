#include "lossympi/io/endpoint.h"

#include <sys/prctl.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <stdexcept>

#include "lossympi/core/pacer.h"

namespace lossympi {
namespace {

constexpr double kProbeEvery = 0.020;
constexpr size_t kIpBytes = 28;  // the headers of IPv4 and UDP
constexpr int kByes = 3;
constexpr double kLongestWait = 1;
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
  Destination destination;
  Key send_key, receive_key;
  // Two threads send.
  std::atomic<uint64_t> counter{0};  // of the last datagram for it
  std::atomic<uint64_t> unsent{0};   // datagrams that this host has not sent
};

Endpoint::Endpoint(const Setup& setup)
    : setup_(setup),
      layout_{
          setup.rank,
          setup.num_workers,
          setup.session,
          Framing{setup.dim, PayloadBytes(setup.mtu) / static_cast<int64_t>(BytesOf(setup.wire)),
                  setup.wire},
          static_cast<size_t>(setup.mtu) - 28,
          setup.suite == Suite::kNone ? 0 : kTagBytes},
      socket_(setup.address, setup.mtu, setup.receive_buffer),
      peers_(layout_.num_peers()),
      drop_(setup.drop, setup.drop_seed, static_cast<uint64_t>(setup.rank)) {
  if (layout_.is_server()) {
    protocol_ = &server_.emplace(layout_);
  } else {
    protocol_ = &worker_.emplace(layout_);
  }
}

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
  const int row = layout_.RowOf(rank);
  if (row < 0 || row >= layout_.num_peers()) {
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
  peers_[row].reset(new Peer{Destination(PeerAddressOf(address, port)), Key(setup_.suite, send_key),
                             Key(setup_.suite, receive_key)});
}

void Endpoint::Start() {
  Lock lock(mutex_);
  if (state_ == State::kRunning) {
    throw std::invalid_argument("the endpoint has been started. Start it once.");
  }
  if (state_ != State::kNew) CheckRunning();
  for (int row = 0; row < layout_.num_peers(); ++row) {
    if (peers_[row] != nullptr) continue;
    throw std::invalid_argument("an endpoint needs all its peers, and " +
                                std::to_string(layout_.RankOf(row)) +
                                " was not added. Add it before the start.");
  }
  std::vector<sockaddr_in> sources;
  for (const auto& peer : peers_) sources.push_back(peer->destination.address);
  socket_.KeepOnly(sources);
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
    const double now = Now();
    const double wake_at = std::min(server_ ? server_->wake_at(now) : kNever, now + kLongestWait);
    lock.unlock();
    socket_.Wait(wake_at - Now());
    lock.lock();
    // A few batches, then the close rule has its turn, and at once whoever waits for the lock.
    bool changed = false;
    for (int batch = 0; batch < 4; ++batch) {
      const uint64_t before = changes_;
      const bool more = ReceiveBatch();
      changed |= changes_ != before;
      if (!more || mutex_.is_wanted()) break;
    }
    if (server_) {
      const bool was_open = server_->is_open();
      SendAll(server_->Tick(Now()));
      if (server_->is_open() != was_open) ++changes_, changed = true;
    }
    if (changed) changed_.notify_all();
  }
}

// Before anything is read: the buffer is as full then as it was when it had no room.
void Endpoint::CountDrops() {
  const UdpSocket::Drops drops = socket_.NewDrops();
  overflow_ += drops.overflow;
  protocol_->Reject(-1, Verdict::kForeign, drops.filtered);
}

bool Endpoint::ReceiveBatch() {
  CountDrops();
  const double now = Now();
  return socket_.Receive([this, now](const uint8_t* data, size_t size, const sockaddr_in& from) {
    if (drop_.Next()) {
      ++dropped_;
      return;
    }
    Handle(data, size, from, now);
  });
}

void Endpoint::Handle(const uint8_t* data, size_t size, const sockaddr_in& from, double now) {
  const Envelope envelope = OpenEnvelope(layout_, data, size);
  if (envelope.verdict != Verdict::kAccepted) return protocol_->Reject(-1, envelope.verdict);
  const Peer& peer = *peers_[envelope.row];
  if (!SameAddress(from, peer.destination.address)) return protocol_->Reject(-1, Verdict::kForeign);
  const size_t end = envelope.signed_bytes;
  if (!peer.receive_key.Fits(data, end, envelope.header.counter, data + end)) {
    return protocol_->Reject(envelope.row, Verdict::kForged);
  }
  const Handled handled = protocol_->Handle(envelope.row, envelope.header, data + kHeaderBytes,
                                            end - kHeaderBytes, now);
  changes_ += handled.changed;
  SendAll(handled.to_send);
}

void Endpoint::SendAll(const Datagrams& datagrams) {
  for (const Outgoing& outgoing : datagrams) SendOne(outgoing);
}

bool Endpoint::SendOne(const Outgoing& outgoing) {
  Peer& peer = *peers_[outgoing.row];
  uint8_t datagram[65536];
  const uint64_t counter = ++peer.counter;
  Pack({outgoing.kind, static_cast<uint16_t>(setup_.rank), setup_.session, outgoing.round,
        outgoing.seq, outgoing.total, counter},
       datagram);
  std::copy(outgoing.payload.begin(), outgoing.payload.end(), datagram + kHeaderBytes);
  const size_t size = kHeaderBytes + outgoing.payload.size();
  peer.send_key.Tag(datagram, size, counter, datagram + size);
  const size_t whole = size + layout_.tag_bytes;
  const size_t unsent = socket_.Send(&peer.destination, datagram, whole, 1, whole, false);
  peer.unsent += unsent;
  return unsent == 0;
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

template <typename F>
void Endpoint::AskUntil(Lock& lock, double until, const Interrupt& interrupt, F ready) {
  for (;;) {
    const double now = Now();
    if (ready() || now >= until) break;
    SendAll(worker_->Tick(now));
    WaitFor(lock, std::min(until, worker_->wake_at()), interrupt, ready);
  }
  worker_->StopAsking();
}

size_t Endpoint::MostAtOnce(double bytes_per_s) const {
  const double in_burst = Pacer::kBurst * bytes_per_s / static_cast<double>(LongestData());
  return std::clamp<size_t>(static_cast<size_t>(std::min(in_burst, 1e6)), 1,
                            socket_.most_at_once(LongestData()));
}

void Endpoint::Transmit(Lock& lock, uint64_t round, const float* vector, SendQueue* queue,
                        double bytes_per_s, double deadline, const Interrupt& interrupt) {
  const size_t each = LongestData();
  std::vector<uint8_t> staged(queue->most_at_once() * each);
  Pacer pacer(bytes_per_s);

  for (;;) {
    const double now = Now();
    if (now >= deadline) return;
    if (now >= interrupt_at_) CallInterrupt(lock, interrupt);
    if (state_ != State::kRunning) {
      throw std::invalid_argument("the endpoint was closed while it was in use. Make a new one.");
    }
    const SendQueue::Action& action = queue->Next(now);
    switch (action.what) {
      case SendQueue::What::kFinished:
        return;
      case SendQueue::What::kEnd: {
        const Outgoing end{action.row, Kind::kEnd, round, action.num_ends,
                           layout_.framing.NumDatagrams()};
        if (SendOne(end)) break;
        lock.unlock();
        socket_.WaitForRoom();
        lock.lock();
        SendOne(end);
        break;
      }
      case SendQueue::What::kWait: {
        const uint64_t seen = changes_;
        WaitFor(lock, std::min(action.wake_at, deadline), interrupt,
                [this, seen] { return changes_ != seen; });
        break;
      }
      case SendQueue::What::kSend: {
        const int row = action.row;
        double bytes_due = 0;
        for (const uint32_t seq : action.seqs) {
          bytes_due += static_cast<double>(each - layout_.framing.PayloadOf(0) +
                                           layout_.framing.PayloadOf(seq));
        }
        const double send_at = std::min(pacer.When(now, bytes_due), deadline);
        // A sleep cannot be ended, so a long one waits first.
        if (send_at - now > kLongSleep &&
            WaitFor(lock, send_at - kLongSleep, interrupt,
                    [queue, row] { return queue->is_finished(row); })) {
          queue->TakeBack();
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
        peer.unsent +=
            socket_.Send(&peer.destination, staged.data(), each, action.seqs.size(), last, true);
        lock.lock();
        break;
      }
    }
  }
}

// Writes a DATA datagram; returns its size.
size_t Endpoint::Stage(Peer& peer, uint64_t round, const float* vector, uint32_t seq, uint8_t* to) {
  const Framing& framing = layout_.framing;
  const uint64_t counter = ++peer.counter;
  Pack({Kind::kData, static_cast<uint16_t>(setup_.rank), setup_.session, round, seq,
        framing.NumDatagrams(), counter},
       to);
  Narrow(vector + seq * framing.floats, static_cast<size_t>(framing.FloatsOf(seq)), framing.wire,
         to + kHeaderBytes);
  const size_t size = kHeaderBytes + framing.PayloadOf(seq);
  peer.send_key.Tag(to, size, counter, to + size);
  return size + layout_.tag_bytes;
}

// ---- Verbs

std::map<int, int64_t> Endpoint::Probe(double timeout, const Interrupt& interrupt) {
  const double deadline = Now() + timeout;
  Verb verb(this);
  std::random_device random;
  std::vector<uint32_t> challenges(layout_.num_peers());
  for (uint32_t& challenge : challenges) challenge = random();
  protocol_->ForgetEchoes(challenges);
  const auto all_echoed = [this] { return protocol_->all_echoed(); };
  while (!all_echoed() && Now() < deadline) {
    SendAll(protocol_->Probe());
    WaitFor(verb.lock, std::min(deadline, Now() + kProbeEvery), interrupt, all_echoed);
  }
  std::map<int, int64_t> echoed;
  for (int row = 0; row < layout_.num_peers(); ++row) {
    const size_t longest = protocol_->longest_echo(row);
    echoed[layout_.RankOf(row)] = longest == 0 ? 0 : static_cast<int64_t>(longest + kIpBytes);
  }
  return echoed;
}

Closed Endpoint::Collect(uint64_t round, float* stack, const ClosePolicy& policy,
                         const std::vector<uint32_t>& rates_kbps, const OnWhole& on_whole,
                         const Interrupt& interrupt) {
  Verb verb(this);
  Lock& lock = verb.lock;
  if (round <= server_->newest_round()) {
    throw std::invalid_argument("rounds must increase; " + std::to_string(server_->newest_round()) +
                                " has been opened, got " + std::to_string(round) +
                                ". Name a later one.");
  }
  try {
    SendAll(server_->OpenRound(round, stack, policy, rates_kbps, Now()));
    socket_.Wake();  // the thread does not know the deadline yet
    const std::vector<uint32_t>& whole = server_->whole();
    size_t told = 0, tell_at = SIZE_MAX;
    const auto is_closed = [this] { return server_->closed().has_value(); };
    for (;;) {
      if (on_whole) tell_at = told + (layout_.framing.NumDatagrams() + kTellings - 1) / kTellings;
      server_->TellAt(tell_at);
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
    server_->AbandonRound();  // the caller may free the stack
    throw;
  }
  return *std::move(server_->closed());
}

SendQueue* Endpoint::QueueOf(Lock& lock, uint64_t round, double max_loss, double deadline,
                             const Interrupt& interrupt) {
  worker_->AskForGrant(round, Now());
  AskUntil(lock, deadline, interrupt,
           [&] { return worker_->IsGranted(round) || worker_->IsOver(round); });
  if (!worker_->IsGranted(round) || worker_->IsOver(round)) return nullptr;
  return &worker_->Gradient(round, MostAtOnce(granted_rate()), max_loss < 1, Now());
}

bool Endpoint::Send(uint64_t round, const float* grad, double max_loss, double timeout,
                    const Interrupt& interrupt) {
  const double deadline = Now() + timeout;
  Verb verb(this);
  SendQueue* const queue = QueueOf(verb.lock, round, max_loss, deadline, interrupt);
  if (queue == nullptr) return false;
  queue->AddRest();
  Transmit(verb.lock, round, grad, queue, granted_rate(), deadline, interrupt);
  // BYE says what a lost DONE would have.
  const bool enough =
      max_loss == 1 ? queue->is_finished(0) : queue->is_done(0) || worker_->IsOver(round);
  const bool sent = enough && queue->all_sent(0);
  if (sent) worker_->EndGradient();
  return sent;
}

bool Endpoint::SendPart(uint64_t round, const float* grad, const std::vector<uint32_t>& seqs,
                        double max_loss, double timeout, const Interrupt& interrupt) {
  const double deadline = Now() + timeout;
  Verb verb(this);
  SendQueue* const queue = QueueOf(verb.lock, round, max_loss, deadline, interrupt);
  if (queue == nullptr) return false;
  queue->Add(seqs);
  Transmit(verb.lock, round, grad, queue, granted_rate(), deadline, interrupt);
  if (queue->has_wanted()) return false;
  SendAll(worker_->Pause(round));
  return true;
}

std::vector<uint8_t> Endpoint::Broadcast(uint64_t round, const float* params,
                                         const std::vector<bool>& to, uint32_t rate_kbps,
                                         double timeout, double silence,
                                         const Interrupt& interrupt) {
  Verb verb(this);
  std::vector<int> rows;
  for (int row = 0; row < layout_.num_peers(); ++row) {
    if (to[row]) rows.push_back(row);
  }
  const double rate = rate_kbps * 1000.0 / 8;
  SendQueue& queue = server_->StartBroadcast(round, rows, MostAtOnce(rate), silence, Now());
  try {
    Transmit(verb.lock, round, params, &queue, rate, Now() + timeout, interrupt);
  } catch (...) {
    if (!verb.lock.owns_lock()) verb.lock.lock();
    server_->EndBroadcast(Now());
    throw;
  }
  return server_->EndBroadcast(Now());
}

Endpoint::Model Endpoint::Receive(uint64_t round, double timeout, const Interrupt& interrupt) {
  const double deadline = Now() + timeout;
  Verb verb(this);
  Lock& lock = verb.lock;
  worker_->AskForModel(round, Now());
  AskUntil(lock, deadline, interrupt,
           [&] { return worker_->whole_round() >= round || worker_->server_left(); });
  const uint64_t whole = worker_->whole_round();
  if (whole < round) return {0, nullptr};
  worker_->TakeModel();
  return {whole, worker_->model()};
}

Endpoint::Report Endpoint::Counters() {
  Lock lock(mutex_);
  CountDrops();
  Report report{{}, protocol_->counts_of_nobody(), dropped_, overflow_};
  for (int row = 0; row < layout_.num_peers(); ++row) {
    const uint64_t unsent = peers_[row] == nullptr ? 0 : peers_[row]->unsent.load();
    report.of_peer[layout_.RankOf(row)] = {protocol_->counts(row), unsent};
  }
  return report;
}

bool Endpoint::server_left() {
  Lock lock(mutex_);
  return worker_->server_left();
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
    for (int i = 0; i < kByes; ++i) SendAll(protocol_->Bye());
  }
  state_ = State::kClosed;
  CloseSocketIfUnused();
}

// A verb that was at work when the endpoint was closed may be about to send: the last one closes.
void Endpoint::CloseSocketIfUnused() {
  if (state_ == State::kClosed && !is_busy_) socket_.Close();
}

}  // namespace lossympi
