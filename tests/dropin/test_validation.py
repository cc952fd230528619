"""What the server of a script judges gradients by, and that the script's model stays as it is."""

import random
from types import SimpleNamespace

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from aggregathor.dropin import validation as module
from aggregathor.dropin.validation import Validations, examples_of
from aggregathor.errors import UserError
from aggregathor.protocols.setting import Setting

POINTS = np.random.default_rng(0).standard_normal((60, 6))  # float64, as scripts have it
LABELS = (POINTS[:, 0] > 0).astype(int)


def validations(gar="zeno", is_server=True):
    return Validations(
        SimpleNamespace(setting=Setting(num_workers=3, gar=gar), is_server=is_server, secret=0)
    )


def model_of_two_outputs():
    keras.utils.set_random_seed(0)
    points = keras.Input([6])
    hidden = layers.Dropout(0.5)(layers.BatchNormalization()(layers.Dense(4, "relu")(points)))
    outputs = {"class": layers.Dense(2)(hidden), "sum": layers.Dense(1)(hidden)}
    model = keras.Model(points, outputs)
    model.compile(
        keras.optimizers.Adam(0.01),
        {"class": keras.losses.SparseCategoricalCrossentropy(from_logits=True), "sum": "mse"},
        metrics={"class": ["accuracy"], "sum": ["mae"]},
    )
    return model


TARGETS = {"class": LABELS, "sum": POINTS.sum(axis=1)}


def ask(judge, variables, seed=0, rows=2, n_r=60):
    params_d = np.concatenate([v.numpy().ravel() for v in variables])
    stack_nd = np.random.default_rng(1).standard_normal((rows, len(params_d))).astype(np.float32)
    rng = np.random.default_rng(seed)
    return judge(params_d, stack_nd, np.arange(rows), 0.1, n_r, rng)


def states_of(model):
    owners = (model, model.optimizer, *model.metrics)
    return [
        *(np.array(v.numpy()) for owner in owners for v in owner.variables),
        np.array(random.getstate()[1]),
        np.random.get_state()[1],  # noqa: NPY002
        tf.random.get_global_generator().state.numpy(),
        keras.random.SeedGenerator(1).state.numpy(),
    ]


def test_the_compiled_loss_is_that_of_evaluate_and_leaves_all_as_it_is():
    model = model_of_two_outputs()
    model.fit(POINTS, TARGETS, epochs=1, verbose=0)  # its metrics have a value
    variables = [v.value for v in model.trainable_variables]
    these = validations()
    judge = these.of(variables)
    before = states_of(model)
    drawn_before = keras.random.normal([3])
    keras.utils.set_random_seed(5)
    with these.of_fit(model, {"validation_data": (POINTS, TARGETS)}):
        losses = ask(judge, variables)
        ask(judge, variables, seed=1)
    drawn = keras.random.normal([3]), random.random(), tf.random.normal([2])
    keras.utils.set_random_seed(5)
    again = keras.random.normal([3]), random.random(), tf.random.normal([2])
    for one, other in zip(drawn, again, strict=True):
        np.testing.assert_array_equal(one, other)
    assert not np.array_equal(drawn_before, drawn[0])
    for one, other in zip(before[:-4], states_of(model)[:-4], strict=True):
        np.testing.assert_array_equal(one, other)
    assert losses[0] == pytest.approx(model.evaluate(POINTS, TARGETS, 60, verbose=0)[0], rel=1e-5)
    assert losses[0] not in losses[1:]


def test_what_is_given_goes_before_fits_and_fits_before_what_was_held_out():
    model = model_of_two_outputs()
    x = tf.Variable([3.0])
    these = validations()
    judge, of_x = these.of([v.value for v in model.trainable_variables]), these.of([x])
    variables = [v.value for v in model.trainable_variables]
    these.hold_out((POINTS[:30], {name: each[:30] for name, each in TARGETS.items()}))
    with these.of_fit(model, {}):
        held_out = ask(judge, variables, n_r=30)[0]
        with these.of_fit(model, {"validation_data": (POINTS, TARGETS)}):  # of a callback
            of_fit = ask(judge, variables)[0]
            with pytest.raises(UserError, match="n_r=61 examples are to be drawn of 60"):
                ask(judge, variables, n_r=61)
        assert ask(judge, variables, n_r=30)[0] == held_out != of_fit
    these.give(lambda scale: x[0] * scale[0], np.full(9, 2.0, np.float32))
    with these.of_fit(model, {"validation_data": (POINTS, TARGETS)}):
        assert ask(of_x, [x], n_r=1)[0] == 6
    x.assign([4.0])
    assert ask(of_x, [x], n_r=1)[0] == 8


def test_without_anything_it_says_what_to_write():
    these = validations()
    said = r"zeno judges .*: give fit validation_data=\(x, y\), or agt\.init the same, or call "
    for call in (
        these.check,
        lambda: these.of_fit(None, {}).__enter__(),
        lambda: ask(these.of([tf.Variable([1.0])]), [tf.Variable([1.0])]),
    ):
        with pytest.raises(UserError, match=said):
            call()


@pytest.mark.parametrize("who", [{"gar": "median"}, {"is_server": False}])
def test_it_is_of_no_concern_to_other_rules_and_to_workers(who):
    these = validations(**who)
    these.give(lambda: 1 / 0, object())
    these.check()
    assert these.of([tf.Variable([1.0])]) is None
    with these.of_fit(None, {"validation_data": object()}):
        these.check()


class Batches(keras.utils.PyDataset):
    def __len__(self):
        return 3

    def __getitem__(self, index):
        part = slice(20 * index, 20 * index + 20)
        return POINTS[part], LABELS[part]


@pytest.mark.parametrize(
    "data",
    [
        (POINTS, LABELS),
        [POINTS, LABELS],
        (POINTS, LABELS, None),
        (tf.constant(POINTS), tf.constant(LABELS)),
        tf.data.Dataset.from_tensor_slices((POINTS, LABELS)).batch(7),
        Batches(),
    ],
    ids=["tuple", "list", "no weights", "tensors", "dataset", "PyDataset"],
)
def test_forms_of_data(data):
    examples = examples_of(data)
    assert examples.count == 60
    points, labels = examples.draw(np.random.default_rng(0), 60)
    order = np.random.default_rng(0).choice(60, 60, replace=False)
    np.testing.assert_array_equal(points, POINTS[order])
    np.testing.assert_array_equal(labels, LABELS[order])


def test_as_many_batches_as_fit_validates_with():
    endless = tf.data.Dataset.from_tensor_slices((POINTS, LABELS)).repeat().batch(10)
    assert examples_of(endless, steps=3).count == 30


def test_a_data_set_is_held_as_far_as_there_is_room(monkeypatch, capsys):
    monkeypatch.setattr(module, "_MOST_BYTES", 10 * POINTS[0].nbytes + 1)
    endless = tf.data.Dataset.from_tensor_slices(POINTS).repeat().batch(10)
    assert examples_of(endless).count == 20
    assert "judged by the first 2 batches of the validation data" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ((POINTS, LABELS[:-1]), "found 59, 60"),
        (iter([]), "are arrays, a tf.data.Dataset or a PyDataset, got list_iterator"),
        (tf.data.Dataset.from_tensor_slices(POINTS).batch(9).take(0), "have no batch"),
        (tf.ragged.constant([[1.0], [2.0, 3.0]]), "are dense, got a RaggedTensor"),
    ],
)
def test_what_is_no_validation_data(data, message):
    with pytest.raises(UserError, match=message):
        examples_of(data)
