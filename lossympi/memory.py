"""A link whose ends all live in one process, driven by one thread."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from lossympi.checked_link import (
    CheckedServerLink,
    CheckedWorkerLink,
    check_later,
    check_round,
)
from lossympi.closing import closed_by
from lossympi.float64_link import floats_per_value, of_dtype
from lossympi.link import (
    FLOATS_PER_DATAGRAM,
    Arrival,
    Collected,
    LinkError,
    Model,
    OnColumns,
    RoundStats,
    ServerLink,
    WorkerLink,
    WorkerStats,
    delivered_share,
    floats_of,
    num_datagrams,
)
from lossympi.network import LOSSLESS, OVERHEAD_BYTES, Network
from lossympi.timeout import Terms, Waiting, most_of

DATAGRAM_BYTES = 4 * FLOATS_PER_DATAGRAM + OVERHEAD_BYTES
# A row is resent at most so often: a network that loses half leaves 2^-64 of it.
MOST_RESENDINGS = 64


def connect(
    num_workers: int,
    dim: int,
    network: Network = LOSSLESS,
    *,
    dtype: DTypeLike = np.float32,
    deadline_s: float = math.inf,
    grace_s: float = math.inf,
    f: int | None = None,
    quorum: int | None = None,
    max_loss: float = 1.0,
    patience: int = 3,
    send_bps: float = math.inf,
    arrivals: bool = False,
) -> tuple[ServerLink, list[WorkerLink]]:
    """Returns the server's end and the workers' ends of a new link.

    A round is opened by its first `send` and ended by `collect`, which never waits: a worker that
    has not sent by then has nothing arrived. What of the rest comes in time is decided on a clock
    of the round's own, by the rules of ``WIRE.md``; without further arguments all that comes at all
    is in time. Only gradients cross `network`; parameters are never lost. The link holds
    the stack, num_workers * dim values, which every round reuses: the holes of a round hold
    bytes of earlier rounds, as in any receive buffer. It holds as much again for what is on the
    way, if the network or the arguments ask for more than independent losses.

    Args:
      num_workers: n, at least 1.
      dim: d, values in a gradient, at least 1.
      network: what happens to datagrams; all of them arrive at once if not given.
      dtype: of the values, float32 or float64.
      deadline_s: the user's cap on the time of a round.
      f: how many workers may be Byzantine, below n; they can keep the others waiting only as long
        as ``lossympi.timeout`` says. None: fewer than half of the live ones.
      grace_s: how long nothing may come for each row of the quorum before an early close.
        Infinite: until nothing more will come for it, which only a link without a real clock can
        know.
      quorum: how many live rows must be settled for an early close, 1..n; all if not given.
      max_loss: share of a row that may be missing, 0..1; what exceeds it is sent again.
      patience: after this many silent rounds the server no longer waits for a worker, until
        it hears it again.
      send_bps: bit/s of IP packets at which a worker sends.
      arrivals: gradients come one by one, for `take` and `reply`: whole, as no network loses
        anything of them, and at once.
    Raises:
      ValueError: an argument is out of range, or the network names a worker that is not there.
    """
    if num_workers < 1:
        raise ValueError(f"a link needs at least 1 worker, got num_workers={num_workers}. Add one.")
    strangers = sorted(network.workers - set(range(num_workers)))
    if strangers:
        raise ValueError(
            f"the network names workers of the link, 0..{num_workers - 1}; got {strangers}. "
            "Leave them out or add workers."
        )
    if not grace_s >= 0:
        raise ValueError(f"grace_s is at least 0 seconds, got {grace_s}. Pass 0 for none.")
    if quorum is not None and not 1 <= quorum <= num_workers:
        raise ValueError(
            f"a quorum is 1..n workers; n is {num_workers}, got {quorum}. Pass None for all."
        )
    if f is not None and not 0 <= f < num_workers:
        raise ValueError(
            f"f is 0..n-1 workers; n is {num_workers}, got {f}. Pass None for unknown."
        )
    if not 0 <= max_loss <= 1:
        raise ValueError(f"max_loss is a share of a row in 0..1, got {max_loss}. Pass 1 for any.")
    if not send_bps > 0:
        raise ValueError(f"send_bps is above 0, got {send_bps}. Pass inf for all at once.")
    if arrivals and not (network.instant and network.loss == 0):
        raise ValueError(
            "gradients that come one by one come whole and at once; got a network that loses or "
            "delays. Leave it out."
        )
    kind = _TakingServer if arrivals else _Server
    server = kind(
        num_workers,
        dim * floats_per_value(dtype),
        network,
        waiting=Waiting(num_workers, patience=patience, f=f, cap_s=deadline_s),
        grace_s=grace_s,
        quorum=quorum,
        max_loss=max_loss,
        interval_s=8 * DATAGRAM_BYTES / send_bps,
    )
    workers = [_Worker(rank, server) for rank in range(num_workers)]
    return of_dtype(server, dtype), [of_dtype(worker, dtype) for worker in workers]


class _Server(CheckedServerLink):
    """The server's end; it also holds all that is shared between the ends."""

    def __init__(
        self,
        num_workers: int,
        dim: int,
        network: Network,
        *,
        waiting: Waiting,
        grace_s: float,
        quorum: int | None,
        max_loss: float,
        interval_s: float,
    ) -> None:
        super().__init__(num_workers, dim, waiting)
        self._network = network
        self._grace_s = grace_s
        self._quorum = quorum or num_workers
        self._max_loss = max_loss
        self._interval_s = interval_s
        self._stack_nd = np.zeros((num_workers, dim), np.float32)
        self._arrived_nc = np.zeros((num_workers, num_datagrams(dim)), bool)
        # At once, without times: the bits of the losses are all there is to know. Otherwise what
        # comes in time is known when all have sent; until then the gradients are on the way.
        self._at_once = network.instant and max_loss == 1 and interval_s == 0
        self._sent_nd = self._stack_nd if self._at_once else np.zeros_like(self._stack_nd)
        self._senders: set[int] = set()
        self._open_round: int | None = None
        self._params_d: np.ndarray | None = None

    def _collect(self, round: int, on_columns: OnColumns | None) -> Collected:
        """Ends `round` and returns what arrived in it; does not wait."""
        terms = self._waiting.terms()
        traffic = self._at_once_traffic() if self._at_once else self._traffic(round, terms)
        reason, elapsed_s = _closing(traffic, terms, self._quorum, self._grace_s)
        if not self._at_once:
            self._arrived_nc = traffic.came_s_nc <= elapsed_s
            for rank in self._senders:
                self._write(rank, self._sent_nd[rank])
        settled_s_n = np.where(traffic.settled_s_n <= elapsed_s, traffic.settled_s_n, np.nan)
        stats = self._stats(round, terms, traffic, settled_s_n, reason, elapsed_s)
        self._waiting.observe(
            terms,
            live_n=terms.live_n,
            settled_s_n=settled_s_n,
            heard_n=np.any(self._arrived_nc, axis=1),
            elapsed_s=elapsed_s,
            closed_by=reason,
        )
        collected = Collected(round, self._stack_nd, self._arrived_nc, stats=stats)
        self._arrived_nc = np.zeros_like(self._arrived_nc)
        self._senders.clear()
        self._open_round = None
        return collected

    def _broadcast(self, round: int, params_d: np.ndarray) -> None:
        """Copies the parameters for every worker to receive."""
        # A new copy each round: what a worker received must not change while it still reads it.
        self._params_d = params_d.copy()
        self._params_d.setflags(write=False)

    def _waiting_for(self) -> list[int]:
        """Returns []: `collect` never waits."""
        return []

    def _forget(self, row: int) -> None:
        """No round is open long enough to learn it."""

    def _close(self) -> None:
        """Ends the link for every end."""

    def accept(self, rank: int, round: int, grad_d: np.ndarray) -> None:
        """Takes a worker's gradient; what arrives of it is written into its row, now or in time."""
        self._check_not_closed()
        self._check_round(f"worker {rank}'s send", round)
        if rank in self._senders:
            raise ValueError(
                f"a worker sends once a round; worker {rank} has sent for round {round} already. "
                "Collect the round before sending again."
            )
        if self._at_once:
            num_datagrams = self._arrived_nc.shape[1]
            self._arrived_nc[rank] = self._network.arrived(round, rank, num_datagrams)
            self._write(rank, grad_d)
        else:
            self._sent_nd[rank] = grad_d
        self._senders.add(rank)
        self._open_round = round

    def model(self, rank: int, round: int, wait_s: float) -> Model | None:
        """Returns the parameters broadcast last, if they are of `round` or later.

        Raises:
          LinkError: they are not, and the worker would wait for ever.
        """
        self._check_not_closed()
        if self._params_d is not None and round <= self._broadcast_round:
            return Model(self._broadcast_round, self._params_d.view())
        if wait_s < math.inf:
            return None
        last = "nothing" if self._params_d is None else f"round {self._broadcast_round} last"
        raise LinkError(
            f"worker {rank} waits for the server's parameters of round {round}, but the server "
            f"has broadcast {last}. Broadcast round {round} before it is received."
        )

    def _write(self, rank: int, grad_d: np.ndarray) -> None:
        arrived_d = floats_of(self._arrived_nc[rank], self.dim)
        np.copyto(self._stack_nd[rank], grad_d, where=arrived_d)

    def _at_once_traffic(self) -> "_Traffic":
        """What has arrived came at 0, and with the first of a row its end."""
        n = self.num_workers
        return _Traffic(
            complete_s_n=np.where(self._arrived_nc.all(axis=1), 0.0, np.inf),
            settled_s_n=np.where(self._arrived_nc.any(axis=1), 0.0, np.inf),
            came_s_nc=np.empty((n, 0)),
            copies_s_nc=[],
            forged_n=np.zeros(n, int),
        )

    def _traffic(self, round: int, terms: Terms) -> "_Traffic":
        """Sends all rows, and again what is missing of those that miss too much.

        A row's resending starts when the last of it has come, whose END asks for the NACK that
        takes ``delay_s``; it finds the bottleneck's queue empty.
        """
        n, c = self._arrived_nc.shape
        network = self._network
        resendable_n = np.isin(np.arange(n), [*self._senders]) & ~network.silent_n(round, n)
        wanted_nc = np.broadcast_to(resendable_n[:, None], (n, c))
        start_s_n = network.start_s_n(n)
        came_s_nc = np.full((n, c), np.inf)
        copies_s_nc = []
        forged_n = np.zeros(n, int)
        for attempt in range(1 + MOST_RESENDINGS):
            *copies, damaged_nc = network.arrivals(
                round,
                wanted_nc,
                start_s_n,
                self._interval_s,
                datagram_bytes=DATAGRAM_BYTES,
                attempt=attempt,
            )
            for copy_s_nc in copies:
                forged_n += np.count_nonzero(damaged_nc & (copy_s_nc < np.inf), axis=1)
                copy_s_nc[damaged_nc] = np.inf
                came_s_nc = np.minimum(came_s_nc, copy_s_nc)
                start_s_n = np.maximum(start_s_n, _last_s_n(copy_s_nc))
            copies_s_nc += copies
            start_s_n = start_s_n + network.delay_s
            missing_nc = np.isinf(came_s_nc)
            resendable_n &= missing_nc.mean(axis=1) > self._max_loss
            resendable_n &= start_s_n <= terms.longest_s
            if not resendable_n.any():
                break
            wanted_nc = missing_nc & resendable_n[:, None]
        return _Traffic(
            complete_s_n=came_s_nc.max(axis=1),
            settled_s_n=_settled_s_n(came_s_nc, self._max_loss),
            came_s_nc=came_s_nc,
            copies_s_nc=copies_s_nc,
            forged_n=forged_n,
        )

    def _stats(
        self,
        round: int,
        terms: Terms,
        traffic: "_Traffic",
        settled_s_n: np.ndarray,
        reason: str,
        elapsed_s: float,
    ) -> RoundStats:
        arrived_nc = self._arrived_nc
        in_time_n = np.zeros(self.num_workers, int)
        late_n = np.zeros(self.num_workers, int)
        for copy_s_nc in traffic.copies_s_nc:
            in_time_n += np.count_nonzero(copy_s_nc <= elapsed_s, axis=1)
            late_n += np.count_nonzero((elapsed_s < copy_s_nc) & (copy_s_nc < np.inf), axis=1)
        written_n = np.count_nonzero(traffic.came_s_nc <= elapsed_s, axis=1)
        workers = zip(
            delivered_share(arrived_nc, self.dim, FLOATS_PER_DATAGRAM).tolist(),
            np.any(arrived_nc, axis=1).tolist(),
            terms.live_n,
            terms.allowance_s_n,
            settled_s_n.tolist(),
            np.count_nonzero(arrived_nc, axis=1).tolist(),
            late_n.tolist(),
            (in_time_n - written_n).tolist(),
            [{"forged": forged} if forged else {} for forged in traffic.forged_n.tolist()],
            strict=True,
        )
        return RoundStats(
            round,
            reason,
            elapsed_s,
            terms.deadline_s,
            tuple(WorkerStats(*worker) for worker in workers),
        )

    def _check_collect(self, round: int) -> None:
        self._check_round("collect", round)

    def _check_round(self, caller: str, round: int) -> None:
        check_round(round)
        if self._open_round is not None and round != self._open_round:
            raise ValueError(
                f"one round is collected at a time; round {self._open_round} is being collected, "
                f"{caller} named round {round}. Finish round {self._open_round} first."
            )
        check_later(round, self._collected_round, f"{caller} named")


