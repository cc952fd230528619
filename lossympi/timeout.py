r"""How long a round may take, and for whom it waits: rules without a clock (``WIRE.md``).

Of n workers up to f are Byzantine: they may be silent, late, or as late as they can be without
being given up. All but f of the live workers are waited for until t_B (``Deadline``). When these
have settled, at u, the others are waited for as long as workers usually take, then at their own
expense (``Allowance``), and no round takes longer than the cap. Who is silent for `patience` rounds
is not waited for at all (``Liveness``). Whatever f workers do, the rounds' times t_r stay within

.. math:: \sum_r t_r \le 2 \left( \sum_r \max(T_r, s_r) + f p c \right),

T_r being the time at which the last honest live row of round r is settled, or the cap c; s_r the
second longest of the times that the slowest honest worker took in the latest 20 rounds; and p the
patience. For f workers alone cannot put off u; the time beyond T_r and s_r is charged to them
alone; each has at most p c to begin with, and together they are given at most t_r / 2 in round r.
A link adds what its grace, its clock and its processes take.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


def tolerated(f: int | None, num_live: int) -> int:
    """Returns how many live workers may be Byzantine: f, where it is unknown fewer than half."""
    return max(0, num_live - 1) // 2 if f is None else f


def most_of(num_live: int, f: int) -> int:
    """Returns how many live rows a round waits for at no worker's expense."""
    return max(1, num_live - f)


@dataclass(frozen=True)
class Terms:
    """On what terms a round waits.

    Attributes:
      live_n: for each worker whether it is waited for.
      f: how many of them may be Byzantine.
      deadline_s: t_B, for all but f of the live rows.
      longest_s: what no round exceeds.
      free_s: how long all are waited for if all but f of the live rows are there by t_B.
      allowance_s_n: how long each row may be waited for beyond that.
    """

    live_n: tuple[bool, ...]
    f: int
    deadline_s: float
    longest_s: float
    free_s: float
    allowance_s_n: tuple[float, ...]


class Waiting:
    """For whom the rounds of a link wait, and how long."""

    def __init__(
        self,
        num_workers: int,
        *,
        patience: int = 3,
        f: int | None = None,
        cap_s: float,
        floor_s: float = 0.0,
    ) -> None:
        """Starts with all workers alive, t_B at the cap, and all allowances full.

        Args:
          num_workers: n.
          patience: after this many silent rounds a worker is dead; and how many t_B a worker may
            keep the others waiting.
          f: how many workers may be Byzantine; None: fewer than half of the live ones.
          cap_s: the longest t_B and the longest round.
          floor_s: the shortest t_B; at the cap or above nothing is learnt.
        Raises:
          ValueError: an argument is out of range.
        """
        self._liveness = Liveness(num_workers, patience)
        self._deadline = Deadline(cap_s, floor_s=floor_s)
        self._allowance = Allowance(num_workers, patience * cap_s)
        self._patience = patience
        self._f = f
        self._cap_s = cap_s

    @property
    def live(self) -> tuple[bool, ...]:
        """For each worker whether the next round waits for it."""
        return self._liveness.live

    def terms(self) -> Terms:
        """Returns those of the next round."""
        live_n = self.live
        return Terms(
            live_n=live_n,
            f=tolerated(self._f, sum(live_n)),
            deadline_s=self._deadline.current,
            longest_s=self._cap_s,
            free_s=self._allowance.free_s,
            allowance_s_n=self._allowance.of_next_n,
        )

    def forget(self, row: int) -> None:
        """Learns that a worker is gone before its silence shows it."""
        self._liveness.forget(row)

    def observe(
        self,
        terms: Terms,
        *,
        live_n: Sequence[bool] | np.ndarray,
        settled_s_n: np.ndarray,
        heard_n: np.ndarray,
        elapsed_s: float,
        closed_by: str,
    ) -> None:
        """Learns from a round.

        Args:
          terms: on which it waited.
          live_n: bool [n], for whom it waited until its end.
          settled_s_n: float64 [n], when each row was settled, from the opening; NaN: it was not.
          heard_n: bool [n], who was heard.
          elapsed_s: from its opening to its close.
          closed_by: "complete", "early" or "deadline".
        """
        live_n = np.asarray(live_n)
        settled_s_l = np.sort(settled_s_n[live_n])  # NaN comes last
        num_settled = int(np.count_nonzero(~np.isnan(settled_s_l)))
        most = most_of(len(settled_s_l), terms.f)
        most_s: float | None = elapsed_s  # a quorum may have closed it before
        if num_settled >= most:
            most_s = min(float(settled_s_l[most - 1]), elapsed_s)
            self._allowance.charge(terms.f, live_n, settled_s_n, most_s, elapsed_s)
        elif closed_by == "deadline":
            most_s = None
        self._deadline.observe(most_s, len(settled_s_l) - num_settled, len(settled_s_l), terms.f)
        full_s = self._patience * self._deadline.current
        self._allowance.refill(terms.f, live_n, settled_s_n, elapsed_s, full_s)
        self._liveness.observe(heard_n)


