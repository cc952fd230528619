// A whole job on a virtual clock, f of whose n workers do what the fuzzer's bytes say: what they
// send, when, and for whom they pass themselves off. After each round it is checked that honest
// rows are what honest workers sent, that time, memory and replies stay within their bounds, and
// that every datagram was counted. In half of the jobs the server takes gradients worker by worker.
// Built by scripts/fuzz-lossympi.
//
// An input is the job (some bytes, see ReadJob), then what the Byzantine workers do, one byte for
// each thing and those that it needs. They read them in the order of the virtual clock.
#include <cmath>
#include <cstdio>
#include <functional>
#include <memory>
#include <numeric>
#include <vector>

#include "tests/native/job_simulation.h"

namespace {

using lossympi::Closed;
using lossympi::Counts;
using lossympi::Datagrams;
using lossympi::Framing;
using lossympi::Handled;
using lossympi::Header;
using lossympi::kHeaderBytes;
using lossympi::Kind;
using lossympi::kNumVerdicts;
using lossympi::kTagBytes;
using lossympi::Outgoing;
using lossympi::PeerLayout;
using lossympi::Reason;
using lossympi::Verdict;
using lossympi::Wire;
using simulation::kLongest;
using simulation::kNever;
using simulation::kPayload;
using simulation::kRoom;
using simulation::kSession;
using simulation::kTag;
using simulation::Network;
using simulation::Packet;
using simulation::Rank;
using simulation::ServerRank;
using simulation::TakingServer;
using simulation::ValueOf;
using simulation::WorkerRank;

constexpr double kMoment = 1e-9;
constexpr int kMostWorkers = 10;
constexpr uint64_t kWarmUp = 2;  // rounds, after which the server's memory is flat
constexpr uint64_t kMostSteps = 1000000;

struct Job {
  int num_workers, num_byzantine;
  int first_byzantine;  // row
  Framing framing;
  uint64_t rounds;
  Network::Profile network;
  ServerRank::Terms terms;
  double compute_s;
  bool in_parts;
  bool takes;  // worker by worker
  uint64_t seed;
};

Job ReadJob(Input* input) {
  constexpr int kWorkers[] = {3, 4, 5, 7, kMostWorkers, 1, 2, 5};
  constexpr int64_t kDims[] = {1, 17, 100, 320, 1000, 1601, 2560, 9000};
  constexpr double kLosses[] = {0, 0, 0.02, 0.2, 0.5, 0, 0.1, 0};
  constexpr double kJitters[] = {0, 0, 0.0001, 0.002};
  constexpr double kMaxLosses[] = {1, 1, 0.25, 0};
  Job job;
  const uint8_t size = input->Byte(), terms = input->Byte(), network = input->Byte();
  job.num_workers = kWorkers[size % 8];
  // Fewer than half; alone or of two, one shows what a worker does to itself.
  job.num_byzantine = std::max(1, (job.num_workers - 1) / 2);
  job.first_byzantine = size & 0x80 ? 0 : job.num_workers - job.num_byzantine;
  const auto wire = static_cast<Wire>(terms / 64 % 3);
  job.framing = {kDims[size / 8 % 8], kPayload / static_cast<int64_t>(BytesOf(wire)), wire};
  job.rounds = 3 + terms % 4;
  const double loss = kLosses[network % 8];
  job.network = {loss, network & 0x20 ? 0.05 : 0, kJitters[network / 8 % 4]};
  job.terms.deadline = terms & 0x20 ? 0.5 : 0.1;
  job.terms.grace = network & 0x40 ? 0.0003 : 0;
  job.terms.quiet = 0.05;
  job.terms.max_loss = kMaxLosses[terms / 4 % 4];
  job.terms.silence = 0.05;
  job.terms.timeout = 0.5;
  job.terms.quorum = network & 0x80 ? job.num_workers - job.num_byzantine : job.num_workers;
  job.terms.patience = terms & 0x10 ? 3 : 1;
  job.terms.bytes_per_s = 4e6 * job.num_workers;
  const uint8_t habits = input->Byte();
  job.terms.f = habits & 0x40 ? job.num_byzantine : 0;
  job.terms.free = job.terms.allowance = 0.03;  // more than honest workers take for a gradient
  job.compute_s = 0.001 * (habits % 8);
  job.in_parts = habits & 0x80;
  job.takes = habits & 0x20;
  job.seed = input->Byte() * 256 + habits;
  return job;
}

PeerLayout LayoutOf(const Job& job, int rank) {
  return {rank, job.num_workers, kSession, job.framing, kLongest, kTag};
}

// ---- The server's rounds, looked at

// Floats that nobody sends.
float Untouched(uint64_t round) { return 1e6F + static_cast<float>(round % 1000); }

class Checks : public ServerRank::Observer {
 public:
  explicit Checks(const Job& job)
      : job_(job),
        c_(job.framing.NumDatagrams()),
        guarded_(2 * kGuard + static_cast<size_t>(job.num_workers * job.framing.dim), kGuardValue) {
    nacked_at_.fill(-kNever);
  }

