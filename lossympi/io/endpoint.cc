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
#include <utility>

namespace lossympi {
namespace {

constexpr double kProbeEvery = 0.020;
constexpr size_t kIpBytes = 28;  // the headers of IPv4 and UDP
constexpr int kByes = 3;
constexpr double kLongestWait = 1;
constexpr double kInterruptEvery = 0.1;
constexpr double kLongSleep = 0.002;
constexpr uint32_t kTellings = 16;  // of what is whole, in a round
constexpr int kReplyBursts = 4;     // before others have their turn
constexpr double kNever = std::numeric_limits<double>::infinity();

void SleepUntil(double time) {
  if (time <= Now()) return;
  const double whole = std::floor(time);
  const timespec t = {static_cast<time_t>(whole), static_cast<long>((time - whole) * 1e9)};
  clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, nullptr);
}

void CheckLater(uint64_t round, uint64_t newest) {
  if (round > newest) return;
  throw std::invalid_argument("rounds must increase; " + std::to_string(newest) +
                              " has been opened, got " + std::to_string(round) +
                              ". Name a later one.");
}

}  // namespace

struct Endpoint::Peer {
  Destination destination;
  Key send_key, receive_key;
  // Two threads send.
  std::atomic<uint64_t> counter{0};  // of the last datagram for it
  std::atomic<uint64_t> unsent{0};   // datagrams that this host has not sent
};

struct Endpoint::OneWorker {
  OneWorker(const ServerProtocol& all, int row) : protocol(all, row) {}
  ServerProtocol protocol;
  std::unique_ptr<float[]> reply;  // [d], once there is one
  uint64_t reply_round = 0;
  Pacer repair_pacer{kNever};
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

void Endpoint::CheckInRounds() const {
  if (workers_.empty()) return;
  throw std::invalid_argument("this endpoint takes worker by worker. Take and reply.");
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
    double wake_at = now + kLongestWait;
    if (!workers_.empty()) {
      wake_at = std::min(wake_at, serve_at_);
    } else if (server_) {
      wake_at = std::min(wake_at, server_->wake_at(now));
    }
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
    if (!workers_.empty()) {
      changed = ServeWorkers();  // no more than that: who floods shall wake nobody
      changes_ += changed;
    } else if (server_) {
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
  Protocol* protocol = protocol_;
  int row = envelope.row;
  if (!workers_.empty()) protocol = &workers_[std::exchange(row, 0)]->protocol;
  if (!SameAddress(from, peer.destination.address)) return protocol_->Reject(-1, Verdict::kForeign);
  const size_t end = envelope.signed_bytes;
  if (!peer.receive_key.Fits(data, end, envelope.header.counter, data + end)) {
    return protocol->Reject(row, Verdict::kForged);
  }
  const Handled handled =
      protocol->Handle(row, envelope.header, data + kHeaderBytes, end - kHeaderBytes, now);
  changes_ += handled.changed;
  SendAll(handled.to_send, envelope.row - row);
}

bool Endpoint::ServeWorkers() {
  const double now = Now();
  bool has_closed = false;
  serve_at_ = kNever;
  for (size_t row = 0; row < workers_.size(); ++row) {
    ServerProtocol& protocol = workers_[row]->protocol;
    const bool was_open = protocol.is_open();
    SendAll(protocol.Tick(now), static_cast<int>(row));
    has_closed |= was_open && !protocol.is_open();
    serve_at_ = std::min(serve_at_, protocol.wake_at(now));
  }
  for (int burst = 0; reply_pacer_; ++burst) {
    const double send_at = reply_pacer_->When(now, 0);
    if (send_at > now || burst == kReplyBursts) {
      serve_at_ = std::min(serve_at_, std::max(send_at, now));
      break;
    }
    if (!SendReply(now)) break;
  }
  return has_closed;
}

bool Endpoint::SendReply(double now) {
  for (size_t tried = 0; tried < workers_.size(); ++tried) {
    const auto row = static_cast<int>(reply_turn_);
    reply_turn_ = (reply_turn_ + 1) % workers_.size();
    OneWorker& worker = *workers_[row];
    SendQueue* const queue = worker.protocol.queue();
    if (queue == nullptr) continue;
    // Once all has left, a worker that never has enough gets its share, though nobody else waits.
    const bool repairs = queue->all_sent(0);
    if (const double at = worker.repair_pacer.When(now, 0); repairs && at > now) {
      serve_at_ = std::min(serve_at_, at);
      continue;
    }
    const SendQueue::Action& action = queue->Next(now);
    switch (action.what) {
      case SendQueue::What::kFinished:
        worker.protocol.EndReply();
        break;
      case SendQueue::What::kWait:
        serve_at_ = std::min(serve_at_, action.wake_at);
        break;
      case SendQueue::What::kEnd:
        SendOne(
            {0, Kind::kEnd, worker.reply_round, action.num_ends, layout_.framing.NumDatagrams()},
            row);
        return true;
      case SendQueue::What::kSend: {
        reply_pacer_->When(now, DataBytes(action.seqs));
        if (repairs) worker.repair_pacer.When(now, DataBytes(action.seqs));
        Peer& peer = *peers_[row];
        const size_t last =
            Stage(row, worker.reply_round, worker.reply.get(), action.seqs, reply_staged_.data());
        peer.unsent += socket_.Send(&peer.destination, reply_staged_.data(), LongestData(),
                                    action.seqs.size(), last, true);
        return true;
      }
    }
  }
  return false;
}

void Endpoint::SendAll(const Datagrams& datagrams, int first) {
  for (const Outgoing& outgoing : datagrams) SendOne(outgoing, first);
}

bool Endpoint::SendOne(const Outgoing& outgoing, int first) {
  Peer& peer = *peers_[first + outgoing.row];
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
        const double send_at = std::min(pacer.When(now, DataBytes(action.seqs)), deadline);
        // A sleep cannot be ended, so a long one waits first.
        if (send_at - now > kLongSleep &&
            WaitFor(lock, send_at - kLongSleep, interrupt,
                    [queue, row] { return queue->is_finished(row); })) {
          queue->TakeBack();
          break;
        }
        lock.unlock();
        Peer& peer = *peers_[row];
        const size_t last = Stage(row, round, vector, action.seqs, staged.data());
        SleepUntil(send_at);
        peer.unsent +=
            socket_.Send(&peer.destination, staged.data(), each, action.seqs.size(), last, true);
        lock.lock();
        break;
      }
    }
  }
}