class Deadline:
    """t_B: how long a round waits for all but f of the live rows, learnt from earlier rounds.

    Attributes:
      current: t_B of the next round, in seconds.
    """

    def __init__(
        self,
        cap_s: float,
        rounds: int = 20,
        quantile: float = 0.95,
        margin: float = 1.5,
        floor_s: float = 0.0,
    ) -> None:
        """Starts at the cap.

        Args:
          cap_s: what t_B never exceeds; an infinite cap stays, as it asks to wait for all.
          floor_s: what t_B never falls below, unless the cap does.
          rounds: in how many rounds all but f must have settled before t_B is learnt, and from how
            many, the latest ones, it is.
          quantile: of their times, 0..1.
          margin: times it, at least 1.
        Raises:
          ValueError: an argument is out of range.
        """
        if not cap_s > 0:
            raise ValueError(f"a deadline is above 0 seconds, got {cap_s}. Pass inf for none.")
        if not (rounds >= 1 and 0 <= quantile <= 1 and margin >= 1):
            raise ValueError(
                "a deadline is learnt from rounds >= 1, a quantile in 0..1 and a margin >= 1; got "
                f"rounds={rounds}, quantile={quantile}, margin={margin}. Leave them as they are."
            )
        self.current = cap_s
        self._cap_s = cap_s
        self._floor_s = floor_s
        self._quantile = quantile
        self._margin = margin
        self._most_s: deque[float] = deque(maxlen=rounds)

    def observe(
        self, most_s: float | None, unsettled: int = 0, num_live: int = 1, f: int = 0
    ) -> None:
        """Learns from a round.

        Args:
          most_s: when all but f of the live rows had settled, from the opening: f Byzantine workers
            can make it earlier and not later. None: they had not at the deadline.
          unsettled: how many live rows had not settled at its close.
          num_live: of how many.
          f: how many of them may be Byzantine. If more of them are unsettled, t_B is too short; for
            f = 0 if half of them are, as a single worker may have died.
        """
        if math.isinf(self._cap_s) or self._floor_s >= self._cap_s:
            return
        if most_s is None:
            if unsettled > f and (f > 0 or 2 * unsettled >= num_live):
                self.current = min(self._cap_s, 2 * self.current)
            return
        self._most_s.append(most_s)
        if len(self._most_s) == self._most_s.maxlen:
            usual_s = _quantile(sorted(self._most_s), self._quantile)
            self.current = min(self._cap_s, max(self._floor_s, self._margin * usual_s))


