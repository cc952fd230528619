"""Simulations without rounds."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from aggregathor.attacks import ATTACKS
from aggregathor.errors import UserError
from aggregathor.gars import Aggregated, gar
from aggregathor.gars.base import registered
from aggregathor.protocols.aggregation import RuleError
from aggregathor.protocols.setting import Setting
from aggregathor.trainer.sampling import batches
from aggregathor.trainer.schedule import Line, ScheduleFile, read_schedule
from aggregathor.trainer.simulated_arrivals import SimulatedArrivals
from tests.trainer.toys import accuracy, clouds, cross_entropy, linear, mlp, network, sgd, weights

PROTOCOLS = {
    "async": {},
    "basgd": {"gar": "median", "f": 1, "protocol_args": {"buffers": 3, "reassign_s": 2.0}},
    "zeno++": {"f": 1, "protocol_args": {"gamma": 0.1, "batch": 32}},
    "kardam": {"f": 1},
}


def simulate(model=linear, protocol="async", *, optimizer=None, schedule=(), **given):
    keras.utils.set_random_seed(0)
    given = {"num_workers": 5, "protocol": protocol, **PROTOCOLS[protocol], **given}
    setting = Setting(**given)
    points, labels = clouds()
    drawn = batches(
        points[60:],
        labels[60:],
        num_workers=setting.num_workers,
        batch_size=8,
        seed=setting.seed,
    )
    validation = (points[:60], labels[:60]) if protocol == "zeno++" else None
    return SimulatedArrivals(
        setting, model(), cross_entropy, optimizer or sgd(), drawn, validation, schedule
    )


def run(simulation, steps):
    return [simulation.step() for _ in range(steps)]


def lines(reports):
    return [
        Line(r.round.now_s, r.round.row, r.round.ticket, r.round.version, r.round.verdict)
        for r in reports
    ]


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_each_protocol_learns_where_nobody_attacks(protocol):
    simulation = simulate(mlp, protocol)
    before = accuracy(simulation)
    reports = run(simulation, 400)
    assert before < 0.7 < 0.85 < accuracy(simulation)
    assert [r.step for r in reports] == [*range(1, 401)]
    updates = [r.round.updates for r in reports]
    assert updates == np.cumsum([r.round.is_step for r in reports]).tolist()
    if protocol == "async":
        assert updates[-1] == 400
    else:
        assert 40 < updates[-1] <= 400


def test_an_arrival_is_the_gradient_at_what_its_worker_held():
    """By hand: one slow worker, whose gradient is of a model three updates ago."""
    simulation = simulate(mlp, num_workers=4, delays="equal", delay_args={"factors": {3: 1.5}})
    variables = simulation.model.trainable_variables
    held = {row: [v.numpy() for v in variables] for row in range(4)}
    tickets = [0] * 4
    for row in (0, 1, 2, 3, 0, 1, 2, 0, 1, 2, 3):
        now = [v.numpy() for v in variables]
        for variable, value in zip(variables, held[row], strict=True):
            variable.assign(value)
        points, labels = simulation.batches.at(tickets[row], [row])
        with tf.GradientTape() as tape:
            loss = cross_entropy(labels[0], simulation.model(points[0], training=True))
        grads = tape.gradient(loss, variables)
        for variable, value in zip(variables, now, strict=True):
            variable.assign(value)
        report = simulation.step().round
        assert (report.row, report.ticket) == (row, tickets[row])
        for variable, value, grad in zip(variables, now, grads, strict=True):
            np.testing.assert_allclose(variable.numpy(), value - 0.1 * grad, atol=1e-6)
        held[row] = [v.numpy() for v in variables]
        tickets[row] += 1
    assert report.row == 3
    assert report.staleness == 6


GIVEN = (
    {}, {"worker_momentum": 0.9}, {"delays": "staleness", "delay_args": {"most": 6}},
    {"byzantine": 1, "attack": "gaussian"}, {"l1": 1e-3, "l2": 1e-3},
)  # fmt: skip


@pytest.mark.parametrize(("protocol", "given"), [
    # What is given is the simulation's business, whatever the protocol.
    pytest.param(protocol, given, marks=[pytest.mark.long] if given and protocol != "basgd" else [])
    for protocol in PROTOCOLS
    for given in GIVEN
])  # fmt: skip
def test_a_simulation_goes_on_bit_for_bit(protocol, given):
    def make():
        model = lambda: network(layers.Dense(8, "relu"), layers.Dropout(0.3))  # noqa: E731
        return simulate(model, protocol, optimizer=keras.optimizers.Adam(0.01), **given)

    whole, first, second = make(), make(), make()
    expected = lines(run(whole, 40))
    assert lines(run(first, 23)) == expected[:23]
    second.restore({name: np.array(array) for name, array in first.state().items()})
    assert lines(run(second, 17)) == expected[23:]
    state, state2 = whole.state(), second.state()
    assert state.keys() == state2.keys()
    for name, array in state.items():
        np.testing.assert_array_equal(array, state2[name], err_msg=name)


def test_what_is_computed_at_a_held_model_leaves_no_trace():
    """Statistics of batch normalisation are those of the first worker's batches alone."""
    model = lambda: network(layers.Dense(8), layers.BatchNormalization())  # noqa: E731
    simulation = simulate(model, delays="equal")
    statistics = simulation.model.non_trainable_variables
    before = [np.array(v.numpy()) for v in statistics]
    losses = []
    for _ in range(10):
        report = simulation.step()
        after = [np.array(v.numpy()) for v in statistics]
        changed = [not np.array_equal(a, b) for a, b in zip(before, after, strict=True)]
        assert any(changed) == (report.round.row == 0)
        losses.append(report.loss)
        before = after
    assert losses[0] == losses[4] != losses[5] == losses[9]


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_schedule_is_followed_to_the_same_bits(protocol, tmp_path):
    given = {"delays": "truncated-normal", "delay_args": {"factors": {4: 4}, "silent": {3: 30}}}
    first = simulate(mlp, protocol, **given)
    path = tmp_path / "schedule.csv"
    file = ScheduleFile(path, 0)
    for report in run(first, 80):
        file.add(report.step, report.round)
    file.close()
    schedule = read_schedule(path)
    second = simulate(mlp, protocol, schedule=schedule)
    assert lines(run(second, 30)) == schedule[:30]
    third = simulate(mlp, protocol, schedule=schedule)
    third.restore(second.state())
    assert lines(run(third, 50)) == schedule[30:]
    np.testing.assert_array_equal(weights(first), weights(third))
    with pytest.raises(RuleError, match="step 81: the schedule has 80 arrivals"):
        third.step()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"row": 9}, "gradient 0 of row 9 cannot come now, of 5 workers"),
        ({"ticket": 7}, "gradient 7 of row"),
        ({"version": 3}, "there is no version 3"),
        ({"verdict": "kept"}, "the schedule says 'kept' and this simulation 'step'"),
    ],
)
def test_a_schedule_of_another_training_is_refused(change, said):
    schedule = lines(run(simulate(), 1))
    simulation = simulate(schedule=[schedule[0]._replace(**change)])
    with pytest.raises(RuleError, match=f"step 1: the schedule .*{said}|step 1: {said}"):
        simulation.step()


