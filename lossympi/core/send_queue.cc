#include "lossympi/core/send_queue.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace lossympi {
namespace {
constexpr double kNever = std::numeric_limits<double>::infinity();
}  // namespace

SendQueue::SendQueue(const std::vector<int>& rows, uint32_t num_datagrams, size_t most_at_once,
                     bool until_done, double silence, double now)
    : most_at_once_(most_at_once),
      until_done_(until_done),
      silence_(silence),
      begun_at_(now),
      leave_at_(kNever),
      hurry_at_(kNever) {
  for (const int row : rows) {
    Flow flow;
    flow.row = row;
    flow.wanted.assign(num_datagrams, kLater);
    flow.report_at = std::max(num_datagrams / kReports, kShort);
    flow.end_at = now;
    flow.asked_at = flow.finished_at = kNever;
    const auto at = static_cast<size_t>(row);
    if (at >= flow_of_row_.size()) flow_of_row_.resize(at + 1, -1);
    flow_of_row_[at] = static_cast<int>(flows_.size());
    flows_.push_back(std::move(flow));
  }
}

SendQueue::Flow* SendQueue::Find(int row) {
  const bool is_known = row >= 0 && static_cast<size_t>(row) < flow_of_row_.size();
  const int at = is_known ? flow_of_row_[static_cast<size_t>(row)] : -1;
  return at < 0 ? nullptr : &flows_[static_cast<size_t>(at)];
}

void SendQueue::Add(Flow& flow, uint32_t seq) {
  if (flow.wanted[seq] != kLater) return;
  flow.wanted[seq] = kNow;
  ++flow.num_wanted;
}

void SendQueue::Add(const std::vector<uint32_t>& seqs) {
  for (Flow& flow : flows_) {
    for (const uint32_t seq : seqs) Add(flow, seq);
  }
}

void SendQueue::AddRest() {
  has_all_ = true;
  for (Flow& flow : flows_) {
    for (uint32_t seq = 0; seq < flow.wanted.size(); ++seq) Add(flow, seq);
  }
}

void SendQueue::Hurry(int row) {
  if (Flow* flow = Find(row)) flow->hurries = true;
}

void SendQueue::Stay() { stays_ = true; }

bool SendQueue::TakeNack(int row, size_t bytes) {
  Flow* flow = Find(row);
  if (flow == nullptr || flow->finished || bytes > flow->nack_bytes) return false;
  flow->nack_bytes -= bytes;
  return true;
}

void SendQueue::Nacked(int row, uint32_t seq) {
  Flow* flow = Find(row);
  if (flow == nullptr || !flow->asked || flow->wanted[seq] != kNot) return;
  flow->wanted[seq] = kNow;
  ++flow->num_wanted;
}

void SendQueue::Finish(Flow& flow, double now) {
  flow.finished = true;
  flow.finished_at = std::min(flow.finished_at, now);
}

void SendQueue::Done(int row, double now) {
  Flow* flow = Find(row);
  if (flow == nullptr) return;
  num_done_ += !flow->done;
  flow->done = true;
  Finish(*flow, now);
}

void SendQueue::Leave(int row) {
  if (Flow* flow = Find(row)) Finish(*flow, begun_at_);  // nobody has waited for it
}

void SendQueue::Heard(int row) {
  if (Flow* flow = Find(row)) flow->asked_at = kNever;
}

bool SendQueue::is_finished(int row) const {
  const Flow* flow = Find(row);
  return flow == nullptr || flow->finished;
}

bool SendQueue::is_done(int row) const {
  const Flow* flow = Find(row);
  return flow != nullptr && flow->done;
}

bool SendQueue::all_sent(int row) const {
  const Flow* flow = Find(row);
  return flow != nullptr && flow->num_sent >= flow->wanted.size();
}

double SendQueue::Overtime(int row, double now) const {
  const Flow* flow = Find(row);
  if (flow == nullptr || flow->hurries || std::isinf(hurry_at_)) return 0;
  return std::max(0.0, std::min(flow->finished_at, now) - hurry_at_);
}

bool SendQueue::has_wanted() const {
  return std::any_of(flows_.begin(), flows_.end(),
                     [](const Flow& flow) { return !flow.finished && flow.num_wanted > 0; });
}

