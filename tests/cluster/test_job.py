"""A job from its beginning to its end, on threads in place of processes."""

import ml_dtypes
import numpy as np
import pytest

from aggregathor import notes
from aggregathor.cluster.config import Config
from aggregathor.cluster.job import Job
from aggregathor.cluster.loops import corruption
from aggregathor.cluster.ranks import Ranks, TrainingEnded
from aggregathor.errors import UserError
from aggregathor.protocols.rounds import RoundsServer, TrainingStopped
from aggregathor.protocols.setting import Setting
from aggregathor.protocols.worker import WorkerHalf
from lossympi import Collected, LinkError, backend
from tests.cluster.fake_mpi import MPI, World, on_all_ranks

# The ranks connect by shared memory, which is native.
pytestmark = pytest.mark.skipif(backend.native() is None, reason=backend.why_not_native())
DIM = 5


def run_jobs(size, run, *, config=None, world=None):
    """Runs ``run(job)`` on each of some ranks; returns what each returned or raised.

    ``config`` gives a rank's fields; every job is closed, whatever happens.
    """

    def on_one(comm):
        ranks = Ranks(comm)
        try:
            job = Job(ranks, Config(**(config(ranks.rank) if config else {})), secret=0)
        except UserError:
            ranks.shutdown("")
            raise
        try:
            return run(job)
        finally:
            job.close()

    return on_all_ranks(size, on_one, world)


def connect(job, dim=DIM):
    """Returns this rank's half of the rounds of an optimizer whose variables are 0."""
    return (job.serve if job.is_server else job.work)(dim, lambda: np.zeros(dim, np.float32))


def one_round(job, half, value=0.0):
    """Makes a round; returns the aggregate on the server, the model elsewhere."""
    if job.is_server:
        report = half.aggregate()
        half.publish(np.full(DIM, 10 + value, np.float32))
        return report.grad_d.tolist()
    return half.exchange(np.full(DIM, job.ranks.row + value, np.float32)).tolist()


@pytest.mark.parametrize("transport", ["auto", "shm", "udp"])
def test_ranks_connect_and_make_rounds(transport):
    def run(job):
        half = connect(job)
        assert type(half) is (RoundsServer if job.is_server else WorkerHalf)
        assert job.halves == [half]
        return [one_round(job, half, round) for round in range(2)], half.round

    server, *workers = run_jobs(
        4, run, config=lambda _: {"gar": "median", "f": 1, "transport": transport}
    )
    assert server == ([[1.0] * DIM, [2.0] * DIM], 2)
    assert workers == [([[10.0] * DIM, [11.0] * DIM], 2)] * 3


def test_a_link_has_what_the_user_says_and_else_the_jobs_defaults():
    def run(job):
        return dict(job.config.link_args), job.told

    found = run_jobs(2, run, config=lambda _: {"link_args": {"timeout_s": 3.0}})
    told = {"AGGREGATHOR_LINK_ARGS": "timeout_s=3.0"}
    assert found == [({"timeout_s": 3.0, "give_up_s": 600.0, "f": 0}, told)] * 2
    (with_udp, _), _ = run_jobs(2, run, config=lambda _: {"transport": "udp"})
    assert with_udp == {"timeout_s": 10.0, "give_up_s": 600.0, "floor_s": 1.0, "f": 0}
    config = {"gar": "median", "f": 1, "link_args": {"timeout_s": 3.0}}
    (with_rule, _), *_ = run_jobs(4, run, config=lambda _: config)
    assert with_rule == {"timeout_s": 3.0, "give_up_s": 600.0, "f": 1}


def words_of_all(found):
    """All ranks raise an error that a user can fix; returns their one text."""
    assert all(isinstance(error, UserError) for error in found), found
    (words,) = {str(error) for error in found}
    return words


