"""For how long broadcasts last, whatever fewer than half of the workers do: on a virtual clock."""

import heapq
import math
import random

import pytest

from lossympi import backend
from lossympi.credit import Credit
from lossympi.plane import protocol
from lossympi.plane.packet import Header, Kind

N, F = 9, 4
SESSION, C = 7, 5
LAYOUT = 0, N, SESSION, 8 * C, 8, "float32", 260, 0
SILENCE_S, HURRY_S = 0.5, 0.02
BETWEEN_S = 0.05  # broadcasts: the rest of a round
ROUNDS = 120
KINDS = {"python": (protocol.ServerProtocol, protocol.PeerLayout)}
if backend.native() is not None:
    KINDS["native"] = backend.native().ServerProtocol, backend.native().PeerLayout

# What a Byzantine worker does: (when, what) from the start of a broadcast, in which most are done
# at t. It is given the number of the broadcast, its own number and the latest time of all.
NEVER = math.inf


def last(t):
    return 4 * t + SILENCE_S - 0.002


def heard_until(end):
    """Returns READYs that keep a worker from being silent."""
    return [(0.1 * (1 + i), Kind.READY) for i in range(int(end / 0.1))]


def done_at(when):
    return [*heard_until(when), (when, Kind.DONE)]


BEHAVIOURS = {
    "honest": lambda t, round, who, rng: done_at(t),
    "silent": lambda t, round, who, rng: [],
    "only heard": lambda t, round, who, rng: heard_until(10.0),
    "in the last moment": lambda t, round, who, rng: done_at(last(t)),
    "late, late, done": lambda t, round, who, rng: done_at(last(t) if round % 3 else t),
    "every second time": lambda t, round, who, rng: done_at(last(t) if round % 2 else t),
    "as late as is free": lambda t, round, who, rng: done_at(t + max(t, HURRY_S) - 1e-6),
    "a little later": lambda t, round, who, rng: done_at(t + max(t, HURRY_S) + 0.03),
    "in turn": lambda t, round, who, rng: done_at(last(t) if round % F == who else t),
    "good at first": lambda t, round, who, rng: done_at(last(t) if round > 50 else t),
    "thrifty": lambda t, round, who, rng: done_at(last(t) if round % 16 == 0 else t),
    "at random": lambda t, round, who, rng: done_at(rng.uniform(0, last(t))),
    "NACKs": lambda t, round, who, rng: [(0.02 * i, Kind.NACK) for i in range(1, 500)],
    "half NACKs, done last": lambda t, round, who, rng: sorted(
        [*((0.05 * i, Kind.NACK) for i in range(1, int(last(t) / 0.05))), (last(t), Kind.DONE)]
    ),
    "leaves last": lambda t, round, who, rng: [*heard_until(last(t)), (last(t), Kind.BYE)],
}


class Sim:
    """A server that broadcasts to N workers, the last F of which do as they like."""

    def __init__(self, kind, behave):
        make, layout = KINDS[kind]
        self.server, self.now = make(layout(*LAYOUT)), 100.0
        self._behave, self._rng = behave, random.Random(1)
        self._counter = 0

    def broadcast(self, round, t):
        """Returns how long it took, and who was served."""
        begun, rows = self.now, range(N)
        plans = [done_at(t * (0.9 + 0.1 * row / (N - F - 1))) for row in range(N - F)]
        plans += [self._behave(t, round, who, self._rng) for who in range(F)]
        events = [
            (begun + when, row, what)
            for row, plan in zip(rows, plans, strict=True)
            for when, what in plan
        ]
        heapq.heapify(events)
        queue = self.server.start_broadcast(round, list(rows), 9, SILENCE_S, begun)
        while (action := queue.next(self.now))[0] != "finished":
            if action[0] != "wait":
                continue
            next_event = events[0][0] if events else math.inf
            self.now = min(action[1], next_event)
            while events and events[0][0] <= self.now:
                _, row, kind = heapq.heappop(events)
                self._hear(row, kind, round)
        done_n = self.server.end_broadcast(self.now)
        return self.now - begun, done_n

    def _hear(self, row, kind, round):
        self._counter += 1
        round = 0 if kind == Kind.BYE else round
        total, payload = (C, b"\x1f") if kind == Kind.NACK else (0, b"")
        header = Header(int(kind), row + 1, SESSION, round, 0, total, self._counter)
        assert self.server.handle(row, header, payload, self.now)[0] == "accepted"


