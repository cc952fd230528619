"""DRACO as a protocol: what is refused, and a round from its stack to the aggregate."""

import numpy as np
import pytest

from aggregathor import ops
from aggregathor.attacks import ATTACKS
from aggregathor.cluster.config import Config
from aggregathor.cluster.job import _check_wire
from aggregathor.errors import UserError
from aggregathor.gars import Context
from aggregathor.monitor.observer import RoundsObserver, summary
from aggregathor.protocols import linear
from aggregathor.protocols.aggregation import Aggregation, RuleError
from aggregathor.protocols.checks import doubts
from aggregathor.protocols.decoding import code_of
from aggregathor.protocols.registry import PROTOCOLS
from aggregathor.protocols.report import RoundReport
from aggregathor.protocols.rounds import RefusedError, RoundsServer
from aggregathor.protocols.setting import Setting
from lossympi import Network, memory

DRACO = PROTOCOLS["draco"]
REPETITION = {"code": "repetition"}


@pytest.mark.parametrize(
    ("n", "f", "parameters"),
    [
        (3, 1, {}),
        (15, 3, {}),
        (15, 3, {"redundancy": 9}),
        (45, 5, {"code": "cyclic"}),
        (15, 1, {"code": "cyclic-paper", "delta": 1e-6}),
        (15, 2, REPETITION),
        (15, 1, {**REPETITION, "redundancy": 5}),
        (8, 1, {**REPETITION, "redundancy": 4}),
        (6, 0, {**REPETITION, "redundancy": 2}),
    ],
)
def test_what_it_takes(n, f, parameters):
    DRACO.check(n=n, f=f, **parameters)
    Setting(protocol="draco", num_workers=n, f=f, protocol_args=parameters).check()


@pytest.mark.parametrize(
    ("n", "f", "parameters", "words"),
    [
        (15, 0, {}, "with r=1 there is no copy to compare with: declare f=1, or"),
        (11, 1, REPETITION, "r=3, and r does not divide n=11. Start 9 or 12 workers, or take code"),
        (6, 3, {}, "r=7 times and needs as many workers, got n=6. Start 1 more or declare f=2"),
        (6, 1, {"redundancy": 7}, "r=7 times and needs as many workers, got n=6. Start 1 more"),
        (15, 3, {"redundancy": 5}, r"redundancy >= 2f \+ 1; f=3 needs 7, got 5. .* declare f=2"),
        (15, 1, {"redundancy": 4}, r"an odd redundancy r = 2s \+ 1, got 4. Take 3"),
        (15, 1, {"redundancy": 3.0}, "redundancy must be a whole number, got 3.0"),
        (15, 1, {"redundancy": True}, "redundancy must be a whole number, got True"),
        (15, 1, {"code": "cyclc"}, "no code called 'cyclc': did you mean 'cyclic'"),
        (15, 1, {"delta": -1e-6}, r"a relative difference in \[0, 1\), got -1e-06"),
        (15, 1, {"delta": "1e-6x"}, r"a relative difference in \[0, 1\), got '1e-6x'"),
        (15, 1, {**REPETITION, "delta": 1e-6}, "repetition needs none, got delta=1e-06"),
        (15, 1, {"r": 3}, "the protocol draco has no parameter 'r'"),
        (15, -1, {}, "f must be a whole number >= 0, got -1"),
    ],
)
def test_what_it_refuses_in_a_sentence(n, f, parameters, words):
    with pytest.raises(UserError, match=words):
        DRACO.check(n=n, f=f, **parameters)


def test_advice():
    assert DRACO.largest_f(20) == 9
    assert DRACO.refusal(20, 9) == ""
    assert "got n=20. Start 1 more or declare f=9" in DRACO.refusal(20, 10)
    assert DRACO.largest_f(2) is None


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"gar": "krum"}, "draco decides what is applied, not a rule: leave gar out, got 'krum'"),
        ({"gar_args": {"m": 2}}, "leave gar_args out"),
        ({"fill": "zero"}, "draco must know what is lost: leave fill out, got 'zero'"),
        ({"worker_momentum": 0.9}, "which momentum would mix over the steps: keep it at the serv"),
        (
            {"quorum": 6},
            "quorum=6 of n=7 gradients loses 1: leave the quorum out, or pass quorum=7",
        ),
    ],
)
def test_what_does_not_go_with_it(given, words):
    with pytest.raises(UserError, match=words):
        Setting(protocol="draco", num_workers=7, f=1, **given).check()