def test_ranks_that_were_given_different_configurations_are_refused_everywhere():
    found = run_jobs(
        3,
        lambda job: None,
        config=lambda rank: {"gar": "krum" if rank == 2 else "median", "seed": 7},
    )
    assert words_of_all(found) == (
        "all ranks must have the same configuration; rank 0 and rank 2 have "
        "AGGREGATHOR_GAR='median' and AGGREGATHOR_GAR='krum'. Do all hosts run the same script, "
        "version and command line?"
    )


def test_a_rule_that_is_impossible_with_so_few_workers_is_refused_everywhere():
    found = run_jobs(3, lambda job: None, config=lambda _: {"gar": "krum", "f": 1})
    assert "krum needs n >= 2f + 3" in words_of_all(found)


def test_a_monitors_folder_that_cannot_be_made_is_the_same_error_on_all_ranks(tmp_path):
    (tmp_path / "file").touch()
    found = run_jobs(3, lambda job: None, config=lambda _: {"monitor": str(tmp_path / "file/on")})
    words = words_of_all(found)
    assert str(tmp_path / "file/on") in words
    assert not words.startswith("rank")  # it is the server's, which all know


def test_only_the_server_makes_the_monitors_folder_and_writes_there(tmp_path):
    def run(job):
        half = connect(job)
        one_round(job, half)

    config = {"monitor": str(tmp_path / "seen"), "monitor_every": 1}
    assert run_jobs(3, run, config=lambda _: config) == [None] * 3
    assert [path.name for path in (tmp_path / "seen").iterdir()] == ["run-1"]
    assert len((tmp_path / "seen" / "run-1" / "workers.csv").read_text().splitlines()) == 1 + 2


@pytest.mark.parametrize(
    ("link_args", "words"),
    [({"quorum": 3}, "quorum is at most n = 2 workers, got 3"), ({}, "all ranks must have the ")],
)
def test_ranks_that_cannot_connect_say_so_everywhere(link_args, words):
    def run(job):
        connect(job, DIM + (job.ranks.rank == 2 and not link_args))

    found = run_jobs(3, run, config=lambda _: {"link_args": link_args})
    assert words in words_of_all(found)


@pytest.mark.parametrize("transport", ["mpi", "udp"])
def test_a_quorum_below_the_rules_condition_is_refused_on_every_rank(transport):
    config = {"gar": "median", "f": 1, "transport": transport, "link_args": {"quorum": 2}}
    words = words_of_all(run_jobs(4, lambda job: None, config=lambda _: config))
    assert words.startswith("quorum=2 lets 2 gradients close a round, and f=1 of them may be")
    assert "pass quorum=3 or more, or declare f=0" in words
    config = {**config, "link_args": {"quorum": 3}}
    assert run_jobs(4, lambda job: None, config=lambda _: config) == [None] * 4


def test_what_shall_happen_at_the_beginning_happens_once_and_in_order():
    def run(job):
        calls = []
        job.at_begin(lambda: calls.append("first"))
        job.at_begin(lambda: calls.append("second"))
        assert calls == []
        connect(job)
        job.begin()
        connect(job)
        return calls

    assert run_jobs(2, run) == [["first", "second"]] * 2


def test_the_end_lets_waiting_rounds_go_and_then_closes_the_links():
    """What waits for a thread that is in a round must not wait for ever."""

    class Half:
        """What is asked of a half at the end."""

        def __init__(self, name, calls):
            self.leave = lambda: calls.append(f"leave {name}")
            self.close = lambda: calls.append(f"close {name}")

    def run(job):
        calls = []
        job.halves += [Half("first", calls), Half("second", calls)]
        job.at_close(lambda wait_s: calls.append(f"callback {wait_s:g}"))
        shutdown = job.ranks.shutdown
        job.ranks.shutdown = lambda reason: (calls.append("shutdown"), shutdown(reason))
        job.close()
        job.close()  # as atexit does
        return calls

    halves = ["first", "second"]
    expected = [f"leave {name}" for name in halves] + ["callback 5"]
    expected += [f"close {name}" for name in halves] + ["shutdown"]
    assert run_jobs(2, run) == [expected] * 2
    assert MPI.finalized == 2


