"""A link whose ends all live in one process, driven by one thread."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lossympi.link import (
    FLOATS_PER_DATAGRAM,
    Ahead,
    Collected,
    Idle,
    LinkError,
    Model,
    RoundStats,
    ServerLink,
    WorkerLink,
    WorkerStats,
    check_array,
    check_broadcasts,
    check_collects,
    check_round,
    check_wait,
    delivered_share,
    floats_of,
    num_datagrams,
)
from lossympi.network import LOSSLESS, OVERHEAD_BYTES, Network
from lossympi.timeout import Deadline, Liveness

DATAGRAM_BYTES = 4 * FLOATS_PER_DATAGRAM + OVERHEAD_BYTES
# A row is resent at most so often: a network that loses half leaves 2^-64 of it.
MOST_RESENDINGS = 64


def connect(
    num_workers: int,
    dim: int,
    network: Network = LOSSLESS,
    *,
    deadline_s: float = math.inf,
    grace_s: float = math.inf,
    quorum: int | None = None,
    max_loss: float = 1.0,
    patience: int = 3,
    send_bps: float = math.inf,
) -> tuple[ServerLink, list[WorkerLink]]:
    """Returns the server's end and the workers' ends of a new link.

    A round is opened by its first `send` and ended by `collect`, which never waits: a worker that
    has not sent by then has nothing arrived. What of the rest comes in time is decided on a clock
    of the round's own, by the rules of ``WIRE.md``; without further arguments all that comes at all
    is in time. Only gradients cross `network`; parameters are never lost. The link holds
    num_workers * dim * 4 bytes for the stack, which every round reuses: the holes of a round hold
    bytes of earlier rounds, as in any receive buffer. It holds as much again for what is on the
    way, if the network or the arguments ask for more than independent losses.

    Args:
      num_workers: n, at least 1.
      dim: d, floats in a gradient, at least 1.
      network: what happens to datagrams; all of them arrive at once if not given.
      deadline_s: the user's cap on the time of a round.
      grace_s: how long nothing may come before an early close. Infinite: until nothing more will
        come for what is settled, which only a link without a real clock can know.
      quorum: how many live rows must be settled for an early close, 1..n; all if not given.
      max_loss: share of a row that may be missing, 0..1; what exceeds it is sent again.
      patience: a worker unheard for so many rounds is not waited for, until it is heard.
      send_bps: bit/s of IP packets at which a worker sends.
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
    if not 0 <= max_loss <= 1:
        raise ValueError(f"max_loss is a share of a row in 0..1, got {max_loss}. Pass 1 for any.")
    if not send_bps > 0:
        raise ValueError(f"send_bps is above 0, got {send_bps}. Pass inf for all at once.")
    server = _Server(
        num_workers,
        dim,
        network,
        deadline=Deadline(deadline_s),
        liveness=Liveness(num_workers, patience),
        grace_s=grace_s,
        quorum=quorum,
        max_loss=max_loss,
        interval_s=8 * DATAGRAM_BYTES / send_bps,
    )
    return server, [_Worker(rank, server) for rank in range(num_workers)]