class _TakingServer(_Server):
    """The server's end of a link on which gradients come one by one."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._came_n = np.zeros(self.num_workers, bool)  # and is not answered
        self._models: dict[int, Model] = {}

    def _check_collect(self, round: int) -> None:
        raise ValueError("gradients come one by one on this link. Take and reply.")

    def _take(self, wait_s: float) -> Arrival | None:
        """Never waits: all that comes has come."""
        return self._next(self._stack_nd, self._came_n)

    def _reply(self, row: int, ticket: int, params_d: np.ndarray) -> None:
        """Copies the parameters for the worker to receive."""
        params_d = params_d.copy()
        params_d.setflags(write=False)
        self._models[row] = Model(ticket, params_d)
        self._came_n[row] = False

    def _waiting_for(self) -> list[int]:
        return np.flatnonzero(~self._came_n).tolist()

    def accept(self, rank: int, round: int, grad_d: np.ndarray) -> None:
        """Takes a worker's gradient, unless it is not the one that is wanted of it."""
        self._check_not_closed()
        wanted = self._tickets[rank]
        if round != wanted or self._came_n[rank]:
            reason = "late" if round < wanted else "early" if round > wanted else "duplicate"
            self._dropped_of[rank][reason] += 1
            return
        self._stack_nd[rank] = grad_d
        self._came_n[rank] = True

    def model(self, rank: int, round: int, wait_s: float) -> Model | None:
        """Returns the newest answer to a worker, if it is to this ticket or a later one.

        Raises:
          LinkError: it is not, and the worker would wait for ever.
        """
        self._check_not_closed()
        model = self._models.get(rank)
        if model is not None and round <= model.round:
            return model
        if wait_s < math.inf:
            return None
        raise LinkError(
            f"worker {rank} waits for the server's answer to its gradient {round}, which was not "
            "given. Take it and reply before that is received."
        )