def test_workers_receive_the_servers_arrays_and_its_rounds():
    """A round that is given up on the server is given up on all."""

    def run(job):
        half = connect(job)
        one_round(job, half)
        got = job.synchronise({"w": np.full((2, 3), job.ranks.rank), "b": np.array(job.ranks.rank)})
        return {name: array.tolist() for name, array in got.items()}, half.round

    everyones = {"w": [[0, 0, 0], [0, 0, 0]], "b": 0}
    assert run_jobs(3, run) == [(everyones, 2)] * 3


def test_arrays_of_every_type_are_synchronised_as_they_are():
    arrays = {
        "double": np.array([1 + 1e-12, 1e300]),
        "complex": np.array(1 - 2j, np.complex64),
        "brain": np.array([1.5, 9.2e-41], ml_dtypes.bfloat16),
        "counts": np.array([[2**40]], np.int64),
        "flags": np.array([True, False]),
        "bytes": np.array([255], np.uint8),
    }

    def run(job):
        own = arrays if job.is_server else {n: np.zeros_like(a) for n, a in arrays.items()}
        got = job.synchronise(own)
        return {name: (array.dtype, array.tobytes()) for name, array in got.items()}

    expected = {name: (array.dtype, array.tobytes()) for name, array in arrays.items()}
    assert run_jobs(2, run) == [expected] * 2


def test_a_synchronised_worker_takes_only_what_it_asks_for():
    def run(job):
        names = ["w", "of the server"] if job.is_server else ["w"]
        return set(job.synchronise({name: np.zeros(1) for name in names}))

    assert run_jobs(2, run) == [{"w", "of the server"}, {"w"}]


@pytest.mark.parametrize(
    ("theirs", "words"),
    [
        ({"w": np.zeros((2, 2))}, r"a variable w of shape [3] and the server has [2, 2]"),
        ({}, r"a variable w of shape [3] and the server has none"),
        ({"w": np.zeros(3, "f4")}, "a variable w of type float64 and the server has float32"),
    ],
)
def test_a_variable_that_the_server_has_otherwise_is_told(theirs, words):
    def run(job):
        job.synchronise(theirs if job.is_server else {"w": np.zeros(3)})

    server, worker = run_jobs(2, run)
    assert server is None
    assert isinstance(worker, UserError)
    assert str(worker).startswith(f"rank 1 has {words}. All ranks must build the same model")


def test_ranks_that_do_not_do_the_same_are_told_what_each_does():
    def run(job):
        job.doing = "fit 1 of heads" if job.is_server else "fit 1 of tails"
        job.synchronise({"w": np.zeros(3)})

    server, worker = run_jobs(2, run)
    assert server is None
    assert isinstance(worker, UserError)
    assert "rank 1 is at fit 1 of tails, and the server at fit 1 of heads" in str(worker)


def test_what_belongs_to_a_fit_that_a_worker_has_left_is_passed_over():
    def run(job):
        if job.is_server:
            for job.doing in ("fit 1 of a", "fit 1 of a", "fit 2 of b_1"):
                job.synchronise({"w": np.zeros(1)})
            return None
        job.doing = "fit 2 of b_7"  # as after more models than the server's
        return job.synchronise({"w": np.ones(1)})["w"].tolist()

    assert run_jobs(2, run) == [None, [0.0]]


def test_aligned_ranks_go_on_with_the_servers_rounds():
    """As after a checkpoint; here no round is given up."""

    def run(job):
        halves = [connect(job), connect(job)]
        if job.is_server:
            halves[0].round, halves[1].round = 7, 40
        got = job.align({"w": np.arange(2)} if job.is_server else None)
        rounds = [half.round for half in halves]
        return got["w"].tolist(), rounds, one_round(job, halves[0]), halves[0].round

    server, *workers = run_jobs(3, run)
    assert server == ([0, 1], [7, 40], [0.5] * DIM, 8)
    assert workers == [([0, 1], [7, 40], [10.0] * DIM, 8)] * 2