class _Server:
    """The server's end; it also holds all that is shared between the ends."""

    def __init__(
        self,
        num_workers: int,
        dim: int,
        network: Network,
        *,
        deadline: Deadline,
        liveness: Liveness,
        grace_s: float,
        quorum: int | None,
        max_loss: float,
        interval_s: float,
    ) -> None:
        self.num_workers = num_workers
        self.dim = dim
        self._network = network
        self._deadline = deadline
        self._liveness = liveness
        self._grace_s = grace_s
        self._quorum = quorum
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
        self._collected_round = -1
        self._params_d: np.ndarray | None = None
        self._params_round = -1
        self._closed = False

    def collect(self, round: int, ahead: Ahead | None = None) -> Collected:
        """Ends `round` and returns what arrived in it; does not wait.

        Raises:
          ValueError: the link is closed, the round was collected before, or workers sent for
            another one.
        """
        self._check_not_closed()
        self._check_round("collect", round)
        traffic = self._at_once_traffic() if self._at_once else self._traffic(round)
        closed_by, elapsed_s = _closing(
            traffic, self._liveness.live, self._quorum, self._grace_s, self._deadline.current
        )
        if not self._at_once:
            self._arrived_nc = traffic.came_s_nc <= elapsed_s
            for rank in self._senders:
                self._write(rank, self._sent_nd[rank])
        stats = self._stats(round, traffic, closed_by, elapsed_s)
        live_n = np.array(self._liveness.live)
        unsettled_n = live_n & (traffic.settled_s_n > elapsed_s)
        unsettled = float(unsettled_n.sum() / max(1, sum(self._liveness.live)))
        self._deadline.observe(elapsed_s, closed_by, unsettled)
        self._liveness.observe(np.any(self._arrived_nc, axis=1))
        collected = Collected(round, self._stack_nd, self._arrived_nc, stats=stats)
        self._arrived_nc = np.zeros_like(self._arrived_nc)
        self._senders.clear()
        self._open_round = None
        self._collected_round = round
        return collected

    def broadcast(self, round: int, params_d: np.ndarray) -> None:
        """Copies the parameters of `round`, float32 [d], for every worker to receive.

        Raises:
          ValueError: the link is closed, the parameters have another shape or dtype, or the round
            is not later than the one broadcast before.
        """
        self._check_not_closed()
        check_array("params_d", params_d, np.float32, (self.dim,))
        check_broadcasts(round, self._params_round)
        # A new copy each round: what a worker received must not change while it still reads it.
        self._params_d = params_d.copy()
        self._params_d.setflags(write=False)
        self._params_round = round

    def waiting_for(self) -> list[int]:
        """Returns []: `collect` never waits."""
        return []

    def forget(self, row: int) -> None:
        """Waits for a worker no more, from the next round on, until it is heard again."""
        self._liveness.forget(row)

    def native(self) -> None:
        """C has nothing to write to."""

    def close(self) -> None:
        """Ends the link for every end."""
        self._closed = True

    def accept(self, rank: int, round: int, grad_d: np.ndarray) -> None:
        """Takes a worker's gradient; what arrives of it is written into its row, now or in time."""
        self._check_not_closed()
        check_array("grad_d", grad_d, np.float32, (self.dim,))
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

    def has_model(self, round: int) -> bool:
        """Returns whether parameters of `round` or later have been broadcast."""
        self._check_not_closed()
        return round <= self._params_round

    def model(self, rank: int, round: int) -> Model:
        """Returns the parameters broadcast last, if they are of `round` or later."""
        self._check_not_closed()
        if self._params_d is None or round > self._params_round:
            last = "nothing" if self._params_d is None else f"round {self._params_round} last"
            raise LinkError(
                f"worker {rank} waits for the server's parameters of round {round}, but the server "
                f"has broadcast {last}. Broadcast round {round} before it is received."
            )
        return Model(self._params_round, self._params_d.view())

    def _write(self, rank: int, grad_d: np.ndarray) -> None:
        arrived_d = floats_of(self._arrived_nc[rank], self.dim)
        np.copyto(self._stack_nd[rank], grad_d, where=arrived_d)

    def _at_once_traffic(self) -> "_Traffic":
        """What has arrived came at 0, and so did the end of each row of which anything did."""
        n = self.num_workers
        return _Traffic(
            complete_s_n=np.where(self._arrived_nc.all(axis=1), 0.0, np.inf),
            settled_s_n=np.where(self._arrived_nc.any(axis=1), 0.0, np.inf),
            came_s_nc=np.empty((n, 0)),
            copies_s_nc=[],
            forged_n=np.zeros(n, int),
        )

    def _traffic(self, round: int) -> "_Traffic":
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
            resendable_n &= start_s_n <= self._deadline.current
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
        self, round: int, traffic: "_Traffic", closed_by: str, elapsed_s: float
    ) -> RoundStats:
        arrived_nc = self._arrived_nc
        in_time_n = np.zeros(self.num_workers, int)
        late_n = np.zeros(self.num_workers, int)
        for copy_s_nc in traffic.copies_s_nc:
            in_time_n += np.count_nonzero(copy_s_nc <= elapsed_s, axis=1)
            late_n += np.count_nonzero((elapsed_s < copy_s_nc) & (copy_s_nc < np.inf), axis=1)
        written_n = np.count_nonzero(traffic.came_s_nc <= elapsed_s, axis=1)
        settled_s_n = np.where(traffic.settled_s_n <= elapsed_s, traffic.settled_s_n, np.nan)
        workers = zip(
            delivered_share(arrived_nc, self.dim, FLOATS_PER_DATAGRAM).tolist(),
            np.any(arrived_nc, axis=1).tolist(),
            self._liveness.live,
            settled_s_n.tolist(),
            np.count_nonzero(arrived_nc, axis=1).tolist(),
            late_n.tolist(),
            (in_time_n - written_n).tolist(),
            [{"forged": forged} if forged else {} for forged in traffic.forged_n.tolist()],
            strict=True,
        )
        return RoundStats(
            round,
            closed_by,
            elapsed_s,
            self._deadline.current,
            tuple(WorkerStats(*worker) for worker in workers),
        )

    def _check_round(self, caller: str, round: int) -> None:
        check_round(round)
        if self._open_round is not None and round != self._open_round:
            raise ValueError(
                f"one round is collected at a time; round {self._open_round} is being collected, "
                f"{caller} named round {round}. Finish round {self._open_round} first."
            )
        check_collects(round, self._collected_round, f"{caller} named")

    def _check_not_closed(self) -> None:
        if self._closed:
            raise ValueError("the server has closed this link. Connect a new one.")


