# ruff: noqa: NPY002 - what scripts call
import random
import threading
from concurrent.futures import ThreadPoolExecutor

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras.src.backend.common import global_state
from keras.src.backend.tensorflow.trainer import TensorFlowTrainer
from keras.src.random import seed_generator
from tensorflow.python.data.util import random_seed as dataset_seeds
from tensorflow.python.framework.func_graph import FuncGraph
from tensorflow.python.ops.script_ops import FuncRegistry

from aggregathor.dropin.keras.seeds import APART, Seeds

PLACES = [
    *((module, name) for module in (random, np.random) for name in dir(module) if name.islower()),
    *((tf.random, "set_seed"), (tf.compat.v1, "set_random_seed"), (tf.data.Dataset, "shuffle")),
    *((seed_generator, "make_default_seed"), (seed_generator, "global_seed_generator")),
    *((dataset_seeds, "get_seed"), (FuncGraph, "__init__"), (FuncRegistry, "__call__")),
    (TensorFlowTrainer, "fit"),
]
# Of Keras, with NumPy 2.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
ORIGINALS = [(place, name, getattr(place, name)) for place, name in PLACES]


class Rank:
    """A rank's patches; a round of its own loop is made by ``step``."""

    def __init__(self, number, entropy, draws="own"):
        self.made = 0
        self.seeds = Seeds(
            number,
            is_server=number == 0,
            entropy=entropy,
            rounds=lambda: self.made,
            loop_is_alike=lambda: draws == "alike",
        )

    def step(self):
        self.seeds.begin()
        self.made += 1


@pytest.fixture
def on_rank(monkeypatch):
    """Returns a function that patches as on a rank, in place of what was patched before."""

    def patch(number, entropy=12345, draws="own"):
        for place, name, original in ORIGINALS:
            monkeypatch.setattr(place, name, original)
        global_state.set_global_attribute(seed_generator.GLOBAL_SEED_GENERATOR, None)
        return Rank(number, entropy, draws)

    yield patch
    monkeypatch.undo()
    keras.utils.set_random_seed(0)


def one():
    return [random.random(), random.randrange(10**9), np.random.rand(), np.random.choice([1, 2])]


def several(rng=None):
    order = list(range(50))
    random.shuffle(order)
    lists = [order, random.sample(range(1000), 5), np.random.permutation(50).tolist()]
    lists += [np.random.normal(0, 1, 5).tolist(), np.random.randint(9, size=20).tolist()]
    lists += [np.random.randn(3).tolist(), np.random.sample(3).tolist()]
    if rng is not None:
        lists += [rng.permutation(50).tolist(), rng.integers(0, 99, 9).tolist()]
    return lists


def all_of(on_rank, script, ranks=3, **how):
    """Returns what the ranks give, by rank."""
    return [script(on_rank(number, **how)) for number in range(ranks)]


def alike(found):
    return all(each == found[0] for each in found)


def all_differ(found):
    """Whether no two ranks have any of the lists alike."""
    return all(
        len({repr(each) for each in lists}) == len(found) for lists in zip(*found, strict=True)
    )


def no_seed():
    pass


def each_seed():
    random.seed(1)
    np.random.seed(1)
    tf.random.set_seed(1)


SEEDS = pytest.mark.parametrize(
    "set_seed", [no_seed, each_seed, lambda: keras.utils.set_random_seed(1)]
)


@SEEDS
def test_ranks_split_alike_and_then_draw_their_own_batches(set_seed, on_rank):
    def script(rank):
        set_seed()
        rng = np.random.default_rng()
        before = [one(), several(rng), rng.random()]
        before += [tf.random.shuffle(tf.range(50)).numpy().tolist()]
        before += [keras.random.uniform([3]).numpy().tolist()]
        rank.step()
        return before, [*several(rng), *several(rng)]

    found = all_of(on_rank, script)
    assert alike([before for before, _ in found])
    assert all_differ([after for _, after in found])