class _Worker(CheckedWorkerLink):
    """A worker's end, whose verbs never wait."""

    def __init__(self, rank: int, server: _Server) -> None:
        super().__init__(rank, server.dim)
        self._server = server

    def _send(self, round: int, grad_d: np.ndarray, wait_s: float) -> bool:
        """Sends the gradient through the network; it always leaves whole.

        Raises:
          ValueError: the server's end is closed, the round is not the one being collected, or this
            worker has sent in it before.
        """
        self._server.accept(self.rank, round, grad_d)
        return True

    def _receive(self, round: int, wait_s: float) -> Model | None:
        """Returns the newest parameters.

        Raises:
          ValueError: the server's end is closed.
          LinkError: the server has not broadcast `round` yet, and `wait_s` is infinite.
        """
        return self._server.model(self.rank, round, wait_s)

    def _server_left(self) -> bool:
        return False  # `model` raises where it has

    def _close(self) -> None:
        """Nothing is left to end."""


@dataclass(frozen=True, eq=False)
class _Traffic:
    """What comes of a round's gradients, on a clock that starts with the round; inf for never.

    Attributes:
      complete_s_n: when all of each row has come.
      settled_s_n: when each row is settled.
      came_s_nc: when each datagram comes first; [n, 0] if nothing comes after 0.
      copies_s_nc: when each comes, for every sending and its duplicates.
      forged_n: damaged datagrams that come.
    """

    complete_s_n: np.ndarray
    settled_s_n: np.ndarray
    came_s_nc: np.ndarray
    copies_s_nc: list[np.ndarray]
    forged_n: np.ndarray


