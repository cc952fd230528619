"""What f workers can do to the sum of the rounds' times, on a virtual clock, for each link."""

import heapq
import itertools
import math
from types import SimpleNamespace

import numpy as np
import pytest

from lossympi import backend, lossless_link
from lossympi.endpoint import ClosePolicy
from lossympi.lossless_link import OpenRound
from lossympi.plane import close_rule
from lossympi.timeout import Waiting

N, F, ROUNDS, C = 9, 3, 1000, 10  # C datagrams make a row
CAP_S, PATIENCE, USUAL_S = 10.0, 3, 0.02
GRACE_S = 0.0003
HONEST = N - F  # the first rows
NOTHING = math.inf, 0, ""
then = itertools.chain


class Udp:
    """Rounds that are closed by a plane's close rule."""

    floor_s = 0.0

    def __init__(self, rule):
        self._rule = rule

    def play(self, terms, events, max_loss, quiet_s=0.1):
        """Returns the reason, the time, when each row was settled, and who was heard."""
        policy = ClosePolicy(
            *(terms.deadline_s, GRACE_S, quiet_s, max_loss, N, terms.live_n, 1),
            *(terms.f, terms.longest_s, terms.free_s, terms.allowance_s_n),
        )
        rule = self._rule(policy, N, C, 0.0)
        heard_n, missing = np.zeros(N, bool), [C] * N
        now, coming = 0.0, next(events, NOTHING)
        while (answer := rule.check(now))[0] is None:
            now = min(coming[0], answer[1])
            if now == coming[0]:
                _, row, what = coming
                coming = next(events, NOTHING)
                heard_n[row] = True
                if what == "whole":
                    missing[row] = 0
                    rule.heard(row, now, 0)
                elif what == "data" and missing[row] > 1:
                    missing[row] -= 1
                    rule.heard(row, now, missing[row])
                elif what == "end":
                    rule.ended(row, now)
                elif what == "pause":
                    rule.pauses(row)
        if hasattr(rule, "settled_s"):
            settled_s_n = np.array(rule.settled_s)
        else:
            settled_s_n = np.array([rule.settled_at(row) for row in range(N)])
        return answer[0], now, settled_s_n, heard_n


class Lossless:
    """Rounds of MPI, where a gradient comes whole, or late: a sign of life."""

    floor_s = CAP_S

    def play(self, terms, events, *_):
        """As ``Udp.play``."""
        opened = OpenRound(0, terms)
        opened.opened_s, now, coming = 0.0, 0.0, next(events, NOTHING)
        lossless_link.time.now = now
        while (answer := opened.check(N))[0] is None:
            now = lossless_link.time.now = min(coming[0], now + max(1e-9, answer[1]))
            if now == coming[0]:
                _, row, what = coming
                coming = next(events, NOTHING)
                if what != "whole":
                    opened.count(row, "late")
                elif not opened.arrived_n[row]:
                    opened.arrive(row)
        return answer[0], now, opened.settled_s_n, opened.heard_n


@pytest.fixture(params=["udp native", "udp python", "lossless"])
def link(request, monkeypatch):
    clock = SimpleNamespace(now=0.0)
    clock.monotonic = lambda: clock.now
    monkeypatch.setattr(lossless_link, "time", clock)
    if request.param == "lossless":
        return Lossless()
    if request.param == "udp python":
        return Udp(close_rule.CloseRule)
    if backend.native() is None:
        pytest.skip(backend.why_not_native())
    return Udp(backend.native().CloseRule)


def limit_s(terms, row, honest_s):
    """The time at which a round gives a row up, if the honest ones come at these times."""
    base_s = max(terms.free_s, float(np.sort(honest_s)[N - 2 * F - 1]))
    return min(terms.longest_s, base_s + terms.allowance_s_n[row])


def whole_at(seconds):
    return [(seconds, "whole")]


def drip(begin_s=0.0, every_s=0.09, what="data"):
    """Comes again and again, for ever."""
    return ((begin_s + every_s * k, what) for k in itertools.count())


