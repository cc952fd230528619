"""A link between MPI ranks whose gradients and parameters travel over UDP (``WIRE.md``)."""

from __future__ import annotations

import time
from functools import partial

import numpy as np

from lossympi.endpoint import REASONS, Closed, ClosePolicy, Endpoint
from lossympi.link import (
    Ahead,
    Collected,
    Idle,
    Model,
    Rounds,
    RoundStats,
    WorkerStats,
    aligned_zeros,
    check_array,
    check_broadcasts,
    check_collects,
    check_round,
    check_server,
    check_wait,
    columns_of,
    delivered_share,
)
from lossympi.options import Options
from lossympi.planes import core
from lossympi.rate import Rate
from lossympi.timeout import Deadline, Grace, Liveness

# WIRE.md counts rounds from 1; a link counts from 0.
_FIRST = 1
_TRY_AGAIN = 16  # rounds


class UdpServer:
    """The server's end; ``connect`` makes it."""

    def __init__(
        self, endpoint: Endpoint, num_workers: int, dim: int, rate_bps: float, options: Options
    ) -> None:
        """Takes over a started endpoint that knows its peers."""
        self.num_workers = num_workers
        self.dim = dim
        self._options = options
        self._endpoint = endpoint
        self._rate = Rate(rate_bps)
        self._stack_nd = aligned_zeros((num_workers, dim))
        self._deadline = Deadline(cap_s=options.timeout_s, floor_s=options.floor_s)
        self._grace = Grace(options.grace_s)
        self._liveness = Liveness(num_workers, patience=options.patience)
        self._left_behind_n = np.zeros(num_workers, np.int64)  # broadcasts, one after the other
        self._counters = endpoint.counters()
        self._collected_round = -1
        self._broadcast_round = -1
        self._waiting_for: list[int] = []
        self._closed = False

    def collect(self, round: int, ahead: Ahead | None = None) -> Collected:
        """Grants `round` to the workers and returns what came in before it was closed.

        Args:
          round: its number.
          ahead: is told of columns that all workers' datagrams have filled, while others arrive.
        Raises:
          ValueError: the link is closed, or the round was collected before.
        """
        self._check_not_closed()
        check_round(round)
        check_collects(round, self._collected_round)
        live_n = self._liveness.live
        num_live = max(1, sum(live_n))
        policy = ClosePolicy(
            deadline_s=self._deadline.current,
            grace_s=self._grace.current,
            quiet_s=self._options.quiet_s,
            max_loss=self._options.max_loss,
            quorum=self._options.quorum or self.num_workers,
            live_n=live_n,
            # Who is dead may come back, but no share of the rate is kept for it.
            rate_kbps=max(1, int(self._rate.bps / 1000 / num_live)),
        )
        self._waiting_for = np.flatnonzero(live_n).tolist()
        on_whole = None if ahead is None else partial(self._tell, ahead)
        try:
            closed = self._endpoint.collect(round + _FIRST, self._stack_nd, policy, on_whole)
        finally:
            self._waiting_for = []
        self._collected_round = round
        stats = self._stats(round, closed, policy)
        settled_n = ~np.isnan(closed.settled_s_n)
        unsettled = 1 - np.count_nonzero(settled_n & live_n) / num_live
        self._deadline.observe(closed.elapsed_s, closed.reason, unsettled)
        self._grace.observe(sum(worker.late for worker in stats.workers))
        self._liveness.observe(closed.heard_n)
        return Collected(
            round, self._stack_nd, closed.arrived_nc, self._options.floats_per_datagram, stats
        )

    def broadcast(self, round: int, params_d: np.ndarray) -> None:
        """Sends the parameters of `round`, float32 [d], to every live worker, every byte of them.

        A worker that stays silent, or has not got all when the timeout has passed, is left behind;
        the next broadcast catches it up.

        Raises:
          ValueError: the link is closed, the parameters have another shape or dtype, or the round
            is not later than the one broadcast before.
        """
        self._check_not_closed()
        check_round(round)
        check_array("params_d", params_d, np.float32, (self.dim,))
        check_broadcasts(round, self._broadcast_round)
        self._broadcast_round = round
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

    def _tell(self, ahead: Ahead, datagrams_k: np.ndarray) -> None:
        floats = self._options.floats_per_datagram
        ahead(self._stack_nd, columns_of(datagrams_k, self.dim, floats))

    def _served(self) -> tuple[bool, ...]:
        """Who gets the parameters: live workers, but rarely those that never have enough of them.

        Waiting for such a worker costs the others time in every round, which a Byzantine one could
        want. It is tried again in every 16th.
        """
        patient_n = self._left_behind_n < self._options.patience
        again = self._broadcast_round % _TRY_AGAIN == 0
        return tuple(
            live and (again or bool(patient))
            for live, patient in zip(self._liveness.live, patient_n, strict=True)
        )

    def waiting_for(self) -> list[int]:
        """Returns the live rows while a round is open, which of them have come or not, else [].

        It may be called from another thread.
        """
        return self._waiting_for

    def forget(self, row: int) -> None:
        """Waits for a worker no more, from the next round on, until it is heard again."""
        self._liveness.forget(row)

    def native(self) -> None:
        """C has nothing to write to."""

    def close(self) -> None:
        """Tells the workers that it leaves, and ends the link."""
        if not self._closed:
            self._closed = True
            self._endpoint.close()

    def _stats(self, round: int, closed: Closed, policy: ClosePolicy) -> RoundStats:
        before, self._counters = self._counters, self._endpoint.counters()
        others = {
            reason: count - before[-1].get(reason, 0)
            for reason, count in self._counters[-1].items()
            if count > before[-1].get(reason, 0)
        }
        self._rate.observe(others.get("overflow", 0))
        delivered_n = delivered_share(
            closed.arrived_nc, self.dim, self._options.floats_per_datagram
        )
        workers = []
        for row in range(self.num_workers):
            new = {
                reason: self._counters[row + 1][reason] - before[row + 1][reason]
                for reason in ("accepted", *REASONS)
            }
            workers.append(
                WorkerStats(
                    delivered=float(delivered_n[row]),
                    heard=bool(closed.heard_n[row]),
                    live=policy.live_n[row],
                    settled_s=float(closed.settled_s_n[row]),
                    accepted=new.pop("accepted"),
                    late=new.pop("late"),
                    duplicate=new.pop("duplicate"),
                    rejected={reason: count for reason, count in new.items() if count},
                )
            )
        return RoundStats(
            round, closed.reason, closed.elapsed_s, policy.deadline_s, tuple(workers), others
        )

    def _check_not_closed(self) -> None:
        if self._closed:
            raise ValueError("the server has closed this link. Connect a new one.")


