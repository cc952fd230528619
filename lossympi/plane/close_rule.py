"""When a round closes. Knows no clock."""

import math

from lossympi.closing import closed_by
from lossympi.endpoint import ClosePolicy
from lossympi.timeout import most_of


class CloseRule:
    """Told what comes in, says when it is enough.

    A row that was quiet for long enough is settled until something comes for it again; any other
    that is settled stays so, and what still comes for it only puts off the early close, by at most
    a grace.

    Args:
      policy: the rule's numbers.
      num_rows: n.
      c: datagrams of a row.
      now: when the round is opened.

    """

    def __init__(self, policy: ClosePolicy, num_rows: int, c: int, now: float) -> None:
        """Opens the round: nothing has come yet."""
        if len(policy.live_n) != num_rows:
            raise ValueError(f"live_n must have {num_rows} values, got {len(policy.live_n)}.")
        if policy.f < 0 or (policy.f and len(policy.allowance_s_n) != num_rows):
            raise ValueError(
                f"with f={policy.f} allowance_s_n must have {num_rows} values, got "
                f"{len(policy.allowance_s_n)}."
            )
        times_s = (
            *(policy.deadline_s, policy.grace_s, policy.quiet_s, policy.longest_s, policy.free_s),
            *policy.allowance_s_n,
        )
        if not all(each >= 0 for each in times_s):
            raise ValueError(f"a policy's times must be at least 0 seconds, got {times_s}.")
        if policy.quorum < 1 or not 0 <= policy.max_loss <= 1:
            raise ValueError(
                "a round closes on quorum >= 1 and max_loss in 0..1; got "
                f"quorum={policy.quorum}, max_loss={policy.max_loss}. Change the policy."
            )
        self._settled_at = [math.nan] * num_rows
        self._policy = policy
        self._opened = now
        self._live = [row for row in range(num_rows) if policy.live_n[row]]
        self._missing = [c] * num_rows
        self._tolerated = policy.max_loss * c
        self._last = [math.nan] * num_rows  # when something came, NaN: never
        self._has_ended = [False] * num_rows
        self._pauses = [False] * num_rows

    @property
    def settled_s(self) -> list[float]:
        """For each row when it was settled, from the opening, or NaN."""
        return [at - self._opened for at in self._settled_at]

    def heard(self, row: int, now: float, missing: int) -> None:
        """Notes a DATA that was accepted, which leaves `missing`."""
        self._settle(row, now)  # it may have been quiet for long enough before this came
        if not self._has_ended[row] and self._missing[row] > 0:
            self._settled_at[row] = math.nan  # if so it was only interrupted
        self._last[row] = now
        self._pauses[row] = False
        self._missing[row] = missing
        self._settle(row, now)

    def ended(self, row: int, now: float) -> None:
        """Notes an END; only the first of a row counts."""
        if self._has_ended[row]:
            return
        self._settle(row, now)
        self._last[row] = now
        self._has_ended[row] = True
        self._settle(row, now)

    def pauses(self, row: int) -> None:
        """Notes that more will come for a row: until then quiet means nothing."""
        if not self._has_ended[row] and self._missing[row] > 0:
            self._pauses[row] = True
            self._settled_at[row] = math.nan

    def is_short(self, row: int) -> bool:
        """Returns whether an END of this row is answered with NACK."""
        return not self._is_tolerable(row)

    def check(self, now: float) -> tuple[str | None, float]:
        """Returns why the round is to be closed or None, and when to ask if nothing comes."""
        policy = self._policy
        for row in range(len(self._settled_at)):
            self._settle(row, now)
        settled = [row for row in self._live if self._is_settled(row)]
        others = [row for row in self._live if not self._is_settled(row)]
        idle = [self._idle_at(row) for row in settled]
        given_up: list[float] = []
        most = most_of(len(self._live), policy.f)
        has_most = policy.f > 0 and len(settled) >= most
        if has_most:
            most_at = sorted(self._settled_at[row] for row in settled)[most - 1]
            since = max(self._opened + policy.free_s, most_at)
            given_up = [since + policy.allowance_s_n[row] for row in others]
        ends_at = self._opened + (policy.longest_s if has_most else policy.deadline_s)
        reason = closed_by(
            len(self._live),
            sum(self._missing[row] == 0 for row in self._live),
            sum(at <= now for at in idle),
            policy.quorum,
            now >= ends_at,
            sum(at <= now for at in given_up),
        )
        if reason is not None:
            return reason, now
        quiet = [
            self._last[row] + policy.quiet_s for row in others if self._may_settle_by_quiet(row)
        ]
        return None, min([ends_at, *quiet, *(at for at in (*idle, *given_up) if at > now)])

    def _idle_at(self, row: int) -> float:
        """Returns when nothing has come for the grace; nobody can put that off for ever."""
        grace_s = self._policy.grace_s
        return min(self._last[row], self._settled_at[row] + grace_s) + grace_s

    def _settle(self, row: int, now: float) -> None:
        if self._is_settled(row):
            return
        if self._missing[row] == 0 or (self._has_ended[row] and self._is_tolerable(row)):
            self._settled_at[row] = self._last[row]
        elif self._may_settle_by_quiet(row):
            quiet_at = self._last[row] + self._policy.quiet_s
            if quiet_at <= now:
                self._settled_at[row] = quiet_at

    def _is_settled(self, row: int) -> bool:
        return not math.isnan(self._settled_at[row])

    def _is_tolerable(self, row: int) -> bool:
        return self._missing[row] <= self._tolerated

    def _may_settle_by_quiet(self, row: int) -> bool:
        has_begun = not math.isnan(self._last[row])
        return has_begun and not self._pauses[row] and self._is_tolerable(row)
