// A worker's rounds for those who call C: what an op of a TensorFlow graph reaches without Python.
#ifndef LOSSYMPI_IO_WORKER_ROUNDS_H_
#define LOSSYMPI_IO_WORKER_ROUNDS_H_

#include <atomic>
#include <cstdint>
#include <functional>
#include <utility>

#include "lossympi/io/endpoint.h"
#include "lossympi/io/shared.h"

namespace lossympi {

constexpr int kMessageBytes = 1024;

// A worker's end of a link, of either kind. Verbs wait for `seconds` at most.
class WorkerEnd {
 public:
  struct Model {
    uint64_t round;
    const float* params;  // null: there was none in time
  };
  virtual ~WorkerEnd() = default;
  // False if it has not left; true also if the server has closed the round.
  virtual bool Send(uint64_t round, const float* grad, double seconds) = 0;
  virtual Model Receive(uint64_t round, double seconds) = 0;
  virtual bool server_left() = 0;
  // Where the next gradient may be written, null for anywhere; and whether what `Receive` returned
  // last is still what it was.
  virtual float* next_grad() { return nullptr; }
  virtual bool is_intact() { return true; }
};

class UdpEnd : public WorkerEnd {
 public:
  UdpEnd(Endpoint* endpoint, double max_loss) : endpoint_(endpoint), max_loss_(max_loss) {}
  bool Send(uint64_t round, const float* grad, double seconds) override;
  Model Receive(uint64_t round, double seconds) override;
  bool server_left() override { return endpoint_->server_left(); }

 private:
  Endpoint* const endpoint_;
  const double max_loss_;
};

class SharedEnd : public WorkerEnd {
 public:
  explicit SharedEnd(SharedWorker* worker) : worker_(worker) {}
  bool Send(uint64_t round, const float* grad, double seconds) override;
  Model Receive(uint64_t round, double seconds) override;
  bool server_left() override { return worker_->server_left(); }
  float* next_grad() override { return worker_->next_grad(); }
  bool is_intact() override { return worker_->IsIntact(model_); }

 private:
  SharedWorker* const worker_;
  SharedWorker::Model model_{};
};

class WorkerRounds {
 public:
  // Is asked every 0.2 s of a wait, and when the server has left: 0 to go on, else what the round
  // is to fail with, and why.
  using Idle = std::function<int(bool is_sending, bool has_left, double waited, char* message)>;

  WorkerRounds(WorkerEnd* end, Idle idle) : end_(end), idle_(std::move(idle)) {}

  // Sends `sent` and stores in `received` where the parameters are that come of it, or of a later
  // round; without `sent` it only receives those of the same round again, or newer ones. Returns 0,
  // or what `idle` returned.
  int Exchange(const float* sent, const float** received, char* message);

  WorkerEnd* end() const { return end_; }
  std::atomic<uint64_t> round{0};  // of the next gradient

 private:
  WorkerEnd* const end_;
  const Idle idle_;
  uint64_t wanted_ = 0;  // the round that is being exchanged
};

// The same in plain C, with a WorkerRounds as context.
int ExchangeRound(void* context, const float* sent, const float** received, char* message);
float* NextGrad(void* context);
int IsIntact(void* context);

}  // namespace lossympi

#endif  // LOSSYMPI_IO_WORKER_ROUNDS_H_