  float* stack() { return guarded_.data() + kGuard; }
  void Watch(ServerRank* server, const std::vector<std::unique_ptr<WorkerRank>>* workers) {
    server_ = server;
    workers_ = workers;
  }
  bool IsByzantine(int row) const {
    return row >= job_.first_byzantine && row < job_.first_byzantine + job_.num_byzantine;
  }
  uint64_t num_ended() const { return num_ended_; }
  void Delivered() { ++num_delivered_; }

  void Opens(uint64_t round) override {
    std::fill(guarded_.begin() + kGuard, guarded_.end() - kGuard, Untouched(round));
  }

  // Of one row; returns how many datagrams have arrived.
  uint32_t CheckRow(int row, uint64_t round, const uint8_t* arrived) {
    for (size_t i = 0; i < kGuard; ++i) {
      CHECK(guarded_[i] == kGuardValue && guarded_[guarded_.size() - 1 - i] == kGuardValue);
    }
    const Framing& framing = job_.framing;
    uint32_t num_arrived = 0;
    for (uint32_t seq = 0; seq < c_; ++seq) {
      num_arrived += arrived[seq];
      if (arrived[seq] && IsByzantine(row)) continue;
      const int64_t first = seq * framing.floats;
      for (int64_t i = first; i < first + framing.FloatsOf(seq); ++i) {
        const float expected = arrived[seq] ? ValueOf(row + 1, round, i) : Untouched(round);
        CHECK(stack()[row * framing.dim + i] == expected);
      }
    }
    return num_arrived;
  }
  void Clear(int row, uint64_t round) {
    float* const begin = stack() + row * job_.framing.dim;
    std::fill(begin, begin + job_.framing.dim, Untouched(round));
  }
  // Where workers are taken one by one.
  void Grants(double bytes_per_s) { bytes_per_s_ = bytes_per_s; }

  // Nothing is lost or overtaken, and all are waited for.
  bool IsCalm() const {
    return job_.network.loss == 0 && job_.network.jitter_s == 0 &&
           job_.terms.quorum == job_.num_workers;
  }

  void HasClosed(uint64_t round, const Closed& closed) override {
    CheckRoundTime(closed);
    CheckRows(round, closed);
    CheckHonestRowsCame(closed);
    CheckCounts();
  }

  void HasBroadcast(uint64_t round, const std::vector<bool>& served,
                    const std::vector<uint8_t>& done, double elapsed, double half_at) override {
    CheckBroadcastTime(elapsed, half_at);
    CheckHonestHaveTheModel(round, served, done);
    CheckMemory(round);
    ++num_ended_;
  }

