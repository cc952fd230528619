#include "lossympi/core/close_rule.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

namespace lossympi {
namespace {
constexpr double kNot = std::numeric_limits<double>::quiet_NaN();
}  // namespace

CloseRule::CloseRule(ClosePolicy policy, uint32_t num_datagrams, double now)
    : policy_(std::move(policy)),
      most_missing_(static_cast<uint32_t>(std::floor(policy_.max_loss * num_datagrams))),
      opened_at_(now),
      rows_(policy_.live.size(), Row{num_datagrams, false, false, false, now, kNot}) {
  for (const bool live : policy_.live) num_live_ += live;
}

bool CloseRule::IsSettled(const Row& row) const { return !std::isnan(row.settled_at); }

void CloseRule::Heard(int row, double now, uint32_t missing) {
  Row& r = rows_[row];
  Settle(r, now);  // it may have been quiet for long enough before this came
  if (!r.ended && r.missing > 0) r.settled_at = kNot;  // if so it was only interrupted
  r.begun = true;
  r.pauses = false;
  r.missing = missing;
  r.last_at = now;
  Settle(r, now);
}

void CloseRule::Ended(int row, double now) {
  Row& r = rows_[row];
  if (r.ended) return;
  Settle(r, now);
  r.begun = r.ended = true;
  r.last_at = now;
  Settle(r, now);
}

void CloseRule::Pauses(int row) {
  Row& r = rows_[row];
  if (r.ended || r.missing == 0) return;
  r.pauses = true;
  r.settled_at = kNot;
}

void CloseRule::Settle(Row& row, double now) const {
  if (IsSettled(row)) return;
  if (row.missing == 0 || (row.ended && row.missing <= most_missing_)) {
    row.settled_at = row.last_at;
  } else if (MaySettleByQuiet(row) && row.last_at + policy_.quiet <= now) {
    row.settled_at = row.last_at + policy_.quiet;
  }
}

CloseRule::Answer CloseRule::Check(double now) {
  int num_complete = 0, num_idle = 0;
  double wake_at = std::numeric_limits<double>::infinity();
  live_settled_.clear();
  for (size_t i = 0; i < rows_.size(); ++i) {
    Row& row = rows_[i];
    Settle(row, now);
    if (!policy_.live[i]) continue;
    num_complete += row.missing == 0;
    if (IsSettled(row)) {
      live_settled_.push_back(row.settled_at);
      const double idle_at = IdleAt(row);
      num_idle += idle_at <= now;
      if (idle_at > now) wake_at = std::min(wake_at, idle_at);
    } else if (MaySettleByQuiet(row)) {
      wake_at = std::min(wake_at, row.last_at + policy_.quiet);
    }
  }
  const int most = MostOf(num_live_, policy_.f);
  const bool has_most = policy_.f > 0 && live_settled_.size() >= static_cast<size_t>(most);
  const double ends_at = opened_at_ + (has_most ? policy_.longest : policy_.deadline);
  int num_given_up = 0;
  if (has_most) {
    const double since = std::max(opened_at_ + policy_.free, TimeOfMost(&live_settled_, most));
    for (size_t i = 0; i < rows_.size(); ++i) {
      if (!policy_.live[i] || IsSettled(rows_[i])) continue;
      const double given_up_at = since + policy_.allowance[i];
      num_given_up += given_up_at <= now;
      if (given_up_at > now) wake_at = std::min(wake_at, given_up_at);
    }
  }
  const Reason reason =
      ClosedBy(num_live_, num_complete, num_idle, policy_.quorum, ends_at <= now, num_given_up);
  return {reason, reason == Reason::kOpen ? std::min(wake_at, ends_at) : now};
}

}  // namespace lossympi
