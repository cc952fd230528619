"""A seeded model of what a network does to datagrams."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from lossympi.rng import generator

# What an IP packet carries beside the floats: 20 (IPv4) + 8 (UDP) + 32 (header) + 16 (tag).
OVERHEAD_BYTES = 76
# At most this many later datagrams overtake one that is held back.
MOST_HELD_BACK = 8


@dataclass(frozen=True)
class Network:
    """What happens to the datagrams between the workers and the server.

    A datagram leaves its worker, may be lost, damaged or doubled, takes ``delay_s`` and a share of
    ``jitter_s``, may be held back, and then waits for its turn at the server's bottleneck. Each of
    these draws from a stream of its own: turning one on changes nothing that another draws.

    Attributes:
      loss: probability that a datagram is lost, 0..1.
      seed: 0 <= seed < 2^64; equal seeds do equal things.
      burst: mean length, in datagrams, of a run of losses; 1 for independent losses, where a run
        is 1 / (1 - loss) long, and no less than that otherwise. Losses are those of Gilbert's chain
        of two states: all is lost in the bad one, nothing in the good one.
      delay_s: how long a datagram travels, one way.
      jitter_s: up to how much longer, uniformly.
      reorder: probability that a datagram is held back by the time in which its worker sends
        1..8 others, uniformly; nothing is overtaken where all leave at once.
      duplicate: probability that a datagram comes twice, with a jitter of its own.
      corrupt: probability that the bytes of a datagram, and of its duplicate, are damaged.
      partitioned: worker -> (first, last) round in which nothing comes of it.
      crashed: worker -> round from which nothing comes of it any more.
      slow: worker -> (by how many seconds it starts later, factor on the time its sending takes).
      rate_bps: bit/s of IP packets that all workers share at the server.
      queue_bytes: bytes that may wait there, beside the datagram being taken in; what comes when
        the queue is full is dropped. A short last datagram counts as a whole one.
    Raises:
      ValueError: a field is out of range.
    """

    loss: float = 0.0
    seed: int = 0
    burst: float = 1.0
    delay_s: float = 0.0
    jitter_s: float = 0.0
    reorder: float = 0.0
    duplicate: float = 0.0
    corrupt: float = 0.0
    partitioned: Mapping[int, tuple[int, int]] = field(default_factory=dict, hash=False)
    crashed: Mapping[int, int] = field(default_factory=dict, hash=False)
    slow: Mapping[int, tuple[float, float]] = field(default_factory=dict, hash=False)
    rate_bps: float = math.inf
    queue_bytes: float = math.inf

    def __post_init__(self) -> None:
        """Checks every field: a bad one fails here, not in the first round."""
        for name in ("loss", "reorder", "duplicate", "corrupt"):
            value = getattr(self, name)
            if not 0 <= value <= 1:  # also false for NaN
                raise ValueError(
                    f"{name} is a probability in 0..1, got {value}. For ten percent pass 0.1."
                )
        generator("network", self.seed, 0, 0)
        independent = 1 / (1 - self.loss) if self.loss < 1 else math.inf
        if not (self.burst == 1 or independent <= self.burst < math.inf):
            raise ValueError(
                "burst is 1, for independent losses, or a finite mean length of at least "
                f"1 / (1 - loss) = {independent:g}, which independent ones have; got {self.burst}. "
                "Pass 1 or a longer one."
            )
        for name in ("delay_s", "jitter_s"):
            value = getattr(self, name)
            if not 0 <= value < math.inf:
                raise ValueError(f"{name} is a finite time >= 0, got {value}. Pass seconds.")
        if not self.rate_bps > 0:
            raise ValueError(
                f"rate_bps is above 0, got {self.rate_bps}. Pass bit/s, or inf for no limit."
            )
        if not self.queue_bytes >= 0:
            raise ValueError(
                f"queue_bytes is at least 0, got {self.queue_bytes}. Pass inf for no limit."
            )
        for worker, (first, last) in self.partitioned.items():
            if not 0 <= first <= last:
                raise ValueError(
                    f"partitioned gives the first and the last round, 0 <= first <= last; worker "
                    f"{worker} has ({first}, {last}). For one round name it twice."
                )
        for worker, since in self.crashed.items():
            if not since >= 0:
                raise ValueError(
                    f"crashed gives a round >= 0; worker {worker} has {since}. Pass 0 for always."
                )
        for worker, (start_s, factor) in self.slow.items():
            if not (0 <= start_s < math.inf and 0 < factor < math.inf):
                raise ValueError(
                    f"slow gives seconds >= 0 and a factor > 0, both finite; worker {worker} has "
                    f"({start_s}, {factor}). For a late start alone pass a factor of 1."
                )

    @property
    def instant(self) -> bool:
        """Whether the network does no more than to lose datagrams independently."""
        return self == Network(self.loss, self.seed)

    @property
    def workers(self) -> set[int]:
        """The workers that a field names."""
        return {*self.partitioned, *self.crashed, *self.slow}

    def arrived(self, round: int, worker: int, num_datagrams: int, attempt: int = 0) -> np.ndarray:
        """Returns which datagrams of a worker's gradient are not lost, bool [num_datagrams].

        A function of (seed, loss, burst, round, worker, attempt) only: neither the order of the
        calls nor a restart changes it.
        """
        purpose = _purpose("network", attempt)
        uniform_c = generator(purpose, self.seed, round, worker).random(num_datagrams)
        if self.burst == 1:
            return uniform_c >= self.loss  # uniform in [0, 1): loss 0 loses none, loss 1 loses all
        # The chain turns bad below to_bad, good from 1 - to_good on, and else stays as it is; the
        # shortest burst makes both bounds equal to the loss, which gives the line above.
        to_good = 1 / self.burst
        to_bad = to_good * self.loss / (1 - self.loss)
        bad_c = uniform_c < to_bad
        turns_c = bad_c | (uniform_c >= 1 - to_good)
        bad_c[:1], turns_c[:1] = uniform_c[:1] < self.loss, True  # starts as it is on average
        last_turn_c = np.maximum.accumulate(np.where(turns_c, np.arange(num_datagrams), 0))
        return ~bad_c[last_turn_c]

    def silent_n(self, round: int, num_workers: int) -> np.ndarray:
        """Returns the workers from which nothing comes in a round, bool [num_workers]."""
        silent_n = np.zeros(num_workers, bool)
        for worker, (first, last) in self.partitioned.items():
            silent_n[worker] |= first <= round <= last
        for worker, since in self.crashed.items():
            silent_n[worker] |= since <= round
        return silent_n

    def start_s_n(self, num_workers: int) -> np.ndarray:
        """Returns when the workers have their gradients, float64 [num_workers]."""
        return np.array([self.slow.get(worker, (0.0, 1.0))[0] for worker in range(num_workers)])

    def arrivals(
        self,
        round: int,
        wanted_nc: np.ndarray,
        start_s_n: np.ndarray,
        interval_s: float,
        *,
        datagram_bytes: int,
        attempt: int = 0,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns when the datagrams that the workers send reach the server.

        A function of the fields and the arguments only: neither the order of the calls nor a
        restart changes it.

        Args:
          round: the round.
          wanted_nc: bool [n, c], which datagrams each worker sends, in ascending order.
          start_s_n: float64 [n], when each sends its first.
          interval_s: from one datagram of a worker to its next, without ``slow``.
          datagram_bytes: of the IP packet that carries a datagram.
          attempt: 0 for the first sending, more for resendings, which are drawn anew.
        Returns:
          When each datagram comes and when its duplicate comes, both float64 [n, c], inf for never;
          and which are damaged if they come, bool [n, c].
        """
        n, c = wanted_nc.shape

        def uniform_nc(effect: str) -> np.ndarray:
            purpose = _purpose(f"network {effect}", attempt)
            return np.stack([generator(purpose, self.seed, round, w).random(c) for w in range(n)])

        arrived_nc = np.stack([self.arrived(round, w, c, attempt) for w in range(n)])
        arrived_nc &= wanted_nc & ~self.silent_n(round, n)[:, None]

        factor_n = np.array([self.slow.get(worker, (0.0, 1.0))[1] for worker in range(n)])
        interval_s_n1 = (interval_s * factor_n)[:, None]
        came_s_nc = start_s_n[:, None] + interval_s_n1 * (np.cumsum(wanted_nc, axis=1) - 1)
        came_s_nc += self.delay_s
        if self.reorder:
            held_nc = uniform_nc("reorder") < self.reorder
            held_for_nc = 1 + (MOST_HELD_BACK - 1) * uniform_nc("reorder by")
            came_s_nc += np.where(held_nc, interval_s_n1 * held_for_nc, 0)
        copy_s_nc = np.full((n, c), np.inf)
        if self.duplicate:
            doubled_nc = arrived_nc & (uniform_nc("duplicate") < self.duplicate)
            jitter_s_nc = self.jitter_s * uniform_nc("duplicate jitter")
            copy_s_nc = np.where(doubled_nc, came_s_nc + jitter_s_nc, np.inf)
        if self.jitter_s:
            came_s_nc += self.jitter_s * uniform_nc("jitter")
        came_s_nc[~arrived_nc] = np.inf

        if self.rate_bps < math.inf:
            service_s = 8 * datagram_bytes / self.rate_bps
            room = 1 + self.queue_bytes / datagram_bytes
            # Ties: earlier datagrams first, of the workers in any order, lest the last ones lose.
            offered_s = np.stack([came_s_nc, copy_s_nc])
            any_order = generator(_purpose("network queue", attempt), self.seed, round)
            keys = any_order.random((2, n, c)), np.broadcast_to(np.arange(c), (2, n, c)), offered_s
            order = np.lexsort([key.ravel() for key in keys])
            order = order[: np.count_nonzero(offered_s < np.inf)]
            taken_s = np.full(offered_s.size, np.inf)
            taken_s[order] = tail_drop(offered_s.ravel()[order], service_s, room)
            came_s_nc, copy_s_nc = taken_s.reshape(2, n, c)

        damaged_nc = np.zeros((n, c), bool)
        if self.corrupt:
            damaged_nc = uniform_nc("corrupt") < self.corrupt
        return came_s_nc, copy_s_nc, damaged_nc


