// A server and two workers over loopback, each on a thread of its own and with its receive thread,
// for sanitizers; then a close while verbs wait. usage: lossympi_threads_test; exits with 0 if all
// went as it should. Built by scripts/sanitize-lossympi.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <memory>
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
        job.server->Collect(round, stack.data(), policy, kRateKbps / kWorkers, on_whole, kNothing);
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
      expect_end([&] { job.server->Collect(1, stack.data(), policy, kRateKbps, {}, kNothing); }));
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

}  // namespace

int main() {
  TestRounds(0.1, 1);
  TestRounds(0.1, 0);
  TestCloseWhileWaiting();
  std::puts("lossympi_threads_test: nothing wrong");
}