  void Handles(const Packet& packet, const Handled& handled, double now) override {
    CHECK(handled.verdict == Verdict::kAccepted || handled.to_send.empty());
    const Header header = lossympi::Unpack(packet.bytes.data());
    if (handled.verdict == Verdict::kAccepted && header.kind != Kind::kData) {
      uint64_t& last = last_control_[static_cast<size_t>(packet.from - 1)];
      CHECK(header.counter > last);  // never twice, and never an older one
      last = header.counter;
    }
    CheckReplies(packet, handled.to_send, now);
  }

 private:
  static constexpr size_t kGuard = 64;
  static constexpr float kGuardValue = 12345.5F;

  // Until the deadline; and once all but f have settled, at u, only as long as the others may be
  // waited for, and until the last of them has been idle for the grace.
  void CheckRoundTime(const Closed& closed) const {
    const ServerRank::Terms& terms = job_.terms;
    CHECK(closed.elapsed <= terms.deadline + kMoment);
    CHECK(closed.reason != Reason::kOpen);
    if (terms.f == 0 || terms.quorum < job_.num_workers) return;
    std::vector<double> settled;
    int num_live = 0;
    for (size_t row = 0; row < closed.settled.size(); ++row) {
      if (!server_->live()[row]) continue;
      ++num_live;
      if (!std::isnan(closed.settled[row])) settled.push_back(closed.settled[row]);
    }
    const auto most = static_cast<size_t>(std::max(1, num_live - terms.f));
    if (settled.size() < most) return;
    std::nth_element(settled.begin(), settled.begin() + (most - 1), settled.end());
    const double u = std::max(settled[most - 1], terms.free);
    CHECK(closed.elapsed <= u + terms.allowance + 2 * terms.grace + kMoment);
  }

  // Of each row, what arrived of an honest worker is what it sent; what did not is untouched.
  void CheckRows(uint64_t round, const Closed& closed) {
    for (int row = 0; row < job_.num_workers; ++row) {
      const uint32_t num_arrived =
          CheckRow(row, round, &closed.arrived[static_cast<size_t>(row) * c_]);
      CHECK(num_arrived + server_->protocol().missing(row) == c_);
    }
  }

  // Where nothing but Byzantine workers is in the way, they keep no honest row out.
  void CheckHonestRowsCame(const Closed& closed) const {
    if (!IsCalm()) return;
    for (int row = 0; row < job_.num_workers; ++row) {
      if (IsByzantine(row)) continue;
      CHECK(server_->live()[static_cast<size_t>(row)]);
      for (uint32_t seq = 0; seq < c_; ++seq) {
        CHECK(closed.arrived[static_cast<size_t>(row) * c_ + seq]);
      }
    }
  }

  // Every datagram is counted once; what others send in an honest worker's name is forged at most.
  void CheckCounts() const {
    const lossympi::ServerProtocol& protocol = server_->protocol();
    const auto sum = [](const Counts& counts) {
      return std::accumulate(counts.begin(), counts.end(), uint64_t{0});
    };
    uint64_t counted = sum(protocol.counts_of_nobody());
    for (int row = 0; row < job_.num_workers; ++row) {
      const Counts& counts = protocol.counts(row);
      counted += sum(counts);
      const auto of = [&counts](Verdict verdict) { return counts[static_cast<size_t>(verdict)]; };
      for (int v = 1; v <= static_cast<int>(Verdict::kForeign); ++v) {
        CHECK(counts[static_cast<size_t>(v)] == 0);
      }
      if (!IsByzantine(row)) CHECK(of(Verdict::kMalformed) == 0 && of(Verdict::kEarly) == 0);
    }
    CHECK(counted == server_->num_received() && counted == num_delivered_);
  }

  // WIRE.md: until the deadline; and once more than half are done, after T, until 4 T + silence.
  void CheckBroadcastTime(double elapsed, double half_at) const {
    CHECK(elapsed <= job_.terms.timeout + kMoment);
    // The queue learns it when the burst in hand has left.
    const double burst = simulation::kMostAtOnce * kLongest / job_.terms.bytes_per_s;
    if (half_at == kNever) return;
    CHECK(elapsed <= 4 * (half_at + burst) + job_.terms.silence + burst + kMoment);
  }