def test_a_failure_is_taken_once():
    def run(job):
        error = UserError("no room")
        job.fail(error)
        assert job.failure is error
        return job.take_failure() is error, job.take_failure(), job.failure

    assert run_jobs(2, run) == [(True, None, None)] * 2


@pytest.mark.parametrize("waits_for", ["the model", "the parameters"])
def test_a_server_that_fails_ends_the_workers_with_its_reason(waits_for):
    def run(job):
        half = connect(job)
        if job.is_server:
            job.fail(UserError("the disk is full"))
            return None
        if waits_for == "the model":
            return one_round(job, half)
        return job.synchronise({})

    server, *workers = run_jobs(3, run)
    assert server is None
    found = [(type(error), str(error)) for error in workers]
    assert found == [(TrainingEnded, "the disk is full")] * 2
    assert MPI.finalized == 3


def test_a_failure_that_was_mended_ends_nobody():
    def run(job):
        if job.is_server:
            job.fail(UserError("the disk is full"))
            job.take_failure()
            return None
        return job.synchronise({})

    _, worker = run_jobs(2, run)
    assert (type(worker), str(worker)) == (TrainingEnded, "")


def test_a_workers_failure_is_not_the_others(killed):
    def run(job):
        half = connect(job)
        if job.ranks.rank == 2:
            job.fail(UserError("mine"))
            return None
        return one_round(job, half)

    config = {"gar": "median", "f": 0, "link_args": {"timeout_s": 2.0}}
    server, worker, _ = run_jobs(3, run, config=lambda _: config)
    assert server == [0.0] * DIM
    assert worker == [10.0] * DIM
    assert killed == []


def test_a_worker_whose_server_has_died_says_so_in_a_round():
    world = World(2)

    def on_one(comm):
        ranks = Ranks(comm)
        job = Job(ranks, Config(), secret=0)
        half = connect(job)
        if job.is_server:
            world.kill(0)
            return None
        try:
            return one_round(job, half)
        finally:
            job.close()

    _, error = on_all_ranks(2, on_one, world)
    assert isinstance(error, LinkError)
    assert "rank 1 has lost the server (rank 0)" in str(error)


def test_a_rule_that_can_be_kept_no_more_stops_the_training():
    def run(job):
        half = connect(job)
        if job.ranks.rank in (2, 3):
            return  # closes, and says goodbye
        try:
            while True:  # of refused rounds a worker gets models too
                one_round(job, half)
        except TrainingStopped as error:
            job.fail(error)
            raise

    # Its time does not run out: two of three have ended, which is too many for ever.
    config = {"gar": "median", "f": 1, "start_s": 600.0, "link_args": {"timeout_s": 0.2}}
    server, worker, *gone = run_jobs(4, run, config=lambda _: config)
    assert isinstance(server, TrainingStopped), server
    said = "nothing came from workers 1, 2 (ranks 2, 3), and median needs n >= 2f + 1"
    assert said in str(server)
    assert (type(worker), str(worker)) == (TrainingEnded, str(server))
    assert gone == [None, None]


def test_the_server_warns_of_more_attackers_than_the_rule_tolerates(capsys):
    config = {"gar": "median", "f": 1, "byzantine": 2, "attack": "zero"}
    assert run_jobs(6, Job.begin, config=lambda _: config) == [None] * 6
    said = "aggregathor: 2 workers attack, and median expects at most f=1"
    assert capsys.readouterr().err.count(said) == 1


def test_the_server_warns_of_a_rule_that_tolerates_nobody(capsys):
    config = {"gar": "average", "f": 1}
    assert run_jobs(3, Job.begin, config=lambda _: config) == [None] * 3
    said = "aggregathor: f=1 is declared, and average tolerates no Byzantine worker: choose another"
    assert capsys.readouterr().err.count(said) == 1