double Endpoint::DataBytes(const std::vector<uint32_t>& seqs) const {
  double bytes = 0;
  for (const uint32_t seq : seqs) {
    bytes += static_cast<double>(layout_.BytesOf(layout_.framing.PayloadOf(seq)));
  }
  return bytes;
}

size_t Endpoint::Stage(int row, uint64_t round, const float* vector,
                       const std::vector<uint32_t>& seqs, uint8_t* to) {
  const Framing& framing = layout_.framing;
  Peer& peer = *peers_[row];
  size_t whole = 0;
  for (const uint32_t seq : seqs) {
    to += whole;
    const uint64_t counter = ++peer.counter;
    Pack({Kind::kData, static_cast<uint16_t>(setup_.rank), setup_.session, round, seq,
          framing.NumDatagrams(), counter},
         to);
    Narrow(vector + seq * framing.floats, static_cast<size_t>(framing.FloatsOf(seq)), framing.wire,
           to + kHeaderBytes);
    const size_t size = kHeaderBytes + framing.PayloadOf(seq);
    peer.send_key.Tag(to, size, counter, to + size);
    whole = size + layout_.tag_bytes;
  }
  return whole;
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
  CheckInRounds();
  CheckLater(round, server_->newest_round());
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
  CheckInRounds();
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

void Endpoint::Await(int row, uint64_t round, float* grad, const ClosePolicy& policy,
                     uint32_t rate_kbps) {
  Lock lock(mutex_);
  CheckRunning();
  while (workers_.size() < peers_.size()) {
    const auto next = static_cast<int>(workers_.size());
    workers_.push_back(std::make_unique<OneWorker>(*server_, next));
  }
  ServerProtocol& protocol = workers_[row]->protocol;
  CheckLater(round, protocol.newest_round());
  protocol.AwaitRound(round, grad, policy, {rate_kbps});
}

std::vector<Endpoint::ClosedRow> Endpoint::TakeClosed(double timeout, const Interrupt& interrupt) {
  const double deadline = Now() + timeout;
  Verb verb(this);
  std::vector<ClosedRow> all;
  WaitFor(verb.lock, deadline, interrupt, [this, &all] {
    for (size_t row = 0; row < workers_.size(); ++row) {
      std::optional<Closed>& closed = workers_[row]->protocol.closed();
      if (closed) all.push_back({static_cast<int>(row), *std::exchange(closed, std::nullopt)});
    }
    return !all.empty();
  });
  return all;
}

void Endpoint::Reply(int row, uint64_t round, const float* params, uint32_t rate_kbps,
                     double silence) {
  Lock lock(mutex_);
  CheckRunning();
  if (workers_.empty()) throw std::invalid_argument("no round was awaited. Await one.");
  OneWorker& worker = *workers_[row];
  worker.protocol.EndReply();  // so that the other thread does not read what is written here
  lock.unlock();
  const auto dim = static_cast<size_t>(layout_.framing.dim);
  if (!worker.reply) worker.reply.reset(new float[dim]);
  std::copy(params, params + dim, worker.reply.get());
  lock.lock();
  CheckRunning();
  worker.reply_round = round;
  worker.repair_pacer = Pacer(rate_kbps * 1000.0 / 8 / static_cast<double>(workers_.size()));
  const double bytes_per_s = rate_kbps * 1000.0 / 8;
  if (reply_kbps_ != rate_kbps) reply_pacer_.emplace(bytes_per_s);
  reply_kbps_ = rate_kbps;
  const size_t most = MostAtOnce(bytes_per_s);
  reply_staged_.resize(std::max(reply_staged_.size(), most * LongestData()));
  worker.protocol.StartReply(round, most, silence, Now());
  lock.unlock();
  socket_.Wake();
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
    const Counts& counts =
        workers_.empty() ? protocol_->counts(row) : workers_[row]->protocol.counts(0);
    report.of_peer[layout_.RankOf(row)] = {counts, unsent};
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