  void CheckHonestHaveTheModel(uint64_t round, const std::vector<bool>& served,
                               const std::vector<uint8_t>& done) const {
    for (int row = 0; row < job_.num_workers; ++row) {
      if (IsByzantine(row)) continue;
      const auto i = static_cast<size_t>(row);
      CHECK(served[i] || !done[i]);
      if (IsCalm()) CHECK(served[i] && done[i]);
      lossympi::WorkerProtocol& worker = (*workers_)[i]->protocol();
      if (done[i]) CHECK(std::max(worker.whole_round(), (*workers_)[i]->held_round()) >= round);
    }
  }

  // What the server holds between rounds does not grow, and in a round not beyond what n, c and the
  // longest NACK explain.
  void CheckMemory(uint64_t round) {
    const int64_t held = CountedScope::held();
    if (round == kWarmUp) held_ = held;
    if (round <= kWarmUp) return CountedScope::ForgetMost();
    CHECK(held == held_);
    const int64_t bound = job_.num_workers * (32 * int64_t{c_} + 1024) + 16384;
    CHECK(CountedScope::most_held() - held <= bound);
    CountedScope::ForgetMost();
  }

  // A worker gets back no more than the server may send to it, whatever it sends.
  void CheckReplies(const Packet& to, const Datagrams& replies, double now) {
    for (const Outgoing& reply : replies) {
      CHECK(reply.row == to.from - 1);  // never to anybody else
      const size_t bytes = kHeaderBytes + reply.payload.size() + kTag;
      if (reply.kind == Kind::kNack) {
        double& nacked_at = nacked_at_[static_cast<size_t>(reply.row)];
        CHECK(now == nacked_at || now >= nacked_at + 0.00025 - kMoment);
        nacked_at = now;
      } else {
        CHECK(bytes <= to.size && replies.size() == 1);
      }
      CheckReplyBudget(reply.row, bytes, now);
    }
  }

  // WIRE.md: NACKs at the rate that the row was granted; other replies at that of bare datagrams as
  // often as NACKs, and what is left of 16 KiB at once.
  void CheckReplyBudget(int row, size_t bytes, double now) {
    constexpr double kAtOnce = 16384, kBytesPerS = (kHeaderBytes + kTagBytes) / 0.00025;
    const double nacks = std::ceil(c_ / (8.0 * kPayload)) * kLongest;
    const double rate = kBytesPerS + (server_ ? server_->bytes_per_s_of_each() : bytes_per_s_);
    Budget& budget = budgets_[static_cast<size_t>(row)];
    budget.left = std::min(kAtOnce + 2 * nacks, budget.left + (now - budget.at) * rate);
    budget.at = now;
    budget.left -= static_cast<double>(bytes);
    CHECK(budget.left >= 0);
  }

  struct Budget {
    double left = 1e12, at = 0;  // full from the start
  };

  const Job job_;
  const uint32_t c_;
  std::vector<float> guarded_;
  ServerRank* server_ = nullptr;
  double bytes_per_s_ = 0;
  const std::vector<std::unique_ptr<WorkerRank>>* workers_ = nullptr;
  uint64_t num_ended_ = 0, num_delivered_ = 0;
  int64_t held_ = 0;
  std::array<Budget, kMostWorkers> budgets_;
  std::array<uint64_t, kMostWorkers> last_control_{};
  std::array<double, kMostWorkers> nacked_at_;
};

// ---- Byzantine workers

// Does what the input says: sends what it likes, repeats what others sent, or does for a while what
// an honest worker does, with a gradient of its own.
class Byzantine {
 public:
  Byzantine(const PeerLayout& layout, Network* network, const WorkerRank::Habits& habits,
            std::function<uint64_t()> round, Input* input)
      : layout_(layout),
        network_(network),
        round_(std::move(round)),
        input_(input),
        mask_(layout, network, habits) {}

