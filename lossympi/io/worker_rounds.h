// A worker's rounds for those who call C: what an op of a TensorFlow graph reaches without Python.
#ifndef LOSSYMPI_IO_WORKER_ROUNDS_H_
#define LOSSYMPI_IO_WORKER_ROUNDS_H_

#include <atomic>
#include <cstdint>
#include <functional>
#include <optional>
#include <utility>

#include "lossympi/core/filling.h"
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
  // What is written of the next gradient may leave before the rest is. `Fill` notes a part of it;
  // `SendFilled` lets it leave, false if it has not. After `Empty` nothing is written.
  virtual void Fill(int64_t /*first*/, int64_t /*count*/) {}
  virtual bool SendFilled(uint64_t /*round*/, const float* /*grad*/, double /*seconds*/) {
    return true;
  }
  virtual void Empty() {}
  virtual Model Receive(uint64_t round, double seconds) = 0;
  virtual bool server_left() = 0;
  // Where the next gradient may be written, null for anywhere; and whether what `Receive` returned
  // last is still what it was.
  virtual float* next_grad() { return nullptr; }
  virtual bool is_intact() { return true; }
};

class UdpEnd : public WorkerEnd {
 public:
  UdpEnd(Endpoint* endpoint, double max_loss)
      : endpoint_(endpoint), max_loss_(max_loss), filling_(endpoint->cut()) {}
  bool Send(uint64_t round, const float* grad, double seconds) override;
  void Fill(int64_t first, int64_t count) override { filling_.Add(first, count); }
  bool SendFilled(uint64_t round, const float* grad, double seconds) override;
  void Empty() override { filling_.Clear(); }
  Model Receive(uint64_t round, double seconds) override;
  bool server_left() override { return endpoint_->server_left(); }

 private:
  // What it means that a verb that was to end until then has, or has not, done what it shall.
  bool IsOver(bool is_done, double until) const;

  Endpoint* const endpoint_;
  const double max_loss_;
  Filling filling_;
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

  // Floats [first, first + count) of the next `sent` have been written, and are as they will be:
  // they may leave at once. Returns as `Exchange`.
  //
  // Where another `step` has filled it, that one has ended without an exchange. What has left of
  // its gradient cannot be called back and stays; what has not is sent of the later one. Both are
  // gradients of the same parameters.
  int Fill(const float* sent, int64_t step, int64_t first, int64_t count, char* message);

  // Sends `sent` and stores in `received` where the parameters are that come of it, or of a later
  // round; without `sent` it only receives those of the same round again, or newer ones. Returns 0,
  // or what `idle` returned.
  int Exchange(const float* sent, const float** received, char* message);

  WorkerEnd* end() const { return end_; }
  std::atomic<uint64_t> round{0};  // of the next gradient

 private:
  WorkerEnd* const end_;
  const Idle idle_;
  uint64_t wanted_ = 0;          // the round that is being exchanged
  std::optional<int64_t> step_;  // that fills the gradient
};

// The same in plain C, with a WorkerRounds as context.
int ExchangeRound(void* context, const float* sent, const float** received, char* message);
int FillRound(void* context, const float* sent, int64_t step, int64_t first, int64_t count,
              char* message);
float* NextGrad(void* context);
int IsIntact(void* context);

}  // namespace lossympi

#endif  // LOSSYMPI_IO_WORKER_ROUNDS_H_