def test_a_schedule_file_goes_on_and_forgets_what_is_made_again(tmp_path):
    path = tmp_path / "schedule.csv"
    reports = run(simulate(), 10)
    file = ScheduleFile(path, 0)
    for report in reports:
        file.add(report.step, report.round)
    file.close()
    with path.open("a") as cut_short:
        cut_short.write("11,3.4")
    assert read_schedule(path) == lines(reports)
    file = ScheduleFile(path, 4)
    for report in reports[4:7]:
        file.add(report.step, report.round)
    file.close()
    assert read_schedule(path) == lines(reports[:7])
    with pytest.raises(UserError, match="has 7 arrivals, and the checkpoint is of 8"):
        ScheduleFile(path, 8)


@pytest.mark.parametrize("text", [
    "", "step,row\n1,2\n", "step,time_s,row,ticket,version,verdict\n2,0.1,0,0,0,step\n",
    "step,time_s,row,ticket,version,verdict\n1,x,0,0,0,step\n",
    "step,time_s,row,ticket,version,verdict\n1,0.1,0,0\n",
])  # fmt: skip
def test_a_file_that_is_no_schedule_is_refused(text, tmp_path):
    path = tmp_path / "schedule.csv"
    path.write_text(text)
    with pytest.raises(UserError, match="is no schedule of arrivals"):
        read_schedule(path)


LOCAL = [name for name, attack in ATTACKS.items() if attack.form in ("local", "labels")]
FIRST = ("sign-flip", "gaussian", "nan", "label-flip")  # the others are with the long tests


@pytest.mark.parametrize(("protocol", "attack"), [
    pytest.param(protocol, attack, marks=[] if attack in FIRST else [pytest.mark.long])
    for protocol in ("basgd", "zeno++")
    for attack in LOCAL
])  # fmt: skip
def test_robust_protocols_learn_under_every_local_attack(protocol, attack):
    simulation = simulate(mlp, protocol, num_workers=7, byzantine=1, attack=attack)
    run(simulation, 300)
    assert accuracy(simulation) > 0.8


