"""Trains by every option of Keras's optimizers, in every style: alone, and as a job.

All ranks have the same batches, so that the workers' gradients are alike, and so is their average:
the job must end with what the script alone ends with, on every rank.

options_script.py STRATEGY OPTION...
"""

import sys
import traceback

import keras
import numpy as np
import tensorflow as tf

import aggregathor as agt
from tests.mpi.results import leave

STEPS, BATCH = 6, 8
strategy_name, *option_names = sys.argv[1:]
if strategy_name == "two_replicas":
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
agt.init(gar="average", link_args={"timeout_s": 60.0})
rng = np.random.default_rng(0)
inputs = rng.standard_normal((STEPS * BATCH, 5), dtype=np.float32)
labels = rng.integers(0, 3, STEPS * BATCH)
weights = None
optimizers = keras.optimizers


def without_bias():
    optimizer = optimizers.AdamW(0.02, weight_decay=0.1)
    optimizer.exclude_from_weight_decay(var_names=["bias"])
    return optimizer


def small_scale():
    """A scale that grows within the test."""
    return optimizers.LossScaleOptimizer(
        optimizers.SGD(0.1, 0.9), initial_scale=4.0, dynamic_growth_steps=2
    )


OPTIONS = {
    "plain": lambda: optimizers.SGD(0.1, momentum=0.9),
    "adam": lambda: optimizers.Adam(0.02),
    "accumulation": lambda: optimizers.Adam(0.02, gradient_accumulation_steps=2),
    "ema": lambda: optimizers.SGD(0.1, use_ema=True, ema_momentum=0.5),
    "ema_overwrites": lambda: optimizers.SGD(
        0.1, use_ema=True, ema_momentum=0.5, ema_overwrite_frequency=2
    ),
    "ema_of_accumulated": lambda: optimizers.SGD(
        0.1, use_ema=True, ema_momentum=0.5, gradient_accumulation_steps=2
    ),
    "clipnorm": lambda: optimizers.SGD(0.1, clipnorm=0.1),
    "clipvalue": lambda: optimizers.SGD(0.1, clipvalue=0.01),
    "global_clipnorm": lambda: optimizers.SGD(0.1, global_clipnorm=0.1),
    "weight_decay": without_bias,
    "loss_scale_factor": lambda: optimizers.Adam(0.02, loss_scale_factor=128.0),
    "loss_scale": small_scale,
    "schedule": lambda: optimizers.SGD(optimizers.schedules.ExponentialDecay(0.2, 2, 0.5)),
    "callable": lambda: optimizers.SGD(lambda: 0.05),
    "mixed_float16": lambda: optimizers.Adam(0.02),
    "mixed_bfloat16": lambda: optimizers.Adam(0.02),
}


def make_strategy():
    if strategy_name in ("default", "xla"):
        return tf.distribute.get_strategy()
    if strategy_name == "one_device":
        return tf.distribute.OneDeviceStrategy("CPU:0")
    devices = ["CPU:0", "CPU:1"] if strategy_name == "two_replicas" else ["CPU:0"]
    return tf.distribute.MirroredStrategy(devices)


strategy = make_strategy()
REPLICAS = strategy.num_replicas_in_sync
loss_of = keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction="none")


def data():
    whole = tf.data.Dataset.from_tensor_slices((inputs, labels)).batch(BATCH, drop_remainder=True)
    return strategy.experimental_distribute_dataset(whole)


def step_of(model, optimizer):
    def step(x, y):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(loss_of(y, tf.cast(model(x, training=True), tf.float32))) / BATCH
            scaled = optimizer.scale_loss(loss)
        variables = model.trainable_variables
        optimizer.apply_gradients(zip(tape.gradient(scaled, variables), variables, strict=True))
        return loss

    return step


def in_fit(model, optimizer, **options):
    model.compile(
        optimizer,
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        auto_scale_loss=False,
        **options,
    )
    model.fit(inputs, labels, batch_size=BATCH, shuffle=False, verbose=0)


def compiled(model, optimizer):
    in_fit(model, optimizer, jit_compile=True)


def in_function(model, optimizer):
    step = step_of(model, optimizer)
    run = tf.function(lambda x, y: strategy.run(step, (x, y)))
    for x, y in data():
        run(x, y)
    optimizer.finalize_variable_values(model.trainable_variables)


def eagerly(model, optimizer):
    step = step_of(model, optimizer)
    for x, y in data():
        strategy.run(step, (x, y))
    optimizer.finalize_variable_values(model.trainable_variables)


def own_compiled(model, optimizer):
    run = tf.function(step_of(model, optimizer), jit_compile=True)
    for x, y in data():
        run(x, y)
    optimizer.finalize_variable_values(model.trainable_variables)


STYLES = {"fit": in_fit, "function": in_function, "eager": eagerly}
if strategy_name == "xla":
    STYLES = {"fit": compiled, "function": own_compiled}


def train(option, style, *, takes_part):
    global weights
    keras.config.set_dtype_policy(option if option.startswith("mixed") else "float32")
    with strategy.scope():
        # An average is of the variables before their constraint, which only the server has.
        constraint = None if option.startswith("ema") else "unit_norm"
        layers = [
            keras.layers.Dense(8, "tanh"),
            keras.layers.Dense(3, kernel_constraint=constraint),
        ]
        model = keras.Sequential([keras.Input([5]), *layers])
        optimizer = OPTIONS[option]()
        if option == "mixed_float16":
            optimizer = optimizers.LossScaleOptimizer(optimizer, initial_scale=64.0)
        optimizer.build(model.trainable_variables)
    weights = weights or [rng.standard_normal(w.shape) for w in model.get_weights()]
    model.set_weights(weights)
    if takes_part:
        agt.DistributedOptimizer(optimizer)
    STYLES[style](model, optimizer)
    end = model.get_weights()
    assert any((w != v).any() for w, v in zip(end, weights, strict=True))
    return [w.tolist() for w in end]


results = {}
for option in option_names or OPTIONS:
    for style in STYLES:
        try:
            found = {"alone": train(option, style, takes_part=False)}
        except Exception:
            results[f"{option} {style}"] = {"cannot": traceback.format_exc()[-600:]}
            continue
        found["job"] = train(option, style, takes_part=True)
        results[f"{option} {style}"] = found
leave(agt.rank(), results)
