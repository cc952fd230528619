// A worker's rounds for those who call C: the worker's half of the synchronous protocol without
// Python. native_round.h is what they see of it.
#ifndef LOSSYMPI_IO_WORKER_ROUNDS_H_
#define LOSSYMPI_IO_WORKER_ROUNDS_H_

#include <atomic>
#include <cstdint>
#include <functional>
#include <optional>

#include "lossympi/core/write_tracker.h"
#include "lossympi/io/endpoint.h"
#include "lossympi/io/shared.h"
#include "lossympi/native_round.h"

namespace lossympi {

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

  // Whether what is written of the next gradient may leave before the rest is. `Written` notes a
  // part of it; `SendWritten` lets it leave, false if it has not. After `ClearWritten` nothing is
  // written.
  virtual bool sends_parts() const { return false; }
  virtual void Written(int64_t /*first*/, int64_t /*count*/) {}
  virtual bool SendWritten(uint64_t /*round*/, const float* /*grad*/, double /*seconds*/) {
    return true;
  }
  virtual void ClearWritten() {}

  // Where the next gradient may be written, null for anywhere; and whether what `Receive` returned
  // last is still what it was.
  virtual float* next_grad() { return nullptr; }
  virtual bool is_intact() { return true; }
};

class UdpEnd : public WorkerEnd {
 public:
  UdpEnd(Endpoint* endpoint, double max_loss)
      : endpoint_(endpoint), max_loss_(max_loss), written_(endpoint->framing()) {}
  bool Send(uint64_t round, const float* grad, double seconds) override;
  Model Receive(uint64_t round, double seconds) override;
  bool server_left() override { return endpoint_->server_left(); }
  bool sends_parts() const override { return true; }
  void Written(int64_t first, int64_t count) override { written_.Add(first, count); }
  bool SendWritten(uint64_t round, const float* grad, double seconds) override;
  void ClearWritten() override { written_.Clear(); }

 private:
  // What it means that a verb that was to end until then has, or has not, done what it shall.
  bool IsOver(bool is_done, double until) const;

  Endpoint* const endpoint_;
  const double max_loss_;
  WriteTracker written_;
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
  // Called every 0.2 s of a wait, and when the server has left. Returns 0 to go on, else what the
  // round is to fail with, and why.
  using Idle = std::function<int(bool is_sending, bool has_left, double waited, char* message)>;

  WorkerRounds(WorkerEnd* end, int64_t d, Idle idle);
  WorkerRounds(const WorkerRounds&) = delete;
  WorkerRounds& operator=(const WorkerRounds&) = delete;

  // The same for C: Run, SendPart, and what the end has beside. Valid as long as this is.
  const LossympiNativeRound& native() const { return native_; }

  // Sends `sent` and stores in `received` where the parameters are that come of it, or of a later
  // round; without `sent` it only receives those of the same round again, or newer ones. Returns 0,
  // or what `idle` returned.
  int Run(const float* sent, const float** received, char* message);

  // Floats [first, first + count) of the next `sent` have been written, and are as they will be:
  // they may leave at once. Returns as `Run`.
  //
  // Where another `step` has written before, that one has ended without a `Run`. What has left of
  // its gradient cannot be called back and stays; what has not is sent of the later one. Both are
  // gradients of the same parameters.
  int SendPart(const float* sent, int64_t step, int64_t first, int64_t count, char* message);

  WorkerEnd* end() const { return end_; }
  std::atomic<uint64_t> round{0};  // of the next gradient

 private:
  WorkerEnd* const end_;
  const Idle idle_;
  const LossympiNativeRound native_;
  uint64_t wanted_ = 0;          // the round that is being made
  std::optional<int64_t> step_;  // that writes the gradient
};

}  // namespace lossympi

#endif  // LOSSYMPI_IO_WORKER_ROUNDS_H_
