#include "lossympi/io/worker_rounds.h"

#include <cstdio>
#include <exception>
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
    std::snprintf(message, kMessageBytes, "%s", error.what());
    return kInternal;
  }
}

}  // namespace

bool UdpEnd::Send(uint64_t round, const float* grad, double seconds) {
  const double until = Now() + seconds;
  return IsOver(endpoint_->Send(round + kFirst, grad, max_loss_, seconds, NoInterrupt), until);
}

bool UdpEnd::SendFilled(uint64_t round, const float* grad, double seconds) {
  const double until = Now() + seconds;
  const std::vector<uint32_t>& whole = filling_.whole();  // some may have left already
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

int WorkerRounds::Fill(const float* sent, int64_t step, int64_t first, int64_t count,
                       char* message) {
  if (step_ && *step_ != step) end_->Empty();
  step_ = step;
  wanted_ = round;
  end_->Fill(first, count);
  return Until(end_, idle_, true, message,
               [&](double seconds) { return end_->SendFilled(wanted_, sent, seconds); });
}

int WorkerRounds::Exchange(const float* sent, const float** received, char* message) {
  int code = 0;
  if (sent != nullptr) {
    wanted_ = round;
    end_->Empty();
    step_.reset();
    code = Until(end_, idle_, true, message,
                 [&](double seconds) { return end_->Send(wanted_, sent, seconds); });
  }
  if (code != 0) return code;
  return Until(end_, idle_, false, message, [&](double seconds) {
    const WorkerEnd::Model model = end_->Receive(wanted_, seconds);
    if (model.params == nullptr) return false;
    *received = model.params;
    round = model.round + 1;
    return true;
  });
}

int ExchangeRound(void* context, const float* sent, const float** received, char* message) {
  return Try(message, [&] {
    return static_cast<WorkerRounds*>(context)->Exchange(sent, received, message);
  });
}

int FillRound(void* context, const float* sent, int64_t step, int64_t first, int64_t count,
              char* message) {
  return Try(message, [&] {
    return static_cast<WorkerRounds*>(context)->Fill(sent, step, first, count, message);
  });
}

float* NextGrad(void* context) { return static_cast<WorkerRounds*>(context)->end()->next_grad(); }

int IsIntact(void* context) { return static_cast<WorkerRounds*>(context)->end()->is_intact(); }

}  // namespace lossympi