@SEEDS
def test_what_a_script_decides_by_single_numbers_stays_alike(set_seed, on_rank):
    """A random head, a rate that a search tries: drawn while batches are drawn too."""

    def script(rank):
        set_seed()
        rng = np.random.default_rng()
        decided = []
        for _ in range(4):
            rank.step()
            several(rng)
            decided += [*one(), rng.random(), rng.choice(["a", "b", "c"]), rng.integers(10**6)]
        return decided

    assert alike(all_of(on_rank, script))


@SEEDS
def test_a_loop_draws_alike_where_the_user_says_so(set_seed, on_rank):
    """The classes of a task, several at once; what feeds gradients still differs."""

    def script(rank):
        set_seed()
        rng = np.random.default_rng()
        decided, fed = [], []
        for _ in range(2):
            rank.step()
            decided += [*several(rng), random.choices("abcdefgh", k=5), *one()]
            decided += [tf.random.shuffle(tf.range(50)).numpy().tolist()]
            fed += [list(tf.data.Dataset.range(50).shuffle(50).as_numpy_iterator())]
            with ThreadPoolExecutor(1) as pool:
                fed += [pool.submit(np.random.permutation, 50).result().tolist()]
        return decided, fed

    found = all_of(on_rank, script, draws="alike")
    assert alike([decided for decided, _ in found])
    assert all_differ([fed for _, fed in found])


@pytest.mark.parametrize(("number", "draws"), [(0, "own"), (1, "own"), (0, "alike")])
def test_the_first_draw_of_a_loop_is_named(number, draws, on_rank, capsys):
    rank = on_rank(number, draws=draws)
    np.random.permutation(3)
    rank.step()
    random.random()
    line = test_the_first_draw_of_a_loop_is_named.__code__.co_firstlineno + 8
    for _ in range(2):
        random.choices("ab", k=5)
        np.random.permutation(3)
    said = capsys.readouterr().err
    assert said.count("draws other numbers") == ((number, draws) == (0, "own"))
    if said:
        assert f"random.choices at {__file__}:{line} draws other numbers on each rank" in said
        assert said.endswith(" such as a task: --draws=alike\n")


def test_without_a_seed_each_job_draws_other_numbers(on_rank):
    def script(rank):
        return [one(), several(np.random.default_rng())]

    first, second = (all_of(on_rank, script, ranks=1, entropy=e)[0] for e in (1, 2))
    assert all(a != b for a, b in zip(first[1], second[1], strict=True))


def test_between_fits_rows_are_split_alike(on_rank):
    """Each fold of a cross-validation, each trial of a search."""

    def script(rank):
        splits = []
        for fold in range(3):
            np.random.seed(fold)
            splits.append([one(), several(), tf.random.shuffle(tf.range(9)).numpy().tolist()])
            model = keras.Sequential([keras.Input([1]), keras.layers.Dense(1)])
            model.compile("sgd", "mse")
            with pytest.MonkeyPatch.context() as patch:
                # What the drop-in does in it.
                patch.setattr(model, "make_train_function", making_rounds(rank, model))
                model.fit(np.ones([4, 1]), np.ones([4, 1]), verbose=0)
        assert rank.made == 3
        return splits

    def making_rounds(rank, model):
        def make(force=False):
            rank.step()
            TensorFlowTrainer.make_train_function(model, force)

        return make

    assert alike(all_of(on_rank, script, ranks=2))


def test_a_pipeline_draws_its_own_and_disturbs_no_decision(on_rank):
    def script(rank):
        rank.step()
        drawn = []

        def augment(x):
            drawn.append(random.random())
            drawn.append(np.random.rand())
            return x

        dataset = tf.data.Dataset.range(3).map(lambda x: tf.py_function(augment, [x], x.dtype))
        for number, _ in enumerate(dataset):
            assert number < 3
        with ThreadPoolExecutor(1) as pool:
            drawn.append(pool.submit(random.random).result())
        assert len(drawn) == 7
        return drawn, one()

    found = all_of(on_rank, script)
    assert all_differ([drawn for drawn, _ in found])
    assert alike([decided for _, decided in found])