def test_a_quorum_is_paid_for_with_redundancy():
    Setting(protocol="draco", num_workers=7, f=1, quorum=5, protocol_args={"redundancy": 5}).check()


def test_float32_carries_the_papers_code_of_few_workers_only():
    paper = {"code": "cyclic-paper"}
    for n, dtype in ((19, np.float32), (45, np.float64)):
        code = code_of(Setting(protocol="draco", num_workers=n, f=1, protocol_args=paper), dtype)
        assert code.width == 2
    setting = Setting(protocol="draco", num_workers=20, f=1, protocol_args=paper)
    with pytest.raises(UserError, match="cyclic-paper of at most 19 workers, got n=20: take code"):
        code_of(setting, np.float32)
    assert code_of(Setting(num_workers=7)) is None


def test_more_attackers_than_declared_are_doubtful():
    setting = Setting(protocol="draco", num_workers=7, f=1, byzantine=2, attack="nan")
    assert doubts(setting, robust=setting.robust) == [
        "2 workers attack, and draco expects at most f=1"
    ]


def test_who_attacks_moves_if_asked():
    fixed = Setting(num_workers=9, byzantine=2, attack="nan")
    np.testing.assert_array_equal(fixed.attackers(5), [7, 8])
    np.testing.assert_array_equal(fixed.honest_first(5), np.arange(9))
    moving = Setting(num_workers=9, byzantine=2, attack="nan", byzantine_moves=True)
    drawn = np.stack([moving.attackers(round) for round in range(500)])
    assert np.all(drawn[:, 0] < drawn[:, 1])
    share_n = np.bincount(drawn.ravel(), minlength=9) / 500
    np.testing.assert_allclose(share_n, 2 / 9, atol=0.06)
    np.testing.assert_array_equal(moving.attackers(7), drawn[7])
    order = moving.honest_first(7)
    np.testing.assert_array_equal(order[7:], drawn[7])
    np.testing.assert_array_equal(np.sort(order), np.arange(9))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"byzantine": 0}, "byzantine_moves draws Byzantine workers, and there are 0"),
        ({"attack": "mimic"}, "the attack mimic remembers, which needs the same workers"),
        ({"attack": "gambler"}, "the attack gambler hits any worker's gradient: leave byzantine_m"),
    ],
)
def test_attacks_that_cannot_move(given, words):
    values = {"num_workers": 9, "byzantine": 2, "attack": "nan", "byzantine_moves": True, **given}
    if values["byzantine"] == 0:
        values["attack"] = ""
    with pytest.raises(UserError, match=words):
        Setting(**values).check()
    assert ATTACKS["mimic"].update is not None


def sent(setting, gradients_pd):
    code = code_of(setting)
    return np.stack(
        [
            code.encode([gradients_pd[j] for j in code.batches_of(k)], k)
            for k in range(setting.num_workers)
        ]
    )


CODES = {"repetition": 9, "cyclic": 9, "cyclic-paper": 9}


@pytest.mark.parametrize("code", CODES)
def test_a_round_of_wrong_and_lost_gradients(code, rng, each_kernel):
    """Over a link that loses one worker's gradient, while another one lies."""
    setting = Setting(
        protocol="draco", num_workers=9, f=1, protocol_args={"code": code, "redundancy": 9}
    )
    gradients_pd = rng.standard_normal((9, 1000)).astype(np.float32)
    stack_nd = sent(setting, gradients_pd)
    width = stack_nd.shape[1] // 1000
    stack_nd[2] *= -100

    class Losing(Network):
        def arrived(self, round, worker, num_datagrams, attempt=0):
            return np.full(num_datagrams, worker not in (5, 6))

    server, links = memory.connect(9, 1000 * width, Losing())
    aggregation = Aggregation(setting, 1000 * width)
    rounds = RoundsServer(server, aggregation, lambda: np.zeros(1000, np.float32))
    for link, row in zip(links, stack_nd, strict=True):
        link.send(0, row)
    report = rounds.collect()
    expected_d = gradients_pd.mean(axis=0)
    np.testing.assert_allclose(report.grad_d, expected_d, atol=1e-5)
    assert report.unverified == 0
    np.testing.assert_array_equal(report.usage_n, [1, 1, 0, 1, 1, 0, 0, 1, 1])
    assert report.stack_nd.shape == (9, 1000)