class Allowance:
    r"""How long each worker may keep a round waiting once all but f of the live ones are there.

    Up to s nobody pays. Of each worker the 19th of its latest 20 times is taken, in order; s is the
    one that all but f live workers stay within. f Byzantine workers can lower s, and raise it to
    that of the slowest honest worker.

    Each worker has an account of seconds. A round that waits beyond s, and beyond u, at which all
    but f have settled, charges the time to those that it waits for, in equal parts. It gives half
    of its time t_r to those whose accounts are not full: in equal parts, none more than it lacks,
    but to each at least t_r / 2f. So f workers get no more than half of all the time that there is,
    and what they have taken is at most :math:`f a_0 + \frac{1}{2} \sum_r t_r`, a_0 being a full
    account.

    Who has less than s on its account is not waited for: a shorter wait would be in vain. Each time
    that waits in vain have used an account up, the price of such waits doubles, up to 64 times; it
    halves with each round in which the worker has settled. So who never comes costs next to
    nothing, and who comes back after a pause is waited for again after some 2f rounds.

    Attributes:
      free_s: s of the next round.
      of_next_n: for each worker how long the next round may wait beyond that, in seconds.
    """

    _ROUNDS, _RANK = 20, 18
    _MOST_EXPENSIVE = 64.0

    def __init__(self, num_workers: int, full_s: float) -> None:
        """Starts with full accounts, and s at 0."""
        self.free_s = 0.0
        self.of_next_n: tuple[float, ...] = (full_s,) * num_workers
        self._account_s_n = np.full(num_workers, float(full_s))
        self._price_n = np.ones(num_workers)
        self._times_s_rn = np.zeros((self._ROUNDS, num_workers))
        self._next = 0

    def charge(
        self,
        f: int,
        live_n: np.ndarray,
        settled_s_n: np.ndarray,
        most_s: float,
        elapsed_s: float,
    ) -> None:
        """Charges a round in which all but f of the live rows were settled at `most_s`, u."""
        settled_n = ~np.isnan(settled_s_n)
        self._price_n[settled_n] = np.maximum(1.0, self._price_n[settled_n] / 2)
        since_s = max(self.free_s, most_s)
        if f == 0 or elapsed_s <= since_s:
            return
        rows = np.flatnonzero(live_n & ~(settled_s_n <= since_s))
        end_s = np.where(settled_n[rows], settled_s_n[rows], elapsed_s)
        waited_s = np.minimum(np.minimum(end_s, elapsed_s) - since_s, _at(self.of_next_n, rows))
        rows, waited_s = rows[waited_s > 0], waited_s[waited_s > 0]
        in_vain = ~settled_n[rows]
        price = np.where(in_vain, self._price_n[rows], 1.0)
        self._account_s_n[rows] -= price * _shares(waited_s)
        used_up = rows[in_vain & (self._account_s_n[rows] < since_s)]
        self._price_n[used_up] = np.minimum(self._MOST_EXPENSIVE, 2 * self._price_n[used_up])

    def refill(
        self,
        f: int,
        live_n: np.ndarray,
        settled_s_n: np.ndarray,
        elapsed_s: float,
        full_s: float,
    ) -> None:
        """Gives a round's time to the workers, and notes how long each has taken."""
        if math.isinf(full_s):
            return  # whoever is waited for is waited for without an end
        if f:
            lacks_s_n = np.maximum(0.0, full_s - self._account_s_n)
            most_s = max(elapsed_s / (2 * f), _level(lacks_s_n[lacks_s_n > 0], elapsed_s / 2))
            self._account_s_n += np.minimum(lacks_s_n, most_s)
            # Who has not settled would have taken longer.
            taken_s_n = np.where(np.isnan(settled_s_n), elapsed_s, settled_s_n)
            np.copyto(self._times_s_rn[self._next], taken_s_n, where=live_n)
            self._next = (self._next + 1) % self._ROUNDS
            if live_n.any():
                usual_s_n = np.partition(self._times_s_rn, self._RANK, axis=0)[self._RANK]
                nth = most_of(int(live_n.sum()), f) - 1
                self.free_s = float(np.partition(usual_s_n[live_n], nth)[nth])
        np.minimum(self._account_s_n, full_s, out=self._account_s_n)
        is_enough_n = (self._account_s_n >= self.free_s) & (self._account_s_n > 0)
        self.of_next_n = tuple(np.where(is_enough_n, self._account_s_n, 0.0).tolist())


def _quantile(times_s: Sequence[float], share: float) -> float:
    """Returns the quantile of times in order, as np.quantile does, which takes 20 times as long.

    >>> _quantile([1.0, 2.0, 4.0], 0.75)
    3.0
    """
    at = share * (len(times_s) - 1)
    low, high = math.floor(at), math.ceil(at)
    return times_s[low] + (at - low) * (times_s[high] - times_s[low])