  void Receive(const Packet& packet, double now) {
    if (is_masked_) mask_.Receive(packet, now);
  }
  double wake_at(double now) {
    return is_masked_ ? std::min(act_at_, mask_.wake_at(now)) : act_at_;
  }
  void Run(double now) {
    if (is_masked_) mask_.Run(now);
    while (now >= act_at_) Act(now);
  }

 private:
  void Act(double now) {
    if (input_->size == 0) {
      act_at_ = kNever;
      return;
    }
    const uint8_t what = input_->Byte();
    switch (what % 8) {
      case 0:  // for 50 us to 1.6 s
        act_at_ = now + 0.00005 * (1 << what / 16);
        break;
      case 1:
        is_masked_ = what & 0x80;
        break;
      case 2:
        Repeat(now);
        break;
      case 3:
        Flood(what, now);
        break;
      case 4:  // as an honest worker would have it
        Send(static_cast<Kind>(1 + what / 8 % 9), 0, now, 1, 0);
        break;
      default:
        Send(static_cast<Kind>(what / 8 % 12), input_->Byte(), now, 1, 0);
    }
  }

  // One kind of datagram, again and again.
  void Flood(uint8_t how, double now) {
    constexpr double kGaps[] = {0, 0.00001, 0.0001, 0.00026};
    Send(static_cast<Kind>(how / 8 % 12), input_->Byte() & 0x1f, now, 20 << how / 64,
         kGaps[input_->Byte() % 4]);
  }

  // What anybody sent not long ago, to the same rank or to the server, perhaps with another bit.
  void Repeat(double now) {
    const uint8_t how = input_->Byte();
    const Packet* captured = network_->Captured(how % simulation::kCaptured);
    if (captured == nullptr) return;
    Packet copy = *captured;
    if (how & 0x40) copy.bytes[input_->Byte() % copy.size] ^= 1 << how % 8;
    network_->Deliver(how & 0x80 ? layout_.rank : copy.from, copy.to, copy.bytes.data(), copy.size,
                      now);
  }

  // `wrong` says what of it is not as it should be.
  void Send(Kind kind, uint8_t wrong, double now, int times, double gap) {
    const uint32_t c = layout_.framing.NumDatagrams();
    Header header{kind, static_cast<uint16_t>(layout_.rank), kSession, round_(), 0, 0, 0};
    const uint8_t seq = input_->Byte();
    size_t bytes = 0;
    switch (kind) {
      case Kind::kData:
        header.seq = seq * 5U % c;
        header.total = c;
        bytes = layout_.framing.PayloadOf(header.seq);
        break;
      case Kind::kEnd:
        header.seq = seq % 8;
        header.total = c;
        break;
      case Kind::kNack:
        header.seq = seq % ((c + 7) / 8) * 8;
        header.total = c;
        bytes = std::min<size_t>(kPayload, (c - header.seq + 7) / 8);
        break;
      case Kind::kReady:
        header.seq = seq % 2;
        break;
      case Kind::kProbe:
      case Kind::kEcho:
        header.round = 0;
        header.seq = seq;
        bytes = seq % (kLongest - kHeaderBytes - kTag + 1);
        break;
      case Kind::kBye:
        header.round = 0;
        break;
      default:
        break;
    }
    const uint8_t filler = kind == Kind::kNack ? seq : kind == Kind::kData ? 0x3c : 0;
    int from = layout_.rank, to = 0;
    if (wrong & 1) header.round = RoundOf(input_->Byte());
    if (wrong & 2) header.seq = IndexOf(input_->Byte(), c);
    if (wrong & 4) header.total = IndexOf(input_->Byte(), c);
    if (wrong & 8) bytes = BytesOf(input_->Byte(), bytes);
    if (wrong & 32) header.rank = input_->Byte() % (layout_.num_workers + 3);
    if (wrong & 64) from = input_->Byte() % (layout_.num_workers + 2);
    if (wrong & 128) to = input_->Byte() % (layout_.num_workers + 1);
    for (int i = 0; i < times; ++i) {
      uint8_t datagram[kRoom + kTag] = {};
      header.counter = wrong & 16 ? CounterOf(seq) : ++counter_;
      if (times > 1 && kind == Kind::kData) header.seq = (header.seq + 1) % c;
      lossympi::Pack(header, datagram);
      std::fill(datagram + kHeaderBytes, datagram + kHeaderBytes + bytes, filler);
      const size_t end = kHeaderBytes + bytes;
      if (kind == Kind::kNack && bytes > 0 && c % 8 != 0 && header.seq + 8 * bytes > c) {
        datagram[end - 1] &= (1 << c % 8) - 1;
      }
      const uint64_t tag =
          simulation::TagOf(datagram, end, simulation::KeyOf(layout_.rank, to == 0));
      std::memcpy(datagram + end, &tag, kTag);
      network_->Deliver(from, to, datagram, end + kTag, now + gap * i);
    }
  }

