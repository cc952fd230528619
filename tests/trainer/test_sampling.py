import numpy as np
import pytest

from aggregathor.errors import UserError
from aggregathor.trainer.sampling import PARTITIONS, batches

N, CLASSES = 1000, 10


def divided(partition, *, num_workers=8, batch_size=16, alpha=1.0, seed=0, num_examples=N):
    images = np.arange(num_examples)[:, np.newaxis]  # an image tells which one it is
    labels = np.random.default_rng(0).integers(CLASSES, size=num_examples).astype(np.int32)
    return batches(
        images,
        labels,
        num_workers=num_workers,
        batch_size=batch_size,
        partition=partition,
        alpha=alpha,
        seed=seed,
    )


def drawn(data, worker, steps):
    return np.concatenate([data.at(step)[0][worker, :, 0] for step in range(steps)])


@pytest.mark.parametrize("partition", PARTITIONS)
def test_a_batch_depends_on_seed_worker_and_step_only(partition):
    data, again = divided(partition), divided(partition)
    later_first = {step: again.at(step) for step in (9, 3, 0)}
    for step in (0, 3, 9):
        for part, other in zip(data.at(step), later_first[step], strict=True):
            np.testing.assert_array_equal(part, other)
    images, labels = data.at(0)
    assert images.shape == (8, 16, 1)
    assert labels.shape == (8, 16)
    assert len(np.unique(images[:, :, 0], axis=0)) == 8  # no two workers draw the same
    assert not np.array_equal(images, data.at(1)[0])
    assert not np.array_equal(images, divided(partition, seed=1).at(0)[0])


@pytest.mark.parametrize("partition", PARTITIONS)
def test_labels_stay_with_their_images(partition):
    data = divided(partition)
    images, labels = data.at(5)
    np.testing.assert_array_equal(labels, data.labels[images[:, :, 0]])


@pytest.mark.parametrize("alpha", [1e-9, 0.01, 1.0, 1e6, 1e300])
@pytest.mark.parametrize("partition", ["shards", "dirichlet"])
def test_parts_are_disjoint_cover_all_and_are_never_empty(partition, alpha):
    parts = divided(partition, alpha=alpha).parts
    np.testing.assert_array_equal(np.sort(np.concatenate(parts)), np.arange(N))
    assert min(map(len, parts)) >= 1


@pytest.mark.parametrize("seed", range(20))
def test_no_worker_is_left_without_an_example(seed):
    parts = divided("dirichlet", num_workers=30, alpha=0.01, seed=seed, num_examples=30).parts
    assert [len(part) for part in parts] == [1] * 30


def test_shards_are_equally_large():
    assert sorted(map(len, divided("shards", num_workers=7).parts)) == [142] + [143] * 6


@pytest.mark.parametrize("batch_size", [1, 16, 100, 125, 300])  # 125 make a shard
def test_every_example_is_drawn_once_an_epoch(batch_size):
    data = divided("shards", batch_size=batch_size)
    for worker in (0, 7):
        part = np.sort(data.parts[worker])
        stream = drawn(data, worker, steps=-(-3 * len(part) // batch_size))
        epochs = [stream[i * len(part) : (i + 1) * len(part)] for i in range(3)]
        for epoch in epochs:
            np.testing.assert_array_equal(np.sort(epoch), part)
        assert not np.array_equal(epochs[0], epochs[1])  # each in an order of its own


def test_sampling_draws_from_the_whole_set_evenly():
    stream = drawn(divided("sampling", batch_size=500, num_examples=50), 3, steps=100)
    counts = np.bincount(stream, minlength=50)
    # 50000 draws of 50: 1000 each, with a deviation of 31; 5 of them pass no one in 10^4 sets.
    assert np.all(np.abs(counts - 1000) < 5 * np.sqrt(1000))


def shares(alpha):
    """Of each worker [n], how large its most frequent class is, 0.1..1."""
    data = divided("dirichlet", alpha=alpha)
    mixes = [np.bincount(data.labels[part], minlength=CLASSES) for part in data.parts]
    return np.array([mix.max() / mix.sum() for mix in mixes])


def test_a_small_alpha_leaves_workers_few_classes_and_a_large_one_all():
    assert np.median(shares(0.01)) > 0.5
    assert np.all(shares(1e6) < 0.2)
    assert np.median(shares(0.01)) > np.median(shares(1.0)) > np.median(shares(1e6))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"partition": "shard"}, "did you mean 'shards'"),
        ({"partition": "?"}, "known: dirichlet, sampling, shards"),
        ({"partition": "shards", "num_workers": N + 1}, "1000 examples .* 1001 workers"),
        ({"partition": "dirichlet", "alpha": 0.0}, "alpha > 0, got 0.0"),
        ({"partition": "dirichlet", "alpha": float("nan")}, "alpha > 0, got nan"),
        ({"partition": "dirichlet", "alpha": float("inf")}, "finite alpha > 0, got inf"),
        ({"partition": "dirichlet", "alpha": 1e308}, "finite alpha > 0, got 1e[+]308"),
    ],
)
def test_what_cannot_be_divided_is_an_error(changes, message):
    with pytest.raises(UserError, match=message):
        divided(**changes)


def test_a_workers_batch_is_drawn_alone_as_among_all():
    data = divided("shards")
    for whole, part in zip(data.at(3), data.at(3, range(2, 3)), strict=True):
        np.testing.assert_array_equal(whole[2:3], part)
