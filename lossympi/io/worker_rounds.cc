#include "lossympi/io/worker_rounds.h"

#include <cstdio>
#include <exception>
#include <utility>
#include <vector>

#include "lossympi/io/udp_socket.h"

namespace lossympi {
namespace {

constexpr double kIdleEvery = 0.2;
constexpr int kInternal = 13;   // absl::StatusCode, for what should not happen
constexpr uint64_t kFirst = 1;  // WIRE.md counts rounds from 1 on, links from 0

void NoInterrupt() {}

// Repeats a verb until it has done what it shall, or nobody wants to wait any more.
template <typename Verb>
int Until(WorkerEnd* end, const WorkerRounds::Idle& idle, bool is_sending, char* message,
          Verb verb) {
  const double begun = Now();
  while (!verb(kIdleEvery)) {
    const int code = idle(is_sending, end->server_left(), Now() - begun, message);
    if (code != 0) return code;
  }
  return 0;
}

template <typename F>
int Try(char* message, F f) {
  try {
    return f();
  } catch (const std::exception& error) {  // the link was closed
    std::snprintf(message, LOSSYMPI_MESSAGE_BYTES, "%s", error.what());
    return kInternal;
  }
}

// What native_round.h wants, with a WorkerRounds as context.
int RunOf(void* context, const float* sent, const float** received, char* message) {
  return Try(message,
             [&] { return static_cast<WorkerRounds*>(context)->Run(sent, received, message); });
}

int SendPartOf(void* context, const float* sent, int64_t step, int64_t first, int64_t count,
               char* message) {
  return Try(message, [&] {
    return static_cast<WorkerRounds*>(context)->SendPart(sent, step, first, count, message);
  });
}

float* OutgoingOf(void* context) { return static_cast<WorkerRounds*>(context)->end()->next_grad(); }

int IsIntactOf(void* context) { return static_cast<WorkerRounds*>(context)->end()->is_intact(); }

}  // namespace

WorkerRounds::WorkerRounds(WorkerEnd* end, int64_t d, Idle idle)
    : end_(end),
      idle_(std::move(idle)),
      native_{this, d, RunOf, end->sends_parts() ? SendPartOf : nullptr, OutgoingOf, IsIntactOf} {}

bool UdpEnd::Send(uint64_t round, const float* grad, double seconds) {
  const double until = Now() + seconds;
  return IsOver(endpoint_->Send(round + kFirst, grad, max_loss_, seconds, NoInterrupt), until);
}

bool UdpEnd::SendWritten(uint64_t round, const float* grad, double seconds) {
  const double until = Now() + seconds;
  const std::vector<uint32_t>& whole = written_.whole();  // some may have left already
  return whole.empty() ||
         IsOver(endpoint_->SendPart(round + kFirst, grad, whole, max_loss_, seconds, NoInterrupt),
                until);
}

bool UdpEnd::IsOver(bool is_done, double until) const {
  return is_done || (Now() < until && !endpoint_->server_left());  // closed, where time was left
}

WorkerEnd::Model UdpEnd::Receive(uint64_t round, double seconds) {
  const Endpoint::Model model = endpoint_->Receive(round + kFirst, seconds, NoInterrupt);
  return {model.round - kFirst, model.params};
}

bool SharedEnd::Send(uint64_t round, const float* grad, double) {
  worker_->Put(round, grad);
  return true;
}

WorkerEnd::Model SharedEnd::Receive(uint64_t round, double seconds) {
  model_ = worker_->Receive(round, seconds, NoInterrupt);
  return {model_.round, model_.params};
}

int WorkerRounds::Run(const float* sent, const float** received, char* message) {
  int code = 0;
  if (sent == nullptr) {
    round = wanted_;  // it is this one's model that is waited for again
  } else {
    wanted_ = round;
    end_->ClearWritten();
    step_.reset();
    code = Until(end_, idle_, true, message,
                 [&](double seconds) { return end_->Send(wanted_, sent, seconds); });
  }
  if (code != 0 || received == nullptr) return code;
  return Until(end_, idle_, false, message, [&](double seconds) {
    const WorkerEnd::Model model = end_->Receive(wanted_, seconds);
    if (model.params == nullptr) return false;
    *received = model.params;
    round = model.round + 1;
    return true;
  });
}

int WorkerRounds::SendPart(const float* sent, int64_t step, int64_t first, int64_t count,
                           char* message) {
  if (step_ && *step_ != step) end_->ClearWritten();
  step_ = step;
  wanted_ = round;
  end_->Written(first, count);
  return Until(end_, idle_, true, message,
               [&](double seconds) { return end_->SendWritten(wanted_, sent, seconds); });
}

}  // namespace lossympi