def test_plain_asynchronous_sgd_does_not():
    simulation = simulate(mlp, byzantine=1, attack="negative-gradient")
    run(simulation, 300)
    assert accuracy(simulation) < 0.6


def test_fast_attackers_have_one_buffer_each_all_the_same():
    """Twenty times as fast as the others, they fill the means of their own buffers alone."""
    simulation = simulate(
        mlp,
        "basgd",
        num_workers=7,
        byzantine=1,
        attack="negative-gradient",
        delay_args={"factors": {6: 0.05}},
    )
    reports = run(simulation, 1200)
    assert np.mean([r.round.row == 6 for r in reports]) > 0.6
    assert accuracy(simulation) > 0.85


@pytest.fixture
def mean_of_all():
    """A rule with state: the mean over all steps."""

    def init(n, d):
        return {"sum": np.zeros(d), "steps": np.zeros(())}

    @gar("mean-of-all", condition="n >= 1", cost="", source="", robust=False, init=init)
    def mean_of_all(stack_nd, state, context, *, f=0):
        state = {"sum": state["sum"] + np.mean(stack_nd, axis=0), "steps": state["steps"] + 1}
        usage_n = np.ones(stack_nd.shape[0])
        return Aggregated(tf.cast(state["sum"] / state["steps"], tf.float32), usage_n), state

    yield
    del registered["mean-of-all"]


@pytest.mark.parametrize("gar", ["mean-of-all", "bucketing(s=2)+median", "nnm+median"])
def test_any_rule_aggregates_buffers_and_goes_on_with_its_state(gar, mean_of_all):
    def make():
        return simulate(mlp, "basgd", gar=gar, f=0, num_workers=7)

    whole, first, second = make(), make(), make()
    run(whole, 90)
    run(first, 50)
    second.restore(first.state())
    run(second, 40)
    np.testing.assert_array_equal(weights(whole), weights(second))
    assert whole._server.version > 10


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"byzantine": 1, "attack": "little"}, "little is omniscient.*no such time"),
        ({"attack": "gambler"}, "gambler is coordinates"),
        ({"gar": "krum"}, "async decides what is applied, not a rule: leave gar out"),
        ({"quorum": 3}, "a quorum closes rounds"),
        ({"loss": 0.1}, "none is lost; got --loss=0.1"),
        ({"protocol": "kardam", "f": 2}, "kardam needs n >= 3f . 1 workers; f=2 needs 7, got 5"),
        ({"protocol": "kardam", "protocol_args": {"dampening": "x"}}, "no dampening='x'"),
        ({"protocol": "kardam", "protocol_args": {"alpha": -1}}, "alpha is a number at least 0"),
        ({"protocol": "basgd", "f": 3, "protocol_args": {}}, "7 buffers need 7, got 5"),
        ({"protocol": "basgd", "protocol_args": {"buffers": 2}}, "median needs n >= 2f . 1"),
        ({"protocol": "basgd", "protocol_args": {"buffers": 0}}, "buffers is a whole number"),
        ({"protocol": "basgd", "protocol_args": {"reassign_s": 0}}, "reassign_s is a number above"),
        ({"protocol": "zeno++", "protocol_args": {"refresh": 0}}, "refresh is a whole number"),
        ({"protocol": "zeno++", "protocol_args": {"rho": float("nan")}}, "rho is a number"),
        ({"delays": "zipf"}, "no delays is called 'zipf'"),
        ({"delay_args": {"factors": {7: 2}}}, r"rows 0\.\.4"),
    ],
)
def test_what_cannot_work_is_refused(given, said):
    with pytest.raises(UserError, match=said):
        simulate(linear, **{"protocol": "async"} | given)


def test_zenopp_without_validation_data_is_refused():
    points, labels = clouds()
    drawn = batches(points, labels, num_workers=5, batch_size=8)
    setting = Setting(num_workers=5, protocol="zeno++")
    with pytest.raises(UserError, match=r"zeno\+\+ judges gradients by data that the server alone"):
        SimulatedArrivals(setting, linear(), cross_entropy, sgd(), drawn)


def test_all_silent_workers_end_a_simulation():
    simulation = simulate(delay_args={"silent": dict.fromkeys(range(5), 3.0)})
    with pytest.raises(RuleError, match="no worker is left after"):
        run(simulation, 100)
