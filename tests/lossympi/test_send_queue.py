"""The send queue of both planes under a clock of our own: END, NACK, silence, leaving, turns."""

import pytest

from lossympi import backend
from lossympi.plane.send_queue import SendQueue

KINDS = {"python": SendQueue}
if backend.native() is not None:
    KINDS["native"] = backend.native().SendQueue


@pytest.fixture(params=KINDS)
def make(request):
    """Returns a function that makes a queue of a plane's with nothing in it."""
    return KINDS[request.param]


@pytest.fixture
def queue(make):
    """Returns a function that makes a queue with a whole vector in it."""

    def full(rows=(0,), c=4, most_at_once=2, until_done=True, silence=0.5, now=0.0):
        box = make(list(rows), c, most_at_once, until_done, silence, now)
        box.add_rest()
        return box

    return full


def run(box, until, now=0.0, hears=()):
    """Returns what is sent and when, up to a time, and whether that was all."""
    done = []
    while now < until:
        for row in hears:
            box.heard(row)
        what, *rest = box.next(now)
        if what == "finished":
            return done, True
        if what == "wait":
            assert rest[0] > now
            now = rest[0]
            continue
        done.append((what, *rest, pytest.approx(now)))
    return done, False


def ends(done):
    return [at for what, *_, at in done if what == "end"]


def test_bursts_then_three_ends_and_no_more(queue):
    done, finished = run(queue(until_done=False, silence=9.0), 1.0)
    assert finished
    assert done == [
        ("send", 0, [0, 1], 0),
        ("send", 0, [2, 3], 0),
        ("end", 0, 1, 0),
        ("end", 0, 2, 0),  # one of them may be lost
        ("end", 0, 3, 0.0004),
    ]
    box = queue(until_done=False, silence=9.0)
    run(box, 0.0004)
    assert [box.next(0.0004)[0] for _ in range(2)] == ["end", "finished"]  # nothing is waited for


def test_a_report_is_asked_for_after_each_quarter(queue):
    box = queue(c=400, most_at_once=50)
    kinds = [
        (what, rest[1] if what == "end" else None)
        for what, *rest in (box.next(0.0) for _ in range(13))
    ]
    send, report = ("send", None), ("end", 0)
    quarter = [send, send, report]
    assert kinds == [*quarter, *quarter, *quarter, send, send, ("end", 1), ("end", 2)]
    box.nacked(0, 7)
    assert box.next(0.0) == ("send", 0, [7])
    assert box.next(0.0) == ("end", 0, 3)  # no report any more


def test_what_is_missing_by_a_report_is_sent_with_the_rest(queue):
    box = queue(c=400, most_at_once=100)
    assert box.next(0.0)[0] == "send"
    assert box.next(0.0) == ("end", 0, 0)
    box.nacked(0, 3)
    box.nacked(0, 399)  # not sent yet: it is on its way anyway
    sent = [
        seq
        for _ in range(9)
        for what, _, *seqs in [box.next(0.0)]
        if what == "send"
        for seq in seqs[0]
    ]
    assert sorted(sent) == sorted([3, *range(100, 400)])


def test_ends_are_repeated_until_done(queue):
    box = queue()
    done, finished = run(box, 0.0325, hears=[0])
    assert not finished
    assert ends(done) == [0, 0, 0.0004, 0.0012, 0.0028, 0.006, 0.0124, 0.0224, 0.0324]
    assert [number for _, _, number, _ in done[2:]] == [*range(1, 10)]
    assert not box.is_done(0)
    box.done(0, 0.0325)
    assert box.next(0.0325) == ("finished",)
    assert box.is_done(0)
    assert box.is_finished(0)


def test_what_is_missing_is_sent_again_and_three_ends_follow(queue):
    box = queue()
    run(box, 0.0045, hears=[0])
    for seq in (3, 1, 1):
        box.nacked(0, seq)
    done, _ = run(box, 0.0061, now=0.005, hears=[0])
    assert done == [
        ("send", 0, [1, 3], 0.005),  # each once, in order
        ("end", 0, 6, 0.005),
        ("end", 0, 7, 0.005),
        ("end", 0, 8, 0.0054),
    ]


def test_a_nack_before_an_end_is_ignored(queue):
    box = queue()
    box.next(0.0)
    box.nacked(0, 0)
    done, _ = run(box, 0.0001, hears=[0])
    assert done == [("send", 0, [2, 3], 0), ("end", 0, 1, 0), ("end", 0, 2, 0)]


@pytest.mark.parametrize(
    ("first", "then", "bursts"), [(1, (0, 2), 2), (1, (0,), 1), (2, (0, 2), 1)]
)
def test_a_burst_ascends_so_that_only_its_end_may_be_short(queue, first, then, bursts):
    box = queue(c=3, most_at_once=9)
    assert box.next(0.0) == ("send", 0, [0, 1, 2])
    box.next(0.0)
    box.nacked(0, first)
    assert box.next(0.0) == ("send", 0, [first])
    assert box.next(0.0)[0] == "end"
    for seq in then:  # the search goes on behind the first
        box.nacked(0, seq)
    sent = [box.next(0.0)[2] for _ in range(bursts)]
    assert sorted(seq for burst in sent for seq in burst) == list(then)
    assert all(burst == sorted(burst) for burst in sent)
    assert box.next(0.0)[0] == "end"