  uint64_t RoundOf(uint8_t choice) const {
    const uint64_t round = round_();
    const uint64_t choices[] = {round - 1, round + 1, 0, 1, ~uint64_t{0}, round + 2, round / 2, 2};
    return choices[choice % 8];
  }
  uint32_t IndexOf(uint8_t choice, uint32_t c) const {
    const uint32_t choices[] = {0, 1, c - 1, c, c + 1, ~0U, c / 8 * 8, 8, c / 2, ~0U - 7};
    return choices[choice % 10];
  }
  static size_t BytesOf(uint8_t choice, size_t right) {
    const size_t choices[] = {0, 1, right + 1, right / 2, kPayload, kPayload + 1};
    return choice % 8 < 6 ? choices[choice % 8] : choice % (kRoom - kHeaderBytes - kTag);
  }
  uint64_t CounterOf(uint8_t choice) const {
    const uint64_t choices[] = {counter_, 0, counter_ + 100, ~uint64_t{0}};
    return choices[choice % 4];
  }

  const PeerLayout layout_;
  Network* const network_;
  const std::function<uint64_t()> round_;  // that the server has open, or awaits
  Input* const input_;
  WorkerRank mask_;
  bool is_masked_ = false;
  double act_at_ = 0;
  uint64_t counter_ = 1 << 20;  // beyond those of the mask
};

// ---- The job

// What both kinds of it have: ranks on a virtual clock.
class Ranks {
 public:
  Ranks(const Job& job, Network* network, Rank* server, const Checks& checks,
        const std::function<uint64_t(int row)>& round, Input* input)
      : network_(network), server_(server) {
    for (int row = 0; row < job.num_workers; ++row) {
      const bool honest = !checks.IsByzantine(row);
      const WorkerRank::Habits habits{job.compute_s, job.in_parts, job.terms.max_loss,
                                      job.seed + static_cast<uint64_t>(row), honest};
      const PeerLayout layout = LayoutOf(job, row + 1);
      workers_.push_back(honest ? std::make_unique<WorkerRank>(layout, network, habits) : nullptr);
      byzantine_.push_back(honest
                               ? nullptr
                               : std::make_unique<Byzantine>(
                                     layout, network, habits, [=] { return round(row); }, input));
    }
  }

  // Until it is over, which must be before the limit.
  template <typename IsOver, typename Delivered>
  void Run(double limit, IsOver is_over, Delivered delivered) {
    double now = 0;
    for (uint64_t step = 0; !is_over(); ++step) {
      CHECK(step < kMostSteps);  // else it does not go on
      RunAll(now);
      double next = std::min(network_->next_at(), server_->wake_at(now));
      for (size_t row = 0; row < workers_.size(); ++row) next = std::min(next, WakeAt(row, now));
      CHECK(next < kNever);
      now = std::max(now, next);
      CHECK(now <= limit);
      while (network_->next_at() <= now) Deliver(network_->Take(), now, delivered);
    }
  }
  const std::vector<std::unique_ptr<WorkerRank>>& workers() const { return workers_; }