LOSSLESS = Network()


def tail_drop(came_s: np.ndarray, service_s: float, room: float) -> np.ndarray:
    """Returns when each datagram has passed a queue, inf for those that it drops.

    Args:
      came_s: float64 [m], when the datagrams come, in ascending order.
      service_s: how long the queue takes for each, one after the other.
      room: how many may be in it, with the one being served, rounded down; at least 1.
    """
    passed_s = np.full(len(came_s), np.inf)
    room = int(min(room, len(came_s)))
    # Whatever is taken next takes the place of the one taken `room` datagrams before, once that has
    # passed. So who takes the next `room` places follows from when the last `room` have passed.
    last_s = np.full(room, -np.inf)
    step = np.arange(room)
    following = 0
    while following < len(came_s):
        free = np.maximum(np.searchsorted(came_s, last_s), following)
        taken = np.maximum.accumulate(free - step) + step  # the first from `free` on, one a place
        taken = taken[taken < len(came_s)]
        # Served at its coming or when the one before has passed: s_i = max(a_i, s_{i-1}) + service.
        served = service_s * np.arange(len(taken))
        ready_s = np.maximum(came_s[taken], last_s[-1])
        passed_s[taken] = np.maximum.accumulate(ready_s - served) + served + service_s
        if len(taken) < room:
            break
        last_s = passed_s[taken]
        following = int(taken[-1]) + 1
    return passed_s


def _purpose(effect: str, attempt: int) -> str:
    return effect if attempt == 0 else f"{effect}, attempt {attempt}"