class UdpWorker:
    """A worker's end; ``connect`` makes it."""

    def __init__(self, endpoint: Endpoint, rank: int, dim: int, options: Options) -> None:
        """Takes over a started endpoint that knows the server."""
        self.rank = rank
        self.dim = dim
        self._endpoint = endpoint
        self._options = options
        self._held: Model | None = None  # what `receive` returned last
        self._closed = False

    def send(self, round: int, grad_d: np.ndarray, wait_s: float | None = None) -> bool | None:
        """Sends the gradient of `round`, float32 [d], when the server grants it.

        Args:
          round: its number.
          grad_d: the gradient.
          wait_s: how long the grant and the sending may take; None for `give_up_s`.
        Returns:
          False if the server closed the round before all of it had left; None if `wait_s` has
          passed first: another call, with the same gradient, goes on.
        Raises:
          ValueError: the end is closed, or the gradient has another shape or dtype.
          LinkError: the server has left, or says nothing for `give_up_s`.
        """
        self._check_not_closed()
        check_round(round)
        check_array("grad_d", grad_d, np.float32, (self.dim,))
        check_wait(wait_s)
        begun = time.monotonic()
        limit_s = self._limit_s(wait_s)
        sent = self._endpoint.send(
            round + _FIRST, np.ascontiguousarray(grad_d), self._options.max_loss, limit_s
        )
        if not sent:
            self._check_server(f"grant round {round}", begun)
            if time.monotonic() - begun >= limit_s:
                return None
        return sent

    def receive(self, round: int, wait_s: float | None = None) -> Model | None:
        """Returns the newest parameters, of `round` or later.

        A worker that was away gets those of a later round: the next gradient that the server wants
        is that of ``model.round + 1``.

        Args:
          round: the first that is wanted.
          wait_s: how long to wait for it; None for `give_up_s`.
        Returns:
          The parameters; None if `wait_s` has passed first.
        Raises:
          ValueError: the end is closed.
          LinkError: the server has left, or sends nothing for `give_up_s`.
        """
        self._check_not_closed()
        check_round(round)
        check_wait(wait_s)
        begun = time.monotonic()
        held = self._held
        if held is not None and held.round >= round:
            newer = self._endpoint.receive(held.round + 1 + _FIRST, 0.0)  # only if it is there
        else:
            held = None
            newer = self._endpoint.receive(round + _FIRST, self._limit_s(wait_s))
        if newer is not None:
            self._held = held = Model(newer[0] - _FIRST, newer[1])
        if held is None:
            self._check_server(f"send the parameters of round {round}", begun)
        return held

    def native(self, idle: Idle) -> Rounds | None:
        """Returns what C may call in place of `send` and `receive`; None with the Python plane."""
        if core() is None or not isinstance(self._endpoint, core().Endpoint):
            return None
        return core().WorkerRounds(self._endpoint, self._options.max_loss, idle)

    def close(self) -> None:
        """Ends this worker's end only."""
        if not self._closed:
            self._closed = True
            self._endpoint.close()

    def _limit_s(self, wait_s: float | None) -> float:
        give_up_s = self._options.give_up_s
        return give_up_s if wait_s is None else min(wait_s, give_up_s)

    def _check_server(self, awaited: str, begun: float) -> None:
        """Raises if a verb ended because there is no server any more."""
        left, waited_s = self._endpoint.server_left(), time.monotonic() - begun
        check_server(self.rank, awaited, left, waited_s, self._options.give_up_s)

    def _check_not_closed(self) -> None:
        if self._closed:
            raise ValueError(f"worker {self.rank} has closed its end. Connect a new link.")