@pytest.mark.parametrize("code", CODES)
def test_a_round_that_cannot_be_decoded_is_refused_and_names_who_is_missing(code):
    setting = Setting(
        protocol="draco", num_workers=9, f=1, protocol_args={"code": code, "redundancy": 3}
    )
    aggregation = Aggregation(setting, 2 * 352)
    stack_nd = np.ones((9, 2 * 352), np.float32)
    stack_nd[[0, 1, 2]] = np.nan
    with pytest.raises(RuleError, match=r"^nothing came from workers 0, 1, 2.*, and draco \("):
        aggregation.aggregate(stack_nd, np.arange(3), aggregation.context(0))
    assert aggregation.unverified == 1


def test_wrong_gradients_that_came_whole_are_refused_with_what_to_do(rng):
    setting = Setting(protocol="draco", num_workers=7, f=1)
    server, links = memory.connect(7, 400)
    rounds = RoundsServer(server, Aggregation(setting, 400), lambda: np.zeros(400, np.float32))
    for link in links:
        link.send(0, rng.standard_normal(400).astype(np.float32))
    with pytest.raises(RefusedError, match=r"draco \(cyclic, r=3\) can verify no sum: .* larger f"):
        rounds.collect()


def test_what_is_not_verified_is_left_as_it_is_and_told_once_a_minute(rng, capsys):
    setting = Setting(protocol="draco", num_workers=7, f=1)
    stack_nd = sent(setting, rng.standard_normal((7, 704)).astype(np.float32))
    stack_nd[:2, :352] = np.nan
    aggregation = Aggregation(setting, 704)
    for round in range(3):
        grad_d, _ = aggregation.aggregate(stack_nd, np.array([], int), aggregation.context(round))
        assert not grad_d[:352].any()
        assert grad_d[352:].all()
        assert aggregation.unverified == 0.5
    told = capsys.readouterr().err
    assert told.count("the sum of 50% of the coordinates cannot be verified: too many") == 1


def test_copies_that_differ_name_their_workers_and_the_likely_cause(rng, capsys):
    setting = Setting(protocol="draco", num_workers=6, f=1, protocol_args=REPETITION)
    stack_nd = sent(setting, rng.standard_normal((6, 50)).astype(np.float32))
    stack_nd[3:] = rng.standard_normal((3, 50))
    aggregation = Aggregation(setting, 50)
    aggregation.aggregate(stack_nd, np.array([], int), aggregation.context(0))
    assert aggregation.unverified == 1
    told = capsys.readouterr().err
    assert "round 0: the gradients of workers 3 to 5 differ, which should be copies" in told
    assert "a generator of its own, from the time, or reads files in another order" in told


def test_projections_are_drawn_from_the_servers_secret(rng):
    """And anew in each round."""
    setting = Setting(protocol="draco", num_workers=7, f=1, seed=5)
    drawn = []

    class Spy:
        def __init__(self, code):
            self._code = code

        def __getattr__(self, name):
            return getattr(self._code, name)

        def decode(self, stack_nd, rng, block):
            drawn.append(rng.standard_normal())
            return self._code.decode(stack_nd, rng, block)

    stack_nd = np.ones((7, 10), np.float32)
    for secret in (5, 6):
        aggregation = Aggregation(setting, 10, secret=secret)
        aggregation._decoder._code = Spy(aggregation._decoder._code)
        for round in (0, 1, 1):
            aggregation.aggregate(stack_nd, np.array([], int), aggregation.context(round))
    assert len(set(drawn)) == 4
    assert drawn[1] == drawn[2]