def test_the_server_warns_where_what_is_lost_spoils_the_average(capsys):
    assert run_jobs(2, Job.begin, config=lambda _: {"transport": "udp"}) == [None] * 2
    assert capsys.readouterr().err.count("a value that UDP loses is NaN") == 1


def test_only_attacks_on_any_row_are_made_by_the_server():
    """The others are made by the workers."""
    honest = Setting(num_workers=3)
    by_workers = Setting(num_workers=3, byzantine=1, attack="sign-flip")
    assert corruption(honest) is corruption(by_workers) is None

    corrupt = corruption(Setting(num_workers=3, attack="bit-flip"))
    rows_nd = np.ones((3, 1000), np.float32)
    corrupt(Collected(0, rows_nd, np.ones((3, 3), bool)))
    again_nd = np.ones((3, 1000), np.float32)
    corrupt(Collected(0, again_nd, np.ones((3, 3), bool)))
    np.testing.assert_array_equal(rows_nd, again_nd)
    assert np.any(rows_nd != 1)


def test_a_check_keeps_nothing_and_was_told_what_it_was_told(monkeypatch, capfd):
    """So that a script which says the same by ``agt.init`` contradicts nobody."""
    monkeypatch.setattr(notes, "keep", lambda: None)
    config = {"check_rounds": 3, "checkpoint": "nowhere", "monitor": "nowhere"}

    def run(job):
        assert job.told == Config(**config).to_environment()
        return job.config.checkpoint, job.config.monitor

    assert run_jobs(2, run, config=lambda _: config) == [("", "")] * 2
    assert "no optimizer took part" in capfd.readouterr().out


@pytest.mark.parametrize("at_start", [True, False])
def test_what_the_script_says_completes_what_the_job_was_started_with(at_start, tmp_path, capsys):
    seen = {"monitor": str(tmp_path)}

    def run(job):
        job.complete(Config(f=1, gar="median", **seen))
        half = connect(job)
        return job.setting.gar, job.setting.f, one_round(job, half)

    config = {"f": 1, **(seen if at_start else {})}
    server, *workers = run_jobs(4, run, config=lambda _: config)
    assert server == ("median", 1, [1.0] * DIM)
    assert workers == [("median", 1, [10.0] * DIM)] * 3
    assert [each.name for each in tmp_path.iterdir()] == ["run-1"]
    assert (tmp_path / "run-1" / "workers.csv").exists()
    said = capsys.readouterr().err
    assert "1 round, median f=1; nobody was suspected" in said
    assert "tolerates no Byzantine worker" not in said


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"gar": "krum", "f": 2}, "krum needs n >= 2f + 3"),
        (
            {"gar": "median", "lock": "scan", "checkpoint": "a b"},
            "agt.init(gar='median', checkpoint='a b', lock='scan') comes too late for what a job "
            "must know when it starts: give `aggregathor run` '--checkpoint=a b' --lock=scan",
        ),
    ],
)
def test_what_cannot_complete_it_is_refused_on_every_rank(more, words):
    refused = run_jobs(4, lambda job: job.complete(Config(**more)))
    assert all(isinstance(each, UserError) for each in refused)
    assert all(words in str(each) for each in refused), refused


def test_nothing_completes_it_after_the_first_step():
    def run(job):
        one_round(job, connect(job))
        job.complete(Config(f=0))  # which says nothing new
        job.complete(Config(gar="median"))

    refused = run_jobs(3, run)
    words = "agt.init(gar='median') comes after the first step: call it before."
    assert [str(each) for each in refused] == [words] * 3


def test_draco_does_not_change_its_groups():
    config = {"protocol": "draco", "f": 1, "protocol_args": {"code": "repetition"}}

    def run(job):
        job.complete(Config(**{**config, "f": 2}))

    refused = run_jobs(7, run, config=lambda _: config)
    assert all("agt.init(f=2) comes too late" in str(each) for each in refused), refused
    assert all("give `aggregathor run` --f=2" in str(each) for each in refused)