# What an attacker sends in a round, as (seconds, what): round, terms, row, times of honest rows.
BEHAVIOURS = {
    "silent": lambda *_: [],
    "READY only": lambda *_: drip(every_s=0.05, what="ready"),
    "END with too much missing": lambda *_: then([(0.001, "data")], drip(0.002, 0.01, "end")),
    "a drip every 90 ms": lambda *_: drip(),
    "a pause is announced": lambda *_: then([(0.001, "data")], drip(0.001, 0.05, "pause")),
    "last at 0.98 t_B": lambda r, terms, *_: whole_at(0.98 * terms.deadline_s),
    "last before it is given up": lambda r, terms, row, honest_s: whole_at(
        0.999 * limit_s(terms, row, honest_s)
    ),
    "just too late": lambda r, terms, row, honest_s: [
        (0.0, "ready"),
        *whole_at(1.001 * limit_s(terms, row, honest_s)),
    ],
    "alternates": lambda r, *_: whole_at(USUAL_S) if r % 2 else drip(),
    "stalls each 14th round": lambda r, *_: drip() if r % 14 == 13 else whole_at(USUAL_S),
    "dies and returns": lambda r, *_: whole_at(USUAL_S) if r // 6 % 2 else [],
    "one at a time": lambda r, terms, row, honest_s: (
        whole_at(0.999 * limit_s(terms, row, honest_s)) if r % F == row % F else whole_at(0.0)
    ),
    "fast, then slow": lambda r, *_: whole_at(0.0) if r < 500 else drip(),
    "twice as slow": lambda *_: whole_at(2 * USUAL_S),
    "as long as is free": lambda r, terms, *_: whole_at(max(USUAL_S, 0.999 * terms.free_s)),
    "heavy tail": lambda r, terms, row, _: whole_at(
        USUAL_S * np.random.default_rng([r, row]).pareto(0.5)
    ),
    "a drip within the grace": lambda *_: then(
        [(0.001, "data"), (0.002, "end")], itertools.islice(drip(0.002, 0.0002), 60)
    ),
    "quiet in the middle": lambda *_: [(0.001, "data"), (0.15, "data"), (0.35, "data")],
    "first of all": lambda *_: whole_at(0.0),
}


def of_row(row, events):
    return ((seconds, row, what) for seconds, what in events)


def usual(rng):
    """Honest workers: 20 to 22 ms."""
    return USUAL_S * (1 + 0.1 * rng.random((ROUNDS, HONEST)))


class Played:
    """A thousand rounds: their times, what the bound says, and what honest workers lost."""

    def __init__(self, link, behaviour, honest_s_rn, f=F, max_loss=1.0):
        waiting = Waiting(N, patience=PATIENCE, f=f, cap_s=CAP_S, floor_s=link.floor_s)
        self.terms, self.elapsed_s, self.lost_rn = [], [], []
        for r, honest_s in enumerate(honest_s_rn):
            terms = waiting.terms()
            honest = ((s, row, "whole") for row, s in enumerate(honest_s.tolist()))
            others = (
                of_row(row, behaviour(r, terms, row, honest_s)) for row in range(len(honest_s), N)
            )
            events = heapq.merge(sorted(honest), *others)
            reason, elapsed_s, settled_s_n, heard_n = link.play(terms, events, max_loss)
            waiting.observe(
                terms,
                live_n=terms.live_n,
                settled_s_n=settled_s_n,
                heard_n=heard_n,
                elapsed_s=elapsed_s,
                closed_by=reason,
            )
            self.terms.append(terms)
            self.elapsed_s.append(elapsed_s)
            self.lost_rn.append(np.isnan(settled_s_n[: len(honest_s)]))
        self.total_s = sum(self.elapsed_s)
        longest_s_r = np.minimum(CAP_S, honest_s_rn.max(axis=1))
        self.alone_s = longest_s_r.sum()
        second_s_r = [
            np.sort(honest_s_rn[max(0, r - 20) : r], axis=0)[-2:][:1].max(initial=0.0)
            for r in range(len(honest_s_rn))
        ]
        free_s = np.maximum(longest_s_r, second_s_r).sum()
        grace_s = 2 * GRACE_S * len(honest_s_rn)
        self.bound_s = 2 * (free_s + F * PATIENCE * CAP_S) + grace_s


@pytest.mark.parametrize("name", BEHAVIOURS)
def test_no_behaviour_of_f_workers_makes_rounds_much_longer(name, link, rng):
    max_loss = 0.5 if "END" in name else 1.0
    played = Played(link, BEHAVIOURS[name], usual(rng), max_loss=max_loss)
    assert played.total_s <= played.bound_s
    assert not np.any(played.lost_rn)
    # What they have taken in the last half is no more than the honest workers' time.
    assert sum(played.elapsed_s[500:]) <= 2.5 * played.alone_s / 2 + (
        2 * F * PATIENCE * CAP_S if "then slow" in name or "14th" in name else 0
    )


@pytest.mark.parametrize(
    "name", ["READY only", "a drip every 90 ms", "a pause is announced", "silent"]
)
def test_who_never_comes_costs_next_to_nothing_in_the_end(name, link, rng):
    played = Played(link, BEHAVIOURS[name], usual(rng))
    assert sum(played.elapsed_s[500:]) <= 1.2 * played.alone_s / 2


@pytest.mark.parametrize("name", ["READY only", "first of all", "last before it is given up"])
def test_t_b_comes_down_after_slow_first_rounds(name, link, rng):
    """As where all trace and compile."""
    honest_s_rn = usual(rng)[:200]
    honest_s_rn[:10] *= 100
    played = Played(link, BEHAVIOURS[name], honest_s_rn)
    last = played.terms[-1]
    assert last.deadline_s <= max(link.floor_s, 1.5 * 1.1 * USUAL_S)
    assert last.free_s <= 1.1 * USUAL_S
    assert not np.any(played.lost_rn)


