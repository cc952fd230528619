"""Steps as scripts have them, which write what is their own: none is refused."""

import contextlib
import threading

import keras
import numpy as np
import pytest
import tensorflow as tf

from aggregathor.locking import Guard, LockError

layers = keras.layers


@pytest.fixture(params=[False, True], ids=["error", "patch"])
def guard(request):
    with contextlib.closing(Guard("rank 1", patches=request.param)) as guard:
        yield guard


def convnet():
    """Statistics, seeds and augmentation that the forward pass writes."""
    return [8, 8, 3], [
        layers.RandomFlip(),
        layers.Conv2D(4, 3),
        layers.BatchNormalization(),
        layers.SpatialDropout2D(0.2),
        layers.SeparableConv2D(4, 3),
        layers.Flatten(),
        layers.GaussianNoise(0.1),
        layers.Dense(3),
    ]


def recurrent():
    """Loops, with states that are kept from batch to batch."""
    return [6], [
        layers.Embedding(20, 8, mask_zero=True),
        layers.Bidirectional(layers.LSTM(4, return_sequences=True)),
        layers.GRU(4, return_sequences=True),
        layers.RNN(layers.SimpleRNNCell(4)),
        layers.Dense(3),
    ]


def attention():
    return [6], [layers.Embedding(20, 8), Attention(), layers.Flatten(), layers.Dense(3)]


class Attention(layers.Layer):
    def __init__(self):
        super().__init__()
        self.attention = layers.MultiHeadAttention(2, 4, dropout=0.1)
        self.norm = layers.LayerNormalization()
        self.moving = None

    def build(self, shape):
        self.moving = self.add_weight(shape=(shape[-1],), trainable=False)

    def call(self, x, training=False):
        if training:  # a statistic of its own
            self.moving.assign(0.9 * self.moving + 0.1 * keras.ops.mean(x, axis=(0, 1)))
        return self.norm(x + self.attention(x, x, training=training))


class Counted(layers.Layer):
    """With state of TensorFlow's own kinds."""

    def __init__(self):
        super().__init__()
        self.calls = tf.Variable(0, trainable=False)
        self.generator = tf.random.Generator.from_seed(1)
        self.table = tf.lookup.experimental.MutableHashTable(tf.int64, tf.float32, 0.0)

    def call(self, x):
        self.calls.assign_add(1)
        self.table.insert(tf.constant([1], tf.int64), tf.reduce_mean(x)[None])
        noise = self.generator.normal(tf.shape(x))
        tf.py_function(np.mean, [x], tf.float32)
        mean = self.table.lookup(tf.constant(1, tf.int64))
        return x + 0.01 * noise + tf.ensure_shape(mean, [])


def with_state():
    return [4], [layers.Dense(4), Counted(), layers.Dense(3)]


MODELS = {each.__name__: each for each in (convnet, recurrent, attention, with_state)}


def train(model, shape, guard):
    """Makes steps as tape loops do, with metrics, an average of the weights and data of tf.data."""
    guard.lock(model.trainable_variables)
    loss_of = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    metrics = [keras.metrics.SparseCategoricalAccuracy(), keras.metrics.Mean()]
    average = tf.train.ExponentialMovingAverage(0.9)
    trained = [variable.value for variable in model.trainable_variables]
    average.apply(trained)  # makes its variables
    seen = tf.Variable(0, dtype=tf.int64)
    data = tf.data.Dataset.range(12).map(lambda i: (seen.assign_add(1), i)[1])
    # Whole numbers, for embeddings; they are pixels too.
    data = data.map(lambda i: (tf.random.uniform(shape, 0, 20, tf.int32), i % 3)).batch(4)

    @tf.function
    def step(x, y):
        with tf.GradientTape() as tape:
            outputs = model(x, training=True)
            loss = loss_of(y, outputs)
        gradients = tape.gradient(loss, model.trainable_variables)
        norm = tf.linalg.global_norm([g for g in gradients if g is not None])
        metrics[0].update_state(y, outputs)
        metrics[1].update_state(loss)
        average.apply(trained)
        return loss, norm

    before = model.get_weights()
    for x, y in data:
        loss, norm = step(tf.cast(x, model.inputs[0].dtype), y)
        assert np.isfinite(loss)
        assert norm > 0
    assert seen.numpy() == 12
    for variable, value in zip(model.weights, before, strict=True):
        if variable.trainable:
            np.testing.assert_array_equal(variable, value)


@pytest.mark.parametrize("name", MODELS)
def test_a_model_trains(name, guard, capsys):
    shape, parts = MODELS[name]()
    train(keras.Sequential([keras.Input(shape), *parts]), shape, guard)
    assert "writes a copy" not in capsys.readouterr().err


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("MobileNetV3Small", marks=pytest.mark.long),
        pytest.param("ResNet50V2", marks=pytest.mark.long),
        pytest.param("DenseNet121", marks=pytest.mark.long),
        pytest.param("EfficientNetB0", marks=pytest.mark.long),
    ],
)
@pytest.mark.parametrize("guard", [False], indirect=True, ids=["error"])
def test_an_application_trains(name, guard):
    shape = [32, 32, 3]
    make = getattr(keras.applications, name)
    model = make(weights=None, input_shape=shape, classes=3, classifier_activation=None)
    train(model, shape, guard)


@pytest.mark.parametrize("jit_compile", [False, True])
def test_fit_evaluate_and_predict(jit_compile, guard):
    model = keras.Sequential([keras.Input([4]), layers.Dense(3), layers.BatchNormalization()])
    model.compile("sgd", "mse", jit_compile=jit_compile, metrics=["mae"])
    guard.lock(model.trainable_variables)
    x = np.ones([8, 4], np.float32)
    model.evaluate(x, x[:, :3], verbose=0)
    model.predict(x, verbose=0)
    layer = layers.Dense(3)
    other = keras.Sequential([keras.Input([3]), layer])
    other.compile(keras.optimizers.Adam(use_ema=True), "mse", jit_compile=jit_compile)
    before = layer.kernel.numpy()
    other.fit(model.predict(x, verbose=0), x[:, :3], verbose=0)
    assert (layer.kernel.numpy() != before).any()


def test_what_holds_a_thread_does_not_hold_the_others(guard):
    """The workers of a ``PyDataset`` and the replicas of ``MirroredStrategy`` are threads."""
    variable = tf.Variable(1.0)
    guard.lock([variable])
    over = threading.Event()

    def write(held):
        over.wait()
        held.assign(1.0)

    threads = [threading.Thread(target=write, args=[variable]), threading.Thread(target=over.wait)]
    for thread in threads:
        thread.start()
    mine = threads.pop()
    step = tf.function(lambda: tf.py_function(lambda: float(mine.is_alive()), [], tf.float32))
    try:
        assert step().numpy() == 1.0
    finally:
        over.set()


def test_python_that_reaches_a_mirrored_variable_is_refused_by_its_name(guard):
    with tf.distribute.MirroredStrategy(["CPU:0"]).scope():  # between replicas, as ``fit`` is
        variable = tf.Variable(1.0, name="mirrored")
        guard.lock([variable])
        with pytest.raises(LockError, match="rank 1 would write mirrored, which only the server"):
            tf.function(lambda: tf.py_function(lambda: variable.assign(2.0), [], tf.float32))()