def test_attackers_that_ask_get_the_decoders_answer(rng):
    setting = Setting(
        protocol="draco", num_workers=7, f=2, byzantine=2, attack="nan", byzantine_moves=True
    )
    aggregation = Aggregation(setting, 60)
    gradients_pd = rng.standard_normal((7, 60)).astype(np.float32)
    stack_nd = sent(setting, gradients_pd)
    stack_nd[[0, 3]] = 7
    order = np.array([1, 2, 4, 5, 6, 0, 3])
    context: Context = aggregation.context(0)
    grad_d, usage_n = aggregation.ask(stack_nd[order], context, order)
    np.testing.assert_allclose(grad_d, gradients_pd.mean(axis=0), atol=1e-5)
    np.testing.assert_array_equal(usage_n, [1, 1, 1, 1, 1, 0, 0])


def test_the_server_goes_on_while_enough_workers_are_left():
    setting = Setting(protocol="draco", num_workers=9, f=1, protocol_args={"redundancy": 5})
    aggregation = Aggregation(setting, 10)
    aggregation.check(6)  # 3 of 2s = 4 checks are used up
    with pytest.raises(UserError, match=r"needs 6 of n=9 gradients, got 5\. Start 1 more worker"):
        aggregation.check(5)


@pytest.mark.skipif(not ops.has_arrays(), reason="no native library")
@pytest.mark.parametrize(
    ("n", "d", "b", "m"),
    [(1, 1, 352, 4), (3, 352, 352, 16), (15, 1001, 352, 8), (7, 5000, 176, 4), (9, 5000, 13, 4)],
)
def test_kernels_do_what_numpy_does(n, d, b, m, rng):
    stack_nd = rng.standard_normal((n, d)).astype(np.float32)
    stack_nd[-1, d // 2] = np.nan
    stack_nd[0, 0] = 1e30
    table_bm = rng.standard_normal((b, m))
    for mine, its in zip(
        ops.arrays.project(stack_nd, table_bm), linear.project(stack_nd, table_bm), strict=True
    ):
        assert mine.shape == its.shape
        np.testing.assert_allclose(mine, its, rtol=1e-12, atol=1e-12)
    rows, weights = list(stack_nd[:-1]), rng.standard_normal(n - 1)
    ranges_k2 = np.array([[0, d // 3], [d // 3 + 1, d]])
    mine_d, its_d = np.full((2, d), 7, np.float32)
    ops.arrays.weighted_sum(rows, weights, ranges_k2, mine_d)
    linear.weighted_sum(rows, weights, ranges_k2, its_d)
    np.testing.assert_allclose(mine_d, its_d, rtol=1e-6)
    assert mine_d[d // 3] == 7 or d == 1


@pytest.mark.parametrize("code", ["cyclic", "cyclic-paper"])
def test_cyclic_codes_need_all_digits_on_the_wire(code):
    def config(code, wire):
        return Config(
            protocol="draco",
            protocol_args={"code": code},
            transport="udp",
            link_args={"wire": wire},
        )

    for wire in ("float16", "bfloat16"):
        with pytest.raises(UserError, match=f"wire={wire} drops some: leave the wire out, or take"):
            _check_wire(config(code, wire))
        _check_wire(config("repetition", wire))
    _check_wire(config(code, "float32"))


@pytest.mark.parametrize("moves", [False, True])
def test_a_summary_names_the_protocol_and_who_attacked(moves):
    setting = Setting(
        protocol="draco", num_workers=7, f=1, byzantine=1, attack="nan", byzantine_moves=moves
    )
    rounds = RoundsObserver(setting)
    zeros_d = np.zeros(3, np.float32)
    for unverified in (0.0, 0.25, 1.0):
        ones = np.ones(7)
        rounds.published(
            RoundReport(np.zeros((7, 3), np.float32), zeros_d, ones, ones, unverified=unverified)
        )
    told = summary(setting, [rounds])
    who = "1, drawn anew each round, used nan" if moves else "worker 6 attacked with nan"
    assert told == (
        f"3 rounds, draco f=1; nobody was suspected; {who}; in 2 rounds not all sums were verified"
    )