@pytest.mark.parametrize(("c", "asked_at"), [(2, 0.002), (10_000, 2.5)])  # at the end; by a report
def test_who_says_nothing_after_an_end_is_left_behind(queue, c, asked_at):
    box = queue(c=c, most_at_once=1, silence=0.5)
    now = 0.0
    while (action := box.next(now))[0] != "finished":
        now = action[1] if action[0] == "wait" else now + 0.001
        assert now < 9.0
    assert now == pytest.approx(asked_at + 0.5, abs=0.003)
    assert box.is_finished(0)
    assert not box.is_done(0)


def test_half_of_all_datagrams_lost_is_not_silence(queue):
    """An END and its answer both come through once in four; 0.75^50 is below one in a million."""
    done, _ = run(queue(silence=0.5), 0.5, hears=())
    assert len(ends(done)) >= 50


def test_who_is_heard_is_not_left_behind(queue):
    _, finished = run(queue(silence=0.5), 3.0, hears=[0])
    assert not finished


def test_when_most_are_done_the_others_have_until_4_t_and_silence(queue):
    box = queue(rows=(0, 1, 2), silence=0.5)
    run(box, 1.0, hears=(0, 1, 2))
    box.done(0, 1.0)
    assert not run(box, 9.0, now=9.0, hears=(1, 2))[1]  # a third is not most
    box = queue(rows=(0, 1, 2), silence=0.5)
    run(box, 1.0, hears=(0, 1, 2))
    box.done(0, 1.0)
    box.done(1, 1.0)
    done, finished = run(box, 99.0, now=1.0, hears=(2,))
    assert finished
    assert 4 * 1.0 + 0.5 - 0.051 <= ends(done)[-1].expected <= 4 * 1.0 + 0.5
    assert [box.is_done(row) for row in (0, 1, 2)] == [True, True, False]


def test_rows_take_turns(queue):
    done, _ = run(queue(rows=(0, 2, 5), most_at_once=1, c=2), 0.0001, hears=(0, 2, 5))
    assert [(what, row) for what, row, *_ in done] == [
        (what, row) for what in ("send", "send", "end", "end") for row in (0, 2, 5)
    ]


def test_who_leaves_is_not_done_and_the_others_go_on(queue):
    box = queue(rows=(0, 1))
    box.leave(0)
    done, _ = run(box, 0.002, hears=(1,))
    assert {row for _, row, *_ in done} == {1}
    assert not box.is_done(0)


def test_rows_that_are_not_served_change_nothing(queue):
    box = queue(rows=(1,))
    box.done(0, 0.0)
    box.leave(0)
    box.nacked(0, 3)
    box.heard(7)
    assert not box.is_done(0)
    assert not box.all_sent(0)
    assert box.is_finished(0)
    assert box.next(0.0) == ("send", 1, [0, 1])


def test_a_burst_that_was_not_sent_is_not_counted(queue):
    box = queue(c=2)
    box.next(0.0)
    assert box.all_sent(0)
    box.take_back()
    assert not box.all_sent(0)
    assert box.next(0.0) == ("send", 0, [0, 1])


def test_nobody_to_send_to_is_the_end(queue):
    assert queue(rows=()).next(0.0) == ("finished",)


def test_who_need_not_answer_is_not_waited_for(queue):
    """libFuzzer found it wait until a time that had passed."""
    box = queue(c=1, most_at_once=1, until_done=False, silence=0.0001)
    now = 0.0
    while (action := box.next(now))[0] != "finished":
        if action[0] == "wait":
            assert action[-1] > now
            now = action[-1]
    assert now > 0.0001


def test_parts_leave_as_they_are_added_and_ends_follow_the_last(make):
    box = make([0], 6, 2, False, 9.0, 0.0)
    assert run(box, 1.0) == ([], True)
    box.add([4, 3])
    box.add([4])
    assert box.has_wanted()
    box.nacked(0, 5)  # it is not there yet
    assert run(box, 1.0) == ([("send", 0, [3, 4], 0)], True)
    assert not box.has_wanted()
    box.add([4])  # it has left
    assert run(box, 1.0) == ([], True)
    assert not box.is_finished(0)
    box.add_rest()
    done, finished = run(box, 1.0)
    assert finished
    assert box.all_sent(0)
    assert box.is_finished(0)
    # From where it was on; the last of all, which may be short, ends a burst.
    assert [seqs for what, _, seqs, _ in done if what == "send"] == [[5], [0, 1], [2]]
    assert len(ends(done)) == 3


def test_what_was_taken_back_is_sent_after_all(make):
    box = make([0], 6, 2, False, 9.0, 0.0)
    box.add([3])
    assert box.next(0.0) == ("send", 0, [3])
    box.take_back()
    assert box.has_wanted()
    assert box.next(0.0) == ("send", 0, [3])


def test_nothing_is_wanted_by_who_has_enough(make):
    box = make([0], 6, 2, True, 9.0, 0.0)
    box.add([3])
    box.done(0, 0.0)
    assert not box.has_wanted()
    assert box.next(0.0) == ("finished",)


def test_a_nack_does_not_send_again_what_has_left_since_the_end_that_it_answers(queue):
    box = queue(c=400, most_at_once=50)
    assert [box.next(0.0)[0] for _ in range(3)] == ["send", "send", "end"]
    assert box.next(0.0) == ("send", 0, [*range(100, 150)])
    for seq in (3, 120):  # 120 was on its way when the report was made
        box.nacked(0, seq)
    assert box.next(0.0) == ("send", 0, [*range(150, 200)])
    assert box.next(0.0) == ("end", 0, 0)
    box.nacked(0, 120)  # of that one it is told in earnest
    box.nacked(0, 120)
    sent = []
    while (action := box.next(0.0))[0] != "end" or action[2] == 0:
        sent += action[2] if action[0] == "send" else []
    assert sorted(sent) == sorted([3, 120, *range(200, 400)])