const SendQueue::Action& SendQueue::Next(double now) {
  action_.what = What::kFinished;
  if (2 * num_done_ > flows_.size() && std::isinf(leave_at_)) {
    const double t = now - begun_at_;
    hurry_at_ = now + std::max(t, kHurry);
    leave_at_ = std::max(now + 3 * t + silence_, hurry_at_);
  }
  action_.wake_at = leave_at_;
  if (now >= leave_at_) return action_;
  for (size_t tried = 0; tried < flows_.size(); ++tried) {
    Flow& flow = flows_[turn_];
    turn_ = turn_ + 1 < flows_.size() ? turn_ + 1 : 0;
    const double silent_at = until_done_ ? flow.asked_at + silence_ : kNever;
    const double hurry_at = flow.hurries ? hurry_at_ : kNever;
    const bool is_silent = now >= silent_at;
    if ((is_silent && !stays_) || now >= hurry_at) Finish(flow, now);
    if (flow.finished) continue;
    if (is_silent) {
      action_.what = What::kWait;
      continue;
    }
    action_.row = flow.row;
    const auto c = static_cast<uint32_t>(flow.wanted.size());
    if (until_done_ && flow.num_sent >= flow.report_at && flow.num_sent < c) {
      flow.report_at += std::max(c / kReports, kShort);
      return Ask(flow, 0, now);
    }
    if (flow.num_wanted > 0) {
      TakeBurst(flow, now);
      action_.what = What::kSend;
      return action_;
    }
    if (!has_all_) continue;
    if (now >= flow.end_at) {
      if (!until_done_ && flow.ends_now == kEnds) {
        Finish(flow, now);
        continue;
      }
      ++flow.ends_now;
      flow.end_at = now + Pause(flow.ends_now);
      return Ask(flow, ++flow.num_ends, now);
    }
    action_.what = What::kWait;
    action_.wake_at = std::min({action_.wake_at, flow.end_at, silent_at, hurry_at});
  }
  return action_;
}

const SendQueue::Action& SendQueue::Ask(Flow& flow, uint32_t num_ends, double now) {
  flow.asked = true;
  for (const uint32_t seq : flow.on_their_way) {
    if (flow.wanted[seq] == kOnItsWay) flow.wanted[seq] = kNot;
  }
  flow.on_their_way.clear();
  flow.asked_at = std::min(flow.asked_at, now);
  const size_t bitmap_bytes = (flow.wanted.size() + 7) / 8;
  flow.nack_bytes = std::min(flow.nack_bytes + bitmap_bytes, kEnds * bitmap_bytes);
  action_.num_ends = num_ends;
  action_.what = What::kEnd;
  return action_;
}

// After this many ENDs since datagrams were sent last.
double SendQueue::Pause(int num_ends) const {
  if (num_ends < kEnds - 1 || (num_ends == kEnds && !until_done_)) return 0;
  return std::min(kThirdAfter * std::exp2(num_ends - kEnds + 1), kLongestPause);
}

void SendQueue::TakeBack() {
  Flow& flow = *Find(action_.row);
  for (const uint32_t seq : action_.seqs) {
    flow.num_wanted += flow.wanted[seq] != kNow;  // it may have been NACKed since
    flow.wanted[seq] = kNow;
  }
  flow.num_sent -= static_cast<uint32_t>(action_.seqs.size());
}

void SendQueue::TakeBurst(Flow& flow, double now) {
  action_.seqs.clear();
  const auto c = static_cast<uint32_t>(flow.wanted.size());
  while (action_.seqs.size() < most_at_once_ && flow.num_wanted > 0) {
    const uint32_t seq = flow.next;
    flow.next = seq + 1 < c ? seq + 1 : 0;
    if (flow.wanted[seq] == kNow) {
      flow.wanted[seq] = kOnItsWay;
      flow.on_their_way.push_back(seq);
      --flow.num_wanted;
      ++flow.num_sent;
      action_.seqs.push_back(seq);
    }
    if (seq + 1 == c && !action_.seqs.empty()) break;
  }
  if (flow.num_wanted == 0) {
    flow.ends_now = 0;
    flow.end_at = now;
  }
}

}  // namespace lossympi
