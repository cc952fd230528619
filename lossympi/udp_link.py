"""A link between MPI ranks whose gradients and parameters travel over UDP (``WIRE.md``)."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial

import numpy as np

from lossympi import backend
from lossympi.checked_link import CheckedServerLink, CheckedWorkerLink
from lossympi.endpoint import REASONS, Closed, ClosePolicy, Endpoint
from lossympi.link import (
    Arrival,
    Collected,
    Idle,
    Model,
    NativeWorkerRounds,
    OnColumns,
    RoundStats,
    WorkerStats,
    aligned_zeros,
    columns_of,
    delivered_share,
)
from lossympi.options import Options
from lossympi.plane.packet import IP_UDP_BYTES
from lossympi.rate import Rate
from lossympi.timeout import Grace, Waiting
from lossympi.topology import Topology

# WIRE.md counts rounds from 1; a link counts from 0.
_FIRST = 1
_TRY_AGAIN = 16  # rounds
# Datagrams that only their worker can have sent, and not before; those that it has sent, and
# anybody may have sent again; and those that anybody may have sent.
_FRESH = "accepted", "malformed", "early"
_REPEATED = "late", "duplicate", "replayed"
_STRAY = "truncated", "oversized", "version", "foreign"


class UdpServer(CheckedServerLink):
    """The server's end; ``connect`` makes it."""

    def __init__(
        self, endpoint: Endpoint, num_workers: int, dim: int, rate_bps: float, options: Options
    ) -> None:
        """Takes over a started endpoint that knows its peers."""
        waiting = Waiting(
            num_workers,
            patience=options.patience,
            f=options.f,
            cap_s=options.timeout_s,
            floor_s=options.floor_s,
        )
        super().__init__(num_workers, dim, waiting)
        self._worker_ranks = Topology(servers=1, workers=num_workers).worker_ranks
        self._options = options
        self._endpoint = endpoint
        self._rate = Rate(rate_bps, num_workers)
        self._stack_nd = aligned_zeros((num_workers, dim))
        self._grace = Grace(options.grace_s, num_workers, options.f or 0)
        self._left_behind_n = np.zeros(num_workers, np.int64)  # broadcasts, one after the other
        self._counters, self._counted_at = endpoint.counters(), time.monotonic()
        self._awaited: list[int] = []
        # Worker by worker: what has come of each, and how many were taken since the rate was seen.
        self._came: dict[int, Closed] = {}
        self._takes = False
        self._num_taken = 0

    def _collect(self, round: int, on_columns: OnColumns | None) -> Collected:
        """Grants `round` to the workers and returns what came in before it was closed."""
        terms = self._waiting.terms()
        policy = ClosePolicy(
            deadline_s=terms.deadline_s,
            grace_s=self._grace.current,
            quiet_s=self._options.quiet_s,
            max_loss=self._options.max_loss,
            quorum=self._options.quorum or self.num_workers,
            live_n=terms.live_n,
            rate_kbps=self._rates_kbps(),
            f=terms.f,
            longest_s=terms.longest_s,
            free_s=terms.free_s,
            allowance_s_n=terms.allowance_s_n,
        )
        self._awaited = np.flatnonzero(terms.live_n).tolist()
        on_whole = None if on_columns is None else partial(self._tell, on_columns)
        try:
            closed = self._endpoint.collect(round + _FIRST, self._stack_nd, policy, on_whole)
        finally:
            self._awaited = []
        stats = self._stats(round, closed, policy)
        self._grace.observe([worker.late for worker in stats.workers])
        self._waiting.observe(
            terms,
            live_n=terms.live_n,
            settled_s_n=closed.settled_s_n,
            heard_n=closed.heard_n,
            elapsed_s=closed.elapsed_s,
            closed_by=closed.reason,
        )
        return Collected(
            round, self._stack_nd, closed.arrived_nc, self._options.floats_per_datagram, stats
        )

    def _broadcast(self, round: int, params_d: np.ndarray) -> None:
        """Sends every byte of the parameters to every live worker.

        A worker that stays silent, or has not got all when the timeout has passed, is left behind;
        the next broadcast catches it up.
        """
        to_n = self._served()
        done_n = self._endpoint.broadcast(
            round + _FIRST,
            np.ascontiguousarray(params_d),
            to_n,
            max(1, int(self._rate.bps / 1000)),
            self._options.timeout_s,
            self._options.silence_s,
        )
        self._left_behind_n[done_n] = 0
        self._left_behind_n[np.array(to_n) & ~done_n] += 1

    def _take(self, wait_s: float) -> Arrival | None:
        """Waits for the next round of a worker to close; they are granted one by one."""
        if not self._takes:
            self._takes = True
            for row, ticket in enumerate(self._tickets):
                self._await(row, ticket)
        is_there = len(self._came) > len(self._unanswered)
        for row, closed in self._endpoint.take_closed(0.0 if is_there else wait_s):
            self._came[row] = closed
        there_n = np.isin(np.arange(self.num_workers), list(self._came))
        arrival = self._next(self._stack_nd, there_n)
        if arrival is None:
            return None
        self._num_taken += 1
        if self._num_taken >= self.num_workers:  # as often as in rounds
            self._num_taken = 0
            self._observe_news()
        arrived_c = self._came[arrival.row].arrived_nc[0]
        return arrival._replace(
            arrived_c=None if arrived_c.all() else arrived_c,
            floats_per_datagram=self._options.floats_per_datagram,
        )

    def _reply(self, row: int, ticket: int, params_d: np.ndarray) -> None:
        """Begins to send the parameters, and grants the next ticket.

        Of a worker that has not taken the last ones, these take their place.

        Cost: a copy.
        """
        del self._came[row]
        self._endpoint.reply(
            row,
            ticket + _FIRST,
            np.ascontiguousarray(params_d),
            max(1, int(self._rate.bps / 1000)),
            self._options.silence_s,
        )
        self._await(row, ticket + 1)

    def dropped(self) -> list[dict[str, int]]:
        """Returns how many datagrams of each row were dropped since the last call, by reason."""
        if self._takes:
            self._observe_news()
        return super().dropped()

    def _await(self, row: int, ticket: int) -> None:
        """Wants a gradient of a worker: nobody else waits for it, so it has all the time it may."""
        policy = ClosePolicy(
            deadline_s=self._options.timeout_s,
            grace_s=self._options.grace_s,
            quiet_s=self._options.quiet_s,
            max_loss=self._options.max_loss,
            quorum=1,
            live_n=(True,),
            rate_kbps=self._rates_kbps()[row],
        )
        self._endpoint.await_row(row, ticket + _FIRST, self._stack_nd, policy)

    def _rates_kbps(self) -> tuple[int, ...]:
        """Returns what each worker is granted: who is dead may come back, but has no share."""
        num_live = max(1, sum(self._waiting.live))
        return tuple(
            max(1, int(share * self._rate.bps / 1000 / num_live)) for share in self._rate.share_n
        )

    def _tell(self, on_columns: OnColumns, datagrams_k: np.ndarray) -> None:
        floats = self._options.floats_per_datagram
        on_columns(self._stack_nd, columns_of(datagrams_k, self.dim, floats))

    def _served(self) -> tuple[bool, ...]:
        """Who gets the parameters: live workers, but rarely those that never have enough of them.

        Waiting for such a worker costs the others time in every round, which a Byzantine one could
        want. It is tried again in every 16th.
        """
        patient_n = self._left_behind_n < self._options.patience
        again = self._broadcast_round % _TRY_AGAIN == 0
        return tuple(
            live and (again or bool(patient))
            for live, patient in zip(self._waiting.live, patient_n, strict=True)
        )

    def _waiting_for(self) -> list[int]:
        """Returns the live rows, which of them have come or not."""
        if self._takes:
            return [row for row in range(self.num_workers) if row not in self._came]
        return self._awaited

    def _forget(self, row: int) -> None:
        """The open round goes on to wait for it: its policy is fixed."""

    def _close(self) -> None:
        """Tells the workers that it leaves."""
        self._endpoint.close()

    def _stats(self, round: int, closed: Closed, policy: ClosePolicy) -> RoundStats:
        news_n, others = self._news()
        delivered_n = delivered_share(
            closed.arrived_nc, self.dim, self._options.floats_per_datagram
        )
        workers = []
        for row, counts in enumerate(news_n):
            new = dict(counts)
            workers.append(
                WorkerStats(
                    delivered=float(delivered_n[row]),
                    heard=bool(closed.heard_n[row]),
                    live=policy.live_n[row],
                    allowance_s=policy.allowance_s_n[row],
                    settled_s=float(closed.settled_s_n[row]),
                    accepted=new.pop("accepted", 0),
                    late=new.pop("late", 0),
                    duplicate=new.pop("duplicate", 0),
                    rejected=new,
                )
            )
        self._observe_rate(news_n, others, policy.rates_kbps(self.num_workers))
        return RoundStats(
            round, closed.reason, closed.elapsed_s, policy.deadline_s, tuple(workers), others
        )

    def _news(self) -> tuple[list[dict[str, int]], dict[str, int]]:
        """Returns what was counted since the last call, of each row and of nobody; without 0."""
        before, self._counters = self._counters, self._endpoint.counters()
        news = {
            rank: {
                reason: count - before[rank].get(reason, 0)
                for reason, count in counts.items()
                if count > before[rank].get(reason, 0)
            }
            for rank, counts in self._counters.items()
        }
        return [news[rank] for rank in self._worker_ranks], news[-1]

    def _observe_news(self) -> None:
        """Counts what was dropped, and adapts the rate."""
        news_n, others = self._news()
        for counts, news in zip(self._dropped_of, news_n, strict=True):
            counts.update({reason: news[reason] for reason in REASONS if reason in news})
        self._observe_rate(news_n, others, self._rates_kbps())

    def _observe_rate(
        self, news_n: list[dict[str, int]], others: dict[str, int], rates_kbps: Sequence[int]
    ) -> None:
        before, self._counted_at = self._counted_at, time.monotonic()

        def total(reasons: tuple[str, ...]) -> np.ndarray:
            return np.array([sum(news.get(each, 0) for each in reasons) for news in news_n])

        self._rate.observe(
            overflow=others.get("overflow", 0),
            fresh_n=total(_FRESH),
            repeated_n=total(_REPEATED),
            granted_n=granted_datagrams(
                rates_kbps, self._counted_at - before, self._options.mtu - IP_UDP_BYTES
            ),
            strays=sum(others.get(reason, 0) for reason in _STRAY) + int(total(("forged",)).sum()),
        )