class _Worker:
    """A worker's end."""

    def __init__(self, rank: int, server: _Server) -> None:
        self.rank = rank
        self.dim = server.dim
        self._server = server
        self._closed = False

    def send(self, round: int, grad_d: np.ndarray, wait_s: float | None = None) -> bool | None:
        """Sends the gradient of `round`, float32 [d], through the network; it always leaves whole.

        It never waits, whatever `wait_s` is.

        Raises:
          ValueError: an end is closed, the gradient has another shape or dtype, the round is not
            the one being collected, or this worker has sent in it before.
        """
        self._check_not_closed()
        check_wait(wait_s)
        self._server.accept(self.rank, round, grad_d)
        return True

    def receive(self, round: int, wait_s: float | None = None) -> Model | None:
        """Returns the newest parameters, of `round` or later.

        It never waits: with a `wait_s` it returns None where it would raise a LinkError.

        Raises:
          ValueError: an end is closed.
          LinkError: the server has not broadcast `round` yet.
        """
        self._check_not_closed()
        check_wait(wait_s)
        if wait_s is not None and not self._server.has_model(round):
            return None
        return self._server.model(self.rank, round)

    def native(self, idle: Idle) -> None:
        """C has nothing to call."""

    def close(self) -> None:
        """Ends this worker's end only."""
        self._closed = True

    def _check_not_closed(self) -> None:
        if self._closed:
            raise ValueError(f"worker {self.rank} has closed its end. Connect a new link.")


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


def _closing(
    traffic: _Traffic,
    live_n: Sequence[bool],
    quorum: int | None,
    grace_s: float,
    deadline_s: float,
) -> tuple[str, float]:
    """Returns what closes a round, and when: the first of complete, early and deadline."""
    live = np.flatnonzero(live_n)
    complete_s = float(traffic.complete_s_n[live].max()) if live.size else np.inf
    settled_s = np.sort(traffic.settled_s_n[live])
    needed = min(quorum or len(live), len(live))  # who is dead cannot be needed
    early_s = np.inf
    if 1 <= needed <= len(live) and settled_s[needed - 1] < np.inf:
        came_s_lc = traffic.came_s_nc[live]
        of_settled = came_s_lc >= traffic.settled_s_n[live][:, None]
        came_s = np.concatenate([settled_s, came_s_lc[of_settled]])
        came_s = np.sort(came_s[(settled_s[needed - 1] <= came_s) & (came_s < np.inf)])
        last = np.argmax(np.diff(came_s, append=np.inf) >= grace_s)  # then nothing, for grace_s
        early_s = float(came_s[last]) + (grace_s if grace_s < np.inf else 0)
    ways = [("complete", complete_s), ("early", early_s), ("deadline", deadline_s)]
    closed_by, elapsed_s = min(ways, key=lambda way: way[1])  # the first of equal ones
    if elapsed_s == np.inf:  # no deadline: when nothing more can come
        return "deadline", float(_last_s_n(traffic.came_s_nc).max())
    return closed_by, elapsed_s


def _last_s_n(came_s_nc: np.ndarray) -> np.ndarray:
    """Returns when the last datagram of each row came, 0 if none did."""
    return np.max(came_s_nc, axis=1, initial=0, where=came_s_nc < np.inf)
