// A server and two workers over loopback, each on a thread of its own and with its receive thread,
// for sanitizers; then a close while verbs wait. usage: lossympi_threads_test; exits with 0 if all
// went as it should. Built by scripts/sanitize-lossympi.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "lossympi/io/endpoint.h"

namespace {

using lossympi::Closed;
using lossympi::ClosePolicy;
using lossympi::Endpoint;
using lossympi::Reason;
using lossympi::Setup;
using lossympi::Suite;
using lossympi::Wire;

constexpr int kWorkers = 2, kRounds = 6;
constexpr int64_t kDim = 352 * 100 + 5;
constexpr uint32_t kRateKbps = 500000;
constexpr double kTimeout = 30;  // a sanitizer is slow, and the machine may be busy

#define CHECK(is_so)                                                           \
  do {                                                                         \
    if (!(is_so)) {                                                            \
      std::fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #is_so); \
      std::exit(1);                                                            \
    }                                                                          \
  } while (false)

const Endpoint::Interrupt kNothing = [] {};
const std::vector<uint32_t> kRates(kWorkers, kRateKbps / kWorkers);

// How many allocations this thread has still; -1: no end to them.
thread_local int allocations_left = -1;

struct Job {
  std::unique_ptr<Endpoint> server;
  std::vector<std::unique_ptr<Endpoint>> workers;
};

Job Connect(double drop) {
  const auto endpoint = [drop](int rank) {
    return std::make_unique<Endpoint>(Setup{rank, kWorkers, "127.0.0.1", 7, kDim, Wire::kFloat32,
                                            1500, Suite::kChaCha20Poly1305, drop, 3, 8 << 20});
  };
  Job job{endpoint(0), {}};
  for (int rank = 1; rank <= kWorkers; ++rank) {
    const std::string up(32, static_cast<char>(rank)), down(32, static_cast<char>(-rank));
    job.workers.push_back(endpoint(rank));
    Endpoint& worker = *job.workers.back();
    job.server->AddPeer(rank, "127.0.0.1", worker.port(), down, up);
    worker.AddPeer(0, "127.0.0.1", job.server->port(), up, down);
    worker.Start();
  }
  job.server->Start();
  return job;
}

// Every worker's gradient is its rank, every model its round.
void Work(Endpoint* worker, double max_loss) {
  const std::vector<float> grad(kDim, static_cast<float>(worker->setup().rank));
  for (uint64_t round = 1; round <= kRounds; ++round) {
    CHECK(worker->Send(round, grad.data(), max_loss, kTimeout, kNothing));
    const Endpoint::Model model = worker->Receive(round, kTimeout, kNothing);
    CHECK(model.round == round);
    for (int64_t i = 0; i < kDim; ++i) CHECK(model.params[i] == static_cast<float>(round));
  }
}

void TestRounds(double drop, double max_loss) {
  const Job job = Connect(drop);
  std::vector<std::thread> threads;
  for (const auto& worker : job.workers) threads.emplace_back(Work, worker.get(), max_loss);
  std::thread watcher([&job] {  // whoever reports what came asks from another thread
    for (int i = 0; i < 20; ++i) {
      job.server->Counters();
      job.workers[0]->server_left();
      std::this_thread::sleep_for(std::chrono::milliseconds(2));
    }
  });
  const ClosePolicy policy{kTimeout, 0.02,     1,
                           max_loss, kWorkers, std::vector<bool>(kWorkers, true)};
  for (uint64_t round = 1; round <= kRounds; ++round) {
    std::vector<float> stack(kWorkers * kDim, NAN), model(kDim, static_cast<float>(round));
    size_t told = 0;
    const auto on_whole = [&](const std::vector<uint32_t>& seqs) {
      told += seqs.size();
      for (const uint32_t seq : seqs) {
        for (int row = 0; row < kWorkers; ++row) {
          CHECK(stack[row * kDim + seq * 352] == static_cast<float>(row + 1));
        }
      }
    };
    const Closed closed =
        job.server->Collect(round, stack.data(), policy, kRates, on_whole, kNothing);
    CHECK(told <= closed.arrived.size() / kWorkers);
    CHECK(told > 0);
    CHECK(closed.reason != Reason::kDeadline);
    CHECK(max_loss > 0 || closed.reason == Reason::kComplete);
    size_t lost = 0;
    for (int row = 0; row < kWorkers; ++row) {
      for (int64_t i = 0; i < kDim; ++i) {
        const float value = stack[row * kDim + i];
        lost += std::isnan(value);
        CHECK(std::isnan(value) || value == static_cast<float>(row + 1));
      }
    }
    CHECK(drop == 0 || max_loss == 0 || lost > 0);
    for (const uint8_t done :
         job.server->Broadcast(round, model.data(), std::vector<bool>(kWorkers, true), kRateKbps,
                               kTimeout, kTimeout, kNothing)) {
      CHECK(done);
    }
  }
  watcher.join();
  for (std::thread& thread : threads) thread.join();
}

// The same worker by worker: the thread that receives also sends what answers them.
void TestTaking(double drop, double max_loss) {
  const Job job = Connect(drop);
  const ClosePolicy policy{kTimeout, 0.02, 1, max_loss, 1, {true}};
  std::vector<float> stack(kWorkers * kDim, NAN);
  std::vector<uint64_t> round(kWorkers, 1);
  const auto await = [&](int row) {
    job.server->Await(row, round[row], &stack[row * kDim], policy, kRates[row]);
  };
  for (int row = 0; row < kWorkers; ++row) await(row);
  std::vector<std::thread> threads;
  for (const auto& worker : job.workers) threads.emplace_back(Work, worker.get(), max_loss);
  std::thread watcher([&job] {
    for (int i = 0; i < 20; ++i) {
      job.server->Counters();
      std::this_thread::sleep_for(std::chrono::milliseconds(2));
    }
  });
  for (uint64_t taken = 0; taken < kRounds * kWorkers;) {
    const auto all = job.server->TakeClosed(kTimeout, kNothing);
    CHECK(!all.empty());
    for (const auto& [row, closed] : all) {
      for (int64_t i = 0; i < kDim; ++i) {
        float& value = stack[row * kDim + i];
        CHECK(value == static_cast<float>(row + 1) || (drop > 0 && std::isnan(value)));
        value = NAN;
      }
      const std::vector<float> model(kDim, static_cast<float>(round[row]));
      job.server->Reply(row, round[row]++, model.data(), kRateKbps, 0.05);
      await(row);
      ++taken;
    }
  }
  watcher.join();
  for (std::thread& thread : threads) thread.join();
}

// Two threads wait, two others close what they wait in.
void TestCloseWhileWaiting() {
  const Job job = Connect(0);
  std::vector<float> stack(kWorkers * kDim);
  const auto expect_end = [](const auto& verb) {
    return std::thread([verb] {
      try {
        verb();
      } catch (const std::invalid_argument&) {
        return;
      }
      CHECK(false);
    });
  };
  const ClosePolicy policy{kTimeout, 0.01, 1, 1, kWorkers, std::vector<bool>(kWorkers, true)};
  std::vector<std::thread> threads;
  threads.push_back(
      expect_end([&] { job.server->Collect(1, stack.data(), policy, kRates, {}, kNothing); }));
  threads.push_back(expect_end([&] { job.workers[0]->Receive(1, kTimeout, kNothing); }));
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  // The worker first: the server's BYE would end its wait in peace.
  for (Endpoint* endpoint : {job.workers[0].get(), job.server.get()}) {
    std::thread other([endpoint] { endpoint->Close(); });
    endpoint->Close();
    other.join();
  }
  for (std::thread& thread : threads) thread.join();
}

// Whatever allocation fails while a round is opened: the caller may free the stack, and nothing is
// written to it any more.
void TestNoMemory() {
  const Job job = Connect(0);
  const ClosePolicy policy{0.02, 0, 1, 1, kWorkers, std::vector<bool>(kWorkers, true)};
  const std::vector<float> grad(kDim, 1.0f), untouched(kWorkers * kDim, -7.0f);
  uint64_t round = 0;
  for (int most = 0, is_through = 0; !is_through; ++most) {
    CHECK(most < 100);
    std::vector<float> stack = untouched;
    ++round;
    const Endpoint::OnWhole nobody;
    allocations_left = most;
    try {
      job.server->Collect(round, stack.data(), policy, kRates, nobody, kNothing);
      is_through = 1;
    } catch (const std::bad_alloc&) {
    }
    allocations_left = -1;
    if (is_through) break;
    stack = untouched;
    // Not granted, or told that it is over: the one or the other, and no byte of it is written.
    job.workers[0]->Send(round, grad.data(), 1, 0.02, kNothing);
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
    CHECK(stack == untouched);
  }
  CHECK(round > 3);
}

// One thread wants the lock again as soon as it has unlocked it.
void TestHandOver() {
  lossympi::FairMutex mutex;
  std::atomic<int> times{0};
  std::atomic<bool> goes_on{true};
  std::thread holder([&] {
    while (goes_on) {
      const std::lock_guard<lossympi::FairMutex> lock(mutex);
      ++times;
      std::this_thread::sleep_for(std::chrono::microseconds(500));
    }
  });
  int most = 0;
  while (times < 3) std::this_thread::yield();
  for (int i = 0; i < 50; ++i) {
    const int before = times;
    const std::lock_guard<lossympi::FairMutex> lock(mutex);
    most = std::max(most, times - before);
  }
  goes_on = false;
  holder.join();
  CHECK(most <= 2);  // one that it had asked for before, and one as we asked
}

// A worker sends without end, so that the socket is never empty: who waits for the lock has its
// turn, and a round ends when it should.
void TestFlood() {
  lossympi::UdpSocket socket("127.0.0.1", 1500, 1 << 20);
  Endpoint server(Setup{0, kWorkers, "127.0.0.1", 7, kDim, Wire::kFloat32, 1500,
                        Suite::kChaCha20Poly1305, 0, 3, 8 << 20});
  const std::string key(32, 'k');
  for (int rank = 1; rank <= kWorkers; ++rank) {
    server.AddPeer(rank, "127.0.0.1", rank == 1 ? socket.port() : 9, key, key);
  }
  server.Start();
  std::atomic<bool> goes_on{true};
  std::thread flood([&] {
    lossympi::Destination to(lossympi::AddressOf("127.0.0.1", server.port()));
    std::vector<uint8_t> bytes(40 * 1440);
    for (size_t i = 0; i < 40; ++i) {
      lossympi::Pack({lossympi::Kind::kData, 1, 7, 1, 0, 101, i}, &bytes[i * 1440]);
    }
    while (goes_on) socket.Send(&to, bytes.data(), 1440, 40, 1440, true);
  });
  const ClosePolicy policy{0.005, 0, 1, 1, kWorkers, std::vector<bool>(kWorkers, true)};
  std::vector<float> stack(kWorkers * kDim);
  double longest = 0;
  for (uint64_t round = 1; round <= 100; ++round) {
    const double begun = lossympi::Now();
    CHECK(server.Collect(round, stack.data(), policy, kRates, {}, kNothing).reason ==
          Reason::kDeadline);
    server.Counters();
    longest = std::max(longest, lossympi::Now() - begun);
  }
  goes_on = false;
  flood.join();
  const lossympi::Endpoint::Report report = server.Counters();
  CHECK(report.of_peer.at(1).counts[static_cast<int>(lossympi::Verdict::kForged)] > 1000);
  std::printf("a round of 5 ms took %.1f ms at the most, under a flood\n", longest * 1e3);
  CHECK(longest < 1);  // a sanitizer is slow, and the machine may be busy
}

}  // namespace

// Not inlined: a compiler that sees both warns that what is freed was not allocated.
__attribute__((noinline)) void* operator new(size_t size) {
  if (allocations_left == 0) throw std::bad_alloc();
  if (allocations_left > 0) --allocations_left;
  if (void* memory = std::malloc(size == 0 ? 1 : size)) return memory;
  throw std::bad_alloc();
}
__attribute__((noinline)) void operator delete(void* memory) noexcept { std::free(memory); }
__attribute__((noinline)) void operator delete(void* memory, size_t) noexcept { std::free(memory); }

int main() {
  TestRounds(0.1, 1);
  TestRounds(0.1, 0);
  TestTaking(0.1, 1);
  TestTaking(0.1, 0);
  TestCloseWhileWaiting();
  TestNoMemory();
  TestHandOver();
  TestFlood();
  std::puts("lossympi_threads_test: nothing wrong");
}