def _settled_s_n(came_s_nc: np.ndarray, max_loss: float) -> np.ndarray:
    """Returns when the rows have ENDed and no more than `max_loss` of them is missing.

    END comes with the highest datagram that comes: what is overtaken comes after it. Of a row that
    is complete both have come.
    """
    c = came_s_nc.shape[1]
    some_n = (came_s_nc < np.inf).any(axis=1)
    highest_n = c - 1 - np.argmax(came_s_nc[:, ::-1] < np.inf, axis=1)
    end_s_n = np.where(some_n, came_s_nc[np.arange(len(came_s_nc)), highest_n], np.inf)
    most_missing = np.count_nonzero(np.arange(c + 1) / c <= max_loss) - 1
    if most_missing == c:
        return end_s_n
    needed = c - most_missing
    return np.maximum(end_s_n, np.partition(came_s_nc, needed - 1, axis=1)[:, needed - 1])


def _closing(traffic: _Traffic, terms: Terms, quorum: int, grace_s: float) -> tuple[str, float]:
    """Returns what closes a round, and when: the first time at which the rule says so.

    It is asked at each time at which a row becomes complete or idle, or is given up, or the round
    may wait no longer.
    """
    live = np.flatnonzero(terms.live_n)
    complete_s_l, settled_s_l = traffic.complete_s_n[live], traffic.settled_s_n[live]
    idle_s_k, busy_s_k = _idle_times_s(traffic.came_s_nc[live], settled_s_l, grace_s)
    given_up_s_l = np.full(len(live), np.inf)
    ends_s = terms.deadline_s
    if terms.f and len(live):
        most_s = np.sort(settled_s_l)[most_of(len(live), terms.f) - 1]
        if most_s <= ends_s:
            ends_s = terms.longest_s
            given_up_s_l = max(terms.free_s, most_s) + np.array(terms.allowance_s_n)[live]
    times_s = np.concatenate([complete_s_l, idle_s_k, given_up_s_l, [ends_s]])
    for now in np.unique(times_s[times_s < np.inf]).tolist():
        num_complete = int((complete_s_l <= now).sum())
        num_idle = int(((idle_s_k <= now) & (now < busy_s_k)).sum())
        num_given_up = int(((given_up_s_l <= now) & (now < settled_s_l)).sum())
        reason = closed_by(len(live), num_complete, num_idle, quorum, now >= ends_s, num_given_up)
        if reason is not None:
            return reason, now
    return "deadline", float(_last_s_n(traffic.came_s_nc).max())  # nothing more can come


