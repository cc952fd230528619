# ruff: noqa: NPY002 - what scripts call
import random

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras.src.random import seed_generator

from aggregathor.dropin.keras.seeds import APART, Seeds


@pytest.fixture
def on_rank(monkeypatch):
    """Returns a function that patches as on a rank, in place of what was patched before."""
    places = [
        *((random, "seed"), (np.random, "seed"), (tf.random, "set_seed")),
        *((tf.compat.v1, "set_random_seed"), (keras.utils, "set_random_seed")),
        (tf.keras.utils, "set_random_seed"),
        (seed_generator, "make_default_seed"),
    ]
    originals = [getattr(module, name) for module, name in places]

    def patch(rank):
        for (module, name), original in zip(places, originals, strict=True):
            monkeypatch.setattr(module, name, original)
        return Seeds(rank, is_server=rank == 0)

    yield patch
    originals[0]()
    originals[1]()


def draws():
    return [random.random(), np.random.random()]


@pytest.mark.parametrize("set_seed", ["keras", "each"])
def test_ranks_split_alike_and_then_draw_their_own_batches(set_seed, on_rank):
    before, after = [], []
    for rank in range(3):
        seeds = on_rank(rank)
        if set_seed == "keras":
            keras.utils.set_random_seed(1)
        else:
            random.seed(1)
            np.random.seed(1)
        before.append(draws())
        seeds.begin()
        after.append(draws())
        seeds.begin()
        after[-1] += draws()
    assert before[0] == before[1] == before[2]
    assert len({each for ranks in after for each in ranks}) == 12

    random.seed(1)  # rank 2 is still patched: the training has begun
    own = random.random()
    assert own == random.Random(1 + 2 * APART).random()


def test_the_server_draws_what_the_script_does_alone(on_rank):
    drawn = []
    for with_us in (False, True):
        if with_us:
            seeds = on_rank(0)
        keras.utils.set_random_seed(1)
        drawn.append(draws())
        if with_us:
            seeds.begin()
        drawn[-1] += [*draws(), float(tf.random.uniform([]))]
    assert drawn[0] == drawn[1]


def test_datasets_and_layers_are_each_ranks_own_at_once(on_rank):
    orders, masks = [], []
    for rank in range(2):
        on_rank(rank)
        keras.utils.set_random_seed(1)
        dataset = tf.data.Dataset.range(20).shuffle(20)
        orders.append([int(each) for each in dataset])
        masks.append(keras.layers.Dropout(0.5)(np.ones(50), training=True).numpy().tolist())
    assert orders[0] != orders[1]
    assert masks[0] != masks[1]


def test_what_is_no_number_passes(on_rank):
    seeds = on_rank(1)
    np.random.seed(1)
    np.random.seed(None)  # takes it back
    random.seed("a string")
    drawn = random.random()
    seeds.begin()
    random.seed("a string")
    assert random.random() == drawn