@pytest.mark.parametrize("name", [None, "READY only", "first of all"])
def test_an_honest_worker_that_pauses_once_is_back_soon(name, link, rng):
    """A phase of 20 s, in which it sends nothing in time."""
    honest_s_rn = usual(rng)[:400]
    if name is None:
        honest_s_rn = np.hstack([honest_s_rn, USUAL_S * (1 + 0.1 * rng.random((400, F)))])
    honest_s_rn[100:105, 0] = math.inf
    behaviour = BEHAVIOURS[name or "silent"]
    played = Played(link, behaviour, honest_s_rn)
    lost_rn = np.array(played.lost_rn)
    assert lost_rn[100:105, 0].all()
    assert not lost_rn[:100].any()
    assert not lost_rn[105:].any()
    assert not lost_rn[:, 1:].any()


def pauses(rng, shape):
    return 1.0 * np.where(rng.random(shape) < 0.01, 100, 1 + 0.1 * rng.random(shape))


# How honest workers' times are distributed; and of all rows, how many may be lost at most, over
# UDP with nothing to hold t_B up, and without UDP. Of pauses that take 100 times as long as a round
# UDP loses most, as it does not wait so long; but nothing else.
DELAYS = {
    "exponential": (lambda rng, shape: rng.exponential(size=shape), 0.02, 0.0),
    "lognormal": (lambda rng, shape: rng.lognormal(0, 1, shape), 0.03, 0.0),
    "narrow lognormal": (lambda rng, shape: rng.lognormal(0, 0.3, shape), 0.001, 0.0),
    "pauses in 1%": (pauses, 0.011, 0.001),
    "one is 1.9 times as slow": (
        lambda rng, shape: (1 + 0.1 * rng.random(shape)) * np.where(np.arange(shape[1]), 1, 1.9),
        0.0,
        0.0,
    ),
    "usual": (lambda rng, shape: 1 + 0.1 * rng.random(shape), 0.0, 0.0),
}


@pytest.mark.parametrize("num_first", [0, F])
@pytest.mark.parametrize("name", DELAYS)
def test_honest_workers_lose_few_rows(name, num_first, link):
    """All are honest, or f are attackers that come first, to make the others look late."""
    delays, most_over_udp, most_without = DELAYS[name]
    rng = np.random.default_rng(7)
    honest_s_rn = USUAL_S * delays(rng, (ROUNDS, N - num_first))
    played = Played(link, BEHAVIOURS["first of all"], honest_s_rn)
    lost_rn = np.array(played.lost_rn)
    most = most_without if link.floor_s else most_over_udp * (1 if num_first == 0 else 1.5)
    assert lost_rn.mean() <= most
    if "pauses" in name:
        assert not lost_rn[honest_s_rn < 50 * USUAL_S].any()


def test_a_wait_is_charged_to_those_that_it_is_for():
    """Each moment in equal parts, and nothing before all but f are there or to who is given up."""
    waiting = Waiting(4, patience=1, f=2, cap_s=8.0)
    terms = waiting.terms()
    assert (terms.f, terms.deadline_s, terms.longest_s, terms.free_s) == (2, 8.0, 8.0, 0.0)
    assert terms.allowance_s_n == (8.0,) * 4

    def observe(settled_s_n, elapsed_s, closed_by="early"):
        waiting.observe(
            waiting.terms(),
            live_n=(True,) * 4,
            settled_s_n=np.array(settled_s_n, float),
            heard_n=np.ones(4, bool),
            elapsed_s=elapsed_s,
            closed_by=closed_by,
        )
        return waiting.terms().allowance_s_n

    # u = 1: 2 s of both, 2 s of the last; half of 5 s goes to those that lack something.
    assert observe([1, 0.5, 3, 5], 5) == (8, 8, 8 - 1 + 1, 8 - 3 + 1.5)
    # u = 2, to which the 6.5 s of the last, who is not there, come: 2.5 s, then 4 s of it alone.
    after = observe([2, 2, 4.5, math.nan], 8.0, "deadline")
    assert after == (8, 8, 8 - 1.25 + 1.25, pytest.approx(6.5 - 1.25 - 3.5 + 2.75))


@pytest.mark.parametrize(("f", "tolerated"), [(None, [0, 0, 1, 1, 2]), (1, [1] * 5), (0, [0] * 5)])
def test_where_f_is_unknown_fewer_than_half_of_the_live_workers_may_be_byzantine(f, tolerated):
    for n, expected in enumerate(tolerated, 1):
        assert Waiting(n, f=f, cap_s=1.0).terms().f == expected