def _idle_times_s(
    came_s_lc: np.ndarray, settled_s_l: np.ndarray, grace_s: float
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the beginnings and the ends, [k] each, of the times in which a row is idle.

    It is so once it is settled and nothing has come for it for `grace_s`, until something comes,
    and in any case once it has been settled for twice as long. An infinite grace ends when nothing
    more will come for the row.
    """
    came_s_lc = np.column_stack([settled_s_l, came_s_lc])  # with END, or what came with it
    came_s_lc = np.sort(np.where(came_s_lc < settled_s_l[:, None], np.inf, came_s_lc), axis=1)
    next_s_lc = np.append(came_s_lc[:, 1:], np.full((len(came_s_lc), 1), np.inf), axis=1)
    if grace_s == np.inf:
        idle_s_lc, is_idle_lc = came_s_lc, next_s_lc == np.inf
    else:
        idle_s_lc = came_s_lc + grace_s
        is_idle_lc = next_s_lc > idle_s_lc
    at_last_s_l = settled_s_l + 2 * grace_s
    is_idle_lc &= idle_s_lc < at_last_s_l[:, None]
    busy_s_lc = np.minimum(next_s_lc, at_last_s_l[:, None])
    at_last_s_l = at_last_s_l[at_last_s_l < np.inf]
    return (
        np.append(idle_s_lc[is_idle_lc], at_last_s_l),
        np.append(busy_s_lc[is_idle_lc], np.full(len(at_last_s_l), np.inf)),
    )


def _last_s_n(came_s_nc: np.ndarray) -> np.ndarray:
    """Returns when the last datagram of each row came, 0 if none did."""
    return np.max(came_s_nc, axis=1, initial=0, where=came_s_nc < np.inf)