def test_the_server_draws_what_the_script_does_alone(on_rank):
    def script(rank):
        keras.utils.set_random_seed(1)
        rng = np.random.default_rng(3)
        dropout = keras.layers.Dropout(0.5)
        drawn = [one(), several(rng), rng.random()]
        if rank is not None:
            rank.step()
        batches = several(rng)
        orders = [int(each) for each in tf.data.Dataset.range(20).shuffle(20)]
        noise = tf.function(lambda: tf.random.uniform([3]))().numpy().tolist()
        mask = dropout(np.ones(50), training=True).numpy().tolist()
        return [*drawn, batches, float(tf.random.uniform([])), orders, noise, mask]

    for place, name, original in ORIGINALS:
        assert getattr(place, name) is original or name.startswith("__")
    assert script(None) == script(on_rank(0))


def test_a_worker_uses_the_scripts_seed_and_its_rank(on_rank):
    rank = on_rank(2)
    random.seed(1)
    rank.step()
    assert random.sample(range(99), 5) == random.Random(1 + 2 * APART).sample(range(99), 5)
    np.random.seed(4)  # the training has begun
    expected = np.random.RandomState(4 + 2 * APART).permutation(20)
    np.testing.assert_array_equal(np.random.permutation(20), expected)


@SEEDS
@pytest.mark.parametrize("seed", [None, 7])
def test_datasets_functions_and_layers_are_each_ranks_own_at_once(seed, set_seed, on_rank):
    def script(_):
        set_seed()
        dataset = tf.data.Dataset.range(50).shuffle(50, seed=seed)
        noisy = tf.data.Dataset.range(5).map(lambda _: tf.random.uniform([]))
        return [
            [int(each) for each in dataset],
            [float(each) for each in noisy],
            [int(each) for each in tf.data.Dataset.random(seed=seed).take(3)],
            tf.function(lambda: tf.random.normal([3]))().numpy().tolist(),
            keras.layers.Dropout(0.5)(np.ones(50), training=True).numpy().tolist(),
        ]

    assert all_differ(all_of(on_rank, script))


@SEEDS
@pytest.mark.parametrize("seed", [None, 7])
def test_a_shuffle_that_keeps_its_order_splits_alike(seed, set_seed, on_rank):
    """As tutorials do: take one part for validation, skip it for training."""

    def script(_):
        set_seed()
        rows = tf.data.Dataset.range(100).shuffle(100, seed, reshuffle_each_iteration=False)
        return [int(each) for each in rows.take(20)]

    assert alike(all_of(on_rank, script))


def test_a_child_of_a_pipeline_draws_its_own(on_rank):
    def script(rank):
        rank.step()
        rank.seeds._fork()  # what the fork calls in the child
        return [[random.random()], [np.random.rand()], [np.random.default_rng().random()]]

    assert all_differ(all_of(on_rank, script))


def test_what_is_no_number_passes(on_rank):
    rank = on_rank(1)
    np.random.seed(1)
    np.random.seed(None)  # takes it back
    random.seed("a string")
    drawn = random.random()
    rank.step()
    random.seed("a string")
    assert random.random() == drawn
    several()


def test_a_rank_that_has_drawn_otherwise_goes_on_with_the_servers(on_rank, capsys):
    class Together:
        """Gives every rank what the first has."""

        first = None

        def bcast(self, value, kind):
            Together.first = Together.first or value
            return Together.first

    def script(rank):
        rank.seeds._together = Together()
        if rank.seeds._rank == 1:
            random.random()
        random.gauss(0, 1)
        rank.step()
        return [one(), random.gauss(0, 1)]

    assert alike(all_of(on_rank, script, ranks=2))
    said = capsys.readouterr().err
    assert said.count("rank 1 has drawn other numbers from random than the server") == 1
    assert "from numpy.random than" not in said


def test_autograph_leaves_them_alone(on_rank):
    on_rank(1).step()

    @tf.function
    def traced():
        return tf.constant(random.random()) + np.random.uniform(0, 1, 3).sum()

    assert traced().shape == ()
    assert threading.current_thread() is threading.main_thread()