def granted_datagrams(rates_kbps: Sequence[int], elapsed_s: float, size: int) -> np.ndarray:
    """Returns, float64 [n], how many datagrams of a size were granted, at the most.

    A quarter and 100 more, for what is sent beside DATA, and clocks that are not ours.
    """
    return 1.25 * np.array(rates_kbps) * 125 * elapsed_s / size + 100


class UdpWorker(CheckedWorkerLink):
    """A worker's end; ``connect`` makes it."""

    def __init__(self, endpoint: Endpoint, rank: int, dim: int, options: Options) -> None:
        """Takes over a started endpoint that knows the server."""
        super().__init__(rank, dim, options.give_up_s)
        self._endpoint = endpoint
        self._options = options

    def _send(self, round: int, grad_d: np.ndarray, wait_s: float) -> bool | None:
        """Sends the gradient when the server grants it; `wait_s` is for the grant and the sending.

        Returns:
          False if the server closed the round before all of it had left; None if `wait_s` has
          passed first: another call, with the same gradient, goes on.
        """
        begun = time.monotonic()
        sent = self._endpoint.send(
            round + _FIRST, np.ascontiguousarray(grad_d), self._options.max_loss, wait_s
        )
        if not sent:
            self._check_server(f"grant round {round}", begun)
            if time.monotonic() - begun >= wait_s:
                return None
        return sent

    def _receive(self, round: int, wait_s: float) -> Model | None:
        """Returns the newest parameters, in the endpoint's own memory."""
        found = self._endpoint.receive(round + _FIRST, wait_s)
        return None if found is None else Model(found[0] - _FIRST, found[1])

    def native(self, idle: Idle) -> NativeWorkerRounds | None:
        """Returns what C may call in place of `send` and `receive`; None with the Python plane."""
        if backend.native() is None or not isinstance(self._endpoint, backend.native().Endpoint):
            return None
        return backend.native().WorkerRounds(self._endpoint, self._options.max_loss, idle)

    def _server_left(self) -> bool:
        return self._endpoint.server_left()

    def _close(self) -> None:
        """Tells the server that it leaves."""
        self._endpoint.close()