def _at(values: Sequence[float], rows: np.ndarray) -> np.ndarray:
    return np.array([values[row] for row in rows.tolist()])


def _shares(waited_s: np.ndarray) -> np.ndarray:
    """Returns what each pays of waits that began together: at any time all who remain pay alike.

    >>> _shares(np.array([3.0, 1.0]))
    array([2.5, 0.5])
    """
    order = np.argsort(waited_s, kind="stable")
    remaining = np.arange(len(waited_s), 0, -1)
    paid = np.empty(len(waited_s))
    paid[order] = np.cumsum(np.diff(waited_s[order], prepend=0.0) / remaining)
    return paid


def _level(lacks_s: np.ndarray, total_s: float) -> float:
    """Returns what each may get at most so that together they get `total_s`, or all they lack.

    >>> _level(np.array([1.0, 9.0, 9.0]), 7.0), _level(np.array([1.0]), 7.0)
    (3.0, inf)
    """
    lacks_s = np.sort(lacks_s)
    before_s = np.cumsum(lacks_s) - lacks_s
    levels_s = (total_s - before_s) / np.arange(len(lacks_s), 0, -1)
    over = np.flatnonzero(levels_s <= lacks_s)
    return float(levels_s[over[0]]) if len(over) else math.inf


class Grace:
    """How long an early close waits for what was overtaken: not where nothing is.

    What comes late shows that it should have waited, and it does in the next 100 rounds if more
    than f workers have been late in the last 100: f alone could want it. The wait, in which the
    processor falls asleep, would cost every round of a lossy network some 5%.

    Attributes:
      current: seconds, for the next round.
    """

    _FIRST, _AGAIN = 5, 100  # rounds

    def __init__(self, grace_s: float, num_workers: int, f: int = 0) -> None:
        """Starts with waiting."""
        self.current = grace_s
        self._grace_s = grace_s
        self._f = f
        self._rounds = self._FIRST
        self._late_for_n = np.zeros(num_workers, np.int64)  # rounds

    def observe(self, late_n: np.ndarray | Sequence[int]) -> None:
        """Learns how many datagrams of each worker came after the close since the round before."""
        is_late_n = np.asarray(late_n) > 0
        self._late_for_n = np.where(is_late_n, self._AGAIN, np.maximum(0, self._late_for_n - 1))
        if is_late_n.any() and np.count_nonzero(self._late_for_n) > self._f:
            self._rounds = self._AGAIN
        else:
            self._rounds = max(0, self._rounds - 1)
        self.current = self._grace_s if self._rounds else 0.0


class Liveness:
    """Which workers a round waits for: those heard in one of the last `patience` rounds.

    Attributes:
      live: for each worker whether the next round waits for it; all at the start.
    """

    def __init__(self, num_workers: int, patience: int = 3) -> None:
        """Starts with all alive.

        Raises:
          ValueError: patience is below 1.
        """
        if patience < 1:
            raise ValueError(
                f"a worker is dead after 1 silent round or more, got patience={patience}. "
                "Pass at least 1."
            )
        self.live = (True,) * num_workers
        self._patience = patience
        self._silent_rounds_n = np.zeros(num_workers, np.int64)
        self._gone: set[int] = set()  # since the last round

    def forget(self, row: int) -> None:
        """Learns that a worker is gone before its silence shows it."""
        self._gone.add(row)
        self._silent_rounds_n[row] = self._patience
        self.live = tuple((self._silent_rounds_n < self._patience).tolist())

    def observe(self, heard_n: np.ndarray) -> None:
        """Learns who was heard in a round, bool [n].

        Of who was forgotten meanwhile it was before that, as far as anybody knows.
        """
        heard_n = np.array(heard_n)
        while self._gone:
            heard_n[self._gone.pop()] = False
        self._silent_rounds_n = np.where(heard_n, 0, self._silent_rounds_n + 1)
        self.live = tuple((self._silent_rounds_n < self._patience).tolist())