 private:
  void RunAll(double now) {
    server_->Run(now);
    for (size_t row = 0; row < workers_.size(); ++row) {
      workers_[row] != nullptr ? workers_[row]->Run(now) : byzantine_[row]->Run(now);
    }
  }
  double WakeAt(size_t i, double now) {
    return workers_[i] != nullptr ? workers_[i]->wake_at(now) : byzantine_[i]->wake_at(now);
  }
  template <typename Delivered>
  void Deliver(const Packet& packet, double now, Delivered delivered) {
    if (packet.to == 0) {
      delivered();
      return server_->Receive(packet, now);
    }
    const auto row = static_cast<size_t>(packet.to - 1);
    workers_[row] != nullptr ? workers_[row]->Receive(packet, now)
                             : byzantine_[row]->Receive(packet, now);
  }

  Network* const network_;
  Rank* const server_;
  std::vector<std::unique_ptr<WorkerRank>> workers_;  // by row, null for a Byzantine one
  std::vector<std::unique_ptr<Byzantine>> byzantine_;
};

class Simulation {
 public:
  Simulation(const Job& job, Input* input)
      : job_(job),
        checks_(job),
        network_(job.network, job.seed),
        server_(LayoutOf(job, 0), &network_, job.terms, checks_.stack(), &checks_),
        ranks_(job, &network_, &server_, checks_, [this](int) { return server_.round(); }, input) {
    checks_.Watch(&server_, &ranks_.workers());
  }

  void Run() {
    const double limit =
        static_cast<double>(job_.rounds + 1) * (job_.terms.deadline + job_.terms.timeout);
    ranks_.Run(
        limit, [this] { return checks_.num_ended() >= job_.rounds; },
        [this] { checks_.Delivered(); });
  }

 private:
  const Job job_;
  Checks checks_;
  Network network_;
  ServerRank server_;
  Ranks ranks_;
};

// Worker by worker: each honest one gets on, whatever the others do, and its row is its own.
class TakingSimulation : public TakingServer::Observer {
 public:
  TakingSimulation(const Job& job, Input* input)
      : job_(job),
        checks_(job),
        network_(job.network, job.seed),
        server_(LayoutOf(job, 0), &network_, job.terms, checks_.stack(), this),
        ranks_(
            job, &network_, &server_, checks_, [this](int row) { return server_.round(row); },
            input) {
    for (int row = 0; row < job.num_workers; ++row) checks_.Clear(row, 1);
    checks_.Grants(server_.bytes_per_s_of_each());
  }

  void Run() {
    const double limit =
        static_cast<double>(job_.rounds + 1) * (job_.terms.deadline + job_.terms.timeout);
    ranks_.Run(limit, [this] { return IsOver(); }, [] {});
  }

  void HasClosed(int row, uint64_t round, const Closed& closed) override {
    CHECK(closed.elapsed <= job_.terms.deadline + kMoment);
    CHECK(closed.reason != Reason::kOpen);
    checks_.CheckRow(row, round, closed.arrived.data());
    const bool is_whole = std::count(closed.arrived.begin(), closed.arrived.end(), 0) == 0;
    if (!checks_.IsByzantine(row)) CHECK(is_whole || !checks_.IsCalm());
    checks_.Clear(row, round + 1);
  }
  void Handles(const Packet& packet, const Handled& handled, double now) override {
    checks_.Handles(packet, handled, now);
  }

 private:
  bool IsOver() const {
    return std::all_of(
        ranks_.workers().begin(), ranks_.workers().end(),
        [this](const auto& worker) { return !worker || worker->held_round() >= job_.rounds; });
  }

  const Job job_;
  Checks checks_;
  Network network_;
  TakingServer server_;
  Ranks ranks_;
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  Input input{data, size};
  const Job job = ReadJob(&input);
  if (job.takes) {
    TakingSimulation(job, &input).Run();
  } else {
    Simulation(job, &input).Run();
  }
  return 0;
}