def bound_s(t):
    """Returns what WIRE.md says that the broadcasts take at most, with the time between."""
    at_most = ROUNDS * (t + max(t, HURRY_S)) + F * (2 * SILENCE_S + 3 * t)
    return 4 / 3 * at_most + ROUNDS * BETWEEN_S / 3


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("t", [0.005, 0.1])
@pytest.mark.parametrize("name", BEHAVIOURS)
def test_all_broadcasts_together_end_in_time(kind, t, name):
    sim, took_s = Sim(kind, BEHAVIOURS[name]), 0.0
    for round in range(1, ROUNDS + 1):
        elapsed_s, done_n = sim.broadcast(round, t)
        assert all(done_n[: N - F])  # the honest ones always get it
        took_s += elapsed_s
        sim.now += BETWEEN_S
    assert ROUNDS * t * 0.999 <= took_s <= bound_s(t)
    if name == "honest":
        assert took_s == pytest.approx(ROUNDS * t)


@pytest.mark.parametrize("kind", KINDS)
def test_who_is_done_in_the_last_moment_is_left_behind_as_who_is_silent(kind):
    for behave in (BEHAVIOURS["in the last moment"], BEHAVIOURS["silent"]):
        sim = Sim(kind, behave)
        took_s = []
        for round in range(1, 31):
            elapsed_s, done_n = sim.broadcast(round, 0.02)
            took_s.append(elapsed_s)
        assert took_s[0] > 0.4
        assert took_s[-1] == pytest.approx(0.04)
        assert not any(done_n[N - F :])


@pytest.mark.parametrize("kind", KINDS)
def test_who_is_late_now_and_then_is_waited_for(kind):
    """A process that the scheduler forgets for 60 ms, in a twentieth of the rounds."""
    sim = Sim(kind, lambda t, round, who, rng: done_at(t + 0.06 * (rng.random() < 0.05)))
    for round in range(1, 1001):
        _, done_n = sim.broadcast(round, 0.005)
        assert all(done_n)
        sim.now += BETWEEN_S


CREDITS = {"python": Credit}
if backend.native() is not None:
    CREDITS["native"] = backend.native().Credit


@pytest.mark.parametrize("kind", CREDITS)
def test_credit_is_used_up_and_comes_back_with_time(kind):
    credit = CREDITS[kind](2)
    credit.refill(0.5, 7.0)
    credit.charge(0, 0.5)
    assert not credit.in_debt(0)  # it had as much
    credit.charge(0, 0.25)
    assert credit.in_debt(0)
    assert not credit.in_debt(1)
    credit.refill(0.5, 7.75)  # of 1 s a quarter
    assert credit.in_debt(0)
    credit.refill(0.5, 8.0)
    assert not credit.in_debt(0)
    credit.refill(0.5, 1000.0)
    credit.charge(0, 0.625)  # more than there may ever be
    assert credit.in_debt(0)


def mpi_broadcasts(behave, t):
    """Returns how long broadcasts take over MPI, where only who has taken one counts."""
    from lossympi.mpi_link import BroadcastWait

    credit, now, took_s, rng = Credit(N), 100.0, 0.0, random.Random(1)
    for round in range(1, ROUNDS + 1):
        begun, taken_at = now, [t * (0.9 + 0.1 * row / (N - F - 1)) for row in range(N - F)]
        for who in range(F):
            plan = behave(t, round, who, rng)
            taken_at.append(min((at for at, what in plan if what == Kind.DONE), default=NEVER))
        wait = BroadcastWait(set(range(N)), credit, 30.0, now)
        while True:
            sending = [row for row in range(N) if begun + taken_at[row] > now]
            left_s = wait.left_s(sending, now)
            if left_s <= 0:
                break
            now = min([now + left_s, *(begun + taken_at[row] for row in sending)])
        assert not set(sending) & set(range(N - F))
        took_s += now - begun
        now += BETWEEN_S
    return took_s


@pytest.mark.parametrize("t", [0.005, 0.1, 1.0])
@pytest.mark.parametrize("name", BEHAVIOURS)
def test_all_broadcasts_over_mpi_together_end_in_time(name, t):
    pytest.importorskip("mpi4py")
    took_s = mpi_broadcasts(BEHAVIOURS[name], t)
    assert ROUNDS * t * 0.999 <= took_s <= bound_s(t)
    if name == "honest":
        assert took_s == pytest.approx(ROUNDS * t)
